"""Draws the life of a sequence and of an adapter into docs/states.md, from the core's own tables.

    .venv/bin/python docs/draw_states.py

What each state is, and why it is left for the next one, is said here; which moves exist is what
`TRANSITIONS` and `MOVES` allow. A move without a reason, or a reason without a move, is an error.
"""

import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from adex_scheduler.core.adapters import MOVES, Residence
from adex_scheduler.core.sequence import TRANSITIONS, Stage

PAGE = Path(__file__).with_name("states.md")

STAGES = {
    Stage.WAITING_ADAPTER: "its adapter is not on the device, or there is no worker",
    Stage.WAITING: "nothing but room in a step or in the pool keeps it from running",
    Stage.RUNNING: "it has blocks and a part in the steps; its adapter is pinned",
    Stage.PREEMPTED: "it gave its blocks up, and waits for the steps that still touch them",
    Stage.ENDING: "its caller is answered; it waits for the steps that still touch its blocks",
    Stage.ENDED: "nothing of it is left",
}
STAGE_REASONS = {
    (Stage.WAITING_ADAPTER, Stage.WAITING): "its adapter has come, or it needs none",
    (Stage.WAITING_ADAPTER, Stage.ENDED): "cancelled, refused, or waited too long",
    (Stage.WAITING, Stage.RUNNING): "admitted to a step",
    (Stage.WAITING, Stage.WAITING_ADAPTER): "its adapter left before it began, or the worker did",
    (Stage.WAITING, Stage.ENDED): "cancelled, waited too long, or preempted and the worker lost",
    (Stage.RUNNING, Stage.PREEMPTED): "pages ran out, and it is the newest",
    (Stage.RUNNING, Stage.ENDING): "last token, stop string, cancelled, or failed",
    (Stage.RUNNING, Stage.WAITING_ADAPTER): "the worker was lost before its first token",
    (Stage.RUNNING, Stage.ENDED): "the worker was lost after its first token",
    (Stage.PREEMPTED, Stage.WAITING): "no step touches its blocks; its adapter is still there",
    (Stage.PREEMPTED, Stage.WAITING_ADAPTER): "no step touches its blocks; its adapter has left",
    (Stage.PREEMPTED, Stage.ENDING): "a step in flight brought its end, or it was cancelled",
    (Stage.PREEMPTED, Stage.ENDED): "the worker was lost after its first token",
    (Stage.ENDING, Stage.ENDED): "the plan that lists it as finished has retired",
}

RESIDENCES = {
    Residence.DISK: "its bundle is on disk, whole and checked",
    Residence.STAGING: "being read into host memory",
    Residence.HOST: "in host memory as well",
    Residence.PLACING: "it has a slot and a run of pages, and waits for those who leave the run",
    Residence.PAGING_IN: "being copied to the device",
    Residence.DEVICE: "steps may use it",
    Residence.DRAINING: "steps use it for the sequences that have begun, and nobody else begins",
    Residence.LEAVING_DEVICE: "its slot and pages come back when the worker answers",
    Residence.LEAVING_HOST: "its host memory comes back when the worker answers",
    Residence.LEAVING_DISK: "forgotten when the worker answers",
}
RESIDENCE_REASONS = {
    (Residence.DISK, Residence.STAGING): "somebody waits for it",
    (
        Residence.DISK,
        Residence.LEAVING_DISK,
    ): "the disk is over its budget, the copy is damaged, or unloaded",
    (Residence.STAGING, Residence.HOST): "read",
    (Residence.STAGING, Residence.DISK): "could not be read",
    (Residence.HOST, Residence.PLACING): "there is room, or idle ones make it",
    (Residence.HOST, Residence.LEAVING_HOST): "others want the memory, or unloaded",
    (Residence.PLACING, Residence.PAGING_IN): "the run is free",
    (Residence.PAGING_IN, Residence.DEVICE): "copied",
    (Residence.PAGING_IN, Residence.HOST): "could not be copied",
    (Residence.DEVICE, Residence.DRAINING): "its turn is over and another's is due, or "
    "unloaded; still pinned",
    (Residence.DEVICE, Residence.LEAVING_DEVICE): "not pinned, and its pages or slot are "
    "wanted, or unloaded",
    (Residence.DRAINING, Residence.LEAVING_DEVICE): "the last pin is gone",
    (Residence.LEAVING_DEVICE, Residence.HOST): "gone; the host copy stayed",
    (Residence.LEAVING_DEVICE, Residence.LEAVING_HOST): "gone; the host copy leaves too",
    (Residence.LEAVING_DEVICE, Residence.DISK): "gone; there was no host copy",
    (Residence.LEAVING_HOST, Residence.DISK): "gone",
}


def drawn(
    moves: Mapping[Any, AbstractSet[Any]],
    meanings: Mapping[Any, str],
    reasons: Mapping[tuple[Any, Any], str],
) -> str:
    """A diagram, a table of the states, and a table of the moves, in Markdown."""
    edges = [(old, new) for old in meanings for new in meanings if new in moves[old]]
    allowed = {(old, new) for old, targets in moves.items() for new in targets}
    assert set(meanings) == set(moves), "say what each state is"
    assert set(reasons) == allowed, f"say why, and only of real moves: {set(reasons) ^ allowed}"
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {old.name} --> {new.name}" for old, new in edges]
    lines += ["```", "", "| state | is |", "| --- | --- |"]
    lines += [f"| {state.name} | {meaning} |" for state, meaning in meanings.items()]
    lines += ["", "| from | to | when |", "| --- | --- | --- |"]
    lines += [f"| {old.name} | {new.name} | {reasons[old, new]} |" for old, new in edges]
    return "\n".join(lines)


def page(text: str) -> str:
    """`text` with its two drawn parts as the tables say now."""
    parts = {
        "sequences": drawn(TRANSITIONS, STAGES, STAGE_REASONS),
        "adapters": drawn(MOVES, RESIDENCES, RESIDENCE_REASONS),
    }
    for name, part in parts.items():
        before, begin, rest = text.partition(f"<!-- drawn: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert end, f"{PAGE.name} has no place for {name}"
        text = f"{before}{begin}{part}\n{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
    sys.stdout.write(f"{PAGE.name} is drawn\n")
