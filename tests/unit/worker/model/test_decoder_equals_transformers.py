"""Every architecture and every scaling against transformers, in float32 on small random models."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adex_kernels.batch import AttentionBatch

LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 13.0],
}

CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-all-heads": {"model_type": "llama", "num_key_value_heads": 4},
    "llama-biased": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-head-dim": {"model_type": "llama", "head_dim": 16, "hidden_act": "gelu"},
    "llama-linear": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
    },
    "llama-dynamic-short": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0},
    },
    "llama-dynamic-long": {
        "model_type": "llama",
        "max_position_embeddings": 16,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0},
    },
    "llama-llama3": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama-yarn": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "llama-yarn-mscale": {
        "model_type": "llama",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "mscale": 0.7,
            "mscale_all_dim": 1.3,
            "beta_fast": 2.0,
            "beta_slow": 0.5,
            "truncate": False,
        },
    },
    "mistral-window": {"model_type": "mistral", "sliding_window": 7},
    "mistral-whole": {"model_type": "mistral", "sliding_window": None, "head_dim": 20},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "qwen3-window-biased": {
        "model_type": "qwen3",
        "head_dim": 16,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 9,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    "gemma": {"model_type": "gemma", "head_dim": 16, "num_key_value_heads": 1},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 6,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma2-uncapped": {
        "model_type": "gemma2",
        "head_dim": 16,
        "sliding_window": 6,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "phi3": {"model_type": "phi3"},
    "phi3-window-partial": {
        "model_type": "phi3",
        "sliding_window": 11,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.75},
    },
    "phi3-longrope-short": {
        "model_type": "phi3",
        "original_max_position_embeddings": 40,
        "rope_parameters": dict(LONGROPE),
    },
    "phi3-longrope-long": {
        "model_type": "phi3",
        "original_max_position_embeddings": 16,
        "rope_parameters": dict(LONGROPE),
    },
}

each_case = pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())


def sequences(*lens: int) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randint(3, 97, (n,)) for n in lens]


def assert_close(found: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < relative, f"relative error {error:.2e}"


@each_case
def test_a_prompt_in_one_go_has_the_logits_of_transformers(
    each_way: Callable[..., Any], config: dict[str, Any]
) -> None:
    both = each_way(config)
    (tokens,) = sequences(37)
    (found,) = both.answers([tokens], [[(0, 37)]])
    assert_close(found, both.expected(tokens))


@each_case
def test_a_prompt_in_odd_chunks_over_scattered_blocks_has_the_logits_of_transformers(
    each_way: Callable[..., Any], config: dict[str, Any]
) -> None:
    both = each_way(config)
    (tokens,) = sequences(37)
    steps = [[(0, n)] for n in (1, 3, 13, 1, 1, 7, 11)]
    (found,) = both.answers([tokens], steps, known_lens=[37])
    assert_close(found, both.expected(tokens))


@each_case
def test_chunks_mixed_with_decodes_of_other_sequences_have_the_logits_of_transformers(
    each_way: Callable[..., Any], config: dict[str, Any]
) -> None:
    both = each_way(config)
    tokens = sequences(9, 37, 14, 22)
    steps = [
        [(0, 5), (2, 6)],
        [(1, 10), (0, 1), (3, 1)],
        [(2, 1), (1, 17), (0, 1), (3, 9)],
        [(0, 1), (2, 1), (3, 1)],
        [(3, 3), (1, 9), (2, 6), (0, 1)],
        [(1, 1), (3, 8)],
    ]
    found = both.answers(tokens, steps, known_lens=[9, 37, 14, 22])
    for answer, sequence in zip(found, tokens, strict=True):
        assert_close(answer, both.expected(sequence))


# Between them biases, windows, norms of heads, caps and rotations of a part.
TRITON_CASES = ("llama-biased", "qwen3-window-biased", "gemma2", "phi3-window-partial")


@pytest.mark.parametrize("name", TRITON_CASES)
def test_steps_of_tritons_kernels_have_the_logits_of_transformers(
    pair: Callable[..., Any], triton_device: str, name: str
) -> None:
    both = pair(CASES[name], device=triton_device)
    tokens = sequences(13, 3)
    found = both.answers(tokens, [[(0, 12)], [(0, 1), (1, 3)]], known_lens=[13, 3])
    for answer, sequence in zip(found, tokens, strict=True):
        assert_close(answer, both.expected(sequence))


@pytest.mark.parametrize("window", [None, 150], ids=["whole", "window"])
def test_a_context_of_hundreds_of_tokens_has_the_logits_of_transformers(
    each_way: Callable[..., Any], window: int | None
) -> None:
    both = each_way({"model_type": "mistral", "sliding_window": window, "head_dim": 20})
    tokens = sequences(300, 131)
    steps = [[(0, 120), (1, 127)], [(0, 1), (1, 1)], [(0, 150), (1, 1)], [(1, 1), (0, 1)]]
    steps += [[(0, 28), (1, 1)]]
    found = both.answers(tokens, steps)
    for answer, sequence in zip(found, tokens, strict=True):
        assert_close(answer, both.expected(sequence), relative=3e-5)


@pytest.mark.parametrize("name", ["llama-dynamic-long", "phi3-longrope-long"])
def test_a_sequence_that_outgrows_the_original_length_decodes_as_transformers_does_with_a_cache(
    each_way: Callable[..., Any], name: str
) -> None:
    both = each_way(CASES[name])
    (tokens,) = sequences(24)
    (found,) = both.answers([tokens], [[(0, 12)], *[[(0, 1)]] * 12])
    cache, pieces = None, []
    with torch.no_grad():
        for piece in (tokens[:12], *tokens[12:].split(1)):
            answer = both.theirs(piece[None], past_key_values=cache, use_cache=True)
            cache = answer.past_key_values
            pieces.append(answer.logits[0])
    assert_close(found, torch.cat(pieces))


def test_only_the_rows_asked_for_have_logits(pair: Callable[..., Any]) -> None:
    both = pair(CASES["llama"])
    (tokens,) = sequences(10)
    from_all = both.answers([tokens], [[(0, 10)]])[0]
    kv = torch.zeros(both.ours.kv_shape(1, 16))
    batch = AttentionBatch.build([0, 10], [10], [[0]], 16)
    rows = torch.tensor([9, 3])
    found = both.ours.forward(tokens, torch.arange(10), kv, batch, None, rows)
    assert_close(found, from_all[rows], 1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "phi3-window-partial"])
def test_half_precision_stays_near_float32(pair: Callable[..., Any], name: str, dtype: str) -> None:
    both = pair(CASES[name], dtype)
    tokens = sequences(9, 20)
    steps = [[(0, 8), (1, 19)], [(0, 1), (1, 1)]]
    found = both.answers(tokens, steps)
    for answer, sequence in zip(found, tokens, strict=True):
        assert answer.dtype == torch.float32
        assert_close(answer, both.expected(sequence), 0.08 if dtype == "bfloat16" else 0.02)
