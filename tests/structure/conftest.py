"""The repository as data: its modules with their syntax trees, read once for these tests."""

import ast
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "adex": ROOT / "client" / "adex",
    "adex_kernels": ROOT / "kernels" / "adex_kernels",
    "adex_proto": ROOT / "proto" / "adex_proto",
    "adex_scheduler": ROOT / "scheduler" / "adex_scheduler",
    "adex_worker": ROOT / "worker" / "adex_worker",
}


@dataclass(frozen=True, slots=True)
class Module:
    """One hand-written module: its import name, its place and its parsed text."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def shown(self) -> str:
        """The path a person would type."""
        return str(self.path.relative_to(ROOT))


def _module(package: str, folder: Path, path: Path) -> Module:
    parts = [package, *path.relative_to(folder).with_suffix("").parts]
    if parts[-1] == "__init__":
        parts.pop()
    text = path.read_text(encoding="utf-8")
    return Module(".".join(parts), path, text, ast.parse(text))


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that holds pyproject.toml."""
    return ROOT


@pytest.fixture(scope="session")
def modules() -> list[Module]:
    """Every module of the five packages that a person wrote."""
    return [
        _module(package, folder, path)
        for package, folder in PACKAGES.items()
        for path in sorted(folder.rglob("*.py"))
        if not path.stem.endswith(("_pb2", "_pb2_grpc"))
    ]


@pytest.fixture(scope="session")
def scripts() -> list[Path]:
    """Python outside the packages: tests, benchmarks, the demo's recipe, the docs' drawings."""
    folders = [ROOT / name for name in ("benchmarks", "demo", "docs", "tests")]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


@pytest.fixture(scope="session")
def tracked() -> list[Path]:
    """Every file of the project: those git knows, or could."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a git checkout: {error}")
    return [path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file()]


@pytest.fixture(scope="session")
def pure() -> tuple[str, ...]:
    """The modules and rooms that the import contract 'pure-core' holds to be pure."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if one["id"] == "pure-core"]
    return tuple(contract["source_modules"])
