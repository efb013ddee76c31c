"""Files that are missing, damaged or lying are refused before their numbers are read."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adex_proto.errors import (
    AdapterMalformed,
    AdapterUnsupported,
    AdexError,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers.0.self_attn"
Q_A, Q_B = f"{PREFIX}.q_proj.lora_A.weight", f"{PREFIX}.q_proj.lora_B.weight"


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


def write_header(folder: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    declared = len(header) if length is None else length
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", declared) + header + data)


def entry(**replaced: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | replaced


def test_a_pickle_is_refused_with_the_conversion(world: Any) -> None:
    folder = world.write("a")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    error = world.refusal(AdapterUnsupported)
    assert error.field == "adapter_model.bin"
    assert "save_file" in str(error.remedy)


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_missing_file_is_named(missing: str, world: Any) -> None:
    (world.write("a") / missing).unlink()
    error = world.refusal(AdapterMalformed)
    assert error.field == missing


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
    folder = world.write("a")
    (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))
    error = world.refusal(AdapterMalformed)
    assert words in error.message
    assert WEIGHTS in error.message


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
    folder = world.write("a")
    write_header(folder, json.dumps({Q_A: value}).encode(), bytes(16))
    error = world.refusal(kind)
    assert error.field == Q_A
    assert WEIGHTS in error.message


def test_an_empty_tensor_is_malformed_with_what_may_have_caused_it(world: Any) -> None:
    folder = world.write("a")
    change_tensors(folder, lambda ts: ts | {Q_A: torch.ones(0, 64)})
    error = world.refusal(AdapterMalformed)
    assert error.field == Q_A
    assert "ZeRO-3" in str(error.remedy)


def test_numbers_too_long_to_print_are_malformed(world: Any) -> None:
    folder = world.write("a")
    long = int("9" * 4000)
    for value in (entry(shape=[long] * 4), entry(shape=[2] * 100), entry(data_offsets=[0, long])):
        write_header(folder, json.dumps({Q_A: value}).encode(), bytes(16))
        assert world.refusal(AdapterMalformed).field == Q_A


def test_overlapping_tensors_are_malformed(world: Any) -> None:
    folder = world.write("a")
    header = {Q_A: entry(), Q_B: entry(data_offsets=[8, 24])}
    write_header(folder, json.dumps(header).encode(), bytes(24))
    assert "begins at byte" in world.refusal(AdapterMalformed).message


def test_a_tensor_listed_twice_is_malformed(world: Any) -> None:
    folder = world.write("a")
    member = f'"{Q_A}": {json.dumps(entry())}'
    write_header(folder, f"{{{member},{member}}}".encode(), bytes(16))
    assert "twice" in world.refusal(AdapterMalformed).message


def test_a_header_of_too_many_tensors_is_malformed(world: Any) -> None:
    folder = world.write("a")
    header = {f"t{n}": entry(data_offsets=[16 * n, 16 * n + 16]) for n in range(50_001)}
    write_header(folder, json.dumps(header).encode(), bytes(16 * 50_001))
    assert "50001" in world.refusal(AdapterMalformed).message


def test_a_header_nested_without_end_is_malformed(world: Any) -> None:
    folder = world.write("a")
    write_header(folder, b'{"a":' * 1_000_000, b"")
    started = time.monotonic()
    assert "nests" in world.refusal(AdapterMalformed).message
    assert time.monotonic() - started < 5
