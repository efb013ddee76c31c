"""Keeps the worker and the scheduler running; ends them in order.

A child that dies is started again after a wait that doubles; one that dies too often within a
minute, or that refuses its own flags, ends the whole with the reason. The first signal drains:
the children end one after the other, the scheduler first, for it holds the requests. The second
signal kills.
"""

import asyncio
import contextlib
import signal
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from adex.cli.child import Child, how_it_ended
from adex.cli.failure import EXIT_FAILED, EXIT_USAGE, CommandError

Start = Callable[[], Coroutine[Any, Any, Child]]


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """How often and how soon a dead child may come back."""

    restarts_max: int = 5
    window_s: float = 60.0
    wait_first_s: float = 0.5
    wait_s_max: float = 8.0


@dataclass(slots=True)
class Restarts:
    """The deaths of one child within the window; pure."""

    limits: RestartLimits
    _died_at_s: deque[float] = field(default_factory=deque[float])

    def wait_s(self, now_s: float) -> float | None:
        """Count a death at `now_s`; how long to wait before a restart, None for no more."""
        self._died_at_s.append(now_s)
        while self._died_at_s[0] <= now_s - self.limits.window_s:
            self._died_at_s.popleft()
        deaths = len(self._died_at_s)
        if deaths > self.limits.restarts_max:
            return None
        return min(self.limits.wait_s_max, self.limits.wait_first_s * 2.0 ** (deaths - 1))


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of child: its name, how it starts, and how long it may take to end when asked."""

    name: str
    start: Start
    end_s_max: float


class Supervisor:
    """Runs one child of each role until a signal comes or one of them is given up.

    `roles` are in the order in which they end; they start the other way round.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        tell: Callable[[str], None],
        limits: RestartLimits | None = None,
    ) -> None:
        self._roles = tuple(roles)
        self._tell = tell
        self._limits = limits or RestartLimits()
        self._running: dict[str, Child] = {}
        self._ending = asyncio.Event()
        self._killing = False

    async def run(self) -> int:
        """Run until the end; the exit code: 0 after a drain, 1 after a second signal.

        Raises: CommandError when a child was given up; the others have ended by then.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        keepers = [asyncio.create_task(self._keep(role)) for role in reversed(self._roles)]
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait([ending, *keepers], return_when=asyncio.FIRST_COMPLETED)
            self._ending.set()
            await self._end_all()
            await asyncio.gather(*keepers)
        finally:
            for child in self._running.values():
                child.kill()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        return EXIT_FAILED if self._killing else 0

    def _on_signal(self, number: signal.Signals) -> None:
        if self._ending.is_set():
            self._tell(f"{number.name} again: killing")
            self._killing = True
            for child in self._running.values():
                child.kill()
        else:
            names = ", then the ".join(role.name for role in self._roles)
            self._tell(f"{number.name}: ending the {names} (a second signal kills)")
            self._ending.set()

    async def _keep(self, role: Role) -> None:
        """Start a child again whenever it dies, until the end.

        Raises: CommandError when it is given up.
        """
        restarts = Restarts(self._limits)
        while not self._ending.is_set():
            child = self._running[role.name] = await role.start()
            if self._ending.is_set():
                # The end began while it started, and passed it by.
                child.kill()
            code = await child.wait()
            del self._running[role.name]
            if self._ending.is_set():
                return
            ended = f"the {role.name} ended with {how_it_ended(code)}"
            if code == EXIT_USAGE:
                # Its flags or files are wrong and stay wrong, so that another try would be in vain.
                what = f"{ended}: {child.last_line or 'it said nothing'}"
                raise CommandError(what, exit_code=EXIT_USAGE)
            wait_s = restarts.wait_s(asyncio.get_running_loop().time())
            if wait_s is None:
                often = f"{self._limits.restarts_max} restarts in {self._limits.window_s:g} s"
                raise CommandError(f"{ended}, after {often}: {child.last_line}")
            self._tell(f"{ended}; starting it again in {wait_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), wait_s)

    async def _end_all(self) -> None:
        """Ask each child to end, in order, and kill what does not in its time."""
        for role in self._roles:
            child = self._running.get(role.name)
            if child is None:
                continue
            child.terminate()
            try:
                await asyncio.wait_for(child.wait(), role.end_s_max)
            except TimeoutError:
                self._tell(f"the {role.name} did not end within {role.end_s_max:g} s: killing it")
                child.kill()
                await child.wait()
