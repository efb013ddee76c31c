"""`adex adapters`: what the server knows by name, and where its bytes are."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from adex.cli.sampling_flags import add_server_flags, client_of
from adex.cli.table import write_table
from adex.cli.terminal import Terminal
from adex.types import AdapterCard

# What a server may tell of an adapter beyond its name, in the order of the columns.
_EXTRA = ("tier", "bytes", "rank")
_KIB = 1024


def add_adapters_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `adex adapters`."""
    parser.add_argument("action", nargs="?", choices=["list"], default="list", help="list [list]")
    parser.add_argument("--json", action="store_true", help="write the cards as JSON")
    add_server_flags(parser)


def adapters(flags: argparse.Namespace, terminal: Terminal) -> int:
    """Run `adex adapters`; the exit code."""
    with client_of(flags) as client, terminal.waiting(f"waiting for {flags.url}"):
        cards = client.list_adapters()
    if flags.json:
        terminal.line(json.dumps([_plain(card) for card in cards], ensure_ascii=False))
    elif cards:
        write_table(terminal, *table_of(cards))
    else:
        terminal.remark(
            "no adapters are listed yet; one in a local root or on a hub is served when asked for"
        )
    return 0


def table_of(
    cards: Sequence[AdapterCard], current: str | None = None
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows; a column appears where at least one card has a value for it."""
    columns = [name for name in _EXTRA if any(card.extra.get(name) is not None for card in cards)]
    rows = [
        [
            f"* {card.id}" if card.id == current else card.id,
            *(_cell(name, card.extra.get(name)) for name in columns),
            card.parent or "",
            card.root or "",
        ]
        for card in sorted(cards, key=lambda card: card.id)
    ]
    return ["adapter", *columns, "base", "root"], rows


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return readable_bytes(value) if name == "bytes" and isinstance(value, int) else str(value)


def readable_bytes(count: int) -> str:
    """A number of bytes with the largest unit that leaves at least one of it."""
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= _KIB and len(units) > 1:
        size /= _KIB
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def _plain(card: AdapterCard) -> dict[str, Any]:
    return {"id": card.id, "root": card.root, "parent": card.parent} | dict(card.extra)
