"""The place of work beside the steps, where both want the processor."""

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

# How far it stands behind the steps.
_NICE = 10


def step_aside() -> None:
    """Let the steps have the processor before this thread and those it starts.

    Where threads have no priority of their own (other than Linux), they share as equals.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def stand_behind() -> None:
    """Let this process, which has one thread yet, have what no step wants of the processor.

    It shares no lock with the steps that they could wait for; whoever does must not stand here.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def fall_first() -> None:
    """Let this process be the first that Linux ends where memory runs out.

    Otherwise it would end whoever has most: the one that holds the model.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
