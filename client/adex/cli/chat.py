"""`adex chat`: a conversation on the terminal whose adapter may change at any turn."""

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable

from adex.cli.adapters import table_of
from adex.cli.conversation import HELP, Conversation, Word, read_line
from adex.cli.failure import line_of_error
from adex.cli.sampling_flags import add_sampling_flags, add_server_flags, chat_sampling, client_of
from adex.cli.table import write_table
from adex.cli.terminal import Terminal
from adex.errors import AdexError
from adex.sync import Client
from adex.types import ChatSampling

_SHOWN_ADAPTERS_MAX = 50


def add_chat_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `adex chat`."""
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    add_sampling_flags(parser, chat=True)
    add_server_flags(parser)


def chat(flags: argparse.Namespace, terminal: Terminal) -> int:
    """Run `adex chat`; the exit code."""
    with client_of(flags) as client:
        # A server that is not there, or a wrong address, is told before the first question.
        with terminal.waiting(f"waiting for {flags.url}"):
            model_id = client.info().model_id
        talk = Conversation(flags.adapter_id, flags.system)
        session = _Session(
            client,
            terminal,
            talk,
            chat_sampling(flags),
            {"adapter_source": flags.adapter_source, "api_token": flags.api_token},
        )
        adapter = f" with {talk.adapter_id}" if talk.adapter_id else ""
        terminal.line(terminal.styled(f"{model_id}{adapter} at {client.base_url}", "bold"))
        terminal.line(terminal.styled(HELP, "dim"))
        session.run(_reader(terminal))
    return 0


def _reader(terminal: Terminal) -> Callable[[str], str]:
    """Reads one line after a prompt; without a person at the keyboard there is no prompt."""
    if not (sys.stdin.isatty() and terminal.interactive):
        return lambda _: _piped_line()
    # Importing it gives `input` a history and the arrow keys; some Pythons lack it.
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    return input


def _piped_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


class _Session:
    """The loop of reading, asking and writing."""

    def __init__(
        self,
        client: Client,
        terminal: Terminal,
        talk: Conversation,
        sampling: ChatSampling,
        named: dict[str, str | None],
    ) -> None:
        self._client = client
        self._terminal = terminal
        self._talk = talk
        self._sampling = sampling
        self._named = named

    def run(self, read: Callable[[str], str]) -> None:
        """Answer until the end of the input or /quit."""
        while True:
            try:
                word, rest = read_line(read("you> "))
            except EOFError:
                return
            except KeyboardInterrupt:
                self._terminal.line()
                self._terminal.remark("/quit or Ctrl-D ends the conversation")
                continue
            if word is Word.QUIT:
                return
            try:
                self._do(word, rest)
            except AdexError as error:
                # One failed turn does not end a conversation: the next may fare better.
                self._terminal.remark(line_of_error(error))

    def _do(self, word: Word, rest: str) -> None:
        match word:
            case Word.SAY:
                self._answer(rest)
            case Word.ADAPTER:
                self._talk.adapter_id = rest or None
                self._terminal.remark(f"{self._talk.who} answers from now on")
            case Word.ADAPTERS:
                self._list()
            case Word.RESET:
                self._talk.reset()
                self._terminal.remark("the conversation is forgotten")
            case Word.HELP:
                self._terminal.remark(HELP)
            case Word.UNKNOWN:
                self._terminal.remark(f"there is no {rest.split()[0]}: {HELP}")
            case Word.NOTHING | Word.QUIT:
                pass

    def _answer(self, text: str) -> None:
        pieces: list[str] = []
        stream = self._client.chat(
            self._talk.ask(text),
            self._talk.adapter_id,
            stream=True,
            **self._named,
            **self._sampling,
        )
        try:
            with self._terminal.waiting(f"waiting for {self._talk.who}"):
                chunk = next(stream, None)
            self._terminal.piece(self._terminal.styled(f"{self._talk.who}> ", "green"))
            while chunk is not None:
                pieces.append(chunk.text)
                self._terminal.piece(chunk.text)
                chunk = next(stream, None)
            self._terminal.line()
        except KeyboardInterrupt:
            self._terminal.line()
            self._terminal.remark("stopped")
        except AdexError:
            if pieces:
                self._terminal.line()
            raise
        finally:
            # Closing ends the connection, by which the server learns to stop.
            stream.close()
            self._talk.answered("".join(pieces))

    def _list(self) -> None:
        cards = self._client.list_adapters()
        if not cards:
            self._terminal.remark("the server lists no adapters")
            return
        write_table(self._terminal, *table_of(cards[:_SHOWN_ADAPTERS_MAX], self._talk.adapter_id))
        if len(cards) > _SHOWN_ADAPTERS_MAX:
            self._terminal.remark(f"and {len(cards) - _SHOWN_ADAPTERS_MAX} more: adex adapters")
