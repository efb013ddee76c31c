"""What a worker is told when it starts: flags, or the environment, read once and checked.

Every flag --some-thing may also be given as ADEX_SOME_THING; the flag wins.
"""

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adex_proto.errors import ValidationError
from adex_proto.logs import LogFormat
from adex_worker.adapters.core.remote_names import S3Place, s3_root

DTYPES = ("auto", "float32", "bfloat16", "float16")
SLOTS_MAX = 4096
_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Everything a worker can be told. None for a size, count or dtype means: choose for me.

    `device_bytes` is the pool of KV blocks and adapters, beside the model's weights; `host_bytes`
    and `disk_bytes` bound adapters in those tiers. `metrics_port` 0 serves no metrics.
    """

    model_id: str
    revision: str | None
    listen: str
    device: str
    dtype: str | None
    int8: bool
    cuda_graphs: bool
    device_bytes: int | None
    host_bytes: int | None
    disk_bytes: int | None
    cache_dir: Path
    local_adapter_roots: tuple[Path, ...]
    s3_adapter_roots: tuple[S3Place, ...]
    use_server_hf_token: bool
    step_tokens_max: int | None
    step_sequences_max: int | None
    rank_max: int
    threads: int | None
    metrics_port: int
    log_level: str
    log_format: LogFormat


def bytes_of_size(text: str) -> int | None:
    """Bytes of a size such as 2GiB, 1.5 GB or 1048576; None for auto. Raises ValueError."""
    if text.strip().lower() == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no size; write for example 2GiB, 500MB or auto")
    number, prefix, binary, _ = match.groups()
    power = _UNITS[prefix.lower()]
    if binary and prefix:
        power = 1024 ** (" kmgt".index(prefix.lower()))
    size = int(float(number) * power)
    if size < 1:
        raise ValueError(f"{text!r} is no size; it must be at least one byte")
    return size


def parse_options(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> WorkerOptions:
    """Read the command line and the environment.

    Raises ValidationError for a bad combination or a missing value; argparse itself ends the
    process with status 2 for a flag it cannot read.
    """
    env = os.environ if environment is None else environment
    given = _parser(env).parse_args(arguments)
    if not given.model_id:
        raise ValidationError(
            "no model is named", field="model_id", remedy="Give --model-id a folder or a hub id"
        )
    tokens, sequences = given.max_batch_tokens, given.max_sequences
    if tokens is not None and sequences is not None and tokens < sequences:
        raise ValidationError(
            f"--max-batch-tokens {tokens} is less than --max-sequences {sequences}, but each"
            " decoding sequence takes one token of a step",
            field="max_batch_tokens",
            remedy="Raise the first or lower the second",
        )
    return WorkerOptions(
        model_id=given.model_id,
        revision=given.revision or None,
        listen=_checked_address(given.listen),
        device=given.device,
        dtype=None if given.dtype == "auto" else given.dtype,
        int8=given.weights == "int8",
        cuda_graphs=given.cuda_graphs == "auto",
        device_bytes=given.device_memory,
        host_bytes=given.host_memory,
        disk_bytes=given.disk_memory,
        cache_dir=given.cache_dir.expanduser(),
        local_adapter_roots=_checked_roots(given.local_adapter_root or _roots_of(env)),
        s3_adapter_roots=tuple(
            s3_root(root) for root in given.s3_adapter_root or _s3_roots_of(env)
        ),
        use_server_hf_token=given.use_server_hf_token,
        step_tokens_max=tokens,
        step_sequences_max=sequences,
        rank_max=given.rank_max,
        threads=given.threads,
        metrics_port=given.metrics_port,
        log_level=given.log_level.upper(),
        log_format=LogFormat(given.log_format),
    )


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adex-worker",
        description="One worker: the model, its KV cache and the adapters, served over gRPC.",
        epilog="Each flag may also be given in the environment: --model-id as ADEX_MODEL_ID.",
    )

    def add(flag: str, default: str, text: str, **options: Any) -> None:
        # argparse converts string defaults like arguments, so the environment is checked as well.
        name = "ADEX_" + flag.removeprefix("--").replace("-", "_").upper()
        parser.add_argument(flag, default=_said(env, name, default), help=text, **options)

    size: dict[str, Any] = {"type": _argument(bytes_of_size), "metavar": "SIZE"}
    count: dict[str, Any] = {"type": _argument(_count_or_auto), "metavar": "N"}
    add("--model-id", "", "a folder or a Hugging Face hub id")
    add("--revision", "", "branch, tag or commit of a hub model")
    add("--listen", "127.0.0.1:50051", "host:port or unix:///path")
    add("--device", "auto", "auto, cpu, cuda or cuda:N")
    add("--dtype", "auto", f"one of {', '.join(DTYPES)}", choices=DTYPES)
    widths = ("auto", "int8")
    add(
        "--weights",
        "auto",
        "auto: the linears in the dtype; int8: rounded to eight bits, on a CPU",
        choices=widths,
    )
    add("--cuda-graphs", "auto", "record steps of decodes; off: never", choices=("auto", "off"))
    add("--device-memory", "auto", "pool of KV blocks and adapters, beside the weights", **size)
    add("--host-memory", "auto", "adapters kept in host memory", **size)
    add("--disk-memory", "auto", "converted adapters kept on disk", **size)
    add("--cache-dir", str(default_cache_dir(env)), "where converted adapters are kept", type=Path)
    parser.add_argument(
        "--local-adapter-root",
        action="append",
        type=Path,
        help="a folder adapters may be read from (repeatable; in the environment separated by ':')",
    )
    parser.add_argument(
        "--s3-adapter-root",
        action="append",
        metavar="S3_URL",
        help="s3://bucket/prefix adapters may be read from (repeatable; in the environment"
        " separated by ',')",
    )
    parser.add_argument(
        "--use-server-hf-token",
        action="store_true",
        default=_is_on(env.get("ADEX_USE_SERVER_HF_TOKEN", "")),
        help="let requests without api_token read what this process's own HF_TOKEN may read",
    )
    add("--max-batch-tokens", "auto", "tokens of one step", **count)
    add("--max-sequences", "auto", "sequences of one step", **count)
    add("--rank-max", "256", "largest LoRA rank served", type=_argument(_count), metavar="N")
    add("--threads", "auto", "threads of one step on a CPU", **count)
    add("--metrics-port", "0", "port for Prometheus metrics, 0 for none", type=int, metavar="N")
    levels = ("debug", "info", "warning", "error")
    add("--log-format", "text", "lines for people or for machines", choices=("text", "json"))
    add("--log-level", "info", f"one of {', '.join(levels)}", choices=levels)
    return parser


def _said(env: Mapping[str, str], name: str, default: str) -> str:
    """The variable, or the default where there is none."""
    said = env.get(name, default)
    # Kubernetes sets ADEX_METRICS_PORT=tcp://... in every pod beside a service named adex-metrics.
    return default if said.startswith("tcp://") else said


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


def default_cache_dir(env: Mapping[str, str]) -> Path:
    """The user's own; what holds for every worker of a user is kept there whatever the options."""
    # A user without a home has none of that name: making it then fails, and is reported.
    base = env.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "adex"


def _roots_of(env: Mapping[str, str]) -> list[Path]:
    return [Path(part) for part in env.get("ADEX_LOCAL_ADAPTER_ROOT", "").split(":") if part]


def _s3_roots_of(env: Mapping[str, str]) -> list[str]:
    return [part.strip() for part in env.get("ADEX_S3_ADAPTER_ROOT", "").split(",") if part.strip()]


def _is_on(text: str) -> bool:
    return text.strip().lower() in ("1", "true", "yes", "on")


def _checked_roots(roots: Sequence[Path]) -> tuple[Path, ...]:
    for root in roots:
        if not root.is_dir():
            raise ValidationError(
                f"--local-adapter-root {root} is no folder",
                field="local_adapter_root",
                remedy="Create it, or name the folder that holds the adapters",
            )
    return tuple(root.resolve() for root in roots)


def _checked_address(listen: str) -> str:
    port = listen.rpartition(":")[2]
    if listen.startswith("unix:///") and len(listen) > len("unix:///"):
        return listen
    if not listen.startswith("unix:") and ":" in listen and port.isdecimal():
        return listen
    raise ValidationError(
        f"--listen {listen!r} is no address",
        field="listen",
        remedy="Write host:port, for example 127.0.0.1:50051, or unix:///path",
    )
