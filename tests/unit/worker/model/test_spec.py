"""What a config.json means, and what is refused by name."""

from typing import Any

import pytest
from transformers import AutoConfig

from adex_kernels.layout import Module
from adex_proto.errors import ValidationError
from adex_worker.model.spec import ModelSpec, model_spec

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}


def spec_of(model_type: str = "llama", **keys: Any) -> ModelSpec:
    return model_spec(SMALL | {"model_type": model_type} | keys)


def refusal(model_type: str = "llama", **keys: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        spec_of(model_type, **keys)
    return caught.value


def test_an_unknown_architecture_is_refused_by_name_with_all_known_ones() -> None:
    error = refusal("mamba", architectures=["MambaForCausalLM"])
    assert "MambaForCausalLM" in error.message
    for architecture in FAMILIES.values():
        assert architecture in (error.remedy or "")


def test_an_unknown_model_type_without_architecture_is_refused_with_all_known_ones() -> None:
    error = refusal("mamba")
    assert "mamba" in error.message
    assert "LlamaForCausalLM" in (error.remedy or "")


def test_a_classifier_over_a_known_family_is_refused() -> None:
    assert refusal(architectures=["LlamaForSequenceClassification"]).field == "architectures"


def test_an_architecture_that_contradicts_the_model_type_is_refused() -> None:
    assert refusal("mistral", architectures=["LlamaForCausalLM"]).field == "model_type"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_keys_left_out_have_the_defaults_of_transformers(model_type: str) -> None:
    theirs = AutoConfig.for_model(model_type)
    ours = model_spec({"model_type": model_type, "architectures": [FAMILIES[model_type]]})
    assert ours.layers == theirs.num_hidden_layers
    assert ours.hidden == theirs.hidden_size
    assert ours.heads == theirs.num_attention_heads
    assert ours.kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (
        getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    )
    assert ours.intermediate == theirs.intermediate_size
    assert ours.vocabulary == theirs.vocab_size
    assert ours.positions_max == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tied_embeddings == theirs.tie_word_embeddings
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.rope.kind == "default"
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_ids == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_key_that_transformers_writes_is_read_or_known_to_be_idle(model_type: str) -> None:
    assert model_spec(AutoConfig.for_model(model_type).to_dict()).unread_keys == ()


def test_a_key_that_nobody_knows_is_reported() -> None:
    assert spec_of(frobnication=3).unread_keys == ("frobnication",)


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("llama", "quantization_config", {"quant_method": "gptq"}),
        ("llama", "hidden_act", "relu2"),
        ("llama", "attn_logit_softcapping", 50.0),
        ("llama", "sliding_window", 4096),
        ("llama", "num_local_experts", 8),
        ("llama", "partial_rotary_factor", 0.5),
        ("mistral", "attention_bias", True),
        ("mistral", "layer_types", ["full_attention"] * 4),
        ("qwen2", "mlp_bias", True),
        ("qwen2", "layer_types", ["full_attention"] * 3),
        ("qwen2", "layer_types", ["chunked_attention"] * 4),
        ("gemma", "use_bidirectional_attention", True),
        ("gemma", "hidden_activation", "gelu"),
        ("llama", "num_key_value_heads", 3),
        ("llama", "hidden_size", -1),
        ("llama", "torch_dtype", "float8_e4m3fn"),
    ],
)
def test_mathematics_that_is_not_served_is_refused_by_key(
    model_type: str, key: str, value: object
) -> None:
    error = refusal(model_type, **{key: value})
    assert error.field == key
    assert key in error.message


@pytest.mark.parametrize(
    ("rope", "field"),
    [
        ({"rope_type": "proportional", "factor": 2.0}, "rope_parameters.type"),
        ({"type": "linear"}, "rope_parameters.factor"),
        ({"type": "linear", "factor": 0}, "rope_parameters.factor"),
        ({"rope_type": "default", "mrope_section": [2, 3]}, "rope_parameters.mrope_section"),
        (
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1},
            "rope_parameters.high_freq_factor",
        ),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 7},
            "rope_parameters.long_factor",
        ),
    ],
)
def test_a_scaling_that_is_not_served_is_refused_by_key(rope: dict[str, Any], field: str) -> None:
    assert refusal(rope_scaling=rope).field == field


def test_both_spellings_of_the_rope_keys_mean_the_same() -> None:
    older = spec_of(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4.0})
    newer = spec_of(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5})
    assert older.rope == newer.rope


@pytest.mark.parametrize("name", ["su", "longrope", "yarn"])
def test_the_former_names_of_the_scaling_of_phi_are_understood(name: str) -> None:
    rope = {"type": name, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    spec = spec_of("phi3", rope_scaling=rope, original_max_position_embeddings=32)
    assert (spec.rope.kind, spec.rope.original_positions) == ("longrope", 32)
    assert spec.rope.attention_factor > 1


def test_stretched_models_serve_the_stretched_length() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert spec_of("qwen2", rope_scaling=yarn).positions_max == 512
    assert spec_of(rope_scaling={"type": "dynamic", "factor": 2.0}).positions_max == 256


def test_windows_follow_each_familys_own_rule() -> None:
    assert spec_of("mistral", sliding_window=9).windows == (9,) * 4
    assert spec_of("gemma2", sliding_window=9).windows == (9, None, 9, None)
    assert spec_of("qwen2", sliding_window=9).windows == (None,) * 4
    sliding = {"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 3}
    assert spec_of("qwen2", **sliding).windows == (None, None, None, 9)


@pytest.mark.parametrize(("field", "ids"), [(None, ()), (7, (7,)), ([7, 9], (7, 9))])
def test_end_of_sequence_ids_come_as_none_one_or_many(field: object, ids: tuple[int, ...]) -> None:
    assert spec_of(eos_token_id=field).eos_token_ids == ids


def test_the_shape_names_the_seven_linears_of_an_adapter() -> None:
    shape = spec_of("gemma", head_dim=32).shape
    sizes = {m.name: (shape.linear(m).in_features, shape.linear(m).out_features) for m in Module}
    assert sizes == {
        "Q": (64, 128),
        "K": (64, 64),
        "V": (64, 64),
        "O": (128, 64),
        "GATE": (64, 96),
        "UP": (64, 96),
        "DOWN": (96, 64),
    }
