"""The one thread that computes steps, strictly in the order their plans were submitted.

On a device that computes by itself, or a lane beside this thread, the next step is launched while
that is at the present one.
Nothing else ever runs a step, so the runner needs no lock, and the event loop never waits for a
tensor. Outcomes are handed over on this thread; the receiver moves them to where it wants them.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from adex_proto.errors import StepFailed
from adex_proto.outcome import SequenceFailure, StepOutcome
from adex_proto.plan import StepPlan

_LOG = logging.getLogger(__name__)


class UnderWay(Protocol):
    """A step whose forward pass has been launched."""

    @property
    def waits(self) -> bool:
        """Whether the device may still be at it once its tokens are chosen."""
        ...

    @property
    def told(self) -> Future[None] | None:
        """Is done when the device is, where the device says so by itself."""
        ...

    def choose(self) -> None:
        """Choose its tokens, on the device, by all that was finished before."""
        ...

    def wait(self) -> None:
        """Return when the device is done with it; any thread may call."""
        ...

    def finish(self) -> StepOutcome:
        """Wait, and say what came of it."""
        ...


class StepRunner(Protocol):
    """What computes steps; called on one thread only.

    A step begins when the one before it is chosen, and is chosen when that one is finished.
    """

    def begin(self, plan: StepPlan) -> UnderWay: ...
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

    def __init__(self, runner: StepRunner, prepare: Callable[[], object] = lambda: None) -> None:
        """`prepare` is the first thing that the thread does; it must not raise."""
        self._runner, self._prepare = runner, prepare
        self._queue: deque[_Step | _Reset] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._under_way: tuple[_Step, UnderWay] | None = None
        self._arrived: Future[None] | None = None
        self._ends = ThreadPoolExecutor(1, thread_name_prefix="adex-step-ends")
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
        self._prepare()
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._queue or self._stopping or self._has_arrived())
                item, stopping = self._queue.popleft() if self._queue else None, self._stopping
            if isinstance(item, _Step):
                self._advance(item)
                continue
            self._end()
            if item is not None:
                self._forget(item)
            elif stopping:
                self._ends.shutdown(wait=False)
                return

    def _advance(self, step: _Step) -> None:
        """Launch a step, end the one before it, which the device may have been at until now, and
        only then choose the step's tokens: by then all earlier ones are known."""
        try:
            under_way = self._runner.begin(step.plan)
        except Exception:
            self._end()
            self._answer(step, _failed(step.plan))
            return
        self._end()
        try:
            under_way.choose()
        except Exception:
            self._answer(step, _failed(step.plan))
            return
        self._under_way = step, under_way
        # Whatever comes first, the next plan or this step's end, is attended to first.
        if not (under_way.waits and self._is_watched(under_way)):
            self._end()

    def _is_watched(self, under_way: UnderWay) -> bool:
        """Whether the step's end is told to this thread, by the device or one that waits for it."""
        try:
            self._arrived = under_way.told or self._ends.submit(under_way.wait)
        except RuntimeError:
            # The system gives this process no more threads.
            return False
        self._arrived.add_done_callback(self._notify)
        return True

    def _end(self) -> None:
        """Finish the step under way, if there is one."""
        if self._under_way is None:
            return
        step, under_way = self._under_way
        self._under_way = self._arrived = None
        try:
            outcome = under_way.finish()
        except Exception:
            outcome = _failed(step.plan)
        self._answer(step, outcome)

    def _answer(self, step: _Step, outcome: StepOutcome) -> None:
        self.last_step = step.plan.step
        step.done(outcome)

    def _has_arrived(self) -> bool:
        return self._arrived is not None and self._arrived.done()

    def _notify(self, _: Future[None]) -> None:
        with self._wake:
            self._wake.notify()

    def _forget(self, reset: _Reset) -> None:
        try:
            self._runner.forget_all()
            self.last_step = -1
        except Exception as error:
            reset.finished.set_exception(error)
        else:
            reset.finished.set_result(None)


def _failed(plan: StepPlan) -> StepOutcome:
    """The runner answers for every failure it foresees. Whatever else happens must cost only these
    sequences: a dead step thread would cost all."""
    _LOG.exception("step %d failed as a whole", plan.step)
    error = StepFailed("the step failed inside the worker")
    failures = tuple(SequenceFailure(number, error) for number in plan.sequences)
    return StepOutcome(plan.step, failures=failures)
