"""A table on the terminal: rich's where it is installed and someone looks, plain columns else."""

import importlib.util
from collections.abc import Sequence

from adex.cli.terminal import Terminal


def write_table(terminal: Terminal, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows under headings; plain columns are apart by two spaces and easy to cut."""
    if terminal.interactive and importlib.util.find_spec("rich") is not None:
        _write_rich(terminal, headings, rows)
        return
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminal.line("  ".join(cells).rstrip())


def _write_rich(terminal: Terminal, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    # rich comes with the extra `cli`, which a server image does without.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=terminal.out).print(table)
