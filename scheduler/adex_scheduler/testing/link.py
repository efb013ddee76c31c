"""A link whose other end is a fake worker in the same process, for engines without a network."""

import asyncio
from collections.abc import Callable

from adex_proto.errors import WorkerLost
from adex_proto.grammar import Grammar
from adex_proto.plan import AdapterCommand, StepPlan
from adex_scheduler.link.worker import LinkEvent, LinkLost
from adex_scheduler.testing.fake_worker import FakeWorker


class FakeLink:
    """Carries out plans and commands as fast as the event loop turns.

    `held` holds whatever it names back: "steps", "commands". `lose` breaks the stream; the next one
    opens by itself.
    """

    def __init__(self, worker: FakeWorker) -> None:
        self.worker = worker
        self.held: set[str] = set()
        self.sent: list[StepPlan | AdapterCommand] = []
        self.streams = 0
        self.fail_next_step: set[int] = set()
        self._connected = False
        self._lost = ""
        self._wake = asyncio.Event()

    def send(self, down: StepPlan | AdapterCommand) -> None:
        """Take in one message. Raises WorkerLost while no stream is open."""
        if not self._connected:
            raise WorkerLost("no stream is open")
        self.sent.append(down)
        self.worker.receive(down)
        self._wake.set()

    async def prepare_grammar(self, grammar: Grammar) -> None:
        """Nothing is compiled here, and everything can be honoured."""

    def lose(self, reason: str) -> None:
        """Break the stream."""
        self._lost = reason
        self._wake.set()

    def release(self, what: str) -> None:
        """Go on with what was held back."""
        self.held.discard(what)
        self._wake.set()

    async def run(self, on_event: Callable[[LinkEvent], None]) -> None:
        """One stream after another, until cancelled."""
        while True:
            self._lost = ""
            self.streams += 1
            self._connected = True
            on_event(self.worker.hello())
            try:
                await self._carry(on_event)
            finally:
                self._connected = False
                self.worker.forget_device()
            on_event(LinkLost(self._lost))
            await asyncio.sleep(0)

    async def _carry(self, on_event: Callable[[LinkEvent], None]) -> None:
        while not self._lost:
            await asyncio.sleep(0)
            if self.worker.commands and "commands" not in self.held:
                on_event(self.worker.run_command(0))
            elif self.worker.plans and "steps" not in self.held:
                fail, self.fail_next_step = self.fail_next_step, set()
                on_event(self.worker.run_plan(fail=sorted(fail)))
            else:
                self._wake.clear()
                await self._wake.wait()
