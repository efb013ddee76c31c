"""Flags that `adex serve` takes for one of its processes and does not read itself.

Each travels as its variable: the process that knows it checks it, and a key among them stands on no
child's command line.
"""

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PREFIX = "ADEX_"
# Also where the client's commands look for the key that they send.
API_KEY = "ADEX_API_KEY"
# Variables that are no flag: of the client's commands, and of the compiled steps.
_OTHERS = ("ADEX_API_TOKEN", "ADEX_NATIVE", "ADEX_URL")
# What Kubernetes tells every pod of a service whose name begins with `adex`.
_OF_KUBERNETES = re.compile(
    r"ADEX_(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT\w*|PORT(?:_\d+_(?:TCP|UDP|SCTP)\w*)?)"
)
_LIKE_MIN = 0.75


def variable_of(flag: str) -> str:
    """The variable in which a flag may be given instead, for `some-thing` ADEX_SOME_THING."""
    return PREFIX + flag.upper().replace("-", "_")


@dataclass(frozen=True, slots=True)
class PassedFlag:
    """One flag. `separator` is what stands between several in the variable, where it repeats."""

    name: str
    metavar: str
    help: str
    separator: str | None = None
    switch: bool = False

    @property
    def variable(self) -> str:
        """Where it travels."""
        return variable_of(self.name)

    @property
    def attribute(self) -> str:
        """Where argparse keeps it."""
        return self.name.replace("-", "_")


PASSED_FLAGS = (
    PassedFlag("revision", "NAME", "branch, tag or commit of a hub model (newest)"),
    PassedFlag(
        "served-model-name", "NAME", "another public name of the base model; repeatable", ","
    ),
    PassedFlag("max-waiting", "N", "sequences that may wait (1024)"),
    PassedFlag("max-concurrent-requests", "N", "requests under way (1024)"),
    PassedFlag("max-stop-sequences", "N", "stop texts of one request (16)"),
    PassedFlag("max-choices", "N", "sequences of one request (16)"),
    PassedFlag("default-max-new-tokens", "N", "where a request names no number (2048)"),
    PassedFlag("max-total-tokens", "N", "prompt and output of one sequence (auto)"),
    PassedFlag("max-body-bytes", "N", "bytes of one request (2000000)"),
    PassedFlag("api-key", "KEY", "a key that callers must send; repeatable; better by env", ","),
    PassedFlag(
        "cors-allow-origin",
        "ORIGIN",
        "https://host[:port] of pages that may read answers, or *; repeatable",
        ",",
    ),
    PassedFlag("admin-key", "KEY", "what operators prove themselves with; better by env"),
    PassedFlag("open-admin", "", "let every caller control adapters, without a key", switch=True),
    PassedFlag("rank-max", "N", "largest LoRA rank served (256)"),
    PassedFlag("threads", "N", "threads of one step on a CPU (auto)"),
    PassedFlag("metrics-port", "PORT", "port for the worker's metrics, 0 for none (0)"),
)


def add_passed_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags; what was given is found by `passed_environment`."""
    for flag in PASSED_FLAGS:
        text = f"{flag.help} (env {flag.variable})"
        if flag.switch:
            parser.add_argument(f"--{flag.name}", action="store_const", const="on", help=text)
        elif flag.separator is None:
            parser.add_argument(f"--{flag.name}", metavar=flag.metavar, help=text)
        else:
            parser.add_argument(
                f"--{flag.name}", action="extend", nargs="+", metavar=flag.metavar, help=text
            )


def passed_environment(flags: argparse.Namespace) -> dict[str, str]:
    """The variables of the flags that were given."""
    told: dict[str, str] = {}
    for flag in PASSED_FLAGS:
        given: str | list[str] | None = getattr(flags, flag.attribute)
        if isinstance(given, list):
            given = (flag.separator or "").join(given)
        if given is not None:
            told[flag.variable] = given
    return told


def unknown_variables(environ: Mapping[str, str], known: Iterable[str]) -> dict[str, str | None]:
    """Variables that look like ours and say nothing to anybody, each with the one it may mean."""
    ours = {*known, *(flag.variable for flag in PASSED_FLAGS), *_OTHERS}
    unknown = [name for name in sorted(environ) if name.startswith(PREFIX) and name not in ours]
    return {
        name: next(iter(difflib.get_close_matches(name, sorted(ours), 1, _LIKE_MIN)), None)
        for name in unknown
        if _OF_KUBERNETES.fullmatch(name) is None
    }
