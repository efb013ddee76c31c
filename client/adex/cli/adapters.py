"""`adex adapters`: what the server knows by name, where its bytes are, and to move them."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args

from adex.cli.failure import EXIT_USAGE, CommandError
from adex.cli.sampling_flags import add_server_flags, client_of
from adex.cli.table import write_table
from adex.cli.terminal import Terminal, bar
from adex.sync import Client
from adex.types import AdapterAction, AdapterCard, AdapterState

ACTIONS: tuple[str, ...] = get_args(AdapterAction)
_NEARNESS = {"absent": 0, "disk": 1, "host": 2, "device": 3}

# What a server may tell of an adapter beyond its name, in the order of the columns.
_EXTRA = ("tier", "bytes", "rank")
_KIB = 1024


def add_adapters_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `adex adapters`."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=["list", *ACTIONS],
        default="list",
        metavar="ACTION",
        help=f"list [list], {', '.join(ACTIONS)}",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="the adapters to act on")
    parser.add_argument(
        "--tier", choices=["device", "host"], help="how near, to preload and to pin [device]"
    )
    parser.add_argument("--disk", action="store_true", help="unload from the disk as well")
    parser.add_argument("--adapter-source", help="where the adapters lie: local, hub or s3")
    parser.add_argument(
        "--api-token",
        default=os.environ.get("ADEX_API_TOKEN"),
        help="credential for private adapters (better by env ADEX_API_TOKEN)",
    )
    parser.add_argument(
        "--admin-key",
        default=os.environ.get("ADEX_ADMIN_KEY"),
        help="what proves an operator (better by env ADEX_ADMIN_KEY)",
    )
    parser.add_argument("--json", action="store_true", help="write the adapters as JSON")
    add_server_flags(parser)


def adapters(flags: argparse.Namespace, terminal: Terminal) -> int:
    """Run `adex adapters`; the exit code."""
    if flags.admin_key:
        flags.api_key = flags.admin_key
    with client_of(flags) as client:
        if flags.action == "list":
            with terminal.waiting(f"waiting for {flags.url}"):
                shown = client.adapters.list(flags.api_token)
            if flags.names:
                shown = tuple(state for state in shown if state.id in flags.names)
        else:
            shown = _act(client, flags, terminal)
    if flags.json:
        terminal.line(json.dumps([asdict(state) for state in shown], ensure_ascii=False))
    elif shown:
        write_table(terminal, *state_table(shown))
    else:
        terminal.remark(
            "no adapters are listed yet; one in a local root or on a hub is served when asked for"
        )
    return 0


def _act(client: Client, flags: argparse.Namespace, terminal: Terminal) -> tuple[AdapterState, ...]:
    """Do the action with each adapter named, with a bar on the way."""
    action: AdapterAction = flags.action
    if not flags.names:
        raise CommandError(
            f"name the adapters to {action}", "`adex adapters` lists them", EXIT_USAGE
        )
    brings = action in ("preload", "pin")
    if flags.tier and not brings:
        raise CommandError(f"{action} takes no --tier", "leave it out", EXIT_USAGE)
    if flags.disk and action != "unload":
        raise CommandError(f"{action} takes no --disk", "leave it out", EXIT_USAGE)
    goal = _NEARNESS[flags.tier or ("device" if brings else "disk")]
    disk = flags.disk if action == "unload" else None
    ended: list[AdapterState] = []
    for name in flags.names:
        steps = client.adapters.follow(
            action, name, flags.adapter_source, flags.api_token, tier=flags.tier, disk=disk
        )
        try:
            for step in steps:
                size = f" {readable_bytes(step.bytes)}" if step.bytes else ""
                near = goal if step.done else min(_NEARNESS[step.tier], goal)
                terminal.status(f"{action} {name} {bar(near, goal)} {step.tier}{size}")
                if step.adapter is not None:
                    ended.append(step.adapter)
        finally:
            terminal.status("")
    return tuple(ended)


def state_table(states: Sequence[AdapterState]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of what `adex adapters` shows, by name."""
    headings = ["adapter", "tier", "pinned", "bytes", "rank", "used by", "last used", "digest"]
    rows = [
        [
            state.id,
            f"{state.tier} (moving)" if state.moving else state.tier,
            f"{state.pinned} ({state.pin_error})" if state.pin_error else state.pinned or "",
            "" if state.bytes is None else readable_bytes(state.bytes),
            "" if state.rank is None else str(state.rank),
            str(state.pins + state.waiting or ""),
            "" if state.last_used_s is None else f"{readable_seconds(state.last_used_s)} ago",
            (state.digest or "")[:12],
        ]
        for state in sorted(states, key=lambda state: state.id)
    ]
    # A column in which nobody has anything to say is left out.
    told = [column for column, _ in enumerate(headings) if any(row[column] for row in rows)]
    return [headings[column] for column in told], [[row[c] for c in told] for row in rows]


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


def readable_seconds(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"
