"""The place of work beside the steps, where both want the processor."""

import os
import sys
import threading
from contextlib import suppress

# How far it stands behind the steps.
_NICE = 10


def step_aside() -> None:
    """Let the steps have the processor before this thread and those it starts.

    Where threads have no priority of their own (other than Linux), they share as equals.
    """
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
