"""Models on the hub: what is asked of it, and how its answers become ours."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from adex_proto.errors import AdexError, SourceUnavailable, ValidationError
from adex_worker.model import source
from adex_worker.model.source import ModelSource

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ANSWER = httpx.Response(404, request=httpx.Request("GET", "http://hub.test/"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str | None]]]:
    """A hub that answers with a path or an error, and the list of what it was asked."""

    def make(answer: Path | Exception) -> list[tuple[str, str | None]]:
        asked: list[tuple[str, str | None]] = []

        def download(repo: str, name: str, revision: str | None = None) -> str:
            asked.append((name, revision))
            if isinstance(answer, Exception):
                raise answer
            return str(answer / name)

        monkeypatch.setattr(source, "hf_hub_download", download)
        return asked

    return make


def test_all_files_come_from_the_commit_of_the_first(
    hub: Callable[..., list[tuple[str, str | None]]], tmp_path: Path
) -> None:
    asked = hub(tmp_path / COMMIT)
    model = ModelSource("someone/model")
    model.file("config.json")
    model.file("model.safetensors")
    assert asked == [("config.json", None), ("model.safetensors", COMMIT)]


def test_a_revision_that_was_asked_for_stays(
    hub: Callable[..., list[tuple[str, str | None]]], tmp_path: Path
) -> None:
    asked = hub(tmp_path / COMMIT)
    model = ModelSource("someone/model", "v2")
    model.file("config.json")
    model.file("model.safetensors")
    assert [revision for _, revision in asked] == ["v2", "v2"]


def test_a_file_the_repository_lacks_is_none(
    hub: Callable[..., list[tuple[str, str | None]]],
) -> None:
    hub(EntryNotFoundError("no such file"))
    assert ModelSource("someone/model").file("generation_config.json") is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (RepositoryNotFoundError("none", response=ANSWER), ValidationError),
        (GatedRepoError("gated", response=ANSWER), ValidationError),
        (HFValidationError("bad id"), ValidationError),
        (LocalEntryNotFoundError("offline"), SourceUnavailable),
        (HfHubHTTPError("server error", response=ANSWER), SourceUnavailable),
        (ConnectionError("refused"), SourceUnavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.code,
)
def test_what_the_hub_refuses_is_the_callers_and_what_it_cannot_answer_is_not(
    hub: Callable[..., list[tuple[str, str | None]]], answer: Exception, expected: type[AdexError]
) -> None:
    hub(answer)
    with pytest.raises(expected, match="someone/model") as caught:
        ModelSource("someone/model").config()
    assert caught.value.field == "model_id"


def test_a_gated_model_says_what_it_needs(
    hub: Callable[..., list[tuple[str, str | None]]],
) -> None:
    hub(GatedRepoError("gated", response=ANSWER))
    with pytest.raises(ValidationError, match="token"):
        ModelSource("someone/model").config()


def test_a_cached_model_needs_no_answer_about_files_it_may_lack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def download(repo: str, name: str, revision: str | None = None) -> str:
        if name == "model.safetensors":
            return str(tmp_path / name)
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(source, "hf_hub_download", download)
    assert ModelSource("someone/model").checkpoint_files() == [tmp_path / "model.safetensors"]
