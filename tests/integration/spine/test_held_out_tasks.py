"""The demonstration tasks through the whole server, against the real PEFT offline."""

import asyncio
import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adex import AsyncClient

ROOT = Path(__file__).resolve().parents[3]
STREAMS = 64
EXAMPLES = 12
NEW_TOKENS_MAX = 64
EXACT_MIN = 0.95


def _tasks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo_tasks", ROOT / "demo/tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@torch.inference_mode()
def _peft_offline(prompts: dict[str, list[str]]) -> dict[tuple[str, str], str]:
    """(adapter or "", prompt) -> text, greedy, one prompt at a time, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo/model")
    base = AutoModelForCausalLM.from_pretrained(ROOT / "demo/model", dtype=torch.float32).eval()
    names = sorted(name for name in prompts if name)
    first = ROOT / "demo/adapters" / names[0]
    model: Any = PeftModel.from_pretrained(base, first, adapter_name=names[0]).eval()
    for name in names[1:]:
        model.load_adapter(str(ROOT / "demo/adapters" / name), adapter_name=name)
    texts: dict[tuple[str, str], str] = {}
    for name in names:
        model.set_adapter(name)
        for prompt in prompts[name]:
            texts[name, prompt] = _greedy(model, tokenizer, prompt)
    with model.disable_adapter():
        for prompt in prompts[""]:
            texts["", prompt] = _greedy(model, tokenizer, prompt)
    return texts


def _greedy(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    options = {"max_new_tokens": NEW_TOKENS_MAX, "do_sample": False}
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


async def _served(url: str, prompts: dict[str, list[str]]) -> dict[tuple[str, str], str]:
    """The same pairs through the server, in random order, STREAMS at a time."""
    pairs = [(name, prompt) for name, listed in sorted(prompts.items()) for prompt in listed]
    random.Random(7).shuffle(pairs)
    gate = asyncio.Semaphore(STREAMS)
    texts: dict[tuple[str, str], str] = {}

    async with AsyncClient(url, timeout=120) as client:

        async def ask(name: str, prompt: str) -> None:
            async with gate:
                text = None
                async for event in client.generate_stream(
                    prompt, adapter_id=name or None, max_new_tokens=NEW_TOKENS_MAX
                ):
                    text = event.generated_text if event.generated_text is not None else text
                assert text is not None
                texts[name, prompt] = text

        await asyncio.gather(*(ask(name, prompt) for name, prompt in pairs))
    return texts


@pytest.mark.slow
def test_every_adapter_solves_its_task_in_one_mixed_batch_as_peft_does_alone(server: Any) -> None:
    tasks = _tasks()
    answers: dict[tuple[str, str], str] = {}
    prompts: dict[str, list[str]] = {"": []}
    for name, task in tasks.TASKS.items():
        examples = tasks.held_out(name, EXAMPLES, seed=11)
        prompts[task.adapter] = [each.prompt for each in examples]
        prompts[""].append(examples[0].prompt)
        answers |= {(task.adapter, each.prompt): each.answer for each in examples}

    expected = _peft_offline(prompts)
    served = asyncio.run(_served(server.url, prompts))

    for name in sorted(prompts):
        ours = [served[name, prompt] for prompt in prompts[name]]
        theirs = [expected[name, prompt] for prompt in prompts[name]]
        assert ours == theirs, f"adapter {name or 'none'}"
    exact = [served[pair].strip() == answer for pair, answer in answers.items()]
    assert sum(exact) >= EXACT_MIN * len(exact)
    assert not any(
        served["", prompt].strip() == answer
        for (_, prompt), answer in answers.items()
        if prompt in prompts[""]
    )
