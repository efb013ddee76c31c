"""`adex chat` on a real pseudo-terminal: what Ctrl-C and Ctrl-D do."""

import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator

import pytest

FIRST = b'data: {"choices": [{"index": 0, "delta": {"content": "Hel"}}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
INFO = b'HTTP/1.1 200 OK\r\ncontent-length: 17\r\nconnection: close\r\n\r\n{"model_id": "m"}'


class Endless:
    """A server whose answers begin and never end; it notes when a caller leaves one."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.left = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            if connection.recv(65536).startswith(b"GET /info"):
                connection.sendall(INFO)
                return
            connection.sendall(STREAM + FIRST)
            while connection.recv(65536):
                pass
            self.left.set()

    def close(self) -> None:
        self._listener.close()


def _heed_interrupts() -> None:
    """A shell has the jobs in its background ignore interrupts, and their children inherit it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Keyboard:
    """A person at a terminal in which `adex chat` runs."""

    def __init__(self, url: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "adex", "chat", "--url", url],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=dict(os.environ) | {"TERM": "xterm"},
            preexec_fn=_heed_interrupts,
        )
        os.close(slave)
        self._seen = ""

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def interrupt(self) -> None:
        # As the terminal does for Ctrl-C, whose foreground group is the process here. A prompt is
        # shown a moment before keys are read, and no person is as quick as a test.
        time.sleep(0.3)
        self.process.send_signal(signal.SIGINT)

    def wait_to_see(self, text: str) -> None:
        give_up_s = time.monotonic() + 10.0
        while text not in self._seen:
            assert time.monotonic() < give_up_s, f"{text!r} never appeared in {self._seen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                self._seen += os.read(self._master, 65536).decode(errors="replace")
        self._seen = self._seen.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def endless() -> Generator[Endless, None, None]:
    server = Endless()
    yield server
    server.close()


@pytest.fixture
def keyboard(endless: Endless) -> Generator[Keyboard, None, None]:
    person = Keyboard(endless.url)
    yield person
    person.close()


def test_an_interrupt_stops_the_answer_and_the_chat_goes_on(
    keyboard: Keyboard, endless: Endless
) -> None:
    keyboard.wait_to_see("you> ")
    keyboard.press("hi\n")
    keyboard.wait_to_see("Hel")
    keyboard.interrupt()
    keyboard.wait_to_see("stopped")
    assert endless.left.wait(5.0)
    keyboard.wait_to_see("you> ")
    keyboard.press("/quit\n")
    assert keyboard.process.wait(timeout=5.0) == 0


def test_an_interrupt_at_the_prompt_tells_how_to_leave(keyboard: Keyboard) -> None:
    keyboard.wait_to_see("you> ")
    keyboard.interrupt()
    keyboard.wait_to_see("Ctrl-D ends")
    keyboard.wait_to_see("you> ")
    keyboard.press("\x04")
    assert keyboard.process.wait(timeout=5.0) == 0
