"""The flags that `adex generate` and `adex chat` share: the server, the adapter, the sampling."""

import argparse
import json
import os
from collections.abc import Callable
from typing import Any, cast

from adex.cli.failure import EXIT_USAGE, CommandError
from adex.sync import Client
from adex.types import ChatSampling, Sampling

_DEFAULT_URL = "http://127.0.0.1:8080"
# A first request may wait for its adapter to be fetched: longer than a library should by default.
_TIMEOUT_S = 300.0

_CHAT: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("max-new-tokens", int, "tokens to generate at most"),
    ("min-new-tokens", int, "tokens to generate at least"),
    ("temperature", float, "0 is greedy; higher is more varied"),
    ("top-k", int, "draw from the k most probable tokens"),
    ("top-p", float, "draw from the most probable tokens that make up p"),
    ("min-p", float, "drop tokens less probable than p times the most probable one"),
    ("typical-p", float, "draw from the most typical tokens that make up p"),
    ("repetition-penalty", float, "above 1 discourages repetition"),
    ("frequency-penalty", float, "-2 to 2, by how often a token occurred"),
    ("presence-penalty", float, "-2 to 2, for a token that occurred"),
    ("seed", int, "makes a draw repeatable"),
)
_GENERATE: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("truncate", int, "keep the last so many prompt tokens"),
    ("top-n-tokens", int, "also report the n most probable tokens (with --json)"),
)
_GENERATE_SWITCHES = (
    ("do-sample", "draw at temperature 1 where nothing else is said"),
    ("return-full-text", "repeat the prompt before the text"),
)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the server is and who asks."""
    parser.add_argument(
        "--url", default=os.environ.get("ADEX_URL", _DEFAULT_URL), help="%(default)s (env ADEX_URL)"
    )
    parser.add_argument(
        "--api-key",
        default=os.environ.get("ADEX_API_KEY"),
        help="credential for the server itself (better by env ADEX_API_KEY)",
    )
    parser.add_argument(
        "--timeout", type=float, default=_TIMEOUT_S, metavar="S", help="seconds [%(default)s]"
    )


def add_sampling_flags(parser: argparse.ArgumentParser, *, chat: bool) -> None:
    """Add the adapter and the sampling parameters under the names of the Python client."""
    parser.add_argument("--adapter-id", metavar="NAME", help="adapter to answer with")
    parser.add_argument("--adapter-source", metavar="SOURCE", help="local, hub or s3")
    parser.add_argument(
        "--api-token",
        default=os.environ.get("ADEX_API_TOKEN"),
        help="credential for a private adapter (better by env ADEX_API_TOKEN)",
    )
    for name, kind, text in _CHAT if chat else _CHAT + _GENERATE:
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=text)
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end at this text; repeatable"
    )
    parser.add_argument(
        "--stop-token-id", action="append", type=int, metavar="ID", help="end at it; repeatable"
    )
    parser.add_argument("--logit-bias", metavar="JSON", help='such as {"42": -100}')
    switches = (("ignore-eos-token", "go on after the model's end token"),)
    for name, text in switches if chat else switches + _GENERATE_SWITCHES:
        # None, not False, where it is not given: the choice is then the server's.
        parser.add_argument(f"--{name}", action="store_const", const=True, help=text)


def client_of(flags: argparse.Namespace) -> Client:
    """A client of the server that the flags name."""
    headers = {"Authorization": f"Bearer {flags.api_key}"} if flags.api_key else None
    return Client(flags.url, headers=headers, timeout=flags.timeout)


def generate_sampling(flags: argparse.Namespace) -> Sampling:
    """The sampling parameters that were given to `adex generate`."""
    names = [name for name, _, _ in _CHAT + _GENERATE]
    names += [name for name, _ in _GENERATE_SWITCHES]
    return cast("Sampling", _given(flags, names))


def chat_sampling(flags: argparse.Namespace) -> ChatSampling:
    """The sampling parameters that were given to `adex chat`."""
    return cast("ChatSampling", _given(flags, [name for name, _, _ in _CHAT]))


def _given(flags: argparse.Namespace, names: list[str]) -> dict[str, object]:
    given = {name.replace("-", "_"): getattr(flags, name.replace("-", "_")) for name in names}
    given |= {
        "stop_sequences": flags.stop,
        "stop_token_ids": flags.stop_token_id,
        "ignore_eos_token": flags.ignore_eos_token,
        "logit_bias": _logit_bias(flags.logit_bias),
    }
    return {name: value for name, value in given.items() if value is not None}


def _logit_bias(text: str | None) -> dict[int, float] | None:
    if text is None:
        return None
    try:
        return {int(token): float(bias) for token, bias in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CommandError(
            f"--logit-bias: {text!r} is no mapping of token ids to numbers",
            'write it like {"42": -100}',
            EXIT_USAGE,
        ) from error
