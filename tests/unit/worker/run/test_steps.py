"""One thread, plans in order, and nothing that a runner does can end it."""

import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass

import pytest

from adex_proto.errors import StepFailed
from adex_proto.outcome import StepOutcome
from adex_proto.plan import Span, StepPlan
from adex_worker.run.steps import StepThread


@dataclass
class SlowStep:
    """Is done at once."""

    plan: StepPlan
    waits: bool = False
    told: Future[None] | None = None

    def choose(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def finish(self) -> StepOutcome:
        return StepOutcome(self.plan.step)


class SlowRunner:
    """Waits for `go` in each step, and remembers what it was asked, and on which thread."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.running = threading.Event()
        self.log: list[str] = []
        self.threads: set[str] = set()

    def begin(self, plan: StepPlan) -> "SlowStep":
        self.threads.add(threading.current_thread().name)
        self.running.set()
        assert self.go.wait(10)
        self.log.append(f"step {plan.step}")
        if plan.step == 13:
            raise ZeroDivisionError
        return SlowStep(plan)

    def forget_all(self) -> None:
        self.threads.add(threading.current_thread().name)
        self.log.append("forget")


def plan(step: int) -> StepPlan:
    return StepPlan(step, (), (Span(7, 0, 1, True),))


def started(runner: SlowRunner) -> tuple[StepThread, list[StepOutcome]]:
    steps = StepThread(runner)
    steps.start()
    return steps, []


def test_plans_run_in_order_on_one_thread() -> None:
    runner = SlowRunner()
    steps, outcomes = started(runner)
    runner.go.set()
    for step in range(100):
        steps.submit(plan(step), outcomes.append)
    wait([steps.reset()], 0)
    done = threading.Event()
    steps.submit(plan(100), lambda _: done.set())
    assert done.wait(10)
    ran = [entry for entry in runner.log if entry != "forget"]
    assert ran == sorted(ran, key=lambda entry: int(entry.split()[1]))
    assert len(runner.threads) == 1
    assert steps.last_step == 100
    steps.stop()


def test_the_thread_is_prepared_before_its_first_step() -> None:
    runner, done = SlowRunner(), threading.Event()
    runner.go.set()
    steps = StepThread(
        runner, lambda: runner.log.append(f"prepared {threading.current_thread().name}")
    )
    steps.start()
    steps.submit(plan(0), lambda _: done.set())
    assert done.wait(10)
    assert runner.log == [f"prepared {runner.threads.pop()}", "step 0"]
    steps.stop()


def test_a_reset_drops_what_waits_lets_the_running_step_finish_and_forgets() -> None:
    runner = SlowRunner()
    steps, outcomes = started(runner)
    for step in range(5):
        steps.submit(plan(step), outcomes.append)
    assert runner.running.wait(10)
    finished = steps.reset()
    assert not finished.done()
    runner.go.set()
    finished.result(10)
    assert runner.log == ["step 0", "forget"]
    assert [outcome.step for outcome in outcomes] == [0]
    assert steps.last_step == -1
    steps.stop()


def test_a_step_that_raises_fails_its_sequences_and_the_thread_goes_on() -> None:
    runner = SlowRunner()
    runner.go.set()
    steps, outcomes = started(runner)
    done = threading.Event()
    steps.submit(plan(13), outcomes.append)
    steps.submit(plan(14), lambda _: done.set())
    assert done.wait(10)
    assert [failure.sequence for failure in outcomes[0].failures] == [7]
    assert isinstance(outcomes[0].failures[0].error, StepFailed)
    steps.stop()


def test_where_no_thread_is_to_be_had_a_step_is_waited_for_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Launched(SlowRunner):
        def begin(self, plan: StepPlan) -> SlowStep:
            return SlowStep(plan, waits=True)

    def fails(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    steps, done = StepThread(Launched()), threading.Event()
    monkeypatch.setattr(steps._ends, "submit", fails)
    steps.start()
    for step in range(3):
        done.clear()
        steps.submit(plan(step), lambda _: done.set())
        assert done.wait(10)
    assert steps.last_step == 2
    steps.stop()


def test_a_stop_lets_the_running_step_finish_and_takes_no_more() -> None:
    runner = SlowRunner()
    steps, outcomes = started(runner)
    for step in range(3):
        steps.submit(plan(step), outcomes.append)
    assert runner.running.wait(10)
    threading.Timer(0.1, runner.go.set).start()
    steps.stop()
    assert runner.log == ["step 0"]
    steps.submit(plan(9), outcomes.append)
    steps.reset().result(1)
    steps.stop()
    assert [outcome.step for outcome in outcomes] == [0]


def test_a_stop_waits_for_a_step_that_does_not_end_no_longer_than_told() -> None:
    runner = SlowRunner()
    steps, outcomes = started(runner)
    steps.submit(plan(0), outcomes.append)
    assert runner.running.wait(10)
    assert not steps.stop(wait_s=0.05)
    runner.go.set()
    assert steps.stop()
    assert [outcome.step for outcome in outcomes] == [0]


class Device:
    """A runner whose device is at a step until it is let go; what was called, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.gates = {step: threading.Event() for step in range(4)}
        self.logged = threading.Condition()

    def note(self, entry: str) -> None:
        with self.logged:
            self.log.append(entry)
            self.logged.notify_all()

    def until(self, entry: str) -> None:
        with self.logged:
            assert self.logged.wait_for(lambda: entry in self.log, 20)

    def begin(self, plan: StepPlan) -> "DeviceStep":
        self.note(f"begin {plan.step}")
        return DeviceStep(self, plan)

    def forget_all(self) -> None:
        self.note("forget")


@dataclass
class DeviceStep:
    device: Device
    plan: StepPlan
    waits: bool = True
    told: Future[None] | None = None

    def choose(self) -> None:
        self.device.note(f"choose {self.plan.step}")

    def wait(self) -> None:
        assert self.device.gates[self.plan.step].wait(20)

    def finish(self) -> StepOutcome:
        self.wait()
        self.device.note(f"finish {self.plan.step}")
        return StepOutcome(self.plan.step)


def test_a_plan_is_begun_while_the_device_is_at_the_one_before_it() -> None:
    device, outcomes = Device(), []
    steps = StepThread(device)
    steps.start()
    steps.submit(plan(0), outcomes.append)
    device.until("choose 0")
    steps.submit(plan(1), outcomes.append)
    device.until("begin 1")
    device.gates[0].set()
    device.until("choose 1")
    assert device.log == ["begin 0", "choose 0", "begin 1", "finish 0", "choose 1"]
    # No other plan comes: the end of the step is noticed all the same.
    device.gates[1].set()
    device.until("finish 1")
    steps.submit(plan(2), outcomes.append)
    device.until("choose 2")
    finished = steps.reset()
    device.gates[2].set()
    finished.result(20)
    assert device.log[-2:] == ["finish 2", "forget"]
    assert [outcome.step for outcome in outcomes] == [0, 1, 2]
    steps.submit(plan(3), outcomes.append)
    device.until("choose 3")
    device.gates[3].set()
    assert steps.stop(20)
    assert [outcome.step for outcome in outcomes] == [0, 1, 2, 3]
