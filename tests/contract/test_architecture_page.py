"""The architecture page speaks of modules that exist, and of every room."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8")
WORDS = ("adex", "adex_kernels", "adex_proto", "adex_scheduler", "adex_worker")
ROOMS = {
    name: f"{package}.{name}"
    for package, names in {
        "adex_scheduler": ("core", "engine", "front", "link", "metrics", "text", "tracing"),
        "adex_worker": ("adapters", "model", "run", "service"),
    }.items()
    for name in names
}


def full_name(short: str) -> str | None:
    """The import name of `core.batch` or `adex.sync`; None for what is no module's name."""
    first, _, rest = short.partition(".")
    if first in WORDS:
        return short
    return f"{ROOMS[first]}.{rest}" if first in ROOMS else None


def test_every_module_that_is_named_exists() -> None:
    names = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", PAGE)
    modules = [module for name in names if (module := full_name(name))]
    assert len(modules) > 20
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    assert not missing, f"docs/ARCHITECTURE.md: {missing}"


def test_every_room_has_its_paragraph() -> None:
    headings = re.findall(r"^### (\S+):", PAGE, re.MULTILINE)
    missing = [room for room in ROOMS.values() if not any(_is(room, h) for h in headings)]
    assert not missing, f"add a paragraph and an invariant to docs/ARCHITECTURE.md: {missing}"
    assert len(headings) == PAGE.count("**Invariant:**"), "each room states one invariant"


def _is(room: str, heading: str) -> bool:
    return heading.endswith(room.replace(".", "/"))


def test_every_link_between_the_pages_leads_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "demo").glob("*.md")]
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken
