"""What stands behind a flag of `adex serve`: text to a value, or a ValueError that says why not."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

# How an adapter's place is told from a folder.
S3 = "s3://"
_HUB = ("hf://", "huggingface://")
_UNITS = {"": 1, "b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_ON = ("1", "true", "yes", "on")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(b|[kmgt]i?b?)?", re.IGNORECASE)
# What vLLM writes into a module beside its name and path; the one base model is the server's.
_VLLM_BASE = "base_model_name"


def bytes_of_size(text: str) -> int:
    """Bytes of a size such as 2GiB, 1.5 GB or 1048576.

    Raises: ValueError naming the ways to write one.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size: write it like 2GiB, 500MB or auto")
    unit = (match[2] or "").lower()
    unit = unit if unit == "b" else unit.removesuffix("b")
    return int(float(match[1]) * (_BINARY_UNITS | _UNITS)[unit])


def size(text: str) -> str:
    """A size in plain bytes, which every process reads alike; "auto" stays."""
    return "auto" if text.strip().lower() == "auto" else str(bytes_of_size(text))


def port(text: str) -> int:
    """A port to listen on, 0 for any free one."""
    number = _whole(text)
    if not 0 <= number <= 65535:
        raise ValueError(f"{number} is no port: they go from 0 (any free one) to 65535")
    return number


def count(text: str) -> int | None:
    """One or more; None for "auto"."""
    if text.strip().lower() == "auto":
        return None
    number = _whole(text)
    if number < 1:
        raise ValueError(f"{number} is too few: give 1 or more")
    return number


def seconds(text: str) -> float:
    """A wait of up to a day."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number of seconds") from None
    if not 0 <= number <= 86400:
        raise ValueError(f"{text} is no wait: give seconds from 0 to 86400")
    return number


def folder(text: str) -> Path:
    """A folder that is there, absolute."""
    found = Path(text).expanduser().resolve()
    if not found.is_dir():
        raise ValueError(f"{text} is no folder")
    return found


def place(text: str) -> Path:
    """Where something is or will be."""
    return Path(text).expanduser().absolute()


def module(text: str) -> tuple[str, Path | str]:
    """A name and what it stands for: `name=path`, or the JSON object in which vLLM writes both."""
    text = text.strip()
    name, path = _json_module(text) if text.startswith("{") else _named(text)
    if path.startswith((S3, *_HUB)):
        return name, path
    return name, folder(path)


def _named(text: str) -> tuple[str, str]:
    name, separator, path = (part.strip() for part in text.partition("="))
    if not (name and separator and path):
        raise ValueError(f"{text!r} must be name=path")
    return name, path


def _json_module(text: str) -> tuple[str, str]:
    try:
        given = cast("object", json.loads(text))
    except ValueError as error:
        raise ValueError(f"{text!r} begins like JSON and is none: {error}") from None
    told = cast("dict[str, object]", given) if isinstance(given, dict) else {}
    name, path = told.get("name"), told.get("path")
    if not (isinstance(name, str) and isinstance(path, str) and name and path):
        raise ValueError(f'{text!r} must be {{"name": ..., "path": ...}}')
    if others := sorted(set(told) - {"name", "path", _VLLM_BASE}):
        raise ValueError(f"{text!r} has {', '.join(others)}, which no module has")
    return name, path


def s3_root(text: str) -> str:
    """A bucket, or a prefix in one."""
    if not text.strip().startswith(S3):
        raise ValueError(f"{text!r} must be s3://bucket or s3://bucket/prefix")
    return text.strip()


def switch(text: str) -> bool:
    """On or off."""
    return one_of(text.strip().lower(), *_ON, "0", "false", "no", "off") in _ON


def log_level(text: str) -> str:
    """How much is logged."""
    return one_of(text.lower(), "debug", "info", "warning", "error")


def device(text: str) -> str:
    """Where the model lies."""
    return text if re.fullmatch(r"cuda:\d+", text) else one_of(text, "auto", "cpu", "cuda")


def one_of(text: str, *choices: str) -> str:
    """The text, where it is one of the choices."""
    if text not in choices:
        raise ValueError(f"{text!r} is none of {', '.join(choices)}")
    return text


def choice(*words: str) -> Callable[[str], str]:
    """Reads one of the words."""
    return lambda text: one_of(text, *words)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None
