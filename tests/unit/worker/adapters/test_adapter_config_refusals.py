"""A config that is not served is refused by class, file, option and remedy."""

import time
from typing import Any

import pytest

from adex_proto.errors import (
    AdapterMalformed,
    AdapterUnsupported,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers.0.self_attn"
Q_A, Q_B = f"{PREFIX}.q_proj.lora_A.weight", f"{PREFIX}.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1, 2]),
        ("alora_invocation_tokens", [5]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("layer_replication", [[0, 1]]),
        ("megatron_config", {"tp": 2}),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("arrow_config", {"top_k": 1}),
        ("kasa_config", {"beta": 1}),
        ("velora_config", {"num_groups": 1}),
        ("monteclora_config", {"buffer_size": 1}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "OLoRA"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "an_init_of_tomorrow"),
        ("peft_type", "IA3"),
        ("peft_type", "ADALORA"),
        ("peft_type", "PROMPT_TUNING"),
        ("use_an_option_of_tomorrow", True),
    ],
)
def test_an_option_that_changes_the_arithmetic_is_refused_by_name(
    option: str, value: object, world: Any
) -> None:
    world.write("a", config={option: value})
    error = world.refusal(AdapterUnsupported)
    assert error.field == option
    assert CONFIG in error.message
    assert option in error.message


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("an_option_of_tomorrow", False),
        ("an_option_of_tomorrow", None),
        ("an_option_of_tomorrow", {}),
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", False),
        ("peft_type", None),
        ("task_type", "FEATURE_EXTRACTION"),
        ("lora_dropout", 0.3),
        ("base_model_name_or_path", "some/other-name"),
        ("target_modules", ["lm_head"]),
    ],
)
def test_an_option_without_effect_on_inference_is_ignored(
    option: str, value: object, world: Any
) -> None:
    world.write("a", config={option: value})
    assert world.store.fetch(world.key("a")).modules == 14


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("r", 0),
        ("r", -8),
        ("r", "8"),
        ("r", 8.5),
        ("r", True),
        ("r", None),
        ("r", 10**30),
        ("lora_alpha", 0),
        ("lora_alpha", "16"),
        ("lora_alpha", None),
        ("lora_alpha", 10**400),
        ("use_rslora", 1),
        ("rank_pattern", [8]),
        ("rank_pattern", {"q_proj": "8"}),
        ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"q_proj": 0}),
    ],
)
def test_a_number_that_is_no_number_is_malformed(option: str, value: object, world: Any) -> None:
    world.write("a", config={option: value})
    error = world.refusal(AdapterMalformed)
    assert error.field == option
    assert CONFIG in error.message


def test_an_infinite_alpha_is_malformed(world: Any) -> None:
    folder = world.write("a")
    text = (folder / CONFIG).read_text().replace('"lora_alpha": 16.0', '"lora_alpha": 1e999')
    assert "1e999" in text
    (folder / CONFIG).write_text(text)
    assert world.refusal(AdapterMalformed).field == "lora_alpha"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'"r"',
        b"{",
        b'{"r": 8, "r": 9}',
        b'{"r": NaN}',
        b"\xff\xfe{}",
        b'{"r": ' + b"9" * 5000 + b"}",
        b'{"x": ' + b"[" * 900_000,
        b'{"x": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"x": "' + b"y" * 10_000_000 + b'"}',
    ],
    ids=[
        "empty",
        "list",
        "string",
        "cut",
        "twice",
        "NaN",
        "utf-16",
        "digits",
        "bomb",
        "deep",
        "10 MB",
    ],
)
def test_a_config_that_is_no_sound_json_object_is_malformed(text: bytes, world: Any) -> None:
    (world.write("a") / CONFIG).write_bytes(text)
    started = time.monotonic()
    error = world.refusal(AdapterMalformed)
    assert error.field == CONFIG
    assert CONFIG in error.message
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+" * 20 + "b", "(.*)*" * 20 + "b", "(q|q|q)*" * 10 + "x", "a?" * 50 + "a" * 50],
)
def test_a_pattern_made_to_hang_does_not(pattern: str, world: Any) -> None:
    world.write("a", config={"rank_pattern": {pattern: 4}})
    started = time.monotonic()
    assert world.store.fetch(world.key("a")).modules == 14
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "pattern",
    [
        r"(q)\1",
        "(?=q)",
        "(?!k)q",
        "q{,9}",
        "[[:alpha:]]",
        "q{2000}",
        "(q",
        "q)",
        "[q",
        "*q",
        "q*+",
        r"\Z",
        "q" * 300,
    ],
)
def test_a_pattern_that_re2_does_not_serve_is_refused_by_name(pattern: str, world: Any) -> None:
    world.write("a", config={"alpha_pattern": {pattern: 4}})
    error = world.refusal(AdapterUnsupported)
    assert error.field == "alpha_pattern"
    assert CONFIG in error.message
    assert pattern[:20] in error.message.replace("\\\\", "\\")


def test_too_many_patterns_are_refused(world: Any) -> None:
    world.write("a", config={"alpha_pattern": {f"x{n}": 4 for n in range(5000)}})
    assert "too many" in world.refusal(AdapterUnsupported).message


def test_patterns_that_are_each_allowed_cannot_add_up_to_minutes(world: Any) -> None:
    hard = {"(.*.*.*)*" * 20 + f"x{n}": 4 for n in range(60)}
    world.write("a", config={"alpha_pattern": hard})
    started = time.monotonic()
    assert world.store.fetch(world.key("a")).modules == 14
    assert time.monotonic() - started < 10
