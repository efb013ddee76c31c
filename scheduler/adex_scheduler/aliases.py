"""Names that an operator gives adapters at the start, in the forms that vLLM and TGI know."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from adex_proto.adapter import AdapterKey
from adex_proto.errors import ValidationError

_HUB_SCHEMES = ("hf://", "huggingface://")
_ALIAS = re.compile(r"([^=@{]+)(?:=([^@]+))?(?:@([^@]+))?")


def read_aliases(flags: Sequence[str], variable: Sequence[str]) -> Mapping[str, AdapterKey]:
    """Public names to keys; a name of the flags hides the same one of the environment.

    Raises ValidationError for a form that is not known and for a name given two meanings.
    """
    found: dict[str, AdapterKey] = {}
    for text in flags:
        name, key = read_alias(text)
        if found.setdefault(name, key) != key:
            raise ValidationError(
                f"--lora-modules gives {name!r} two meanings",
                field="lora_modules",
                remedy="Give each name one path",
            )
    for text in variable:
        name, key = read_alias(text)
        found.setdefault(name, key)
    return found


def read_alias(text: str) -> tuple[str, AdapterKey]:
    """One adapter in the form `name=path`, `id` or `id@revision`.

    A path may be `hf://org/name`, with a revision or without, or `s3://bucket/prefix`.

    A path is made absolute where it exists here; another one is left to the worker's roots.
    """
    match = _ALIAS.fullmatch(text.strip())
    if match is None:
        raise ValidationError(
            f"invalid LoRA adapter format: {text!r}",
            field="lora_modules",
            remedy="Write name=path, or an id",
        )
    name, path, revision = match[1].strip(), (match[2] or match[1]).strip(), match[3] or ""
    for scheme in _HUB_SCHEMES:
        if path.startswith(scheme):
            return name, AdapterKey("", "hub", path.removeprefix(scheme), revision)
    if path.startswith("s3://") and not revision:
        return name, AdapterKey("", "s3", path)
    if match[2] is not None and revision:
        raise ValidationError(
            f"the adapter {text!r} is a path with a revision, but a path has none",
            field="lora_modules",
            remedy="Leave out what follows @, or give each version a folder of its own",
        )
    if revision:
        return name, AdapterKey("", "hub", path, revision)
    place = Path(path).expanduser()
    return name, AdapterKey("", "local", os.path.abspath(place) if place.is_dir() else path)
