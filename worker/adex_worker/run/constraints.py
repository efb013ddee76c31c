"""Which tokens each constrained sequence may have next, found beside the steps.

A sequence's next mask depends on its tokens and nothing else, so the work begins when the last one
is known: it runs on threads of its own while the outcome travels, the next plan comes and the next
forward pass runs. The step takes the mask where it samples.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from llguidance import LLMatcher

from adex_proto.errors import AdexError, StepFailed
from adex_proto.grammar import Grammar
from adex_worker.grammar.notation import GrammarError, advance, mask_of
from adex_worker.run.arrays import ByteArray, IntArray

_THREADS_MAX = 4
# A mask takes a millisecond. The step waits this long for all, and then fails who has none.
_MASK_S_MAX = 5.0


class Grammars(Protocol):
    """Compiled grammars."""

    def prepare(self, grammar: Grammar) -> LLMatcher:
        """A matcher to be copied; blocks where it has to be compiled. Raises AdexError."""
        ...


@dataclass(slots=True)
class Masks:
    """The tokens that rows of a step may have: `bits` [index, bytes], lowest bit first."""

    index: IntArray
    bits: ByteArray


@dataclass(slots=True)
class _Constraint:
    """One sequence's place in its grammar. While `ready` is not done it belongs to a thread."""

    matcher: LLMatcher | None = None
    mask: bytes = b""
    error: AdexError | None = None
    ready: Future[None] = field(default_factory=Future[None])


class ConstraintTable:
    """The constrained sequences, by table row. One thread calls it; others do its work."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._threads = min(_THREADS_MAX, os.cpu_count() or 1)
        anywhere = _anywhere()
        self._pool = ThreadPoolExecutor(self._threads, "adex-masks", anywhere)
        # A grammar that is no longer kept is compiled again, which must delay no other's masks.
        self._beginnings = ThreadPoolExecutor(1, "adex-grammars", anywhere)
        self._rows: dict[int, _Constraint] = {}

    def clear(self) -> None:
        """Forget every row."""
        self._rows.clear()

    def add(self, row: int, grammar: Grammar, token_ids: Sequence[int]) -> None:
        """A row's text must belong to `grammar`; `token_ids` are what it has of it already."""
        constraint = self._rows[row] = _Constraint()
        constraint.ready = self._beginnings.submit(self._begin, constraint, grammar, token_ids)

    def drop(self, row: int) -> None:
        """Forget a row."""
        self._rows.pop(row, None)

    def masks(self, rows: IntArray, index: IntArray) -> tuple[Masks, dict[int, AdexError]]:
        """What these rows may have next, and by row why one may have nothing.

        `index` [rows] says where they stand in the step. Waits for what is not ready.
        """
        found: list[bytes] = []
        kept: list[int] = []
        errors: dict[int, AdexError] = {}
        until_s = time.monotonic() + _MASK_S_MAX
        for row, at in zip(rows.tolist(), index.tolist(), strict=True):
            constraint = self._rows[row]
            try:
                constraint.ready.result(max(until_s - time.monotonic(), 0.0))
                error = constraint.error
            except TimeoutError:
                error = StepFailed("the grammar's next tokens were not found in time")
            if error is None:
                found.append(constraint.mask)
                kept.append(at)
            else:
                errors[row] = error
        bits = np.array([np.frombuffer(mask, np.uint8) for mask in found], np.uint8)
        return Masks(np.array(kept, np.int64), bits), errors

    def note(self, rows: IntArray, token_ids: IntArray) -> None:
        """These rows, whose masks were taken, have gained a token each."""
        moves = [
            (self._rows[row], token)
            for row, token in zip(rows.tolist(), token_ids.tolist(), strict=True)
        ]
        for first in range(min(self._threads, len(moves))):
            # Few tasks of several rows each: handing a task over costs as much as a mask.
            part = moves[first :: self._threads]
            done = self._pool.submit(_move, part)
            for constraint, _ in part:
                constraint.ready = done

    def _begin(self, constraint: _Constraint, grammar: Grammar, token_ids: Sequence[int]) -> None:
        try:
            constraint.matcher = self._grammars.prepare(grammar).deep_copy()
            advance(constraint.matcher, token_ids)
            constraint.mask = mask_of(constraint.matcher)
        except AdexError as error:
            constraint.error = error
        except BaseException as error:  # a panic of the library's is no Exception
            constraint.error = _failure(error)


def _move(moves: Sequence[tuple[_Constraint, int]]) -> None:
    for constraint, token in moves:
        try:
            assert constraint.matcher is not None, "a token came before its mask"
            advance(constraint.matcher, [token])
            constraint.mask = mask_of(constraint.matcher)
        except BaseException as error:  # a panic of the library's is no Exception
            constraint.error = _failure(error)


def _failure(error: BaseException) -> AdexError:
    reason = str(error) if isinstance(error, GrammarError) else type(error).__name__
    return StepFailed(f"the grammar could not be followed: {reason}")


def _anywhere() -> Callable[[], None]:
    """Has a thread run on any core this one may use, whoever starts it: steps keep to their own."""
    if not hasattr(os, "sched_getaffinity"):
        return lambda: None
    cores = os.sched_getaffinity(0)

    def spread() -> None:
        # Cores may be taken from a container while it runs; then these stay where they are.
        with suppress(OSError):
            os.sched_setaffinity(0, cores)

    return spread
