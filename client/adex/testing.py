"""A real HTTP server on loopback whose answers a test writes down beforehand."""

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

_ANSWERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: the chunks are sent one by one, and the connection then closes.

    With `cut` the body is announced one byte longer than it is, so the stream breaks off.
    """

    chunks: tuple[bytes, ...] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cut: bool = False

    @classmethod
    def of_json(
        cls, value: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Self:
        """An answer with a JSON body."""
        kind = {"content-type": "application/json"}
        return cls((json.dumps(value).encode(),), status, kind | dict(headers or {}))

    @classmethod
    def of_events(cls, values: Iterable[object], *, done: bool = False, cut: bool = False) -> Self:
        """A stream of events, ended by `[DONE]` when OpenAI's way is wanted."""
        chunks = [b"data: " + json.dumps(value).encode() + b"\n\n" for value in values]
        if done:
            chunks.append(b"data: [DONE]\n\n")
        return cls(tuple(chunks), headers={"content-type": "text/event-stream"}, cut=cut)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it arrived; header names are lower case, `body` is None without one."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class _Listener(ThreadingHTTPServer):
    """Takes as many connections at once as a test opens."""

    request_queue_size = 128
    daemon_threads = True


class ScriptedServer:
    """Answers each request with the next answer written for its path; the last one stays.

    Usable as a context manager; `url` is its address, `asked` what came in, in order.
    """

    def __init__(self, answers: Mapping[str, Answer | list[Answer]]) -> None:
        self.asked: list[Asked] = []
        self._answers = {
            path: list(given) if isinstance(given, list) else [given]
            for path, given in answers.items()
        }
        self._lock = threading.Lock()
        self._server = _Listener(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, asked: Asked) -> Answer:
        with self._lock:
            assert len(self.asked) < _ANSWERS_MAX, "the script answers no more requests"
            self.asked.append(asked)
            answers = self._answers.get(asked.path)
            if not answers:
                return Answer.of_json({"error": "no such route"}, status=404)
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            """Reads one request, writes one answer."""

            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def _answer(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = take(Asked(self.command, self.path, headers, body))
                size = sum(map(len, answer.chunks)) + (1 if answer.cut else 0)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(size))
                self.send_header("connection", "close")
                self.end_headers()
                for chunk in answer.chunks:
                    self.wfile.write(chunk)
                    self.wfile.flush()
                self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - inherited name
                """Keep the test's output clean."""

        return Handler
