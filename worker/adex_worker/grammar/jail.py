"""The worker's hold on the process that tries grammars out; see `adex_worker.grammar.trial`."""

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from signal import SIGXCPU
from typing import Any

from adex_proto.grammar import Grammar
from adex_worker.grammar.notation import GrammarError


class JailError(Exception):
    """The process cannot be started, whatever the grammar."""


# The process limits its own processor time; this is for one that does not run at all.
_ANSWER_S_MAX = 60.0


class Jail:
    """Starts the process when it is first needed, and again after it has died.

    Not thread-safe: one asks at a time.
    """

    def __init__(self, tokenizer: Path, vocabulary: int, eos_token_ids: Sequence[int]) -> None:
        self._arguments = [str(tokenizer), str(vocabulary), *map(str, eos_token_ids)]
        self._process: subprocess.Popen[str] | None = None

    def try_out(self, grammar: Grammar) -> str:
        """The notation of a grammar that is fit to serve.

        Raises GrammarError for one that is not, and one that the process died of; JailError where
        there is no process to ask.
        """
        process = self._process or self._start()
        answer = self._ask(process, {"kind": grammar.kind.value, "text": grammar.text})
        return str(answer["notation"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _start(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "adex_worker.grammar.trial", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            # What is typed at a terminal is for the worker alone; a session of its own would, where
            # Linux groups sessions, give it as much of the processor as all of the server.
            process_group=0,
        )
        self._process = process
        try:
            self._ask(process, None)
        except _DiedError as error:
            raise JailError(f"the process ended with status {process.returncode}") from error
        return process

    def _ask(self, process: "subprocess.Popen[str]", question: object) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(_ANSWER_S_MAX, process.kill)
        timer.start()
        try:
            if question is not None:
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self.close()
            raise _DiedError(_cause_of_death(process.returncode))
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise GrammarError(answer["error"])
        return answer


class _DiedError(GrammarError):
    """The process died of a grammar, or at its start."""


def _cause_of_death(status: int) -> str:
    if status == -SIGXCPU:
        return "it takes too long to compile"
    return "it is too large or too deep to compile"
