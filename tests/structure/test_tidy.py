"""What linters do not see: sizes, names, docstrings, and what a pure module may not touch."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

DUMPING_GROUNDS = {
    "base", "common", "core_utils", "funcs", "general", "handler", "handlers", "helper", "helpers",
    "manager", "managers", "misc", "shared", "stuff", "tools", "util", "utilities", "utils",
}  # fmt: skip

ORDERLESS = {"all", "any", "frozenset", "len", "set", "sorted", "sum"}
# `hash` of text differs between processes and `id` between runs; the rest is I/O or the outside.
IMPURE_CALLS = {"breakpoint", "eval", "exec", "hash", "id", "input", "open", "print", "__import__"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def is_pure(name: str, pure: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in pure)


def test_every_module_opens_with_a_docstring(modules: list[Any], scripts: list[Path]) -> None:
    bare = [module.shown for module in modules if not ast.get_docstring(module.tree)]
    bare += [str(p) for p in scripts if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert not bare, f"say in one sentence at the top what the module is for: {bare}"


def test_no_module_is_longer_than_400_lines(modules: list[Any], scripts: list[Path]) -> None:
    lines = {module.shown: len(module.text.splitlines()) for module in modules}
    lines |= {str(path): len(path.read_text("utf-8").splitlines()) for path in scripts}
    long = {path: count for path, count in lines.items() if count > MODULE_LINES_MAX}
    assert not long, f"split it where a sentence about it needs an 'and': {long}"


def test_no_function_is_longer_than_60_lines(modules: list[Any]) -> None:
    long = {
        f"{module.shown}:{function.lineno} {function.name}": length
        for module in modules
        for function in functions(module.tree)
        if (length := (function.end_lineno or 0) - function.body[0].lineno + 1) > FUNCTION_LINES_MAX
    }
    assert not long, f"let one function hold the ifs and give the loops' bodies names: {long}"


def test_no_module_is_a_dumping_ground(modules: list[Any], scripts: list[Path]) -> None:
    paths = [module.path for module in modules] + scripts
    found = [str(p) for p in paths if DUMPING_GROUNDS & {p.stem, p.parent.name}]
    assert not found, f"name it after what it does: {found}"


def test_no_import_is_relative(modules: list[Any]) -> None:
    found = [
        f"{module.shown}:{node.lineno}"
        for module in modules
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not found, f"write the whole name, so that a search finds every importer: {found}"


def test_imports_inside_functions_only_keep_an_optional_dependency_optional(
    modules: list[Any],
) -> None:
    optional = {"opentelemetry", "rich", "readline", "torch_npu", "triton"}
    found = [
        f"{module.shown}:{node.lineno}"
        for module in modules
        for function in functions(module.tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom) and not _imported(node) <= optional
    ]
    assert not found, f"move the import to the top; if that makes a cycle, move the code: {found}"


def _imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    names = (
        [alias.name for alias in node.names]
        if isinstance(node, ast.Import)
        else [node.module or ""]
    )
    return {name.split(".")[0] for name in names}


def test_every_name_in_the_list_of_pure_modules_is_a_module_or_a_room(
    modules: list[Any], pure: tuple[str, ...]
) -> None:
    stale = [name for name in pure if not any(m.name == name for m in modules)]
    assert not stale, f"rename or remove it in the contract 'pure-core' of pyproject.toml: {stale}"


def test_pure_modules_call_nothing_that_reaches_outside(
    modules: list[Any], pure: tuple[str, ...]
) -> None:
    found = [
        f"{module.shown}:{node.lineno} {node.func.id}"
        for module in modules
        if is_pure(module.name, pure)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in IMPURE_CALLS
    ]
    assert not found, f"take the value as an argument, or return an instruction: {found}"


def test_no_set_is_iterated_in_a_core(modules: list[Any], pure: tuple[str, ...]) -> None:
    found = [
        f"{module.shown}:{line}"
        for module in modules
        if is_pure(module.name, pure)
        for line in sets_iterated(module.tree)
    ]
    assert not found, f"a set has no order two runs agree on: use sorted(), or a dict: {found}"


def test_the_search_for_iterated_sets_finds_them() -> None:
    text = """
waiting: set[int] = set()
class Core:
    def __init__(self):
        self._ready = {1, 2}
    def step(self):
        for one in self._ready: ...
        [x for x in waiting]
        list({3, 4})
        self._ready.pop()
        sorted(self._ready), len(waiting), 3 in waiting
        sorted(one for one in waiting), any(one > 2 for one in waiting), {one for one in waiting}
"""
    assert sets_iterated(ast.parse(text)) == [7, 8, 9, 10]


def sets_iterated(tree: ast.Module) -> list[int]:
    """Lines that walk over a set, or over a name this module makes a set."""
    names = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and _makes_set(node)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if (name := _name(target))
    }
    # What sorts or only counts its argument may walk over a set.
    orderless = {
        id(loop)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _name(node.func) in ORDERLESS
        for argument in node.args
        if isinstance(argument, ast.GeneratorExp | ast.ListComp)
        for loop in argument.generators
    }
    orderless |= {
        id(loop)
        for node in ast.walk(tree)
        if isinstance(node, ast.SetComp)
        for loop in node.generators
    }
    found: set[int] = set()
    for node in ast.walk(tree):
        walked: list[ast.expr] = []
        if id(node) in orderless:
            continue
        if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
            walked = [node.iter]
        elif isinstance(node, ast.Call) and _name(node.func) in {"list", "tuple", "next", "iter"}:
            walked = node.args[:1]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            takes = node.func.attr == "pop" and not node.args
            walked = [node.func.value] if takes else []
        found |= {one.lineno for one in walked if _is_set(one) or _name(one) in names}
    return sorted(found)


def _name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Attribute):
        return f".{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


def _is_set(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Call):
        return _name(node.func) in {"set", "frozenset"}
    return isinstance(node, ast.Set | ast.SetComp)


def _makes_set(node: ast.Assign | ast.AnnAssign) -> bool:
    if isinstance(node, ast.AnnAssign) and re.match(
        r"(frozen)?set\b", ast.unparse(node.annotation)
    ):
        return True
    return _is_set(node.value)


def test_the_root_holds_no_python_that_could_shadow_a_package(root: Path) -> None:
    found = [path.name for path in root.glob("*.py")]
    found += [str(path) for path in root.glob("*/__init__.py")]
    assert not found, f"top-level folders are shelves, not packages; move into one: {found}"


def test_no_file_mentions_a_place_on_one_machine(root: Path, tracked: list[Path]) -> None:
    places = "|".join(("work", "root", "home", "Users", "opt"))
    pattern = re.compile(rf"(?<![\w.:/}}~-])/(?:{places})/[\w.-]{{2,}}")
    found = []
    for path in tracked:
        if path.suffix in {".png", ".safetensors", ".gz", ".pdf"} or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{path.relative_to(root)}:{number}: {line.strip()[:80]}")
    assert not found, f"take the place from a flag, the environment or the checkout: {found}"
