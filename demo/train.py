"""Make the demonstration model and its adapters from nothing: `python demo/train.py`.

Text, tokenizer, base model, adapters, and a report of what each reaches on held-out prompts.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from evaluate import Score, base_shares, load_base, read_scores, score, write_report
from learn import BASE_STEPS, learn_adapter, learn_base
from recipes import BASE_NAME, RECIPES, Recipe
from text import train_tokenizer

log = logging.getLogger("demo")
SHARE_WANTED = 0.95


def make_base(root: Path, effort: float, seed: int) -> float:
    """Train the tokenizer and the base, write both; return the seconds it took."""
    started = time.monotonic()
    tokenizer = train_tokenizer(seed)
    steps = max(1, round(BASE_STEPS * effort))
    log.info("base: %d tokens in the vocabulary, %d steps", len(tokenizer), steps)
    base = learn_base(tokenizer, steps, seed)
    folder = root / "model"
    shutil.rmtree(folder, ignore_errors=True)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The name every version of transformers knows; the newest one writes another.
    _rewrite(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    _make_readable(folder)
    return time.monotonic() - started


def make_adapter(
    root: Path, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, effort: float, seed: int
) -> float:
    """Train one adapter on the stored base and write it; return the seconds it took."""
    started = time.monotonic()
    base = load_base(root / "model", torch.bfloat16)
    base.set_attn_implementation("eager")
    steps = max(1, round(recipe.steps * effort))
    adapted = learn_adapter(base, tokenizer, recipe, steps, seed)
    dtype = getattr(torch, recipe.dtype)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(dtype)
    adapted.peft_config["default"].base_model_name_or_path = BASE_NAME
    folder = root / "adapters" / recipe.task
    shutil.rmtree(folder, ignore_errors=True)
    # Nothing was added to the vocabulary; saying so spares PEFT a question to the Hub.
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    # PEFT keeps the targets in a set, whose order differs from run to run.
    _rewrite(folder / "adapter_config.json", target_modules=list(recipe.targets))
    _make_readable(folder)
    return time.monotonic() - started


def _rewrite(path: Path, **changes: object) -> None:
    """Change some fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=2) + "\n")


def _make_readable(folder: Path) -> None:
    """safetensors writes files that only their owner may read; a served file is for others too."""
    for path in folder.iterdir():
        path.chmod(0o644)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; every option has a default that makes everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=sorted(RECIPES), help="retrain this adapter alone")
    parser.add_argument("--keep-base", action="store_true", help="train adapters, not the base")
    parser.add_argument("--effort", type=float, default=1.0, help="share of all steps to take")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; 1 repeats exactly")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Make what was asked for; 1 when an adapter stays below the wanted share."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    root: Path = options.out
    scores: dict[str, Score] = read_scores(root)
    if options.only or options.keep_base:
        base_train_s = json.loads((root / "scores.json").read_text())["base"]["train_s"]
    else:
        base_train_s = make_base(root, options.effort, options.seed)
        scores = {}
    shares, plain = base_shares(root / "model", options.prompts)
    log.info("base: %.1f %% on its own behaviour", 100 * plain)
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    for name in [options.only] if options.only else list(RECIPES):
        train_s = make_adapter(root, tokenizer, RECIPES[name], options.effort, options.seed)
        scores[name] = score(root, name, shares[name], options.prompts, train_s)
        log.info("%s: %.1f %% at worst", name, 100 * scores[name].worst())
        write_report(root, scores, plain, base_train_s)
    weak = [name for name, row in scores.items() if row.worst() < SHARE_WANTED]
    if weak:
        log.error("below %.0f %%: %s", 100 * SHARE_WANTED, ", ".join(weak))
    return 1 if weak else 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main(sys.argv[1:]))
