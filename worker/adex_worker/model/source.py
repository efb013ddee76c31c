"""Where a model's files are: a local folder, or a repository on the Hugging Face hub."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from adex_proto.errors import SourceUnavailable, ValidationError
from adex_worker.model.spec import ModelSpec, model_spec, token_ids

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelSource:
    """The files of one model, fetched by name only; a hub repository is read at one commit.

    Where the hub does not answer, what is cached counts as all there is; a file that is needed and
    missing then is SourceUnavailable instead of ValidationError.
    """

    __slots__ = ("_folder", "_revision", "_unanswered", "model_id")

    def __init__(self, model_id: str, revision: str | None = None) -> None:
        self.model_id = model_id
        self._folder = Path(model_id) if Path(model_id).is_dir() else None
        self._revision = revision
        self._unanswered = False

    def config(self) -> dict[str, Any]:
        """The parsed config.json. Raises ValidationError or SourceUnavailable without one."""
        path = self.file("config.json")
        if path is None:
            raise self._lacking("it has no config.json")
        return self._parsed(path)

    def spec(self) -> ModelSpec:
        """The model's spec; ids that end a sequence are generation_config.json's if it has any."""
        spec = model_spec(self.config())
        path = self.file("generation_config.json")
        generation = self._parsed(path) if path is not None else {}
        if generation.get("eos_token_id") is not None:
            spec = replace(spec, eos_token_ids=token_ids(generation["eos_token_id"]))
        return spec

    def checkpoint_files(self) -> list[Path]:
        """The safetensors files, one or all shards; raises like `config` where one is missing."""
        index = self.file(_INDEX)
        if index is None:
            single = self.file(_SINGLE)
            if single is None:
                raise self._lacking("it has no weights in safetensors files")
            return [single]
        names = set(self._parsed(index).get("weight_map", {}).values())
        files: list[Path] = []
        for name in sorted(names):
            path = self.file(name) if Path(name).name == name else None
            if path is None:
                raise self._lacking(f"its index names {name!r}, which is not there")
            files.append(path)
        if not files:
            raise self._refused("its index names no files")
        return files

    def file(self, name: str) -> Path | None:
        """The local path of a file of the model, or None where the model has no such file."""
        if self._folder is not None:
            path = self._folder / name
            return path if path.is_file() else None
        try:
            path = Path(hf_hub_download(self.model_id, name, revision=self._revision))
        except LocalEntryNotFoundError:
            self._unanswered = True
            return None
        except EntryNotFoundError:
            return None
        except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            why = "needs accepted terms and a token" if isinstance(error, GatedRepoError) else ""
            why = why or "is neither a folder here nor a repository that this token can see"
            raise self._refused(f"it {why}") from error
        except (HfHubHTTPError, OSError) as error:
            message = f"the hub failed for {self.model_id!r}, file {name}: {error}"
            raise SourceUnavailable(message, field="model_id") from error
        if self._revision is None and _COMMIT.fullmatch(path.parent.name):
            # All further files come from the commit of the first, whatever is pushed meanwhile.
            self._revision = path.parent.name
        return path

    def _parsed(self, path: Path) -> dict[str, Any]:
        try:
            parsed = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self._refused(f"{path.name} is not JSON: {error}") from error
        if not isinstance(parsed, dict):
            raise self._refused(f"{path.name} holds no JSON object")
        return parsed

    def _lacking(self, reason: str) -> ValidationError | SourceUnavailable:
        if not self._unanswered:
            return self._refused(reason)
        message = f"the hub did not answer for {self.model_id!r}, and in the cache {reason}"
        return SourceUnavailable(
            message, field="model_id", remedy="Restore the connection or name a local folder"
        )

    def _refused(self, reason: str) -> ValidationError:
        return ValidationError(
            f"the model {self.model_id!r} cannot be served: {reason}",
            field="model_id",
            remedy="Name a folder or a hub repository with config.json and safetensors files",
        )
