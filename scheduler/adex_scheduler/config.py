"""What a scheduler is told when it starts: flags, or the environment, read once and checked.

Every flag --some-thing may also be given as ADEX_SOME_THING; the flag wins. Adapters are named by
--lora-modules name=path, and by LORA_ADAPTERS in the forms TGI knows: `id`, `id@revision`,
`name=path`, separated by commas.
"""

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from adex_proto.adapter import AdapterKey
from adex_proto.errors import ValidationError
from adex_proto.logs import LogFormat
from adex_scheduler.aliases import read_aliases
from adex_scheduler.core.limits import PACING, Pacing

STEP_TARGET_MS_MAX = 60_000
METRICS_DIALECTS = ("vllm", "tgi", "lorax")
_ORIGIN = re.compile(r"https?://[^/\s,?#]+")
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Everything a scheduler can be told. None leaves a choice to the worker or the model.

    `grpc_port` None opens no gRPC door. `aliases` maps public adapter names to what they mean.
    """

    model_id: str
    revision: str | None
    served_names: tuple[str, ...]
    host: str
    port: int
    grpc_port: int | None
    worker: str
    aliases: Mapping[str, AdapterKey]
    adapter_source: str
    local_adapter_roots: tuple[str, ...]
    step_tokens_max: int | None
    running_max: int | None
    pacing: Pacing | None
    waiting_max: int
    requests_max: int
    stops_max: int
    choices_max: int
    new_tokens_default_max: int
    total_tokens_max: int
    body_bytes_max: int
    api_keys: tuple[str, ...] = field(repr=False)
    cors_origins: tuple[str, ...]
    admin_key: str = field(repr=False)
    open_admin: bool
    drain_s: float
    metrics_compat: tuple[str, ...]
    otlp_endpoint: str | None
    log_format: LogFormat
    log_level: str


def parse_options(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> SchedulerOptions:
    """Read the command line and the environment.

    Raises ValidationError for a bad combination or a missing value; argparse itself ends the
    process with status 2 for a flag it cannot read.
    """
    env = os.environ if environment is None else environment
    given = _parser(env).parse_args(arguments)
    if not given.model_id:
        raise ValidationError(
            "no model is named",
            field="model_id",
            remedy="Give --model-id the folder or hub id that the worker serves",
        )
    modules = [part for group in given.lora_modules or [] for part in cast("list[str]", group)]
    if given.lora_modules is None:
        modules = _parts(env.get("ADEX_LORA_MODULES", ""), ",")
    served = cast("list[str]", given.served_model_name or [])
    roots = given.local_adapter_root or _parts(env.get("ADEX_LOCAL_ADAPTER_ROOT", ""), os.pathsep)
    return SchedulerOptions(
        model_id=given.model_id,
        revision=given.revision or None,
        served_names=tuple(served or _parts(env.get("ADEX_SERVED_MODEL_NAME", ""), ",")),
        host=given.host,
        port=given.port,
        grpc_port=given.grpc_port,
        worker=_checked_address(given.worker),
        aliases=read_aliases(modules, _parts(env.get("LORA_ADAPTERS", ""), ",")),
        adapter_source=given.adapter_source,
        local_adapter_roots=tuple(os.path.abspath(root) for root in roots),
        step_tokens_max=given.max_batch_tokens,
        running_max=given.max_sequences,
        pacing=given.step_target_ms,
        waiting_max=given.max_waiting,
        requests_max=given.max_concurrent_requests,
        stops_max=given.max_stop_sequences,
        choices_max=given.max_choices,
        new_tokens_default_max=given.default_max_new_tokens,
        total_tokens_max=given.max_total_tokens or 0,
        body_bytes_max=given.max_body_bytes,
        api_keys=_api_keys(given.api_key, env),
        cors_origins=_origins(given.cors_allow_origin, env),
        admin_key=_checked_key(given.admin_key, "admin_key"),
        open_admin=given.open_admin,
        drain_s=given.drain_seconds,
        metrics_compat=given.metrics_compat,
        otlp_endpoint=given.otlp_endpoint,
        log_format=LogFormat(given.log_format),
        log_level=given.log_level.upper(),
    )


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adex-scheduler",
        description="One scheduler: REST and gRPC for callers, plans for a worker.",
        epilog="Each flag may also be given in the environment: --model-id as ADEX_MODEL_ID.",
    )

    def add(flag: str, default: str, text: str, **options: Any) -> None:
        # argparse converts string defaults like arguments, so the environment is checked as well.
        name = "ADEX_" + flag.removeprefix("--").replace("-", "_").upper()
        said = env.get(name, default)
        # Kubernetes sets ADEX_PORT=tcp://... in every pod beside a service named adex.
        said = default if said.startswith("tcp://") else said
        shown = f" [{default}]" if default else ""
        parser.add_argument(flag, default=said, help=text + shown, **options)

    count: dict[str, Any] = {"type": _argument(_count), "metavar": "N"}
    automatic: dict[str, Any] = {"type": _argument(_count_or_auto), "metavar": "N"}
    add("--model-id", "", "the base model: the folder or hub id that the worker serves")
    add("--revision", "", "branch, tag or commit of a hub model")
    several: dict[str, Any] = {"action": "extend", "nargs": "+", "metavar": "NAME"}
    parser.add_argument("--served-model-name", help="a public name of the base model", **several)
    add("--host", "127.0.0.1", "address to listen at; 0.0.0.0 for containers")
    add("--port", "8080", "port of the REST API, 0 for any free one", type=_argument(_port))
    add(
        "--grpc-port",
        "9090",
        "port of the gRPC API, 0 for any free one, off for none",
        type=_argument(_port_or_off),
    )
    add("--worker", "127.0.0.1:50051", "where the worker listens: host:port or unix:///path")
    parser.add_argument(
        "--lora-modules",
        action="append",
        nargs="+",
        metavar="NAME=PATH",
        help="an adapter to serve under a name (repeatable; also from LORA_ADAPTERS)",
    )
    parser.add_argument(
        "--local-adapter-root",
        action="append",
        metavar="DIR",
        help="a folder of the worker's whose adapters /v1/models lists (repeatable)",
    )
    where = "where names without a source lie: local, hub or s3"
    add("--adapter-source", "local", where, choices=("local", "hub", "s3"))
    _add_steps(add, automatic)
    add("--max-waiting", "1024", "sequences that may wait; more are refused", **count)
    add("--max-concurrent-requests", "1024", "requests under way; more are refused", **count)
    add("--max-stop-sequences", "16", "stop sequences of one request", **count)
    add("--max-choices", "16", "sequences of one request: prompts times `n`", **count)
    add("--default-max-new-tokens", "2048", "new tokens where a request names no number", **count)
    add("--max-total-tokens", "auto", "prompt and output of one sequence", **automatic)
    add("--max-body-bytes", "2000000", "bytes of one request", **count)
    add("--drain-seconds", "30", "how long running requests may finish", type=_argument(_seconds))
    _add_operators(parser, add, env)
    _add_watching(add, env)
    return parser


def _add_steps(add: Callable[..., None], automatic: Mapping[str, Any]) -> None:
    """The flags that bound one step."""
    add("--max-batch-tokens", "auto", "tokens in one step at most", **automatic)
    add("--max-sequences", "auto", "sequences in one step at most", **automatic)
    add(
        "--step-target-ms",
        "auto",
        "what a step in which sequences go on shall take; prompts beside them are cut for it. "
        f"auto: {PACING.stretch_max:g} times what it takes without prompts; off: what it takes",
        type=_argument(read_pacing),
        metavar="MS",
    )


def _add_operators(
    parser: argparse.ArgumentParser, add: Callable[..., None], env: Mapping[str, str]
) -> None:
    """The flags that say who may send requests, and who may control adapters."""
    parser.add_argument(
        "--api-key",
        action="extend",
        nargs="+",
        metavar="KEY",
        help="a key that callers send as a bearer token (repeatable); better as ADEX_API_KEY",
    )
    parser.add_argument(
        "--cors-allow-origin",
        action="extend",
        nargs="+",
        metavar="ORIGIN",
        help="https://host[:port] of pages that may read answers, or * (repeatable)",
    )
    add("--admin-key", "", "what operators prove themselves with; better given as ADEX_ADMIN_KEY")
    parser.add_argument(
        "--open-admin",
        action="store_true",
        default=_is_on(env.get("ADEX_OPEN_ADMIN", "")),
        help="let every caller control adapters, without a key: for closed networks",
    )


def _add_watching(add: Callable[..., None], env: Mapping[str, str]) -> None:
    """The flags of those who watch the server."""
    add(
        "--metrics-compat",
        "none",
        "tell metrics under the names of these servers too: vllm, tgi, lorax, separated by commas",
        type=_argument(_dialects),
        metavar="NAMES",
    )
    add(
        "--otlp-endpoint",
        # OpenTelemetry's own variables; what else they say, its SDK reads at the start.
        env.get(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "off")
        ),
        "where a collector takes traces over gRPC: http://host:4317, or https:// for TLS",
        type=_argument(_endpoint_or_off),
        metavar="URL",
    )
    add("--log-format", "text", "lines for people or for machines", choices=("text", "json"))
    levels = ("debug", "info", "warning", "error")
    add("--log-level", "info", f"one of {', '.join(levels)}", choices=levels)


def _is_on(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on")


def _api_keys(given: list[str] | None, env: Mapping[str, str]) -> tuple[str, ...]:
    keys = given or _parts(env.get("ADEX_API_KEY", ""), ",")
    return tuple(dict.fromkeys(_checked_key(key, "api_key") for key in keys if key))


def _origins(given: list[str] | None, env: Mapping[str, str]) -> tuple[str, ...]:
    origins = given or _parts(env.get("ADEX_CORS_ALLOW_ORIGIN", ""), ",")
    for origin in origins:
        if origin != "*" and _ORIGIN.fullmatch(origin) is None:
            raise ValidationError(
                f"--cors-allow-origin {origin!r} is no origin",
                field="cors_allow_origin",
                remedy="Write a scheme, a host and perhaps a port, as in https://app.example:8443",
            )
    return tuple(dict.fromkeys(origins))


def _checked_key(key: str, field: str) -> str:
    """A key that a header can carry. Its error never quotes it."""
    if any(not "!" <= character <= "~" for character in key):
        raise ValidationError(
            f"the {field.replace('_', ' ')} holds what a header cannot carry",
            field=field,
            remedy="Choose visible ASCII characters, without spaces",
        )
    return key


def _argument(parse: Callable[[str], object]) -> Callable[[str], object]:
    """`parse` with its ValueError in the words argparse shows."""

    def convert(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _count(text: str) -> int:
    count = int(text) if text.strip().isdecimal() else 0
    if count < 1:
        raise ValueError(f"{text!r} is no positive whole number")
    return count


def _count_or_auto(text: str) -> int | None:
    return None if text.strip().lower() == "auto" else _count(text)


def _port(text: str) -> int:
    port = int(text) if text.strip().isdecimal() else -1
    if not 0 <= port <= 65535:
        raise ValueError(f"{text!r} is no port: they go from 0 (any free one) to 65535")
    return port


def _port_or_off(text: str) -> int | None:
    return None if text.strip().lower() == "off" else _port(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86400:
        raise ValueError(f"{text!r} is no number of seconds from 0 to 86400")
    return seconds


def read_pacing(text: str) -> Pacing | None:
    """How steps are paced, if they are: milliseconds, auto or off.

    Raises: ValueError naming what may be said.
    """
    word = text.strip().lower()
    if word in ("auto", "off"):
        return PACING if word == "auto" else None
    milliseconds = float(word) if _NUMBER.fullmatch(word) else 0.0
    if not 0 < milliseconds <= STEP_TARGET_MS_MAX:
        raise ValueError(
            f"{text!r} is no time of a step: give milliseconds up to {STEP_TARGET_MS_MAX}, "
            "auto or off"
        )
    return Pacing(milliseconds / 1000)


def _dialects(text: str) -> tuple[str, ...]:
    if text.strip().lower() == "none":
        return ()
    named = tuple(dict.fromkeys(_parts(text.lower(), ",")))
    for name in named:
        if name not in METRICS_DIALECTS:
            raise ValueError(f"{name!r} is none of {', '.join(METRICS_DIALECTS)}, none")
    return named


def _endpoint_or_off(text: str) -> str | None:
    endpoint = text.strip()
    if endpoint.lower() in ("off", "none", ""):
        return None
    endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
    parts = urlsplit(endpoint)
    try:
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"{text!r} is no endpoint: write http://host:4317, https://..., or off")
    return endpoint


def _parts(text: str, separator: str) -> list[str]:
    return [part.strip() for part in text.split(separator) if part.strip()]


def _checked_address(address: str) -> str:
    port = address.rpartition(":")[2]
    if address.startswith("unix:///") and len(address) > len("unix:///"):
        return address
    if not address.startswith("unix:") and ":" in address and port.isdecimal():
        return address
    raise ValidationError(
        f"--worker {address!r} is no address",
        field="worker",
        remedy="Write host:port, for example 127.0.0.1:50051, or unix:///path",
    )
