"""Client: the blocking shell around `adex.wire`."""

import random
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack, overload

import httpx

from adex import wire
from adex.connection import address_of, error_of_transport, headers_of
from adex.errors import AdexError
from adex.reply import (
    read_adapter_cards,
    read_chat_completion,
    read_info,
    read_json,
    read_response,
)
from adex.sync_adapters import Adapters
from adex.types import (
    AdapterCard,
    ChatCompletion,
    ChatCompletionChunk,
    ChatSampling,
    Message,
    ModelInfo,
    Response,
    Sampling,
    StreamResponse,
)

Event = TypeVar("Event")

_OK = 200


class Client:
    """Talks to one server; safe to share between threads, closed by `with` or `close()`.

    Every method raises the errors of `adex.errors` and nothing else of the network.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8080",
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        *,
        retries_max: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Connects to nothing yet.

        Args:
            headers: sent with every request, such as {"Authorization": "Bearer ..."}.
            timeout: seconds without a byte after which a request fails.
            retries_max: how often a request is sent again that found no server, or that the
                server refused for now (429, 503); never after the first byte of an answer.
            transport: another way to the server than TCP, such as a Unix socket.
        """
        self.base_url = address_of(base_url)
        self._timeout_s = timeout
        self._retries_max = retries_max
        self._http = httpx.Client(headers=headers_of(headers), timeout=timeout, transport=transport)
        self.adapters = Adapters(self._ask, self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self,
        prompt: str,
        adapter_id: str | None = None,
        adapter_source: str | None = None,
        api_token: str | None = None,
        *,
        details: bool = True,
        **sampling: Unpack[Sampling],
    ) -> Response:
        """Continue the prompt; see `Sampling` for the parameters.

        Args:
            adapter_id: the adapter to answer with; None is the base model.
            adapter_source: "local", "hub" or "s3"; None is the server's default.
            api_token: the credential with which the server fetches a private adapter: the
                hub's token, or ACCESS_KEY:SECRET[:SESSION_TOKEN] for S3.
        """
        request = wire.generate_request(
            prompt,
            stream=False,
            adapter_id=adapter_id,
            adapter_source=adapter_source,
            api_token=api_token,
            details=details,
            sampling=sampling,
        )
        answer = self._ask(request)
        return read_response(read_json(answer.content, "reply"), answer.headers.get("x-request-id"))

    def generate_stream(
        self,
        prompt: str,
        adapter_id: str | None = None,
        adapter_source: str | None = None,
        api_token: str | None = None,
        *,
        details: bool = True,
        **sampling: Unpack[Sampling],
    ) -> Generator[StreamResponse, None, None]:
        """Continue the prompt token by token, as `generate` does; closing it cancels the rest."""
        request = wire.generate_request(
            prompt,
            stream=True,
            adapter_id=adapter_id,
            adapter_source=adapter_source,
            api_token=api_token,
            details=details,
            sampling=sampling,
        )
        return self._stream(request, wire.generate_stream())

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        adapter_id: str | None = None,
        adapter_source: str | None = None,
        api_token: str | None = None,
        *,
        stream: Literal[False] = False,
        **sampling: Unpack[ChatSampling],
    ) -> ChatCompletion: ...

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        adapter_id: str | None = None,
        adapter_source: str | None = None,
        api_token: str | None = None,
        *,
        stream: Literal[True],
        **sampling: Unpack[ChatSampling],
    ) -> Generator[ChatCompletionChunk, None, None]: ...

    def chat(
        self,
        messages: Sequence[Message],
        adapter_id: str | None = None,
        adapter_source: str | None = None,
        api_token: str | None = None,
        *,
        stream: bool = False,
        **sampling: Unpack[ChatSampling],
    ) -> ChatCompletion | Generator[ChatCompletionChunk, None, None]:
        """Answer a conversation, whole or in pieces; arguments as in `generate`."""
        request = wire.chat_request(
            messages,
            stream=stream,
            adapter_id=adapter_id,
            adapter_source=adapter_source,
            api_token=api_token,
            sampling=sampling,
        )
        if stream:
            return self._stream(request, wire.chat_stream())
        answer = self._ask(request)
        return read_chat_completion(
            read_json(answer.content, "reply"), answer.headers.get("x-request-id")
        )

    def list_adapters(self) -> tuple[AdapterCard, ...]:
        """The adapters the server knows by name."""
        return read_adapter_cards(read_json(self._ask(wire.MODELS).content, "reply"))

    def info(self) -> ModelInfo:
        """The base model and the server's limits."""
        return read_info(read_json(self._ask(wire.INFO).content, "reply"))

    def health(self) -> None:
        """Return when the server serves.

        Raises: NotReady or ShuttingDown when it does not, ServerUnreachable when none is there.
        """
        self._send_once(wire.HEALTH).close()

    def _ask(self, request: wire.Request) -> httpx.Response:
        """The whole answer to a request."""
        answer = self._send(request)
        with self._transport_errors():
            answer.read()
        return answer

    def _stream(
        self, request: wire.Request, stream: wire.EventStream[Event]
    ) -> Generator[Event, None, None]:
        """The events of a streamed answer; the connection closes with the generator."""
        answer = self._send(request)
        try:
            with self._transport_errors():
                for chunk in answer.iter_bytes():
                    yield from stream.feed(chunk)
        finally:
            answer.close()
        stream.close()

    def _send(self, request: wire.Request) -> httpx.Response:
        """An answer of status 200, its body unread; asked again as `wire.retry_wait_s` says."""
        attempt = 1
        while True:
            try:
                return self._send_once(request)
            except AdexError as error:
                wait_s = wire.retry_wait_s(
                    error,
                    attempt=attempt,
                    retries_max=self._retries_max,
                    chance=random.random(),  # noqa: S311 - it spreads retries, it keeps no secret
                )
                if wait_s is None:
                    raise
            attempt += 1
            time.sleep(wait_s)

    def _send_once(self, request: wire.Request) -> httpx.Response:
        built = self._http.build_request(
            request.method,
            self.base_url + request.path,
            headers=dict(request.headers),
            content=request.body,
        )
        with self._transport_errors(answered=False):
            answer = self._http.send(built, stream=True)
        if answer.status_code == _OK:
            return answer
        try:
            with self._transport_errors():
                body = answer.read()
        finally:
            answer.close()
        raise wire.error_of_reply(answer.status_code, answer.headers, body)

    @contextmanager
    def _transport_errors(self, *, answered: bool = True) -> Generator[None, None, None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise error_of_transport(
                error, self.base_url, self._timeout_s, answered=answered
            ) from error
