"""The one thread that computes steps, strictly in the order their plans were submitted.

Nothing else ever runs a step, so the runner needs no lock, and the event loop never waits for a
tensor. Outcomes are handed over on this thread; the receiver moves them to where it wants them.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from adex_proto.errors import StepFailed
from adex_proto.outcome import SequenceFailure, StepOutcome
from adex_proto.plan import StepPlan

_LOG = logging.getLogger(__name__)


class StepRunner(Protocol):
    """What computes steps; called on one thread only."""

    def run(self, plan: StepPlan) -> StepOutcome: ...
    def forget_all(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Step:
    plan: StepPlan
    done: Callable[[StepOutcome], None]


@dataclass(frozen=True, slots=True)
class _Reset:
    finished: Future[None]


class StepThread:
    """Feeds plans to a runner on a thread of its own.

    `last_step` is the number of the last step finished since the last reset, -1 for none.
    """

    def __init__(self, runner: StepRunner) -> None:
        self._runner = runner
        self._queue: deque[_Step | _Reset] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="adex-steps", daemon=True)
        self.last_step = -1

    def start(self) -> None:
        self._thread.start()

    def submit(self, plan: StepPlan, done: Callable[[StepOutcome], None]) -> None:
        """Queue a plan; `done` is called with its outcome on the step thread, once or, if a reset
        or stop drops the plan first, never."""
        with self._wake:
            if not self._stopping:
                self._queue.append(_Step(plan, done))
                self._wake.notify()

    def reset(self) -> Future[None]:
        """Drop queued plans, let the running step finish, and forget every sequence."""
        finished: Future[None] = Future()
        with self._wake:
            self._drop_steps()
            if self._stopping:
                finished.set_result(None)
            else:
                self._queue.append(_Reset(finished))
                self._wake.notify()
        return finished

    def stop(self, wait_s: float | None = None) -> bool:
        """Drop queued plans, let the running step finish, and end the thread. Blocks until then,
        or for `wait_s`. Returns: whether the thread has ended."""
        with self._wake:
            self._drop_steps()
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _drop_steps(self) -> None:
        kept = [item for item in self._queue if isinstance(item, _Reset)]
        self._queue.clear()
        self._queue.extend(kept)

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._stopping)
                if not self._queue:
                    return
                item = self._queue.popleft()
            if isinstance(item, _Reset):
                self._forget(item)
            else:
                item.done(self._run(item.plan))

    def _run(self, plan: StepPlan) -> StepOutcome:
        try:
            return self._runner.run(plan)
        except Exception:
            # The runner answers for every failure it foresees. Whatever else happens must cost only
            # these sequences: a dead step thread would cost all.
            _LOG.exception("step %d failed as a whole", plan.step)
            error = StepFailed("the step failed inside the worker")
            failures = tuple(SequenceFailure(number, error) for number in plan.sequences)
            return StepOutcome(plan.step, failures=failures)
        finally:
            self.last_step = plan.step

    def _forget(self, reset: _Reset) -> None:
        try:
            self._runner.forget_all()
            self.last_step = -1
        except Exception as error:
            reset.finished.set_exception(error)
        else:
            reset.finished.set_result(None)
