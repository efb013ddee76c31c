"""The scheduler's flags and environment."""

from pathlib import Path

import pytest

from adex_proto.adapter import AdapterKey
from adex_proto.errors import ValidationError
from adex_scheduler.aliases import read_alias, read_aliases
from adex_scheduler.config import METRICS_DIALECTS, parse_options
from adex_scheduler.core.limits import PACING, Pacing
from adex_scheduler.metrics import DIALECTS

MODEL = ["--model-id", "org/model"]


def test_the_defaults_need_only_a_model() -> None:
    options = parse_options(MODEL, {})
    assert (options.host, options.port, options.grpc_port) == ("127.0.0.1", 8080, 9090)
    assert options.worker == "127.0.0.1:50051"
    assert options.aliases == {}
    with pytest.raises(ValidationError, match="no model is named"):
        parse_options([], {})


def test_a_flag_wins_over_the_environment() -> None:
    env = {"ADEX_MODEL_ID": "a/b", "ADEX_PORT": "81", "ADEX_MAX_SEQUENCES": "7"}
    options = parse_options(["--port", "82"], env)
    assert (options.model_id, options.port, options.running_max) == ("a/b", 82, 7)


def test_kubernetes_own_variable_is_not_taken_for_a_port() -> None:
    assert parse_options(MODEL, {"ADEX_PORT": "tcp://10.0.0.1:8080"}).port == 8080


def test_adapters_come_from_flags_and_from_lora_adapters(tmp_path: Path) -> None:
    flags = [*MODEL, "--lora-modules", f"a={tmp_path}", "b=rel/path", "--lora-modules", "c=x"]
    options = parse_options(flags, {"LORA_ADAPTERS": "b=other, org/adapter@main, plain"})
    assert options.aliases == {
        "a": AdapterKey("", "local", str(tmp_path)),
        "b": AdapterKey("", "local", "rel/path"),
        "c": AdapterKey("", "local", "x"),
        "org/adapter": AdapterKey("", "hub", "org/adapter", "main"),
        "plain": AdapterKey("", "local", "plain"),
    }


def test_api_keys_are_several_and_none_is_ever_quoted() -> None:
    assert parse_options(MODEL, {}).api_keys == ()
    assert parse_options(MODEL, {"ADEX_API_KEY": "one, two"}).api_keys == ("one", "two")
    flags = [*MODEL, "--api-key", "three", "four", "--api-key", "three"]
    assert parse_options(flags, {"ADEX_API_KEY": "one"}).api_keys == ("three", "four")
    assert "three" not in repr(parse_options(flags, {}))
    with pytest.raises(ValidationError) as refused:
        parse_options([*MODEL, "--api-key", "se cret"], {})
    assert "cret" not in str(refused.value)


def test_origins_are_origins() -> None:
    assert parse_options(MODEL, {}).cors_origins == ()
    given = ["--cors-allow-origin", "https://a.example", "http://b:80"]
    assert parse_options([*MODEL, *given], {}).cors_origins == ("https://a.example", "http://b:80")
    assert parse_options(MODEL, {"ADEX_CORS_ALLOW_ORIGIN": "*"}).cors_origins == ("*",)
    for wrong in ("a.example", "https://a.example/", "ftp://a"):
        with pytest.raises(ValidationError, match="is no origin"):
            parse_options([*MODEL, "--cors-allow-origin", wrong], {})


@pytest.mark.parametrize(
    "text", ["", "=", "a@b@", "a@b@c", "name=path@rev", '{"name": "a", "path": "b"}']
)
def test_a_form_nobody_knows_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        read_alias(text)


def test_one_name_has_one_meaning() -> None:
    with pytest.raises(ValidationError, match="two meanings"):
        read_aliases(["a=x", "a=y"], [])
    assert set(read_aliases(["a=x", "a=x"], [])) == {"a"}


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"],
        ["--max-waiting", "0"],
        ["--max-total-tokens", "many"],
        ["--drain-seconds", "-1"],
        ["--log-level", "loud"],
        ["--step-target-ms", "0"],
        ["--step-target-ms", "1e9"],
        ["--step-target-ms", "nan"],
        ["--step-target-ms", "soon"],
    ],
)
def test_a_value_out_of_range_ends_the_start(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options([*MODEL, *flags], {})
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "pacing"),
    [("auto", PACING), ("off", None), ("40", Pacing(0.04)), ("2.5", Pacing(0.0025))],
)
def test_steps_are_paced_by_the_machine_by_a_time_or_not(told: str, pacing: Pacing | None) -> None:
    assert parse_options([*MODEL, "--step-target-ms", told], {}).pacing == pacing
    assert parse_options(MODEL, {"ADEX_STEP_TARGET_MS": told}).pacing == pacing
    assert parse_options(MODEL, {}).pacing == PACING


def test_a_workers_address_must_be_one() -> None:
    for address in ("unix:///run/adex.sock", "[::1]:5", "host:50051"):
        assert parse_options([*MODEL, "--worker", address], {}).worker == address
    for address in ("unix://", "host", "host:port"):
        with pytest.raises(ValidationError, match="no address"):
            parse_options([*MODEL, "--worker", address], {})


def test_the_grpc_door_may_stay_shut() -> None:
    assert parse_options([*MODEL, "--grpc-port", "off"], {}).grpc_port is None


@pytest.mark.parametrize(
    ("arguments", "environment", "endpoint"),
    [
        ([], {}, None),
        (["--otlp-endpoint", "collector:4317"], {}, "http://collector:4317"),
        (["--otlp-endpoint", "https://collector"], {}, "https://collector"),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317"}, "http://a:4317"),
        (
            [],
            {"ADEX_OTLP_ENDPOINT": "http://b:1", "OTEL_EXPORTER_OTLP_ENDPOINT": "c"},
            "http://b:1",
        ),
        (["--otlp-endpoint", "off"], {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4317"}, None),
    ],
)
def test_traces_go_where_a_flag_or_the_standard_variables_say(
    arguments: list[str], environment: dict[str, str], endpoint: str | None
) -> None:
    options = parse_options(["--model-id", "m", *arguments], environment)
    assert options.otlp_endpoint == endpoint


@pytest.mark.parametrize(
    ("flag", "value", "complaint"),
    [
        ("--otlp-endpoint", "ftp://a", "is no endpoint: write http://host:4317"),
        ("--otlp-endpoint", "http://a:port", "is no endpoint"),
        ("--metrics-compat", "vllm,sglang", "'sglang' is none of vllm, tgi, lorax, none"),
        ("--log-format", "xml", "choose from"),
    ],
)
def test_a_way_of_watching_that_is_not_known_is_refused_at_the_start(
    flag: str, value: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(["--model-id", "m", flag, value], {})
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_dialects_of_metrics_are_those_there_are() -> None:
    options = parse_options(["--model-id", "m", "--metrics-compat", "vllm,tgi,lorax,vllm"], {})
    assert options.metrics_compat == tuple(DIALECTS) == METRICS_DIALECTS
