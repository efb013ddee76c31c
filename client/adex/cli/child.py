"""One supervised process: its start, its output line by line, its end and whatever it left."""

import asyncio
import codecs
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from adex.cli import leash

_READ_BYTES = 65536
# A line longer than this is broken, so that a child that never ends one cannot fill our memory.
_LINE_CHARACTERS_MAX = 65536
_DRAIN_S_MAX = 1.0


class Child:
    """A running child in a process group of its own, so that its own children end with it."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, write: Callable[[str], None]
    ) -> None:
        self.name = name
        self.last_line = ""
        self._process = process
        self._relaying = asyncio.create_task(self._relay(write))

    @classmethod
    async def start(
        cls,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        environment: dict[str, str],
        write: Callable[[str], None],
    ) -> "Child":
        """Start `python -m module`, tied to this process; each line it writes goes to `write`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(Path(leash.__file__)),
            str(os.getpid()),
            module,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment | {"PYTHONUNBUFFERED": "1"},
            # Not a session of its own: where Linux groups sessions, work of the worker that stands
            # behind its steps would still stand before the scheduler.
            process_group=0,
        )
        return cls(name, process, write)

    @property
    def pid(self) -> int:
        """The process id, which is also that of its group."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for the end; the exit code, or minus the signal that ended it.

        Whatever the child left in its group is killed, and its last lines are written.
        """
        code = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        # A grandchild that left the group may hold the pipe open: it is not waited for.
        _, open_still = await asyncio.wait([self._relaying], timeout=_DRAIN_S_MAX)
        for relaying in open_still:
            relaying.cancel()
        return code

    def terminate(self) -> None:
        """Ask the child itself to end; what it started is its own to end."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """End the child and its group at once."""
        if self._process.returncode is None:
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _relay(self, write: Callable[[str], None]) -> None:
        assert self._process.stdout is not None, "the child was started with a pipe"
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        tail = ""

        def take(line: str) -> None:
            if line.strip():
                self.last_line = line.strip()
                write(line)

        while chunk := await self._process.stdout.read(_READ_BYTES):
            # A progress bar returns to the start of its line: each state becomes a line.
            *lines, tail = (tail + decode(chunk)).replace("\r", "\n").split("\n")
            for line in lines:
                take(line)
            if len(tail) > _LINE_CHARACTERS_MAX:
                take(tail)
                tail = ""
        take(tail)


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
