"""A command that cannot go on, in one line with the remedy."""

import importlib.util
from collections.abc import Iterable

from adex.errors import AdapterNotFound, AdexError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class CommandError(Exception):
    """What went wrong, what helps, and the exit code: 1 when tried in vain, 2 for wrong usage."""

    def __init__(self, what: str, remedy: str | None = None, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy
        self.exit_code = exit_code


def one_line(what: str, remedy: str | None) -> str:
    """`adex: <what> (<remedy>)`, whatever line breaks the two held."""
    told = " ".join(what.split()).rstrip(".")
    if remedy is None or remedy.rstrip(".") in what:
        return f"adex: {told}"
    hint = " ".join(remedy.split()).rstrip(".")
    # A sentence becomes a remark, unless its first word is a name such as HTTP.
    if len(hint) > 1 and hint[1].islower():
        hint = hint[0].lower() + hint[1:]
    return f"adex: {told} ({hint})"


def line_of_error(error: AdexError) -> str:
    """An error of the server or the way to it, with the command that helps."""
    remedy = error.remedy
    if remedy is None and isinstance(error, AdapterNotFound):
        remedy = "`adex adapters` lists those the server knows"
    return one_line(error.message, remedy)


def require_packages(process: str, modules: Iterable[str]) -> None:
    """Go on only where the packages a process needs are installed.

    Raises: CommandError naming the first missing package and the install command.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise CommandError(
                f"the {process} needs the package {module!r}, which is not installed",
                "pip install 'adex[all]'",
            )
