"""The process that tries grammars out, and may die of one.

    python -m adex_worker.grammar.trial TOKENIZER.JSON VOCABULARY END_TOKEN_ID...

Reads a grammar from each line of its input, compiles it, and walks some way into it. Answers each
with a line: the grammar in llguidance's notation, or the reason against it. It may use so much
memory and so many seconds of processor time, and ends with its input.
"""

import json
import math
import os
import random
import resource
import sys
import threading
import time
from pathlib import Path

from llguidance import LLTokenizer

from adex_proto.grammar import Grammar, GrammarKind
from adex_worker.grammar.notation import (
    GrammarError,
    advance,
    mask_of,
    matcher_of,
    notation_of,
    tokenizer_of,
)

MEMORY_BYTES_MAX = 512 * 2**20
# Of processor time, so that a busy machine refuses nothing that an idle one takes.
SECONDS_MAX = 2
COMPILE_S_MAX = 1.0
MASK_S_MAX = 0.1
_WALKS = 2
_WALK_TOKENS = 32
# Less than the worker's own threads have: what passes here fits there.
_STACK_BYTES = 4 * 2**20


def main(arguments: list[str]) -> None:
    """Serve until the input ends."""
    path, vocabulary, *ends = arguments
    os.nice(5)
    text = Path(path).read_text(encoding="utf-8")
    try:
        tokenizer = tokenizer_of(text, int(vocabulary), [int(end) for end in ends])
    except GrammarError as error:
        _say({"error": str(error)})
        return
    _say({})
    _limit(resource.RLIMIT_AS, _address_bytes() + MEMORY_BYTES_MAX)
    for line in sys.stdin:
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time()) + SECONDS_MAX)
        asked = json.loads(line)
        try:
            notation = try_out(tokenizer, Grammar(GrammarKind(asked["kind"]), asked["text"]))
            _say({"notation": notation})
        except GrammarError as error:
            _say({"error": str(error)})


def try_out(tokenizer: LLTokenizer, grammar: Grammar) -> str:
    """Compile, and take steps into the grammar as a model might.

    Returns: the notation of a grammar that is fit to serve. Raises GrammarError.
    """
    notation = notation_of(grammar)
    started_s = time.thread_time()
    beginning = matcher_of(tokenizer, notation)
    _within(time.thread_time() - started_s, COMPILE_S_MAX, "compile")
    for seed in range(_WALKS):
        matcher, chance = beginning.deep_copy(), random.Random(seed)  # noqa: S311 -- no secret
        for _ in range(_WALK_TOKENS):
            started_s = time.thread_time()
            mask = mask_of(matcher)
            _within(time.thread_time() - started_s, MASK_S_MAX, "find one next token")
            token = _any_token(mask, chance)
            if token is None or token in tokenizer.eos_tokens:
                break
            advance(matcher, [token])
    return notation


def _any_token(mask: bytes, chance: random.Random) -> int | None:
    """Some token of the mask, each byte with any as likely as another."""
    filled = [index for index, byte in enumerate(mask) if byte]
    if not filled:
        return None
    index = chance.choice(filled)
    bits = [bit for bit in range(8) if mask[index] >> bit & 1]
    return 8 * index + chance.choice(bits)


def _within(seconds: float, seconds_max: float, what: str) -> None:
    if seconds > seconds_max:
        raise GrammarError(f"it takes {seconds:.2g} s to {what}, more than {seconds_max:g} s")


def _limit(kind: int, soft: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _address_bytes() -> int:
    """What the process has of its address space."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def _say(answer: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    threading.stack_size(_STACK_BYTES)
    serving = threading.Thread(target=main, args=(sys.argv[1:],))
    serving.start()
    serving.join()
