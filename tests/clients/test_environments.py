"""The environments of other people's clients, and the page that says which they are."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)]
)
def test_packages_that_cannot_be_had_skip_the_test_but_fail_it_in_ci(
    ci: str,
    outcome: type[BaseException],
    python_of: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    lock = tmp_path / "absent.txt"
    lock.write_text("adex-has-no-such-client==1.0\n")
    with pytest.raises(outcome, match="cannot install absent"):
        python_of(lock)
    assert not list((ROOT / ".venv-clients").glob("absent-*"))


def test_the_page_names_the_versions_that_the_locks_name() -> None:
    locks = [ROOT / "requirements/lock.txt", *sorted((ROOT / "requirements/clients").iterdir())]
    pins = [line for lock in locks for line in lock.read_text("utf-8").splitlines() if "==" in line]
    page = (ROOT / "docs/migration.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d., ]+) \|", page, re.MULTILINE)
    assert len(rows) == 6
    for client, versions in rows:
        for version in versions.split(", "):
            assert f"{client}=={version}" in pins
