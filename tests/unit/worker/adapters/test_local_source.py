"""Local adapters lie inside their roots, whatever a name or a link pretends."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adex_proto.adapter import AdapterKey
from adex_proto.errors import (
    AdapterForbidden,
    AdapterMalformed,
    AdapterNotFound,
    AdexError,
    SourceUnavailable,
    ValidationError,
)
from adex_worker.adapters.sources.local import LocalSource
from adex_worker.testing import tiny_config, tiny_shape, write_random_adapter

WEIGHTS = "adapter_model.safetensors"


def write(folder: Path, seed: int = 0) -> Path:
    return write_random_adapter(folder, tiny_shape(tiny_config()), seed=seed)


def key(name: str, revision: str = "") -> AdapterKey:
    return AdapterKey("", "local", name, revision)


def refusal(source: LocalSource, name: str) -> AdexError:
    with pytest.raises(AdexError) as caught:
        source.resolve(key(name))
    return caught.value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "root" / "team" / "a")
    write(tmp_path / "outside")
    return tmp_path / "root"


@pytest.fixture
def source(root: Path) -> LocalSource:
    return LocalSource([root])


@pytest.mark.parametrize("name", ["team/a", "./team//a/", "team/./a"])
def test_a_relative_name_is_looked_for_under_the_root(
    name: str, source: LocalSource, root: Path
) -> None:
    resolved = source.resolve(key(name))
    assert resolved.location == os.path.realpath(root / "team" / "a")
    sizes = {file.name: file.bytes for file in resolved.files}
    assert sizes[WEIGHTS] == (root / "team" / "a" / WEIGHTS).stat().st_size


def test_an_absolute_name_inside_a_root_is_served(source: LocalSource, root: Path) -> None:
    assert source.resolve(key(str(root / "team" / "a"))).location.endswith("/team/a")


def test_a_root_may_be_an_adapter_itself(root: Path) -> None:
    folder = root / "team" / "a"
    assert LocalSource([folder]).resolve(key(str(folder))).location == os.path.realpath(folder)


def test_roots_are_searched_in_order(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    write(second / "a")
    source = LocalSource([first, second, tmp_path / "never made"])
    assert source.resolve(key("a")).location == str(second / "a")
    write(first / "a")
    assert source.resolve(key("a")).location == str(first / "a")


@pytest.mark.parametrize(
    "name",
    ["..", "../outside", "team/../../outside", "team/../team/a", "/etc", "/etc/passwd", "/", "//"],
)
def test_a_name_that_leaves_the_roots_is_forbidden(name: str, source: LocalSource) -> None:
    error = refusal(source, name)
    assert type(error) is AdapterForbidden
    assert error.field == "adapter_id"
    assert "--local-adapter-root" in str(error.remedy)


def test_a_sibling_whose_name_begins_like_the_root_is_outside(root: Path) -> None:
    write(root.parent / "root-of-another")
    error = refusal(LocalSource([root]), str(root.parent / "root-of-another"))
    assert type(error) is AdapterForbidden


def test_a_refusal_does_not_tell_whether_files_outside_exist(
    source: LocalSource, root: Path
) -> None:
    (root / "real").symlink_to(root.parent / "outside")
    (root / "dangling").symlink_to(root.parent / "nothing here")

    def refused(name: str) -> tuple[type, str]:
        error = refusal(source, name)
        return type(error), str(error).replace(name, "NAME")

    outside = str(root.parent / "outside")
    assert refused(outside) == refused(str(root.parent / "nothing here"))
    assert refused("real") == refused("dangling") == refused(outside)
    assert refused("real/x") == refused("dangling/x")
    assert refused("real")[0] is AdapterForbidden


@pytest.mark.parametrize("file", ["adapter_config.json", WEIGHTS])
def test_a_file_that_links_out_of_the_root_is_forbidden(
    file: str, source: LocalSource, root: Path
) -> None:
    link = root / "team" / "a" / file
    link.unlink()
    link.symlink_to(root.parent / "outside" / file)
    error = refusal(source, "team/a")
    assert type(error) is AdapterForbidden
    assert file in error.message


def test_links_within_the_root_are_followed(source: LocalSource, root: Path) -> None:
    """Model hubs keep their files as links into a folder of blobs."""
    (root / "blobs").mkdir()
    for file in ("adapter_config.json", WEIGHTS):
        (root / "team" / "a" / file).rename(root / "blobs" / file)
        (root / "team" / "a" / file).symlink_to(Path("../../blobs") / file)
    (root / "alias").symlink_to("team/a")
    resolved = source.resolve(key("alias"))
    with source.open(resolved, WEIGHTS) as stream:
        assert stream.read() == (root / "blobs" / WEIGHTS).read_bytes()


def test_a_link_put_in_place_after_the_check_leads_nowhere(
    source: LocalSource, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = source.resolve(key("team/a"))
    real_open = os.open
    swapped: list[str] = []

    def open_after_the_swap(name: str, flags: int, **rest: Any) -> int:
        if name == "a" and not swapped:
            swapped.append(name)
            (root / "team" / "a").rename(root / "team" / "b")
            (root / "team" / "a").symlink_to(root.parent / "outside")
        return real_open(name, flags, **rest)

    monkeypatch.setattr(os, "open", open_after_the_swap)
    with pytest.raises(SourceUnavailable):
        source.open(resolved, WEIGHTS)
    assert swapped


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", ValidationError),
        ("team/a\0", ValidationError),
        ("team/\ud800", ValidationError),
        ("x" * 256, AdapterNotFound),
        ("x/" * 2000, AdapterNotFound),
        ("x/" * 40, AdapterNotFound),
        ("é" * 200, AdapterNotFound),
        ("none", AdapterNotFound),
        ("team/a/deeper", AdapterNotFound),
        (f"team/a/{WEIGHTS}", AdapterNotFound),
        ("team\n/a", AdapterNotFound),
    ],
)
def test_a_name_that_names_nothing_is_told_so(
    name: str, kind: type[AdexError], source: LocalSource
) -> None:
    error = refusal(source, name)
    assert type(error) is kind
    assert error.field == "adapter_id"
    assert error.remedy
    assert len(error.message) < 1000


def test_a_loop_of_links_is_not_an_adapter(source: LocalSource, root: Path) -> None:
    (root / "loop").symlink_to("loop")
    assert isinstance(refusal(source, "loop"), AdapterNotFound)


def test_a_folder_that_is_no_adapter_is_malformed_and_names_the_file(
    source: LocalSource,
) -> None:
    error = refusal(source, "team")
    assert type(error) is AdapterMalformed
    assert error.field == "adapter_config.json"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_something_else_in_place_of_a_file_is_malformed_and_holds_nobody(
    make: Any, source: LocalSource, root: Path
) -> None:
    path = root / "team" / "a" / WEIGHTS
    path.unlink()
    make(path)
    assert isinstance(refusal(source, "team/a"), AdapterMalformed)


def test_a_revision_of_a_local_adapter_is_refused(source: LocalSource) -> None:
    with pytest.raises(ValidationError, match="main") as caught:
        source.resolve(key("team/a", revision="main"))
    assert caught.value.field == "revision"


def test_the_stamp_changes_when_a_file_is_replaced_or_rewritten(
    source: LocalSource, root: Path
) -> None:
    stamps = [source.resolve(key("team/a")).stamp]
    assert source.resolve(key("team/a")).stamp == stamps[0]
    write(root / "team" / "a", seed=1)
    stamps.append(source.resolve(key("team/a")).stamp)
    twin = root / "twin"
    twin.write_bytes((root / "team" / "a" / WEIGHTS).read_bytes())
    os.replace(twin, root / "team" / "a" / WEIGHTS)
    stamps.append(source.resolve(key("team/a")).stamp)
    assert len(set(stamps)) == 3


def test_a_file_this_user_may_not_read_is_unavailable_by_name(root: Path) -> None:
    """In a process of its own, because this one may be root and root may read everything."""
    (root / "team" / "a" / WEIGHTS).chmod(0)
    for folder in (root.parent, root.parent.parent, root.parent.parent.parent):
        folder.chmod(0o755)
    script = (
        "import os\n"
        "from adex_proto.adapter import AdapterKey\n"
        "from adex_proto.errors import SourceUnavailable\n"
        "from adex_worker.adapters.sources.local import LocalSource\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        f"source = LocalSource([{str(root)!r}])\n"
        "resolved = source.resolve(AdapterKey('', 'local', 'team/a'))\n"
        f"try: source.open(resolved, {WEIGHTS!r})\n"
        "except SourceUnavailable as error: print('refused', error.field, error)\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert done.stdout.startswith(f"refused {WEIGHTS}"), done.stderr
