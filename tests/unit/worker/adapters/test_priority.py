"""Work beside the steps stands behind them."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has threads of own priority")


def told_by(statement: str) -> str:
    program = (
        "import os, threading\n"
        "from adex_worker.adapters.priority import stand_behind, step_aside\n"
        f"{statement}\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_a_thread_that_steps_aside_leaves_the_others_where_they_were() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    nice = told_by(
        "def show(): step_aside(); print(os.getpriority(os.PRIO_PROCESS, 0))\n"
        "t = threading.Thread(target=show)\n"
        "t.start()\nt.join()\n"
        "print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    assert nice.split() == ["10", str(before)]


def test_a_process_that_stands_behind_does_so_with_all_threads_it_starts() -> None:
    told = told_by(
        "stand_behind()\n"
        "t = threading.Thread(target=lambda: print(os.sched_getscheduler(0) == os.SCHED_IDLE))\n"
        "t.start()\nt.join()"
    )
    assert told == "True"
