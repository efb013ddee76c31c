"""One Run stream from Hello to its end, and the return to a clean worker after it.

Everything here runs on the event loop. Steps run on the step thread and commands on their pools;
both hand what they answer to the loop, which writes it in the order it came.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from adex_proto.codec import (
    FromWorkerMessage,
    ToWorkerMessage,
    Up,
    decode_to_worker,
    encode_from_worker,
)
from adex_proto.errors import ProtocolViolation
from adex_proto.outcome import Heartbeat, Hello, StepOutcome, WorkerInfo
from adex_proto.plan import StepPlan
from adex_worker.run.steps import StepThread
from adex_worker.service.commands import CommandPools, Commands

_LOG = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
# A scheduler keeps two plans in flight; more than this waiting is a scheduler out of its mind.
PLANS_UNDER_WAY_MAX = 8
# What a scheduler that stopped reading can make us hold.
OUTBOX_MAX = 65536


class Session:
    """One stream's state. `run` serves it to its end; `close` then cleans up after it."""

    def __init__(self, info: WorkerInfo, steps: StepThread, pools: CommandPools) -> None:
        self._info = info
        self._steps = steps
        self._pools = pools
        self._commands = Commands(pools, self._emit)
        self._outbox: asyncio.Queue[Up] = asyncio.Queue()
        self._plans_under_way = 0
        self._overflowed = asyncio.Event()
        self._closed = False
        self._loop = asyncio.get_running_loop()

    async def run(
        self,
        requests: AsyncIterator[ToWorkerMessage],
        write: Callable[[FromWorkerMessage], Awaitable[None]],
    ) -> None:
        """Serve the stream until the scheduler ends it.

        Raises ProtocolViolation when the scheduler breaks the protocol; what `requests` and `write`
        raise passes through.
        """
        held = await asyncio.to_thread(self._pools.store.held)
        self._emit(Hello(self._info, held))
        tasks = [
            asyncio.create_task(self._read(requests)),
            asyncio.create_task(self._write(write)),
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._watch_overflow()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._closed = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Leave nothing of this stream behind but the host and disk copies of adapters."""
        self._closed = True
        await asyncio.wrap_future(self._steps.reset())
        await self._commands.settle()
        await asyncio.to_thread(self._pools.store.release_device)

    async def _read(self, requests: AsyncIterator[ToWorkerMessage]) -> None:
        async for message in requests:
            down = decode_to_worker(message)
            if not isinstance(down, StepPlan):
                self._commands.submit(down)
                continue
            self._plans_under_way += 1
            if self._plans_under_way > PLANS_UNDER_WAY_MAX:
                raise ProtocolViolation(f"more than {PLANS_UNDER_WAY_MAX} plans at once")
            self._steps.submit(down, self._hand_over)

    def _hand_over(self, outcome: StepOutcome) -> None:
        """Called on the step thread."""
        try:
            self._loop.call_soon_threadsafe(self._finish_step, outcome)
        except RuntimeError:
            # The loop has closed under a step that outlived its stream: nobody is left to tell.
            _LOG.debug("step %d finished after the loop", outcome.step)

    def _finish_step(self, outcome: StepOutcome) -> None:
        self._plans_under_way -= 1
        self._emit(outcome)

    def _emit(self, up: Up) -> None:
        if self._closed:
            return
        if self._outbox.qsize() >= OUTBOX_MAX:
            self._overflowed.set()
            return
        self._outbox.put_nowait(up)

    async def _write(self, write: Callable[[FromWorkerMessage], Awaitable[None]]) -> None:
        while True:
            await write(encode_from_worker(await self._outbox.get()))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            # A heartbeat among many unread events would say nothing they do not.
            if self._outbox.empty():
                self._emit(Heartbeat(self._steps.last_step))

    async def _watch_overflow(self) -> None:
        await self._overflowed.wait()
        raise ProtocolViolation(f"the scheduler left {OUTBOX_MAX} events unread")
