"""transformers with PEFT's mixed batch (`adapter_names=`) as a process of its own.

It reads one JSON line per round from stdin, {"streams", "adapters", "prompts", "new_tokens"}, and
answers with one JSON line: {"wall_s", "tokens", "first_s", "gaps_s"}.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

BASE = "__base__"


class _Clock(LogitsProcessor):
    """Notes when each step's logits were there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return scores


def _load(model_dir: str, adapter_root: str, names: list[str], dtype: str) -> Any:
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype)).eval()
    if not names:
        return base
    root = Path(adapter_root)
    cast = {"autocast_adapter_dtype": False}
    model = PeftModel.from_pretrained(base, root / names[0], adapter_name=names[0], **cast)
    for name in names[1:]:
        model.load_adapter(str(root / name), adapter_name=name, **cast)
    return model.eval()


@torch.inference_mode()
def _round(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    ids = torch.tensor(job["prompts"])
    clock = _Clock()
    options: dict[str, Any] = {
        "max_new_tokens": job["new_tokens"],
        "min_new_tokens": job["new_tokens"],
        "do_sample": False,
        "pad_token_id": 1,
        "logits_processor": LogitsProcessorList([clock]),
    }
    if hasattr(model, "peft_config"):
        options["adapter_names"] = [name or BASE for name in job["adapters"]]
    start = time.perf_counter()
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    wall = time.perf_counter() - start
    gaps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    tokens = job["new_tokens"] * len(ids)
    return {"wall_s": wall, "tokens": tokens, "first_s": [clock.times[0] - start], "gaps_s": gaps}


def main() -> None:
    """Load everything named on the command line, then serve rounds until stdin ends."""
    model_dir, adapter_root, dtype, *names = sys.argv[1:]
    model = _load(model_dir, adapter_root, names, dtype)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_round(model, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
