"""The command `adex`: which word leads where, and how an error becomes one line."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Never

from adex.cli.adapters import adapters, add_adapters_flags
from adex.cli.chat import add_chat_flags, chat
from adex.cli.failure import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    CommandError,
    line_of_error,
    one_line,
    require_packages,
)
from adex.cli.generate import add_generate_flags, generate
from adex.cli.serve import SCHEDULER_NEEDS, WORKER_NEEDS, serve
from adex.cli.serve_options import add_flags
from adex.cli.terminal import Terminal
from adex.connection import distribution_version
from adex.errors import AdexError

Run = Callable[[argparse.Namespace, Terminal], int]

SIMULATE_NEEDS = ("adex_scheduler", "aiohttp", "grpc", "numpy", "matplotlib")

# These have flags of their own, which their packages know and this one does not.
_PROCESSES = {
    "worker": (
        "adex_worker",
        WORKER_NEEDS,
        "start one worker: the model, the adapters, the device",
    ),
    "scheduler": (
        "adex_scheduler",
        SCHEDULER_NEEDS,
        "start one scheduler: REST, gRPC, the decisions",
    ),
    "simulate": (
        "adex_scheduler.simulate",
        SIMULATE_NEEDS,
        "play a trace on a simulated machine: what would users see, with how much memory?",
    ),
    "calibrate": (
        "adex_scheduler.simulate.calibrate",
        SIMULATE_NEEDS,
        "measure a worker, and write the machine that `adex simulate` plays on",
    ),
}


class _Parser(argparse.ArgumentParser):
    """Tells wrong usage in one line."""

    def error(self, message: str) -> Never:
        """Exit with the line and code 2."""
        self.exit(EXIT_USAGE, one_line(message, f"`{self.prog} --help` tells more") + "\n")


class _Command(_Parser):
    """One command, which knows all that may stand behind its name."""

    def parse_known_args(self, *given: Any, **named: Any) -> Any:
        """As argparse does it, but for flags among a command's names, which it stumbles over."""
        flags, rest = super().parse_known_args(*given, **named)
        if "names" in flags:
            flags.names += [word for word in rest if not word.startswith("-")]
            rest = [word for word in rest if word.startswith("-")]
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return flags, rest


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(prog="adex", description="Serve many LoRA adapters over one base model.")
    top.add_argument("--version", action="version", version=f"adex {distribution_version()}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=_Command)

    def command(name: str, text: str, run: Run) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.")
        added.set_defaults(run=run)
        return added

    add_flags(command("serve", "start a server: one worker and one scheduler", serve))
    add_generate_flags(command("generate", "continue a prompt", generate))
    add_chat_flags(command("chat", "talk with the model and its adapters", chat))
    add_adapters_flags(command("adapters", "list and control a server's adapters", adapters))
    for name, (_, _, text) in _PROCESSES.items():
        commands.add_parser(name, help=text, add_help=False)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `adex` and give its exit code: 0, 1 for a failure, 2 for wrong usage, 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    terminal = Terminal(sys.stdout, sys.stderr)
    try:
        if given and given[0] in _PROCESSES:
            become_process(given[0], given[1:])
        flags = parser().parse_args(given)
        run: Run = flags.run
        return run(flags, terminal)
    except CommandError as error:
        terminal.remark(one_line(error.what, error.remedy))
        return error.exit_code
    except AdexError as error:
        terminal.remark(line_of_error(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        terminal.remark("")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        terminal.remark(one_line(str(error), None))
        return EXIT_FAILED


def become_process(name: str, arguments: Sequence[str]) -> Never:
    """Replace this process by one of another package.

    Raises: CommandError when a package it needs is missing.
    """
    module, needs, _ = _PROCESSES[name]
    require_packages(name, needs)
    command = [sys.executable, "-P", "-m", module, *arguments]
    os.execv(sys.executable, command)  # noqa: S606 - there is no shell to need
