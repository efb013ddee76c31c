"""Children come back, give up, and end in order."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adex.cli.child import Child, how_it_ended
from adex.cli.failure import CommandError
from adex.cli.supervisor import RestartLimits, Restarts, Role, Supervisor

SOON = RestartLimits(restarts_max=2, wait_first_s=0.01)


def test_the_wait_doubles_up_to_its_bound_and_then_there_is_none() -> None:
    restarts = Restarts(RestartLimits(restarts_max=6, wait_first_s=0.5, wait_s_max=8.0))
    assert [restarts.wait_s(1.0) for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, None]


@given(st.lists(st.floats(60.0, 1e6), max_size=50))
def test_a_child_that_lives_longer_than_the_window_always_comes_back(lives_s: list[float]) -> None:
    restarts, now_s = Restarts(RestartLimits(window_s=60.0)), 0.0
    for life_s in lives_s:
        now_s += life_s
        assert restarts.wait_s(now_s) == 0.5


@given(st.lists(st.floats(0.0, 30.0), max_size=100))
def test_no_window_holds_more_restarts_than_allowed(lives_s: list[float]) -> None:
    limits = RestartLimits(restarts_max=5, window_s=60.0)
    restarts, now_s = Restarts(limits), 0.0
    came_back_at_s: list[float] = []
    for life_s in lives_s:
        now_s += life_s
        if restarts.wait_s(now_s) is None:
            break
        came_back_at_s.append(now_s)
        recent = [at_s for at_s in came_back_at_s if at_s > now_s - limits.window_s]
        assert len(recent) <= limits.restarts_max


@pytest.mark.parametrize(
    ("code", "words"), [(7, "exit code 7"), (-9, "signal SIGKILL"), (-63, "signal 63")]
)
def test_an_end_is_told_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words


class Stage:
    """A supervisor over the stand-ins, and what it and they wrote."""

    def __init__(self, folder: Path, environment: dict[str, str], **behaviours: str) -> None:
        self.log = folder / "log"
        self.told: list[str] = []
        self.lines: list[str] = []
        self._environment = environment | {name.upper(): how for name, how in behaviours.items()}
        self._arguments = {
            "worker": ["--listen", f"unix://{folder}/w.sock"],
            "scheduler": ["--host", "127.0.0.1", "--port", "0"],
        }

    def role(self, name: str, end_s_max: float = 5.0) -> Role:
        async def start() -> Child:
            return await Child.start(
                name,
                f"adex_{name}",
                self._arguments[name],
                environment=self._environment,
                write=lambda line: self.lines.append(f"{name}: {line}"),
            )

        return Role(name, start, end_s_max)

    def supervisor(self, *roles: Role) -> Supervisor:
        return Supervisor(roles, tell=self.told.append, limits=SOON)

    def noted(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    async def until(self, holds: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + 10.0
        while not holds():
            assert time.monotonic() < give_up_s, f"it never came to hold: {self.noted()}"
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_that_died_comes_back(stage: Path, stage_environment: dict[str, str]) -> None:
    world = Stage(stage, stage_environment, worker="die2")
    running = asyncio.create_task(world.supervisor(world.role("worker")).run())
    await world.until(lambda: len(world.noted()) == 3)
    await world.until(lambda: world.lines.count("worker: worker says hello") == 3)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert world.told[0] == "the worker ended with exit code 7; starting it again in 0.01 s"


async def test_a_child_that_dies_too_often_ends_the_whole_with_the_reason(
    stage: Path, stage_environment: dict[str, str]
) -> None:
    world = Stage(stage, stage_environment, worker="die9")
    supervisor = world.supervisor(world.role("scheduler"), world.role("worker"))
    with pytest.raises(CommandError, match=r"exit code 7, after 2 restarts in 60 s: something is"):
        await supervisor.run()
    assert sum("worker pid" in line for line in world.noted()) == 3
    assert "worker: something is wrong with this life" in world.lines
    assert not any(alive(int(line.split()[-1])) for line in world.noted() if " pid " in line)


async def test_a_child_that_refuses_its_flags_is_not_started_again(
    stage: Path, stage_environment: dict[str, str]
) -> None:
    world = Stage(stage, stage_environment, worker="refuse")
    with pytest.raises(CommandError, match="exit code 2: worker says hello"):
        await world.supervisor(world.role("worker")).run()
    assert len(world.noted()) == 1


async def test_the_children_end_one_after_the_other(
    stage: Path, stage_environment: dict[str, str]
) -> None:
    world = Stage(stage, stage_environment)
    supervisor = world.supervisor(world.role("scheduler"), world.role("worker"))
    running = asyncio.create_task(supervisor.run())
    await world.until(lambda: len(world.lines) == 2)
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)
    assert await running == 0
    ends = [line for line in world.noted() if line.endswith("asked to end")]
    assert ends == ["scheduler asked to end", "worker asked to end"]


async def test_a_child_deaf_to_its_end_is_killed_in_time(
    stage: Path, stage_environment: dict[str, str]
) -> None:
    world = Stage(stage, stage_environment, worker="deaf")
    running = asyncio.create_task(world.supervisor(world.role("worker", end_s_max=0.2)).run())
    await world.until(lambda: len(world.lines) == 1)
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert world.told[-1] == "the worker did not end within 0.2 s: killing it"


async def test_a_second_signal_kills_at_once(
    stage: Path, stage_environment: dict[str, str]
) -> None:
    world = Stage(stage, stage_environment, worker="deaf")
    running = asyncio.create_task(world.supervisor(world.role("worker", end_s_max=60.0)).run())
    await world.until(lambda: len(world.lines) == 1)
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    await world.until(lambda: "worker asked to end" in world.noted())
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, 5.0) == 1


async def test_children_have_groups_of_their_own_and_share_the_session_they_are_weighed_in(
    stage: Path, stage_environment: dict[str, str]
) -> None:
    world = Stage(stage, stage_environment)
    child = await world.role("worker").start()
    assert os.getpgid(child.pid) == child.pid
    assert os.getsid(child.pid) == os.getsid(0)
    child.kill()
    await child.wait()


async def test_what_a_child_started_ends_with_it(
    stage: Path, stage_environment: dict[str, str]
) -> None:
    world = Stage(stage, stage_environment, worker="parent")
    running = asyncio.create_task(world.supervisor(world.role("worker")).run())
    await world.until(lambda: any("grandchild" in line for line in world.noted()))
    (grandchild,) = [int(line.split()[-1]) for line in world.noted() if "grandchild" in line]
    await asyncio.sleep(0.2)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    await world.until(lambda: not alive(grandchild) or _is_zombie(grandchild))


def _is_zombie(pid: int) -> bool:
    """Whether it has ended and only waits for the init process to take note."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
