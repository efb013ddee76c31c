"""What an operator asks about an adapter, on its way to the core, and what is told of it."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import assert_never

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.errors import AdexError
from adex_scheduler.core.events import Action, Control, Pin, Preload, Reload, Unload, Unpin
from adex_scheduler.core.instructions import Brought
from adex_scheduler.engine.credentials import Credentials
from adex_scheduler.engine.streams import fresh


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """One action on one adapter.

    `tier` is where to, for PRELOAD and PIN; `disk` lets UNLOAD forget the copy on disk as well.
    """

    action: Action
    tenant: str
    key: AdapterKey
    tier: Tier = Tier.DEVICE
    disk: bool = False
    credential: str = field(default="", repr=False)
    """What a credentialed key is resolved with."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How near the adapter has come; the last one is `done`. `digest` is "" while unknown."""

    digest: str
    tier: Tier
    done: bool


class Asking:
    """One request about an adapter: what was told of it, and how it ended."""

    def __init__(self, request: ControlRequest, number: int) -> None:
        self.request = request
        self.number = number
        self._told: deque[Progress] = deque()
        self._error: AdexError | None = None
        self._wake = asyncio.Event()

    async def progress(self) -> AsyncGenerator[Progress, None]:
        """Everything told, the last word with `done`. Raises AdexError."""
        while True:
            while self._told:
                progress = self._told.popleft()
                yield progress
                if progress.done:
                    return
            if self._error is not None:
                raise fresh(self._error)
            self._wake.clear()
            await self._wake.wait()

    def tell(self, progress: Progress) -> None:
        """Another tier is reached."""
        self._told.append(progress)
        self._wake.set()

    def fail(self, error: AdexError) -> None:
        """It cannot be done."""
        self._error = error
        self._wake.set()


class Askings:
    """The requests about adapters that are under way, by number."""

    def __init__(self, credentials: Credentials, is_pinned: Callable[[AdapterKey], bool]) -> None:
        self._credentials = credentials
        self._is_pinned = is_pinned
        self._askings: dict[int, Asking] = {}

    def begin(self, request: ControlRequest, number: int) -> Asking:
        """One more, which the core is about to be told of."""
        asking = self._askings[number] = Asking(request, number)
        self._credentials.hold(request.key, request.credential)
        return asking

    def tell(self, told: Brought) -> None:
        """Pass on how near the adapter has come."""
        asking = self._askings.get(told.number)
        if asking is not None:
            asking.tell(Progress(told.digest, told.tier, told.done))
            if told.done:
                self.end(asking)

    def fail(self, number: int, error: AdexError) -> None:
        """Pass on why it cannot be done."""
        asking = self._askings.get(number)
        if asking is not None:
            asking.fail(error)
            self.end(asking)

    def fail_all(self, error: AdexError) -> None:
        """Nothing more will come of any."""
        for number in list(self._askings):
            self.fail(number, error)

    def end(self, asking: Asking) -> bool:
        """Whoever asked is answered or gone; whether it was under way until now.

        What a pin may have to be resolved with again is kept for as long as the core has the pin:
        asking to unpin or to unload it may be refused, and pinning it again may have ended it.
        """
        if self._askings.pop(asking.number, None) is None:
            return False
        request = asking.request
        if not self._is_pinned(request.key):
            self._credentials.let_go(request.key)
        elif request.action is Action.PIN:
            self._credentials.keep(request.key, request.credential)
        self._credentials.release(request.key)
        return True


def event_of(request: ControlRequest, number: int) -> Control:
    """The request as the core is told of it."""
    tenant, key = request.tenant, request.key
    match request.action:
        case Action.PRELOAD:
            return Preload(number, tenant, key, request.tier)
        case Action.PREFETCH:
            return Preload(number, tenant, key, Tier.HOST, hint=True)
        case Action.PIN:
            return Pin(number, tenant, key, request.tier)
        case Action.UNPIN:
            return Unpin(number, key)
        case Action.RELOAD:
            return Reload(number, tenant, key)
        case Action.UNLOAD:
            return Unload(number, key, request.disk)
        case _:
            assert_never(request.action)
