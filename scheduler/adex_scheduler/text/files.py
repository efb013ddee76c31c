"""The few small files of a base model that text needs, from a folder or from the hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from adex_proto.errors import ValidationError

REQUIRED = "tokenizer.json"
OPTIONAL = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
)
# The largest tokenizers in use are about 35 MB; a file of another order is not a tokenizer.
FILE_BYTES_MAX = 256 * 2**20


def read_model_files(model: str, revision: str | None = None) -> dict[str, str]:
    """Contents by file name; the optional ones only where they exist.

    Raises:
        ValidationError: no such model, no tokenizer.json in it, or a file beyond its size limit.
    """
    folder = Path(model)
    if folder.is_dir():
        paths = {name: folder / name for name in (REQUIRED, *OPTIONAL)}
        found = {name: path for name, path in paths.items() if path.is_file()}
    elif model.startswith(("/", "./", "../", "~")):
        raise _no_model(model, "there is no such folder")
    else:
        found = _download(model, revision)
    if REQUIRED not in found:
        raise ValidationError(
            f"`{model}` has no {REQUIRED}",
            field="model_id",
            remedy="Save the tokenizer in its fast form (one tokenizer.json) beside the model",
        )
    return {name: _read(path) for name, path in found.items()}


def json_object(text: str, name: str) -> Mapping[str, object]:
    """The JSON object in `text`; `name` is the file it came from."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValidationError(f"{name} is not JSON: {error}", field="model_id") from error
    if not isinstance(value, dict):
        raise ValidationError(f"{name} does not hold a JSON object", field="model_id")
    return cast("dict[str, object]", value)


def _download(model: str, revision: str | None) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name in (REQUIRED, *OPTIONAL):
        try:
            found[name] = Path(hf_hub_download(model, name, revision=revision))
        except LocalEntryNotFoundError as error:
            if name == REQUIRED:
                raise _no_model(model, str(error)) from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise _no_model(model, str(error)) from error
    return found


def _no_model(model: str, reason: str) -> ValidationError:
    first_line = reason.splitlines()[0].rstrip(". ") if reason else "unknown reason"
    return ValidationError(
        f"model `{model}` is neither a folder nor readable from the hub: {first_line}",
        field="model_id",
        remedy="Give a folder with the model's files, or a hub id this machine may read",
    )


def _read(path: Path) -> str:
    size = path.stat().st_size
    if size > FILE_BYTES_MAX:
        raise ValidationError(
            f"{path.name} has {size} bytes, more than {FILE_BYTES_MAX}",
            field="model_id",
        )
    return path.read_text(encoding="utf-8")
