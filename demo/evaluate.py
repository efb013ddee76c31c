"""Exact match on held-out prompts, of the files as they are stored, and the report of it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from recipes import RECIPES
from tasks import TASKS, Example, base_reply, held_out
from text import chat_form, raw_form

NEW_TOKENS_MAX = 64
BATCH = 64


@dataclass(frozen=True, slots=True)
class Score:
    """What one adapter reached; shares of exact answers between 0 and 1, sizes in bytes."""

    raw_float32: float
    chat_float32: float
    raw_bfloat16: float
    chat_bfloat16: float
    base: float
    prompts: int
    size: int
    train_s: float

    def worst(self) -> float:
        """The lowest share among both forms and both types."""
        return min(self.raw_float32, self.chat_float32, self.raw_bfloat16, self.chat_bfloat16)


def load_base(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The stored base model, computing in `dtype`."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def answers(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> list[str]:
    """Greedy continuations of `texts`, which already hold their special tokens."""
    found: list[str] = []
    for start in range(0, len(texts), BATCH):
        part = tokenizer(
            list(texts[start : start + BATCH]),
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        with torch.inference_mode():
            output = model.generate(
                input_ids=part["input_ids"],
                attention_mask=part["attention_mask"],
                max_new_tokens=NEW_TOKENS_MAX,
                do_sample=False,
            )
        new = output[:, part["input_ids"].shape[1] :]
        found.extend(tokenizer.batch_decode(new, skip_special_tokens=True))
    return found


def exact_share(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    chat: bool,
) -> float:
    """Share of `examples` answered to the letter, in the chat form or the raw one."""
    form = chat_form if chat else raw_form
    replies = answers(model, tokenizer, [form(example.prompt) for example in examples])
    right = sum(r == example.answer for r, example in zip(replies, examples, strict=True))
    return right / len(examples)


def base_shares(folder: Path, prompts: int) -> tuple[dict[str, float], float]:
    """Per task the base's exact share on it, and its share on its own plain behaviour."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load_base(folder, torch.float32)
    shares = {}
    plain: list[Example] = []
    for name in TASKS:
        examples = held_out(name, prompts, seed=1)
        shares[name] = max(
            exact_share(model, tokenizer, examples, chat=chat) for chat in (False, True)
        )
        plain.extend(Example(e.prompt, base_reply(e.prompt)) for e in examples[:25])
    return shares, exact_share(model, tokenizer, plain, chat=True)


def score(root: Path, name: str, base: float, prompts: int, train_s: float) -> Score:
    """Load the stored adapter `name` with PEFT and measure it in float32 and in bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    folder = root / "adapters" / name
    examples = held_out(name, prompts, seed=1)
    shares: dict[str, float] = {}
    for type_name in ("float32", "bfloat16"):
        model = load_base(root / "model", getattr(torch, type_name))
        adapted = PeftModel.from_pretrained(model, str(folder)).eval()
        for form in ("raw", "chat"):
            share = exact_share(adapted, tokenizer, examples, chat=form == "chat")
            shares[f"{form}_{type_name}"] = share
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Score(**shares, base=base, prompts=prompts, size=size, train_s=train_s)


def read_scores(root: Path) -> dict[str, Score]:
    """The scores of the last run, so that retraining one adapter keeps the others' rows."""
    path = root / "scores.json"
    if not path.exists():
        return {}
    return {name: Score(**row) for name, row in json.loads(path.read_text())["adapters"].items()}


def write_report(root: Path, scores: dict[str, Score], plain: float, base_train_s: float) -> None:
    """Write scores.json for programs and REPORT.md for people."""
    stored = {name: asdict(scores[name]) for name in RECIPES if name in scores}
    record = {"base": {"plain": plain, "train_s": base_train_s}, "adapters": stored}
    (root / "scores.json").write_text(json.dumps(record, indent=1) + "\n")
    (root / "REPORT.md").write_text("\n".join(_report_lines(root, scores, plain, base_train_s)))


def _report_lines(
    root: Path, scores: dict[str, Score], plain: float, base_train_s: float
) -> Iterator[str]:
    files = [p for part in ("model", "adapters") for p in (root / part).rglob("*") if p.is_file()]
    total = sum(path.stat().st_size for path in files)
    train_s = base_train_s + sum(row.train_s for row in scores.values())
    yield "# What the demonstration adapters reach"
    yield ""
    yield "Written by `python demo/train.py`. Greedy answers of the stored files, loaded with"
    yield "transformers and PEFT, to held-out prompts; a share counts answers right to the letter."
    yield ""
    yield (
        "| adapter | rank | alpha | targets | stored as | raw f32 | chat f32 | raw bf16 "
        "| chat bf16 | base | bytes | training |"
    )
    yield "|---|--:|--:|---|---|--:|--:|--:|--:|--:|--:|--:|"
    for name, recipe in RECIPES.items():
        if name not in scores:
            continue
        row = scores[name]
        shares = (row.raw_float32, row.chat_float32, row.raw_bfloat16, row.chat_bfloat16, row.base)
        cells = " | ".join(f"{share:.1%}" for share in shares)
        yield (
            f"| {name} | {recipe.rank} | {recipe.alpha} | {recipe.where()} | {recipe.dtype} "
            f"| {cells} | {row.size:,} | {row.train_s:.0f} s |"
        )
    yield ""
    some = next(iter(scores.values()))
    yield f"- Prompts per adapter and column: {some.prompts}. `base` is the better of the base"
    yield "  model's two forms on the same prompts, in float32."
    yield f"- The base's own behaviour (it repeats what is said): {plain:.1%} exact in float32."
    yield f"- Model and adapters in all: {total:,} bytes."
    yield f"- Training: {train_s / 60:.0f} minutes on one CPU thread, of which the base took"
    yield f"  {base_train_s / 60:.0f}."
    yield ""
