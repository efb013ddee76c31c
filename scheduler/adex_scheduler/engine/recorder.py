"""Writes down what happens to sequences and adapters as the engine hears of it."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.outcome import AdapterEvent, StepOutcome
from adex_proto.plan import AdapterCommand, StepPlan
from adex_scheduler.core.picture import picture_of
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.engine.journal import Journal
from adex_scheduler.engine.journey import START_OF_TIER, Journey, Move, Moves
from adex_scheduler.engine.scene import Scene
from adex_scheduler.engine.streams import Stream

_LOG = logging.getLogger("adex_scheduler.engine")


class Observer(Protocol):
    """Who watches the engine. Called on its loop: it must be quick, and must not raise."""

    def submitted(self, journey: Journey) -> None:
        """A sequence was taken in; only its start is known yet."""
        ...

    def moved(self, move: Move) -> None:
        """A move of an adapter ended."""
        ...

    def planned(self, plan: StepPlan) -> None:
        """A step goes to the worker."""
        ...

    def computed(self, outcome: StepOutcome) -> None:
        """The worker answered a step."""
        ...


class Books(Protocol):
    """What the recorder reads of the core."""

    def digest_of(self, number: int) -> str | None: ...
    def nearest_tier(self, number: int) -> Tier: ...


class Recorder:
    """Keeps the journeys of streams. It pays per request, per move and per step, not per token."""

    def __init__(self, clock: Callable[[], float], observer: Observer | None) -> None:
        self._clock = clock
        self._observer = observer
        self._moves = Moves()
        self._journal = Journal()

    def submitted(self, stream: Stream, books: Books) -> None:
        """The core has heard of the stream's sequence."""
        self._journal.arrived(stream.journey.submitted_s)
        if stream.request.key is not None:
            # Whoever was refused at once had come to no copy.
            stream.journey.start = START_OF_TIER[books.nearest_tier(stream.number)]
        if self._observer is not None and stream.error is None:
            self._observer.submitted(stream.journey)

    def planned(self, plan: StepPlan, streams: Mapping[int, Stream], books: Books) -> None:
        """A step goes to the worker: the sequences it names first have waited until now."""
        self._journal.plan = plan
        if self._observer is not None:
            self._observer.planned(plan)
        starts = {span.sequence: span.start for span in plan.spans} if plan.arrived else {}
        for arrived in plan.arrived:
            stream = streams.get(arrived.sequence)
            if stream is None:
                continue
            stream.journey.admissions += 1
            if stream.journey.admissions == 1:
                stream.journey.admitted_s = self._clock()
                # What lies before the first position computed was there already.
                stream.journey.cached_tokens = starts.get(arrived.sequence, 0)
                self._note_adapter(stream, books)

    def computed(self, outcome: StepOutcome) -> None:
        """The worker answered a step."""
        self._journal.stepped(outcome, self._clock())
        if self._observer is not None:
            self._observer.computed(outcome)

    def showed_first(self, stream: Stream) -> None:
        """The stream has its first token."""
        journey = stream.journey
        journey.first_s = self._clock()
        self._journal.first_token(journey.first_s - journey.submitted_s, journey.first_s)

    def sent(self, command: AdapterCommand) -> None:
        """A command goes to the worker."""
        self._moves.sent(command, self._clock())

    def answered(self, event: AdapterEvent, core: SchedulerCore) -> None:
        """The worker answered a command. Called before the core hears of it.

        What the core lets begin then has waited for this move.
        """
        now = self._clock()
        move = self._moves.answered(event, now)
        self._journal.answered(event, move, core, now)
        if move is not None and self._observer is not None:
            self._observer.moved(move)

    def connected(self) -> None:
        """A worker has said hello."""
        self._journal.connected(self._clock())

    def lost(self, reason: str) -> None:
        """The worker is gone: nothing under way will be answered."""
        self._moves.lost()
        self._journal.lost(reason, self._clock())

    def draining(self) -> None:
        """The server takes nothing new."""
        self._journal.draining(self._clock())

    def ended(self, stream: Stream, how: str, books: Books | None) -> None:
        """One line for each sequence that ended: never its text, never a private name."""
        journey = stream.journey
        journey.ended_s, journey.end = self._clock(), how
        if not journey.admissions and books is not None:
            self._note_adapter(stream, books)
        if stream.error is not None:
            self._journal.failed(stream.request.key, journey.digest, how, journey.ended_s)
        if not _LOG.isEnabledFor(logging.INFO):
            return
        adapter = "base" if stream.request.key is None else journey.digest or "unresolved"
        _LOG.info(
            "request=%s adapter=%s prompt_tokens=%d new_tokens=%d start=%s queue_s=%.3f "
            "total_s=%.3f finish=%s",
            stream.request.request_id,
            adapter[:12],
            journey.prompt_tokens,
            journey.generated,
            journey.start.value,
            journey.queue_s,
            journey.ended_s - journey.submitted_s,
            how,
        )

    def scene(self, core: SchedulerCore, *, draining: bool) -> Scene:
        """The present and the latest past; bounded, so it may be asked for some times a second."""
        journal = self._journal
        picture = picture_of(core, journal.plan, self._clock())
        return Scene(core.info, draining, picture, journal.entries, journal.seconds)

    def longest_wait_s(self, streams: Iterable[Stream]) -> float:
        """How long that stream has waited which has waited longest for its first step."""
        journeys = [stream.journey for stream in streams]
        since = [journey.submitted_s for journey in journeys if not journey.admissions]
        return self._clock() - min(since) if since else 0.0

    def waiting_names(self, streams: Iterable[Stream]) -> set[AdapterKey]:
        """The adapters that sequences wait to begin with."""
        waiting = [stream.request.key for stream in streams if not stream.journey.admissions]
        return {key for key in waiting if key is not None}

    def _note_adapter(self, stream: Stream, books: Books) -> None:
        """Which version the sequence is bound to, and what it waited for."""
        key, journey = stream.request.key, stream.journey
        if key is not None:
            journey.digest = books.digest_of(stream.number) or ""
            journey.moves = self._moves.of(key, journey.digest, journey)
