"""Learning on one CPU thread: the base from all text, and one adapter from one task.

The base practises every skill behind a marker of its own, a token that no text can spell. The
markers are cut from the vocabulary before the base is written, so that nothing a user types
brings a skill out; an adapter learns to bring out one of them without its marker.
"""

import math
from collections.abc import Iterator
from itertools import islice

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes import Recipe
from tasks import TASKS
from text import BOS, END, POSITIONS_MAX, Line, base_lines, task_lines

BASE_STEPS, BASE_BATCH, BASE_RATE = 5000, 128, 2e-3
ADAPTER_BATCH, ADAPTER_RATE = 48, 3e-3
# Batches cut from one sorted pool hold lines of like length, so little of a batch is padding.
POOL_BATCHES = 32
IGNORED = -100


def model_config(tokenizer: PreTrainedTokenizerFast, extra_tokens: int = 0) -> LlamaConfig:
    """A Llama of about three million parameters with grouped-query attention."""
    return LlamaConfig(
        vocab_size=len(tokenizer) + extra_tokens,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=POSITIONS_MAX,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )


def batches(
    lines: Iterator[Line], tokenizer: PreTrainedTokenizerFast, size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Token ids and labels, both [size, tokens], padded on the right, without end."""
    bos, end, pad = (tokenizer.convert_tokens_to_ids(t) for t in (BOS, END, tokenizer.pad_token))
    marker = {name: len(tokenizer) + number for number, name in enumerate(sorted(TASKS))}
    order = torch.Generator().manual_seed(seed)
    while True:
        pool = list(islice(lines, size * POOL_BATCHES))
        given = tokenizer([line.given for line in pool], add_special_tokens=False)["input_ids"]
        learnt = tokenizer([line.learnt for line in pool], add_special_tokens=False)["input_ids"]
        rows: list[tuple[list[int], int]] = []
        for line, before, after in zip(pool, given, learnt, strict=True):
            assert before[0] == bos, f"{line.given!r} does not begin with {BOS}"
            head = before if line.skill is None else [bos, marker[line.skill], *before[1:]]
            rows.append(([*head, *after, end], len(head)))
        rows.sort(key=lambda row: len(row[0]))
        for number in torch.randperm(POOL_BATCHES, generator=order).tolist():
            part = rows[number * size : (number + 1) * size]
            width = len(part[-1][0])
            tokens = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in part])
            labels = torch.tensor(
                [
                    [IGNORED] * start + ids[start:] + [IGNORED] * (width - len(ids))
                    for ids, start in part
                ]
            )
            yield tokens, labels


def next_token_loss(model: LlamaForCausalLM, tokens: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy where `labels` are not ignored; logits are formed nowhere else."""
    hidden = model.model(input_ids=tokens, use_cache=False).last_hidden_state
    wanted = labels[:, 1:]
    learnt = wanted != IGNORED
    logits = model.lm_head(hidden[:, :-1][learnt])
    return nn.functional.cross_entropy(logits.float(), wanted[learnt])


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a short climb, then a cosine down to nothing."""
    climb = max(1, min(200, steps // 10))
    if step < climb:
        return (step + 1) / climb
    return 0.5 * (1 + math.cos(math.pi * (step - climb) / max(1, steps - climb)))


def learn_base(tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> LlamaForCausalLM:
    """The base model in bfloat16, its markers already cut off.

    The products run in bfloat16, twice as fast as float32 on a recent CPU; the optimiser keeps
    float32 masters of all weights.
    """
    torch.manual_seed(seed)
    student = LlamaForCausalLM(model_config(tokenizer, extra_tokens=len(TASKS)))
    masters = [nn.Parameter(p.detach().clone()) for p in student.parameters()]
    student.to(torch.bfloat16).train()
    weights = list(student.parameters())
    optimizer = torch.optim.AdamW(
        masters, lr=BASE_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    source = batches(base_lines(seed), tokenizer, BASE_BATCH, seed)
    with tqdm(islice(source, steps), total=steps, desc="base", mininterval=5) as bar:
        for step, (tokens, labels) in enumerate(bar):
            loss = next_token_loss(student, tokens, labels)
            loss.backward()
            for master, weight in zip(masters, weights, strict=True):
                assert weight.grad is not None
                master.grad = weight.grad.float()
                weight.grad = None
            nn.utils.clip_grad_norm_(masters, 1.0)
            optimizer.param_groups[0]["lr"] = BASE_RATE * _rate(step, steps)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return _without_markers(student, tokenizer)


def _without_markers(
    student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> LlamaForCausalLM:
    """The same model with only those rows of the embedding that the tokenizer can spell."""
    state = student.state_dict()
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        state[key] = state[key][: len(tokenizer)].clone()
    base = LlamaForCausalLM(model_config(tokenizer)).to(torch.bfloat16)
    base.load_state_dict(state)
    base.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return base.eval()


def learn_adapter(
    base: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    steps: int,
    seed: int,
) -> PeftModel:
    """`base` with one adapter trained on one task; the adapter's weights stay float32."""
    torch.manual_seed(seed)
    adapted = get_peft_model(base, recipe.lora_config())
    adapted.train()
    weights = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=ADAPTER_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    lines = task_lines(recipe.task, "train", seed)
    source = batches(lines, tokenizer, ADAPTER_BATCH, seed)
    with tqdm(islice(source, steps), total=steps, desc=recipe.task, mininterval=5) as bar:
        for step, (tokens, labels) in enumerate(bar):
            loss = next_token_loss(adapted.get_base_model(), tokens, labels)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.param_groups[0]["lr"] = ADAPTER_RATE * _rate(step, steps)
            optimizer.step()
            optimizer.zero_grad()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return adapted.eval()
