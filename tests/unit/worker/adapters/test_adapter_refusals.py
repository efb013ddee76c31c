"""Every adapter that is not served is refused by class, file, key and remedy."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adex_kernels.layout import Module
from adex_proto.errors import (
    AdapterMalformed,
    AdapterMismatch,
    AdapterTooLarge,
    AdapterUnsupported,
    AdexError,
    RankTooLarge,
)
from adex_worker.testing import tiny_config, tiny_shape, write_random_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers.0.self_attn"
Q_A, Q_B = f"{PREFIX}.q_proj.lora_A.weight", f"{PREFIX}.q_proj.lora_B.weight"


def write(folder: Path, **arguments: Any) -> Path:
    return write_random_adapter(folder, tiny_shape(tiny_config()), **arguments)


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


def refusal(world: Any, kind: type[AdexError], name: str = "a") -> AdexError:
    """The refusal to fetch the adapter; it names a field and a remedy, and leaves no bundle."""
    with pytest.raises(AdexError) as caught:
        world.store.fetch(world.key(name))
    error = caught.value
    assert type(error) is kind, repr(error)
    assert error.field
    assert error.remedy
    assert world.bundles == []
    return error


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
    write(world.root / "a", config={option: value})
    error = refusal(world, AdapterUnsupported)
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
    write(world.root / "a", config={option: value})
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
    write(world.root / "a", config={option: value})
    error = refusal(world, AdapterMalformed)
    assert error.field == option
    assert CONFIG in error.message


def test_an_infinite_alpha_is_malformed(world: Any) -> None:
    folder = write(world.root / "a")
    text = (folder / CONFIG).read_text().replace('"lora_alpha": 16.0', '"lora_alpha": 1e999')
    assert "1e999" in text
    (folder / CONFIG).write_text(text)
    assert refusal(world, AdapterMalformed).field == "lora_alpha"


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
    (write(world.root / "a") / CONFIG).write_bytes(text)
    started = time.monotonic()
    error = refusal(world, AdapterMalformed)
    assert error.field == CONFIG
    assert CONFIG in error.message
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+" * 20 + "b", "(.*)*" * 20 + "b", "(q|q|q)*" * 10 + "x", "a?" * 50 + "a" * 50],
)
def test_a_pattern_made_to_hang_does_not(pattern: str, world: Any) -> None:
    write(world.root / "a", config={"rank_pattern": {pattern: 4}})
    started = time.monotonic()
    assert world.store.fetch(world.key("a")).modules == 14
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "pattern",
    [
        r"(q)\1",
        "(?=q)",
        "(?P<n>q)",
        "q{2,9}",
        "q*?",
        "(q",
        "q)",
        "[q",
        "*q",
        "a**",
        r"\x41",
        "(?i)q",
        "q" * 300,
        "(" * 100 + ")" * 100,
    ],
)
def test_a_pattern_outside_the_grammar_is_refused_by_name(pattern: str, world: Any) -> None:
    write(world.root / "a", config={"alpha_pattern": {pattern: 4}})
    error = refusal(world, AdapterUnsupported)
    assert error.field == "alpha_pattern"
    assert CONFIG in error.message
    assert pattern[:20] in error.message.replace("\\\\", "\\")


@pytest.mark.parametrize(
    "patterns",
    [{f"x{n}": 4 for n in range(5000)}, {f"x+{n}": 4 for n in range(65)}],
    ids=["plain", "rich"],
)
def test_too_many_patterns_are_refused(patterns: dict[str, int], world: Any) -> None:
    write(world.root / "a", config={"alpha_pattern": patterns})
    assert "too many" in refusal(world, AdapterUnsupported).message


def test_patterns_that_are_each_allowed_cannot_add_up_to_minutes(world: Any) -> None:
    hard = {"(.*.*.*)*" * 20 + f"x{n}": 4 for n in range(60)}
    write(world.root / "a", config={"alpha_pattern": hard})
    started = time.monotonic()
    assert world.store.fetch(world.key("a")).modules == 14
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("base_model.model.lm_head.lora_A.weight", (8, 64), AdapterUnsupported),
        ("base_model.model.model.embed_tokens.lora_embedding_A", (8, 256), AdapterUnsupported),
        ("base_model.model.lm_head.weight", (256, 64), AdapterUnsupported),
        (f"{PREFIX}.q_proj.lora_magnitude_vector", (64,), AdapterUnsupported),
        (f"{PREFIX}.q_proj.lora_B.bias", (64,), AdapterUnsupported),
        (f"{PREFIX}.q_proj.base_layer.bias", (64,), AdapterUnsupported),
        (f"{PREFIX}.q_proj.lora_a", (64, 8), AdapterUnsupported),
        (f"{PREFIX}.q_proj.lora_E", (8, 1), AdapterUnsupported),
        (f"{PREFIX}.q_proj.something", (8, 1), AdapterUnsupported),
        (
            "base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight",
            (8, 64),
            AdapterUnsupported,
        ),
        (f"{PREFIX}.dense.lora_A.weight", (8, 64), AdapterMismatch),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", (8, 64), AdapterMismatch),
        (
            "base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight",
            (8, 64),
            AdapterMismatch,
        ),
        (f"{PREFIX}.q proj.lora_A.weight", (8, 64), AdapterMalformed),
        ("x" * 600, (8, 64), AdapterMalformed),
        ("", (8, 64), AdapterMalformed),
    ],
)
def test_a_tensor_that_cannot_be_applied_fails_the_load_by_name(
    name: str, shape: tuple[int, ...], kind: type[AdexError], world: Any
) -> None:
    folder = write(world.root / "a")
    change_tensors(folder, lambda tensors: tensors | {name: torch.ones(shape)})
    error = refusal(world, kind)
    assert WEIGHTS in error.message
    assert name[:100] in error.message


@pytest.mark.parametrize("missing", [Q_A, Q_B])
def test_half_a_pair_is_malformed(missing: str, world: Any) -> None:
    folder = write(world.root / "a")
    change_tensors(folder, lambda ts: {k: v for k, v in ts.items() if k != missing})
    error = refusal(world, AdapterMalformed)
    assert error.field == (Q_B if missing == Q_A else Q_A)


def test_two_names_for_one_matrix_are_malformed(world: Any) -> None:
    folder = write(world.root / "a")
    twin = Q_A.replace("lora_A.weight", "lora_A.default.weight")
    change_tensors(folder, lambda ts: ts | {twin: ts[Q_A].clone()})
    error = refusal(world, AdapterMalformed)
    assert Q_A in error.message
    assert twin in error.message


def test_a_fused_and_a_split_adapter_of_one_module_are_malformed(world: Any) -> None:
    folder = write(world.root / "a", rank=8)
    fused = {
        f"{PREFIX}.qkv_proj.lora_A.weight": torch.ones(8, 64),
        f"{PREFIX}.qkv_proj.lora_B.weight": torch.ones(128, 8),
    }
    change_tensors(folder, lambda ts: ts | fused)
    error = refusal(world, AdapterMalformed)
    assert "both change Q of layer 0" in error.message


def test_an_adapter_without_tensors_would_answer_as_the_base_and_is_refused(world: Any) -> None:
    folder = write(world.root / "a")
    change_tensors(folder, lambda ts: ts.clear())
    assert "changes no module" in refusal(world, AdapterMalformed).message


def test_a_layer_the_base_lacks_is_a_mismatch_with_both_numbers(world: Any) -> None:
    folder = write(world.root / "a")
    moved = {".layers.0.": ".layers.7."}
    change_tensors(
        folder, lambda ts: {k.replace(".layers.0.", moved[".layers.0."]): v for k, v in ts.items()}
    )
    error = refusal(world, AdapterMismatch)
    assert "layer 7" in error.message
    assert "2 layers" in error.message


@pytest.mark.parametrize(
    ("tensor", "shape", "expected"),
    [(Q_A, (8, 128), "[8, 64]"), (Q_B, (96, 8), "[64, 8]")],
)
def test_another_base_shape_is_a_mismatch_with_both_shapes(
    tensor: str, shape: tuple[int, int], expected: str, world: Any
) -> None:
    folder = write(world.root / "a", rank=8)
    change_tensors(folder, lambda ts: ts | {tensor: torch.ones(shape)})
    error = refusal(world, AdapterMismatch)
    assert error.field == tensor
    assert str(list(shape)) in error.message
    assert expected in error.message


def test_a_rank_the_config_does_not_declare_is_malformed(world: Any) -> None:
    write(world.root / "a", rank=8, config={"r": 4})
    error = refusal(world, AdapterMalformed)
    assert "rank 4" in error.message
    assert "has shape [8, " in error.message


@pytest.mark.parametrize("declared", [65, 10**6])
def test_a_declared_rank_over_the_limit_is_refused_with_both_numbers(
    declared: int, world: Any
) -> None:
    write(world.root / "a", rank=8, config={"r": declared})
    error = refusal(world, RankTooLarge)
    assert str(declared) in error.message
    assert "64" in error.message
    assert "--rank-max" in str(error.remedy)


def test_the_rank_limit_itself_is_served(make_world: Any) -> None:
    world = make_world(rank_max=16)
    write(world.root / "a", rank=16)
    assert world.store.fetch(world.key("a")).rank_max == 16
    write(world.root / "b", rank=17)
    with pytest.raises(RankTooLarge):
        world.store.fetch(world.key("b"))


@pytest.mark.parametrize("tier", ["host_bytes", "disk_bytes", "pages"])
def test_a_bundle_no_budget_can_hold_is_too_large(tier: str, make_world: Any) -> None:
    small = {"host_bytes": 20_000, "disk_bytes": 20_000, "pages": 2}
    world = make_world(**{tier: small[tier]})
    write(world.root / "a", rank=8)
    error = refusal(world, AdapterTooLarge)
    assert "59392" in error.message
    assert "memory" in str(error.remedy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tensor", [Q_A, Q_B])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused_naming_the_tensor(
    value: float, tensor: str, dtype: torch.dtype, world: Any
) -> None:
    folder = write(world.root / "a", dtype=dtype)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[tensor][3, 2] = value

    change_tensors(folder, spoil)
    error = refusal(world, AdapterMalformed)
    assert error.field == tensor
    assert "NaN or infinity" in error.message


@pytest.mark.parametrize("tensor", [Q_A, Q_B])
def test_what_overflows_half_precision_is_refused_with_the_remedy(
    tensor: str, make_world: Any
) -> None:
    world = make_world(dtype=torch.float16)
    folder = write(world.root / "a", rank=8, alpha=80.0)

    def raise_one(tensors: dict[str, torch.Tensor]) -> None:
        # Times the scale of 10, B leaves the range of float16; A leaves it by itself.
        tensors[tensor][3, 2] = 1e5 if tensor == Q_A else 1e4

    change_tensors(folder, raise_one)
    error = refusal(world, AdapterUnsupported)
    assert error.field == tensor
    assert "float16" in error.message
    assert "bfloat16" in str(error.remedy)


def test_a_pickle_is_refused_with_the_conversion(world: Any) -> None:
    folder = write(world.root / "a")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    error = refusal(world, AdapterUnsupported)
    assert error.field == "adapter_model.bin"
    assert "save_file" in str(error.remedy)


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(missing: str, world: Any) -> None:
    (write(world.root / "a") / missing).unlink()
    error = refusal(world, AdapterMalformed)
    assert error.field == missing


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    raw = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_header(folder: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    declared = len(header) if length is None else length
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", declared) + header + data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: raw[: len(raw) // 2], "truncated"),
        (lambda raw: raw[:100], "truncated"),
        (lambda raw: raw[:5], "too few"),
        (lambda raw: b"", "too few"),
        (lambda raw: raw + b"\0", "no tensor claims"),
        (lambda raw: struct.pack("<Q", 1 << 40) + raw[8:], "limit"),
        (lambda raw: struct.pack("<Q", 1 << 24) + raw[8:], "truncated"),
        (lambda raw: struct.pack("<Q", 3) + raw[8:], "JSON"),
    ],
)
def test_a_damaged_file_is_malformed(
    change: Callable[[bytes], bytes], words: str, world: Any
) -> None:
    folder = write(world.root / "a")
    (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))
    error = refusal(world, AdapterMalformed)
    assert words in error.message
    assert WEIGHTS in error.message


def entry(**replaced: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | replaced


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (entry(shape=[2, 3]), AdapterMalformed),
        (entry(shape=[4]), AdapterMalformed),
        (entry(shape=[1, 2, 2]), AdapterMalformed),
        (entry(shape=[-2, -2]), AdapterMalformed),
        (entry(shape=[2.0, 2]), AdapterMalformed),
        (entry(shape="2,2"), AdapterMalformed),
        (entry(shape=[10**30, 10**30]), AdapterMalformed),
        (entry(data_offsets=[16, 0]), AdapterMalformed),
        (entry(data_offsets=[8, 24]), AdapterMalformed),
        (entry(data_offsets=[0]), AdapterMalformed),
        (entry(data_offsets=None), AdapterMalformed),
        (entry(extra=1), AdapterMalformed),
        ([], AdapterMalformed),
        (entry(dtype="F64"), AdapterUnsupported),
        (entry(dtype="I32"), AdapterUnsupported),
        (entry(dtype=["F32"]), AdapterMalformed),
    ],
)
def test_a_header_entry_that_lies_is_refused_naming_the_tensor(
    value: object, kind: type[AdexError], world: Any
) -> None:
    folder = write(world.root / "a")
    write_header(folder, json.dumps({Q_A: value}).encode(), bytes(16))
    error = refusal(world, kind)
    assert error.field == Q_A
    assert WEIGHTS in error.message


def test_an_empty_tensor_is_malformed_with_what_may_have_caused_it(world: Any) -> None:
    folder = write(world.root / "a")
    change_tensors(folder, lambda ts: ts | {Q_A: torch.ones(0, 64)})
    error = refusal(world, AdapterMalformed)
    assert error.field == Q_A
    assert "ZeRO-3" in str(error.remedy)


def test_numbers_too_long_to_print_are_malformed(world: Any) -> None:
    folder = write(world.root / "a")
    long = int("9" * 4000)
    for value in (entry(shape=[long] * 4), entry(shape=[2] * 100), entry(data_offsets=[0, long])):
        write_header(folder, json.dumps({Q_A: value}).encode(), bytes(16))
        assert refusal(world, AdapterMalformed).field == Q_A


def test_overlapping_tensors_are_malformed(world: Any) -> None:
    folder = write(world.root / "a")
    header = {Q_A: entry(), Q_B: entry(data_offsets=[8, 24])}
    write_header(folder, json.dumps(header).encode(), bytes(24))
    assert "begins at byte" in refusal(world, AdapterMalformed).message


def test_a_tensor_listed_twice_is_malformed(world: Any) -> None:
    folder = write(world.root / "a")
    member = f'"{Q_A}": {json.dumps(entry())}'
    write_header(folder, f"{{{member},{member}}}".encode(), bytes(16))
    assert "twice" in refusal(world, AdapterMalformed).message


def test_a_header_of_too_many_tensors_is_malformed(world: Any) -> None:
    folder = write(world.root / "a")
    header = {f"t{n}": entry(data_offsets=[16 * n, 16 * n + 16]) for n in range(50_001)}
    write_header(folder, json.dumps(header).encode(), bytes(16 * 50_001))
    assert "50001" in refusal(world, AdapterMalformed).message


def test_a_header_nested_without_end_is_malformed(world: Any) -> None:
    folder = write(world.root / "a")
    write_header(folder, b'{"a":' * 1_000_000, b"")
    started = time.monotonic()
    assert "nests" in refusal(world, AdapterMalformed).message
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("lora_A.weight", "lora_A.default.weight"),
        lambda name: name.replace(".weight", ".my-adapter.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: name.replace(".layers.", "._fsdp_wrapped_module.layers."),
        lambda name: name.replace("model.model.layers", "model.layers"),
        lambda name: name.replace("model.model.layers", "model.model.language_model.layers"),
        lambda name: name.replace("model.model.layers", "model.language_model.model.layers"),
    ],
    ids=["default", "named", "bare", "module", "compiled", "fsdp", "headless", "vlm 5", "vlm 4"],
)
def test_names_in_every_dialect_mean_the_same_adapter(
    rename: Callable[[str], str], world: Any
) -> None:
    write(world.root / "plain", rank=4, alpha_pattern={"self_attn.q_proj": 3.0})
    folder = write(world.root / "a", rank=4, alpha_pattern={"self_attn.q_proj": 3.0})
    change_tensors(folder, lambda ts: {rename(name): tensor for name, tensor in ts.items()})
    world.page_in("plain", slot=1, first_page=0)
    world.page_in("a", slot=2, first_page=100)
    for layer in range(2):
        for group in range(4):
            plain, renamed = (world.store.slots.group(slot, layer, group) for slot in (1, 2))
            assert torch.equal(plain.a, renamed.a)
            assert all(
                torch.equal(p[4], r[4]) for p, r in zip(plain.slices, renamed.slices, strict=True)
            )


def test_tensors_at_odd_offsets_are_read_all_the_same(world: Any) -> None:
    folder = write(world.root / "a", modules=[Module.Q], layers=[0])
    header, data = header_of(folder)
    text = json.dumps(header).encode()
    write_header(folder, text.ljust(len(text) + 3 - len(text) % 2), data)
    expected = load_file(folder / WEIGHTS)[Q_A]
    world.page_in("a", slot=1, first_page=0)
    assert torch.equal(world.store.slots.group(1, 0, 0).a, expected)
