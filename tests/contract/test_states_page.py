"""The page about states says what the core's tables say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from adex_scheduler.core.adapters import MOVES, Residence
from adex_scheduler.core.sequence import TRANSITIONS, Stage

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_states", DOCS / "draw_states.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_drawn_from_the_tables(drawing: ModuleType) -> None:
    text = (DOCS / "states.md").read_text("utf-8")
    assert text == drawing.page(text), "run .venv/bin/python docs/draw_states.py"


def test_every_move_is_on_the_page() -> None:
    text = (DOCS / "states.md").read_text("utf-8")
    moves = [(old.name, new.name) for old in Stage for new in TRANSITIONS[old]]
    moves += [(old.name, new.name) for old in Residence for new in MOVES[old]]
    missing = [f"{old} -> {new}" for old, new in moves if f"    {old} --> {new}\n" not in text]
    assert not missing


def test_a_move_without_a_reason_is_an_error(drawing: ModuleType) -> None:
    reasons = dict(drawing.STAGE_REASONS)
    del reasons[Stage.WAITING, Stage.RUNNING]
    with pytest.raises(AssertionError, match="say why"):
        drawing.drawn(TRANSITIONS, drawing.STAGES, reasons)
