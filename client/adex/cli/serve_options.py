"""The flags of `adex serve`, from the command line or the environment, and where each one goes."""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from adex.cli import flag_values as values
from adex.cli.failure import EXIT_USAGE, CommandError
from adex.cli.passed_flags import add_passed_flags, passed_environment, variable_of

_DEMO_MODEL = Path("demo/model")
_DEMO_ADAPTERS = Path("demo/adapters")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `adex serve` was asked for; None leaves a choice to the process that makes it."""

    model_id: str
    host: str
    port: int
    grpc_port: int
    device: str
    dtype: str
    device_memory: str | None
    host_memory: str | None
    disk_memory: str | None
    cache_dir: Path | None
    local_adapter_roots: tuple[Path, ...]
    lora_modules: tuple[tuple[str, Path | str], ...]
    max_batch_tokens: int | None
    max_sequences: int | None
    step_target_ms: str | None
    drain_seconds: float
    adapter_source: str | None = None
    s3_adapter_roots: tuple[str, ...] = ()
    use_server_hf_token: bool = False
    weights: str = "auto"
    cuda_graphs: str = "auto"
    metrics_compat: str | None = None
    otlp_endpoint: str | None = None
    log_format: str | None = None
    log_level: str | None = None

    def worker_arguments(self, address: str) -> list[str]:
        """The flags of the worker, which listens at `address`."""
        # A module's folder may lie outside the roots: the worker reads nowhere else.
        named = [place for _, place in self.lora_modules]
        folders = [place for place in named if isinstance(place, Path)]
        prefixes = [place for place in named if not isinstance(place, Path)]
        roots = dict.fromkeys([*self.local_adapter_roots, *folders])
        s3_roots = dict.fromkeys(
            [*self.s3_adapter_roots, *(place for place in prefixes if place.startswith(values.S3))]
        )
        return _flags(
            ("--listen", address),
            ("--model-id", self.model_id),
            ("--device", self.device),
            ("--dtype", self.dtype),
            ("--weights", self.weights),
            ("--cuda-graphs", self.cuda_graphs),
            ("--device-memory", self.device_memory),
            ("--host-memory", self.host_memory),
            ("--disk-memory", self.disk_memory),
            ("--cache-dir", self.cache_dir),
            *(("--local-adapter-root", root) for root in roots),
            *(("--s3-adapter-root", root) for root in s3_roots),
            ("--max-batch-tokens", self.max_batch_tokens),
            ("--max-sequences", self.max_sequences),
            ("--log-format", self.log_format),
            ("--log-level", self.log_level),
        ) + (["--use-server-hf-token"] if self.use_server_hf_token else [])

    def scheduler_arguments(self, address: str) -> list[str]:
        """The flags of the scheduler, whose worker listens at `address`."""
        return _flags(
            ("--worker", address),
            ("--model-id", self.model_id),
            ("--host", self.host),
            ("--port", self.port),
            ("--grpc-port", self.grpc_port),
            *(("--lora-modules", f"{name}={path}") for name, path in self.lora_modules),
            *(("--local-adapter-root", root) for root in self.local_adapter_roots),
            ("--max-batch-tokens", self.max_batch_tokens),
            ("--max-sequences", self.max_sequences),
            ("--step-target-ms", self.step_target_ms),
            ("--drain-seconds", f"{self.drain_seconds:g}"),
            ("--adapter-source", self.adapter_source),
            ("--metrics-compat", self.metrics_compat),
            ("--otlp-endpoint", self.otlp_endpoint),
            ("--log-format", self.log_format),
            ("--log-level", self.log_level),
        )


def _flags(*pairs: tuple[str, object]) -> list[str]:
    return [part for flag, value in pairs if value is not None for part in (flag, str(value))]


@dataclass(frozen=True, slots=True)
class _Flag:
    """One flag: how its text is read, and what separates several in the environment."""

    name: str
    read: Callable[[str], object]
    metavar: str
    help: str
    default: object = None
    separator: str | None = None
    switch: bool = False

    @property
    def variable(self) -> str:
        return variable_of(self.name)


_FLAGS = (
    _Flag("model-id", str, "MODEL", "folder or hub id of the base model (demo/model if present)"),
    _Flag("host", str, "HOST", "address to listen at; 0.0.0.0 for containers", "127.0.0.1"),
    _Flag("port", values.port, "PORT", "port of the REST API, 0 for any", 8080),
    _Flag("grpc-port", values.port, "PORT", "port of the gRPC API, 0 for any", 9090),
    _Flag("device", values.device, "DEVICE", "auto, cpu, cuda or cuda:N", "auto"),
    _Flag(
        "dtype",
        values.choice("auto", "float32", "bfloat16", "float16"),
        "DTYPE",
        "auto, float32, bfloat16 or float16",
        "auto",
    ),
    _Flag(
        "weights",
        values.choice("auto", "int8"),
        "BITS",
        "auto, or int8 to round the linears on a CPU",
        "auto",
    ),
    _Flag(
        "cuda-graphs",
        values.choice("auto", "off"),
        "WHEN",
        "auto, or off to launch each step by itself",
        "auto",
    ),
    _Flag("device-memory", values.size, "SIZE", "device pool for KV cache and adapters, like 2GiB"),
    _Flag("host-memory", values.size, "SIZE", "host memory for adapters"),
    _Flag("disk-memory", values.size, "SIZE", "disk space for adapters"),
    _Flag("cache-dir", values.place, "DIR", "where adapters are kept on disk (~/.cache/adex)"),
    _Flag(
        "local-adapter-root",
        values.folder,
        "DIR",
        "folder whose adapters may be served by name; repeatable",
        separator=os.pathsep,
    ),
    _Flag(
        "lora-modules",
        values.module,
        "NAME=PATH",
        "adapter to serve under a name; repeatable, also from LORA_ADAPTERS",
        separator=",",
    ),
    _Flag(
        "adapter-source",
        values.choice("local", "hub", "s3"),
        "SOURCE",
        "where adapters named without a source lie: local, hub or s3 (local)",
    ),
    _Flag(
        "s3-adapter-root",
        values.s3_root,
        "S3_URL",
        "s3://bucket/prefix whose adapters may be served; repeatable",
        separator=",",
    ),
    _Flag(
        "use-server-hf-token",
        values.switch,
        "",
        "let requests without api_token read what this server's HF_TOKEN may read",
        default=False,
        switch=True,
    ),
    _Flag("max-batch-tokens", values.count, "N", "tokens in one step at most"),
    _Flag("max-sequences", values.count, "N", "sequences in one step at most"),
    _Flag("step-target-ms", str, "MS", "prompts are cut for steps of so long; auto or off"),
    _Flag(
        "metrics-compat",
        str,
        "NAMES",
        "tell metrics under the names of vllm, tgi and lorax too; separated by commas",
    ),
    _Flag("otlp-endpoint", str, "URL", "where an OpenTelemetry collector takes traces over gRPC"),
    _Flag(
        "log-format",
        values.choice("text", "json"),
        "FORMAT",
        "text for people, json for one object a line",
    ),
    _Flag("log-level", values.log_level, "LEVEL", "debug, info, warning or error"),
    _Flag(
        "drain-seconds",
        values.seconds,
        "S",
        "how long running requests may finish at the end",
        30.0,
    ),
)


VARIABLES = frozenset(flag.variable for flag in _FLAGS)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `adex serve`; their values stay text until `read_options`."""
    several: dict[str, Any] = {"action": "extend", "nargs": "+"}
    for flag in _FLAGS:
        shown = "" if flag.default in (None, False) else f" [{flag.default}]"
        if flag.switch:
            parser.add_argument(
                f"--{flag.name}",
                action="store_const",
                const="on",
                help=f"{flag.help} (env {flag.variable})",
            )
            continue
        parser.add_argument(
            f"--{flag.name}",
            metavar=flag.metavar,
            help=f"{flag.help}{shown} (env {flag.variable})".replace("%", "%%"),
            **(several if flag.separator else {}),
        )
    add_passed_flags(parser)


def read_options(flags: argparse.Namespace, environ: Mapping[str, str]) -> ServeOptions:
    """The options, each from its flag, else its variable, else its default.

    Raises: CommandError naming the flag or variable, the value and what is accepted.
    """
    told = {flag.name: _value(flag, flags, environ) for flag in _FLAGS}
    modules = _modules(told["lora-modules"], environ)
    model_id = told["model-id"] or _demo_model()
    roots: list[Path] = told["local-adapter-root"]
    if not roots and Path(model_id) == _DEMO_MODEL and _DEMO_ADAPTERS.is_dir():
        roots = [_DEMO_ADAPTERS.resolve()]
    return ServeOptions(
        model_id=model_id,
        host=told["host"],
        port=told["port"],
        grpc_port=told["grpc-port"],
        device=told["device"],
        dtype=told["dtype"],
        device_memory=told["device-memory"],
        host_memory=told["host-memory"],
        disk_memory=told["disk-memory"],
        cache_dir=told["cache-dir"],
        local_adapter_roots=tuple(roots),
        lora_modules=tuple(modules),
        max_batch_tokens=told["max-batch-tokens"],
        max_sequences=told["max-sequences"],
        step_target_ms=told["step-target-ms"],
        drain_seconds=told["drain-seconds"],
        adapter_source=told["adapter-source"],
        s3_adapter_roots=tuple(told["s3-adapter-root"]),
        use_server_hf_token=told["use-server-hf-token"],
        weights=told["weights"],
        cuda_graphs=told["cuda-graphs"],
        metrics_compat=told["metrics-compat"],
        otlp_endpoint=told["otlp-endpoint"],
        log_format=told["log-format"],
        log_level=told["log-level"],
    )


def _value(flag: _Flag, flags: argparse.Namespace, environ: Mapping[str, str]) -> Any:
    """One flag's value; a list, perhaps empty, where it is repeatable."""
    given: str | list[str] | None = getattr(flags, flag.name.replace("-", "_"))
    said_by = f"--{flag.name}"
    if given is None:
        said_by, given = flag.variable, environ.get(flag.variable) or None
        # Kubernetes sets ADEX_PORT=tcp://... in every pod beside a service named adex.
        if isinstance(given, str) and flag.read is values.port and given.startswith("tcp://"):
            given = None
        if isinstance(given, str) and flag.separator is not None:
            given = [part for part in given.split(flag.separator) if part.strip()]
    if flag.separator is not None:
        return [_read(flag.read, text, said_by) for text in given or []]
    return flag.default if given is None else _read(flag.read, str(given), said_by)


def _read(read: Callable[[str], object], text: str, said_by: str) -> object:
    try:
        return read(text)
    except ValueError as error:
        raise CommandError(
            f"{said_by}: {error}", "`adex serve --help` tells more", EXIT_USAGE
        ) from error


def _modules(
    given: list[tuple[str, Path | str]], environ: Mapping[str, str]
) -> list[tuple[str, Path | str]]:
    """The modules of the flags, then those of TGI's variable that have another name."""
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise CommandError(
                f"--lora-modules: {name!r} is given twice", "give each name one path", EXIT_USAGE
            )
    parts = [part for part in environ.get("LORA_ADAPTERS", "").split(",") if part.strip()]
    others = (
        cast("tuple[str, Path | str]", _read(values.module, part, "LORA_ADAPTERS"))
        for part in parts
    )
    return given + [(name, path) for name, path in others if name not in names]


def child_environment(environ: Mapping[str, str], flags: argparse.Namespace) -> dict[str, str]:
    """The environment of the children: without what their flags say, with what is passed on."""
    said = VARIABLES | {"LORA_ADAPTERS"}
    kept = {name: value for name, value in environ.items() if name not in said}
    return kept | passed_environment(flags)


def _demo_model() -> str:
    if not _DEMO_MODEL.is_dir():
        raise CommandError(
            "no model was named", "adex serve --model-id FOLDER_OR_HUB_ID", EXIT_USAGE
        )
    return str(_DEMO_MODEL)
