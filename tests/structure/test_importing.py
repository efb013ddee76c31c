"""Who brings in what: names, light imports, and that every import is a declared dependency."""

import ast
import importlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SHELVES = ("client", "kernels", "proto", "scheduler", "worker")
OURS = ("adex", "adex_kernels", "adex_proto", "adex_scheduler", "adex_worker")
# rich is not among them: httpx imports it for its own command where it is installed.
HEAVY = (
    "aiohttp",
    "google.protobuf",
    "grpc",
    "huggingface_hub",
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
)

# Imports everything in the packages named on the command line, but for rooms that a minus precedes,
# while the modules named after `--without` cannot be found, as where they are not installed.
IMPORT_ALL = """
import importlib, pkgutil, sys
split = sys.argv.index("--without")
named, hidden = sys.argv[1:split], set(sys.argv[split + 1:])
names = [name for name in named if not name.startswith("-")]
rooms = tuple(name[1:] + "." for name in named if name.startswith("-"))
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is hidden by this test", name=name)
sys.meta_path.insert(0, Hidden())
for name in names:
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, name + "."):
        if not found.name.endswith("__main__") and not found.name.startswith(rooms):
            importlib.import_module(found.name)
print("imported")
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))


@pytest.mark.parametrize("name", SHELVES)
def test_a_shelf_is_no_import_name(name: str, root: Path) -> None:
    spec = importlib.util.find_spec(name)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    ours = [place for place in places if place and Path(place).is_relative_to(root)]
    ours = [place for place in ours if ".venv" not in Path(place).parts]
    assert not ours, f"`import {name}` finds our folder: run `pytest`, not `python -m pytest`"


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = "import sys, adex; print(*(name for name in sys.argv[1:] if name in sys.modules))"
    done = python(code, *HEAVY)
    assert done.stdout.split() == [], f"import it where it is used, behind an extra: {done.stdout}"
    assert done.returncode == 0, done.stderr


def test_the_client_and_its_commands_run_on_what_httpx_brings() -> None:
    brought = {"adex", *closure("httpx")}
    hidden = [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not brought & {canonicalize_name(owner) for owner in owners}
    ]
    done = python(IMPORT_ALL, "adex", "--without", *hidden)
    assert done.stdout == "imported\n", f"guard it with an extra and a remedy: {done.stderr}"


def test_the_scheduler_imports_where_torch_is_not_installed() -> None:
    hidden = ("adex_kernels", "adex_worker", "numpy", "peft", "safetensors", "torch")
    packages = ("adex_scheduler", "-adex_scheduler.simulate", "adex_proto")
    done = python(IMPORT_ALL, *packages, "--without", *hidden, "transformers")
    assert done.stdout == "imported\n", f"weights are the worker's business: {done.stderr}"


def test_the_worker_imports_where_no_web_framework_or_tokenizer_is_installed() -> None:
    hidden = ("adex_scheduler", "aiohttp", "httpx_sse", "jinja2", "peft", "rich", "tokenizers")
    done = python(IMPORT_ALL, "adex_worker", "--without", *hidden, "transformers")
    assert done.stdout == "imported\n", f"text ends at the scheduler: {done.stderr}"


def closure(name: str) -> set[str]:
    """A distribution and all it needs, extras aside, by canonical names."""
    found: set[str] = set()
    todo = [name]
    while todo:
        one = canonicalize_name(todo.pop())
        if one in found:
            continue
        found.add(one)
        needs = [Requirement(line) for line in importlib.metadata.requires(one) or []]
        todo += [n.name for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found


def test_installing_the_distribution_alone_brings_only_the_client() -> None:
    needs = [Requirement(line) for line in importlib.metadata.requires("adex") or []]
    base = [need.name for need in needs if need.marker is None or "extra" not in str(need.marker)]
    assert base == ["httpx"], "put what the client can do without into an extra"


@pytest.mark.parametrize(
    ("packages", "extras"),
    [
        (("adex",), ("cli",)),
        (("adex_scheduler", "-adex_scheduler.simulate", "adex_proto"), ("scheduler", "otel")),
        (("adex_scheduler.simulate",), ("scheduler", "simulate")),
        (("adex_worker", "adex_kernels", "adex_proto"), ("worker",)),
    ],
)
def test_every_import_is_declared_by_its_extra(
    packages: tuple[str, ...], extras: tuple[str, ...], modules: list[Any], project: dict[str, Any]
) -> None:
    table = project["project"]
    lines = [
        *table["dependencies"],
        *(one for e in extras for one in table["optional-dependencies"][e]),
    ]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    owners = importlib.metadata.packages_distributions()
    missing = {
        f"{module.shown} imports {name}"
        for module in modules
        if is_in(module.name, packages)
        for name in third_party(module.tree)
        if not declared & {canonicalize_name(owner) for owner in owners.get(name, [name])}
    }
    assert not missing, f"add it to the extra {extras[0]!r} in pyproject.toml: {sorted(missing)}"


def is_in(name: str, rooms: tuple[str, ...]) -> bool:
    """Whether a module is in one of the rooms, and in none that a minus precedes."""
    found = {room.lstrip("-"): not room.startswith("-") for room in rooms}
    return any(
        yes and f"{name}.".startswith(f"{room}.") for room, yes in found.items()
    ) and not any(not yes and f"{name}.".startswith(f"{room}.") for room, yes in found.items())


def third_party(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `google` is shared by many distributions; protobuf is the one we use.
            name = (node.module or "").split(".")[0]
            names.add(name)
    return names - set(sys.stdlib_module_names) - set(OURS)


def test_the_lock_names_an_exact_version_of_everything_declared(
    root: Path, project: dict[str, Any]
) -> None:
    text = (root / "requirements" / "lock.txt").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    exact = re.compile(r"([\w.-]+)==([\w.]+)(?:; .+)?")
    loose = [line for line in lines if not exact.fullmatch(line)]
    assert not loose, f"run `make lock`: the lock holds names and exact versions only: {loose}"
    locked = {canonicalize_name(m[1]): m[2] for line in lines if (m := exact.fullmatch(line))}
    table = project["project"]
    extras = [line for extra in table["optional-dependencies"].values() for line in extra]
    groups = [
        g for name, group in project["dependency-groups"].items() if name != "protos" for g in group
    ]
    needs = [
        Requirement(line)
        for line in [*table["dependencies"], *extras, *groups]
        if isinstance(line, str)
    ]
    stale = [
        str(need)
        for need in needs
        if canonicalize_name(need.name) != "adex"
        and not need.specifier.contains(locked.get(canonicalize_name(need.name), "0"))
    ]
    assert not stale, f"run `make lock` and commit requirements/lock.txt: {stale}"


@pytest.mark.parametrize("name", OURS)
def test_every_exported_name_exists(name: str) -> None:
    package = importlib.import_module(name)
    exported = getattr(package, "__all__", [])
    assert exported == sorted(exported), "keep __all__ in order"
    missing = [one for one in exported if not hasattr(package, one)]
    assert not missing, f"exported but not there: {missing}"
