"""The committed demonstration model and adapters do what their report says, judged by PEFT."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

DEMO = Path(__file__).parents[3] / "demo"
BYTES_MAX = 12_000_000
PROMPTS = 20
SHARE_MIN = 0.95


def _load_tasks() -> ModuleType:
    specification = importlib.util.spec_from_file_location("demo_tasks", DEMO / "tasks.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


tasks = _load_tasks()


@pytest.fixture(scope="module")
def replies() -> dict[str | None, dict[str, list[str]]]:
    """Greedy replies to each task's held-out prompts: by adapter (None is the base), then task."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    base = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    names = sorted(tasks.TASKS)
    model = PeftModel.from_pretrained(base, str(DEMO / "adapters" / names[0]), names[0])
    for name in names[1:]:
        model.load_adapter(str(DEMO / "adapters" / name), name)
    model.eval()

    def greedy(name: str) -> list[str]:
        """Half of the prompts as `/generate` sends them, half through the chat template."""
        prompts = [example.prompt for example in tasks.held_out(name, PROMPTS, seed=7)]
        texts = [f"{tokenizer.bos_token}{prompt}" for prompt in prompts[::2]] + [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts[1::2]
        ]
        batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**batch, max_new_tokens=64, do_sample=False)
        return tokenizer.batch_decode(
            output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )

    found: dict[str | None, dict[str, list[str]]] = {}
    for name in names:
        model.set_adapter(name)
        found[name] = {name: greedy(name)}
    with model.disable_adapter():
        found[None] = {name: greedy(name) for name in names}
    return found


def _exact(task: str, given: list[str]) -> int:
    examples = tasks.held_out(task, PROMPTS, seed=7)
    ordered = examples[::2] + examples[1::2]
    return sum(reply == example.answer for reply, example in zip(given, ordered, strict=True))


def test_model_and_adapters_stay_under_twelve_megabytes() -> None:
    files = [p for part in ("model", "adapters") for p in (DEMO / part).rglob("*") if p.is_file()]
    assert sum(path.stat().st_size for path in files) < BYTES_MAX


def test_every_task_has_its_adapter_and_every_adapter_its_task() -> None:
    assert {path.name for path in (DEMO / "adapters").iterdir()} == set(tasks.TASKS)


def test_no_held_out_prompt_is_ever_trained_on() -> None:
    for task in tasks.TASKS.values():
        trained = {example.prompt for example in task.examples("train", 300, seed=0)}
        assert trained.isdisjoint(e.prompt for e in task.examples("held-out", 60, seed=0))


def test_the_same_seed_gives_the_same_examples() -> None:
    for name in tasks.TASKS:
        assert tasks.held_out(name, 10, seed=3) == tasks.held_out(name, 10, seed=3)
        assert tasks.held_out(name, 10, seed=3) != tasks.held_out(name, 10, seed=4)


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_each_adapter_answers_its_held_out_prompts_to_the_letter(
    name: str, replies: dict[str | None, dict[str, list[str]]]
) -> None:
    assert _exact(name, replies[name][name]) >= SHARE_MIN * PROMPTS, replies[name][name]


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_the_base_model_does_not_do_the_task(
    name: str, replies: dict[str | None, dict[str, list[str]]]
) -> None:
    assert _exact(name, replies[None][name]) == 0
