"""Flags, environment and sizes: what is read, and what wins."""

from pathlib import Path

import pytest

from adex_proto.errors import ValidationError
from adex_worker.budget import GIB, Machine, Wishes, as_size, budget_of, cpu_dtype, threads_of
from adex_worker.config import bytes_of_size, parse_options

ENV = {"ADEX_MODEL_ID": "from/environment", "HOME": "/home/x"}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("2GiB", 2 << 30),
        ("2gib", 2 << 30),
        ("1.5 GB", 1_500_000_000),
        ("500MB", 500_000_000),
        ("512Mi", 512 << 20),
        ("3T", 3 * 10**12),
        ("auto", None),
        ("AUTO", None),
    ],
)
def test_a_size_is_read_in_the_ways_people_write_it(text: str, size: int | None) -> None:
    assert bytes_of_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "1.2.3GB", "2 gigabytes", "0.1b", "iB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        bytes_of_size(text)


def test_a_flag_wins_over_the_environment() -> None:
    env = ENV | {"ADEX_MAX_BATCH_TOKENS": "99", "ADEX_DEVICE_MEMORY": "1GiB"}
    options = parse_options(["--max-batch-tokens", "55"], env)
    assert options.model_id == "from/environment"
    assert options.step_tokens_max == 55
    assert options.device_bytes == GIB


def test_a_bad_value_in_the_environment_is_refused_like_a_flag(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_options([], ENV | {"ADEX_HOST_MEMORY": "lots"})
    assert "--host-memory" in capsys.readouterr().err


def test_roots_are_given_by_repeated_flags_or_separated_by_colons(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    flags = ["--local-adapter-root", str(one), "--local-adapter-root", str(two)]
    by_environment = ENV | {"ADEX_LOCAL_ADAPTER_ROOT": f"{one}:{two}"}
    assert parse_options(flags, ENV).local_adapter_roots == (one, two)
    assert parse_options([], by_environment).local_adapter_roots == (one, two)


def test_kubernetes_own_variable_is_not_taken_for_a_port() -> None:
    assert parse_options([], {**ENV, "ADEX_METRICS_PORT": "tcp://10.0.0.1:80"}).metrics_port == 0


@pytest.mark.parametrize("listen", ["", "localhost", "unix:relative", "unix:///", "host:port"])
def test_an_address_nobody_can_listen_on_is_refused(listen: str) -> None:
    with pytest.raises(ValidationError, match="no address"):
        parse_options(["--listen", listen], ENV)


def test_a_cpu_pool_takes_a_quarter_of_what_is_free_and_at_most_four_gib() -> None:
    for free, pool in ((8 * GIB, 2 * GIB), (64 * GIB, 4 * GIB)):
        budget = budget_of(Wishes(), Machine(free, 100 * GIB, None), page_bytes=1 << 20)
        assert budget.pool_bytes == pool


def test_an_accelerators_pool_takes_nine_tenths_of_what_the_weights_leave() -> None:
    budget = budget_of(Wishes(), Machine(64 * GIB, 100 * GIB, 100 * GIB), page_bytes=1 << 20)
    assert budget.pool_bytes == 90 * GIB


def test_what_recorded_steps_take_is_no_part_of_the_pool() -> None:
    machine = Machine(64 * GIB, 100 * GIB, 100 * GIB)
    plain = budget_of(Wishes(step_sequences_max=128), machine, 1 << 20)
    recording = budget_of(Wishes(step_sequences_max=128), machine, 1 << 20, 1 << 24)
    assert recording.step_sequences_max == 128
    assert plain.pool_bytes - recording.pool_bytes >= (128 << 24) * 9 // 10
    with pytest.raises(ValidationError, match="are free"):
        budget_of(Wishes(device_bytes=100 * GIB), machine, 1 << 20, 1 << 24)


def test_a_step_always_holds_one_token_of_each_sequence() -> None:
    wishes = Wishes(step_sequences_max=5000)
    budget = budget_of(wishes, Machine(8 * GIB, 8 * GIB, None), page_bytes=1 << 20)
    assert budget.step_tokens_max >= budget.step_sequences_max == 5000


def test_what_the_machine_cannot_give_is_refused_with_both_numbers() -> None:
    machine = Machine(8 * GIB, 8 * GIB, None)
    with pytest.raises(ValidationError, match=r"9\.0 GiB, 8\.0 GiB are free"):
        budget_of(Wishes(device_bytes=9 * GIB), machine, page_bytes=1 << 20)
    with pytest.raises(ValidationError, match=r"1 pages of 1\.0 MiB, where at least 16"):
        budget_of(Wishes(device_bytes=1 << 20), machine, page_bytes=1 << 20)


def test_a_cpu_serves_half_precision_only_where_it_multiplies_bfloat16() -> None:
    assert cpu_dtype("float16", has_bfloat16_units=True) == "bfloat16"
    assert cpu_dtype("bfloat16", has_bfloat16_units=False) == "float32"
    assert cpu_dtype("float32", has_bfloat16_units=True) == "float32"


def test_sizes_are_shown_in_the_unit_that_fits() -> None:
    shown = [as_size(size) for size in (5, 2048, 3 << 20, 7 * GIB)]
    assert shown == ["5 bytes", "2.0 KiB", "3.0 MiB", "7.0 GiB"]


@pytest.mark.parametrize(
    ("share", "threads"),
    [
        ("max 100000\n", 8),
        ("", 8),
        ("400000 100000\n", 4),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("6400000 100000\n", 8),
    ],
)
def test_a_step_has_no_more_threads_than_its_container_has_of_the_cores(
    share: str, threads: int
) -> None:
    assert threads_of(8, share) == threads
