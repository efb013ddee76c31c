"""`adex generate`: continue one prompt, on the terminal as it comes or as JSON."""

import argparse
import dataclasses
import json
import sys

from adex.cli.failure import EXIT_USAGE, CommandError
from adex.cli.sampling_flags import (
    add_sampling_flags,
    add_server_flags,
    client_of,
    generate_sampling,
)
from adex.cli.terminal import Terminal
from adex.types import Response, StreamResponse

_PROMPT_CHARACTERS_MAX = 2**20


def add_generate_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `adex generate`."""
    parser.add_argument("prompt", metavar="PROMPT", help="the text to continue, - reads it")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write the text as it comes [yes]",
    )
    parser.add_argument("--json", action="store_true", help="write the reply with its details")
    add_sampling_flags(parser, chat=False)
    add_server_flags(parser)


def generate(flags: argparse.Namespace, terminal: Terminal) -> int:
    """Run `adex generate`; the exit code."""
    prompt = _prompt(flags.prompt)
    named = {name: getattr(flags, name) for name in ("adapter_id", "adapter_source", "api_token")}
    sampling = generate_sampling(flags)
    awaited = f"waiting for {flags.adapter_id or 'the base model'}"
    with client_of(flags) as client:
        if not flags.stream:
            with terminal.waiting(awaited):
                response = client.generate(prompt, **named, **sampling)
            terminal.line(_json(response) if flags.json else response.generated_text)
            return 0
        stream = client.generate_stream(prompt, **named, **sampling)
        with terminal.waiting(awaited):
            event = next(stream, None)
        if sampling.get("return_full_text") and not flags.json:
            terminal.piece(prompt)
        while event is not None:
            if flags.json:
                terminal.line(_json(event))
            else:
                terminal.piece(event.text)
            event = next(stream, None)
        if not flags.json:
            terminal.line()
    return 0


def _prompt(given: str) -> str:
    if given != "-":
        return given
    text = sys.stdin.read(_PROMPT_CHARACTERS_MAX + 1)
    if len(text) > _PROMPT_CHARACTERS_MAX:
        raise CommandError(
            f"the prompt has more than {_PROMPT_CHARACTERS_MAX} characters",
            "send a shorter one",
            EXIT_USAGE,
        )
    return text.removesuffix("\n")


def _json(reply: Response | StreamResponse) -> str:
    return json.dumps(dataclasses.asdict(reply), ensure_ascii=False)
