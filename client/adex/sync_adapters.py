"""Control of adapters for the blocking client."""

from collections.abc import Generator
from contextlib import closing
from typing import Protocol

import httpx

from adex import wire
from adex.reply import read_adapter_states, read_json
from adex.types import AdapterAction, AdapterProgress, AdapterState


class _Ask(Protocol):
    """The client's way to a whole answer."""

    def __call__(self, request: wire.Request, /) -> httpx.Response: ...


class _Follow(Protocol):
    """The client's way to a streamed one."""

    def __call__(
        self, request: wire.Request, stream: wire.EventStream[AdapterProgress], /
    ) -> Generator[AdapterProgress, None, None]: ...


class Adapters:
    """Control of the server's adapters: `client.adapters`.

    Each action returns the adapter as it is when all is done; `follow` tells of its way there too.
    What binds others (pin, unpin, reload, unload) needs the server's admin key, which goes into
    the client's headers: {"Authorization": "Bearer <key>"}.
    """

    def __init__(self, ask: _Ask, stream: _Follow) -> None:
        self._ask = ask
        self._stream = stream

    def list(self, api_token: str | None = None) -> tuple[AdapterState, ...]:
        """The adapters that can be named, those of `api_token` included."""
        answer = self._ask(wire.adapters_request(api_token))
        return read_adapter_states(read_json(answer.content, "reply"))

    def follow(
        self,
        action: AdapterAction,
        adapter_id: str,
        adapter_source: str | None = None,
        api_token: str | None = None,
        *,
        tier: str | None = None,
        disk: bool | None = None,
    ) -> Generator[AdapterProgress, None, None]:
        """Each tier the adapter reaches; closing it gives a preload up."""
        request = wire.control_request(
            action,
            adapter_id,
            adapter_source=adapter_source,
            api_token=api_token,
            tier=tier,
            disk=disk,
        )
        return self._stream(request, wire.control_stream())

    def preload(
        self,
        adapter_id: str,
        adapter_source: str | None = None,
        api_token: str | None = None,
        *,
        tier: str = "device",
    ) -> AdapterState:
        """Bring the adapter to `tier`, "device" or "host", as a request for it would."""
        steps = self.follow("preload", adapter_id, adapter_source, api_token, tier=tier)
        return _last(steps)

    def prefetch(
        self,
        adapter_id: str,
        adapter_source: str | None = None,
        api_token: str | None = None,
    ) -> AdapterState:
        """Hint that it will be wanted: it comes to host memory when nothing else moves."""
        steps = self.follow("prefetch", adapter_id, adapter_source, api_token)
        return _last(steps)

    def pin(
        self,
        adapter_id: str,
        adapter_source: str | None = None,
        api_token: str | None = None,
        *,
        tier: str = "device",
    ) -> AdapterState:
        """Bring it to `tier` and keep whatever the name means there until it is unpinned."""
        steps = self.follow("pin", adapter_id, adapter_source, api_token, tier=tier)
        return _last(steps)

    def unpin(
        self,
        adapter_id: str,
        adapter_source: str | None = None,
        api_token: str | None = None,
    ) -> AdapterState:
        """Let it go where others would have it go."""
        steps = self.follow("unpin", adapter_id, adapter_source, api_token)
        return _last(steps)

    def reload(
        self,
        adapter_id: str,
        adapter_source: str | None = None,
        api_token: str | None = None,
    ) -> AdapterState:
        """Resolve the name again now; requests under way finish with what they have."""
        steps = self.follow("reload", adapter_id, adapter_source, api_token)
        return _last(steps)

    def unload(
        self,
        adapter_id: str,
        adapter_source: str | None = None,
        api_token: str | None = None,
        *,
        disk: bool = False,
    ) -> AdapterState:
        """Forget the name and let its version leave, after those who use it."""
        steps = self.follow("unload", adapter_id, adapter_source, api_token, disk=disk)
        return _last(steps)


def _last(steps: Generator[AdapterProgress, None, None]) -> AdapterState:
    with closing(steps):
        *_, last = steps
    return last.adapter or AdapterState(last.id, last.tier)
