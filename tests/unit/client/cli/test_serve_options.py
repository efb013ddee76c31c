"""The flags of `adex serve`: read once, refused early, sent to the process they belong to."""

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adex.cli.failure import EXIT_USAGE, CommandError
from adex.cli.flag_values import bytes_of_size
from adex.cli.passed_flags import unknown_variables
from adex.cli.serve_options import (
    VARIABLES,
    ServeOptions,
    add_flags,
    child_environment,
    read_options,
)


def options(*arguments: str, **environ: str) -> ServeOptions:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_options(parser.parse_args(["--model-id", "m", *arguments]), environ)


def pairs(arguments: list[str]) -> list[tuple[str, str]]:
    return list(zip(arguments[::2], arguments[1::2], strict=True))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "tone"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2 * 2**30),
        ("2 gib", 2 * 2**30),
        ("1.5GB", 1_500_000_000),
        ("64k", 64_000),
        ("64Ki", 65536),
        ("7B", 7),
        ("1048576", 1048576),
        ("1TiB", 2**40),
    ],
)
def test_sizes_are_read_in_the_usual_units(text: str, count: int) -> None:
    assert bytes_of_size(text) == count


@given(st.integers(0, 2**50), st.sampled_from(["", "B", "KB", "KiB", "MB", "MiB", "GB", "GiB"]))
def test_a_larger_number_of_a_unit_is_a_larger_size(count: int, unit: str) -> None:
    assert bytes_of_size(f"{count + 1}{unit}") > bytes_of_size(f"{count}{unit}")


@pytest.mark.parametrize("text", [" ", "GiB", "-1GiB", "2 bananas", "1e9", "0x10", "2PiB"])
def test_what_is_no_size_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(CommandError, match="like 2GiB") as caught:
        options(f"--device-memory={text}")
    assert caught.value.exit_code == EXIT_USAGE


def test_the_worker_gets_what_is_the_workers(adapter: Path) -> None:
    given = options(
        *("--device", "cpu", "--dtype", "float32", "--device-memory", "1KiB"),
        *("--host-memory", "auto", "--disk-memory", "1MB", "--cache-dir", "/c"),
        *("--max-batch-tokens", "64", "--max-sequences", "8"),
        *("--local-adapter-root", str(adapter.parent), "--lora-modules", f"polite={adapter}"),
    )
    assert pairs(given.worker_arguments("unix:///w.sock")) == [
        ("--listen", "unix:///w.sock"),
        ("--model-id", "m"),
        ("--device", "cpu"),
        ("--dtype", "float32"),
        ("--weights", "auto"),
        ("--cuda-graphs", "auto"),
        ("--device-memory", "1024"),
        ("--host-memory", "auto"),
        ("--disk-memory", "1000000"),
        ("--cache-dir", "/c"),
        ("--local-adapter-root", str(adapter.parent)),
        ("--local-adapter-root", str(adapter)),
        ("--max-batch-tokens", "64"),
        ("--max-sequences", "8"),
    ]


def test_the_scheduler_gets_what_is_the_schedulers(adapter: Path) -> None:
    given = options(
        *("--host", "0.0.0.0", "--port", "1", "--grpc-port", "2", "--drain-seconds", "5"),
        *("--max-batch-tokens", "64", "--max-sequences", "8", "--step-target-ms", "40"),
        *("--local-adapter-root", str(adapter.parent), "--lora-modules", f"polite={adapter}"),
    )
    assert pairs(given.scheduler_arguments("unix:///w.sock")) == [
        ("--worker", "unix:///w.sock"),
        ("--model-id", "m"),
        ("--host", "0.0.0.0"),
        ("--port", "1"),
        ("--grpc-port", "2"),
        ("--lora-modules", f"polite={adapter}"),
        ("--local-adapter-root", str(adapter.parent)),
        ("--max-batch-tokens", "64"),
        ("--max-sequences", "8"),
        ("--step-target-ms", "40"),
        ("--drain-seconds", "5"),
    ]


def test_what_was_not_given_is_left_to_the_process() -> None:
    assert "--device-memory" not in options().worker_arguments("unix:///w.sock")
    assert "--max-sequences" not in options().scheduler_arguments("unix:///w.sock")


def test_who_watches_is_told_to_the_processes_it_concerns() -> None:
    flags = ("--metrics-compat", "vllm,tgi", "--otlp-endpoint", "http://127.0.0.1:4317")
    given = options(*flags, "--log-format", "json", ADEX_LOG_LEVEL="DEBUG")
    lines = [("--log-format", "json"), ("--log-level", "debug")]
    watching = [*zip(flags[::2], flags[1::2], strict=True), *lines]
    assert pairs(given.scheduler_arguments("unix:///w.sock"))[-4:] == watching
    assert pairs(given.worker_arguments("unix:///w.sock"))[-2:] == lines


def test_a_flag_wins_over_its_variable() -> None:
    assert options(ADEX_PORT="7").port == 7
    assert options("--port", "8", ADEX_PORT="7").port == 8


def test_a_repeatable_flag_takes_several_from_its_variable(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    given = options(ADEX_LOCAL_ADAPTER_ROOT=f"{one}:{two}", ADEX_LORA_MODULES=f"a={one},b={two}")
    assert given.local_adapter_roots == (one, two)
    assert given.lora_modules == (("a", one), ("b", two))


def test_the_port_that_kubernetes_puts_beside_a_service_is_not_ours() -> None:
    assert options(ADEX_PORT="tcp://10.0.0.1:8080").port == 8080


def test_tgis_variable_adds_modules_and_a_flag_of_the_same_name_wins(adapter: Path) -> None:
    other = adapter.parent
    given = options("--lora-modules", f"a={adapter}", LORA_ADAPTERS=f"a={other}, b={other}")
    assert given.lora_modules == (("a", adapter), ("b", other))


def children_see(*arguments: str, **environ: str) -> dict[str, str]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return child_environment(environ, parser.parse_args([*arguments]))


def test_the_children_do_not_read_again_what_their_flags_say() -> None:
    environ = {"ADEX_PORT": "1", "LORA_ADAPTERS": "a=b", "HF_TOKEN": "t", "ADEX_OTHER": "x"}
    assert children_see(**environ) == {"HF_TOKEN": "t", "ADEX_OTHER": "x"}


def test_a_flag_of_one_process_travels_as_its_variable_and_wins_over_it() -> None:
    flags = ("--max-waiting", "5", "--served-model-name", "a", "b", "--open-admin")
    told = {"ADEX_MAX_WAITING": "5", "ADEX_SERVED_MODEL_NAME": "a,b", "ADEX_OPEN_ADMIN": "on"}
    assert children_see(*flags, ADEX_MAX_WAITING="9", ADEX_THREADS="2") == {
        **told,
        "ADEX_THREADS": "2",
    }


def test_a_key_stands_on_no_childs_command_line() -> None:
    given = options("--admin-key", "secret")
    commands = given.worker_arguments("unix:///w.sock") + given.scheduler_arguments("unix:///s")
    assert "secret" not in commands
    assert children_see("--admin-key", "secret") == {"ADEX_ADMIN_KEY": "secret"}


def test_several_modules_stand_behind_one_flag_also_as_vllm_writes_them(adapter: Path) -> None:
    json_module = f'{{"name": "b", "path": "{adapter}", "base_model_name": "m"}}'
    given = options("--lora-modules", f"a={adapter}", json_module, "--lora-modules", "c=hf://o/n")
    assert given.lora_modules == (("a", adapter), ("b", adapter), ("c", "hf://o/n"))


def test_a_variable_that_nobody_reads_is_told_with_the_one_it_may_mean() -> None:
    environ = {"ADEX_MAX_SEQUENCE": "3", "ADEX_XYZZY": "1", "ADEX_THREADS": "1", "HOME": "/"}
    unknown = unknown_variables(environ, VARIABLES)
    assert unknown == {"ADEX_MAX_SEQUENCE": "ADEX_MAX_SEQUENCES", "ADEX_XYZZY": None}


@pytest.mark.parametrize(
    "name",
    [
        *("ADEX_SERVICE_HOST", "ADEX_SERVICE_PORT", "ADEX_SERVICE_PORT_HTTP", "ADEX_PORT"),
        *("ADEX_PORT_8080_TCP", "ADEX_PORT_8080_TCP_ADDR", "ADEX_WORKER_PORT_50051_TCP_PROTO"),
    ],
)
def test_what_kubernetes_says_of_services_is_no_mistake(name: str) -> None:
    assert unknown_variables({name: "x"}, VARIABLES) == {}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--port", "http"), "--port: 'http' is no whole number"),
        (("--max-sequences", "few"), "--max-sequences: 'few' is no whole number"),
        (("--drain-seconds", "soon"), "--drain-seconds: 'soon' is no number of seconds"),
        (("--port", "70000"), "70000 is no port"),
        (("--max-sequences", "0"), "0 is too few"),
        (("--device", "tpu"), "'tpu' is none of auto, cpu, cuda"),
        (("--dtype", "int4"), "'int4' is none of"),
        (("--drain-seconds", "-1"), "-1 is no wait"),
        (("--drain-seconds", "nan"), "nan is no wait"),
        (("--local-adapter-root", "/nowhere/at/all"), "/nowhere/at/all is no folder"),
        (("--lora-modules", "tone"), "'tone' must be name=path"),
        (("--lora-modules", "a=/", "--lora-modules", "a=/tmp"), "'a' is given twice"),
        (("--lora-modules", '{"name": "a"'), "begins like JSON and is none"),
        (("--lora-modules", '{"name": "a"}'), 'must be {"name": ..., "path": ...}'),
        (("--lora-modules", '{"name": "a", "path": "/", "rank": 8}'), "has rank, which no module"),
    ],
)
def test_a_wrong_value_is_named_before_anything_starts(
    arguments: tuple[str, ...], told: str
) -> None:
    with pytest.raises(CommandError) as caught:
        options(*arguments)
    assert told in caught.value.what
    assert caught.value.exit_code == EXIT_USAGE


def test_a_wrong_variable_is_named_as_the_variable() -> None:
    with pytest.raises(CommandError, match="ADEX_MAX_SEQUENCES: 0 is too few"):
        options(ADEX_MAX_SEQUENCES="0")


def test_without_a_model_the_demonstrations_is_served_with_its_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo" / "model").mkdir(parents=True)
    (tmp_path / "demo" / "adapters").mkdir()
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    add_flags(parser)
    given = read_options(parser.parse_args([]), {})
    assert given.model_id == "demo/model"
    assert given.local_adapter_roots == (tmp_path / "demo" / "adapters",)


def test_without_any_model_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    add_flags(parser)
    with pytest.raises(CommandError) as caught:
        read_options(parser.parse_args([]), {})
    assert caught.value.remedy is not None
    assert "--model-id" in caught.value.remedy
