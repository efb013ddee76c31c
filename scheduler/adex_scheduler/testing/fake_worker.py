"""A worker that obeys the contract to the letter and computes nothing.

It keeps what a real one keeps in device memory: each KV position holds a fingerprint
made from the one before it, each adapter page the adapter's mark. A token is a function of the last
position's fingerprint, so a page that was reused too early, shared wrongly or computed out of order
shows as a wrong token. Every broken rule of the contract raises ContractBroken.
"""

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from zlib import crc32

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import (
    AdapterNotFound,
    AdexError,
    CacheFull,
    SourceUnavailable,
    StepFailed,
)
from adex_proto.outcome import (
    AdapterEvent,
    Evicted,
    Fetched,
    FetchFailed,
    Held,
    Hello,
    Moved,
    MoveFailed,
    PromptScores,
    SampledToken,
    SampledTokens,
    SequenceFailure,
    StepOutcome,
    TokenScore,
    WorkerInfo,
)
from adex_proto.plan import AdapterCommand, Decodes, Evict, Fetch, PageIn, Span, Stage, StepPlan
from adex_proto.sampling import SamplingParams

EOS = 0


class ContractBroken(AssertionError):  # noqa: N818 - it reads as what it says
    """The scheduler asked for something the contract forbids."""


def worker_info(**changes: int) -> WorkerInfo:
    """A small worker; `changes` replace its numbers."""
    numbers = {
        "layers": 2,
        "vocabulary": 101,
        "positions_max": 256,
        "block_tokens": 4,
        "page_bytes": 100,
        "pages": 64,
        "slots_max": 8,
        "host_bytes": 10_000,
        "disk_bytes": 100_000,
        "rank_max": 64,
        "step_tokens_max": 64,
        "step_sequences_max": 16,
    } | changes
    return WorkerInfo(
        model_id="fake",
        architecture="Fake",
        dtype="float32",
        device="none",
        eos_token_ids=(EOS,),
        **numbers,
    )


def fingerprint(before: int, token_id: int) -> int:
    """What a KV position holds: a function of everything up to and including its token."""
    return crc32(token_id.to_bytes(4, "little"), before)


def token_after(mark: int, sampling: SamplingParams, outputs: int, vocabulary: int) -> int:
    """The token a position with this fingerprint yields as output number `outputs`."""
    token_id = crc32(b"token", mark) % vocabulary
    ends = {EOS, *sampling.stop_token_ids}
    if outputs < sampling.min_new_tokens:
        while token_id in ends:
            token_id = (token_id + 1) % vocabulary
    return token_id


def oracle(
    digest: str, prompt: Items[int], sampling: SamplingParams, vocabulary: int
) -> tuple[int, ...]:
    """What a sequence computed alone yields, its end token included."""
    mark = crc32(digest.encode())
    for token_id in prompt:
        mark = fingerprint(mark, token_id)
    ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else {EOS})
    outputs: list[int] = []
    while len(outputs) < sampling.max_new_tokens:
        outputs.append(token_after(mark, sampling, len(outputs), vocabulary))
        if outputs[-1] in ends:
            break
        mark = fingerprint(mark, outputs[-1])
    return tuple(outputs)


@dataclass(slots=True)
class _Row:
    """One sequence as the worker knows it."""

    tokens: list[int]
    output_start: int
    slot: int
    sampling: SamplingParams
    blocks: list[int] = field(default_factory=list[int])
    marks: list[int] = field(default_factory=list[int])
    """The fingerprints its positions must hold, as far as they were needed."""
    failed: bool = False


@dataclass(slots=True)
class _Resident:
    digest: str
    first_page: int
    pages: int
    ready: bool = False


def _scores(span: Span, row: _Row) -> list[PromptScores]:
    """A prompt token's score is its own number, made negative."""
    stop = min(span.start + span.count, row.output_start - 1)
    if row.sampling.prompt_logprobs is None or stop <= span.start:
        return []
    told = tuple(TokenScore(-float(token)) for token in row.tokens[span.start + 1 : stop + 1])
    return [PromptScores(span.sequence, span.start + 1, told)]


class FakeWorker:
    """The worker's side of the contract, one `run_plan` or `run_command` at a time.

    `published` is the source: what each name means. Commands take effect at the worst moment the
    contract allows: pages are overwritten, and copies forgotten, when the command is received.
    """

    def __init__(self, info: WorkerInfo) -> None:
        self.info = info
        self.published: dict[AdapterKey, AdapterVersion | AdexError] = {}
        self.disk: dict[str, AdapterVersion] = {}
        self.disk_bytes_there = 2 * info.disk_bytes
        """What the disk takes in truth: others write to it too."""
        self.host: set[str] = set()
        self.plans: deque[StepPlan] = deque()
        self.commands: list[AdapterCommand] = []
        self.steps_in_flight_max = 0
        self.forget_device()

    def forget_device(self) -> None:
        """What happens when a stream opens or breaks: only host and disk copies stay."""
        self.rows: dict[int, _Row] = {}
        self.memory: dict[tuple[int, int], int] = {}
        self.slots: dict[int, _Resident] = {}
        self.plans.clear()
        self.commands.clear()
        self._next_step: int | None = None

    def hello(self) -> Hello:
        """The first word on a new stream."""
        self.forget_device()
        held = [
            Held(self.disk[digest], Tier.HOST if digest in self.host else Tier.DISK)
            for digest in sorted(self.disk)
        ]
        return Hello(self.info, tuple(held))

    # Receiving: order and legality are checked, and destructive effects happen, at once.

    def receive(self, down: StepPlan | AdapterCommand) -> None:
        """Take in one message."""
        if isinstance(down, StepPlan):
            if self._next_step is not None and down.step != self._next_step:
                raise ContractBroken(f"step {down.step} came instead of {self._next_step}")
            self._next_step = down.step + 1
            self.plans.append(down)
            self.steps_in_flight_max = max(self.steps_in_flight_max, len(self.plans))
            return
        self.commands.append(down)
        if isinstance(down, PageIn):
            self._begin_page_in(down)
        elif isinstance(down, Evict):
            self._forget_copy(down)

    def _begin_page_in(self, command: PageIn) -> None:
        stop = command.first_page + command.pages
        if command.digest not in self.host:
            raise ContractBroken(f"{command.digest} is not in host memory")
        if not 0 <= command.first_page < stop <= self.info.pages:
            raise ContractBroken(f"pages [{command.first_page}, {stop}) are outside the pool")
        if not 0 < command.slot <= self.info.slots_max or command.slot in self.slots:
            raise ContractBroken(f"slot {command.slot} is taken or unknown")
        size = self.disk[command.digest].bundle_bytes
        if command.pages != -(-size // self.info.page_bytes):
            raise ContractBroken(f"{size} bytes do not take {command.pages} pages")
        for resident in self.slots.values():
            if resident.first_page < stop and command.first_page < (
                resident.first_page + resident.pages
            ):
                raise ContractBroken(f"pages of {command.digest} and {resident.digest} overlap")
            if resident.digest == command.digest:
                raise ContractBroken(f"{command.digest} is on the device already")
        for number, row in self.rows.items():
            if any(command.first_page <= page < stop for page in row.blocks):
                raise ContractBroken(f"pages of {command.digest} and sequence {number} overlap")
        self.slots[command.slot] = _Resident(command.digest, command.first_page, command.pages)
        for page in range(command.first_page, stop):
            for offset in range(self.info.block_tokens):
                self.memory[page, offset] = -1

    def _forget_copy(self, command: Evict) -> None:
        match command.tier:
            case Tier.DEVICE:
                found = [s for s, r in self.slots.items() if r.digest == command.digest]
                if not found or not self.slots[found[0]].ready:
                    raise ContractBroken(f"{command.digest} is not on the device")
                del self.slots[found[0]]
            case Tier.HOST:
                self.host.discard(command.digest)
            case Tier.DISK:
                self.disk.pop(command.digest, None)
            case Tier.ABSENT:
                raise ContractBroken("nothing can be evicted from ABSENT")

    # Answering.

    def run_command(self, index: int, *, fail: bool = False) -> AdapterEvent:
        """Carry out the command at `index` and answer it."""
        command = self.commands.pop(index)
        match command:
            case Fetch():
                return self._fetch(command, fail)
            case Stage():
                if fail or command.digest not in self.disk:
                    error = SourceUnavailable("the bundle could not be read")
                    return MoveFailed(command.digest, Tier.HOST, error)
                self.host.add(command.digest)
                return Moved(command.digest, Tier.HOST)
            case PageIn():
                if fail:
                    del self.slots[command.slot]
                    error = SourceUnavailable("the copy failed")
                    return MoveFailed(command.digest, Tier.DEVICE, error)
                self.slots[command.slot].ready = True
                return Moved(command.digest, Tier.DEVICE)
            case Evict():
                return Evicted(command.digest, command.tier)

    def _fetch(self, command: Fetch, fail: bool) -> AdapterEvent:
        if fail:
            return FetchFailed(command.key, SourceUnavailable("the source did not answer"))
        meaning = self.published.get(command.key)
        if meaning is None:
            return FetchFailed(command.key, AdapterNotFound(f"no adapter {command.key.name}"))
        if isinstance(meaning, AdexError):
            return FetchFailed(command.key, meaning)
        held = sum(version.bundle_bytes for version in self.disk.values())
        new = meaning.bundle_bytes if meaning.digest not in self.disk else 0
        if new and held + new > self.disk_bytes_there:
            return FetchFailed(command.key, CacheFull("the disk is full"))
        self.disk[meaning.digest] = meaning
        return Fetched(command.key, meaning)

    def run_plan(self, *, fail: Items[int] = ()) -> StepOutcome:
        """Carry out the oldest plan; `fail` names sequences it cannot serve."""
        plan = self.plans.popleft()
        for number in plan.finished:
            if self.rows.pop(number, None) is None:
                raise ContractBroken(f"sequence {number} finished without having arrived")
        for new in plan.arrived:
            if new.sequence in self.rows:
                raise ContractBroken(f"sequence {new.sequence} arrived twice")
            self.rows[new.sequence] = _Row(
                list(new.token_ids), new.output_start, new.slot, new.sampling
            )
        if len(self.rows) > self.info.step_sequences_max:
            raise ContractBroken(f"{len(self.rows)} sequences at once")
        if plan.tokens > self.info.step_tokens_max:
            raise ContractBroken("more tokens than a step may have")
        if len(set(plan.sequences)) != len(plan.sequences):
            raise ContractBroken("a step names one sequence twice")
        spans = (*plan.spans, *self._decodes(plan.decodes))
        for span in spans:
            self._extend(span)
        tokens: list[SampledToken] = []
        failures: list[SequenceFailure] = []
        scores: list[PromptScores] = []
        for span in spans:
            row = self.rows[span.sequence]
            if row.failed or span.sequence in fail:
                row.failed = True
                failures.append(SequenceFailure(span.sequence, StepFailed("not finite")))
                continue
            scores += _scores(span, row)
            token_id = self._compute(span, row)
            if token_id is not None:
                tokens.append(SampledToken(span.sequence, token_id))
        sampled = SampledTokens.of(tokens)
        return StepOutcome(plan.step, sampled, tuple(failures), 0.001, tuple(scores))

    def _decodes(self, decodes: Decodes) -> Iterator[Span]:
        """As spans: each of them from where the worker knows it to stand."""
        if set(decodes.growing) - set(decodes.sequences):
            raise ContractBroken("a sequence grows that does not decode")
        pages = dict(zip(decodes.growing, decodes.new_blocks, strict=True))
        for number in decodes.sequences:
            row = self.rows.get(number)
            if row is None:
                raise ContractBroken(f"sequence {number} is unknown")
            start, new = len(row.tokens) - 1, (pages[number],) if number in pages else ()
            full = start == len(row.blocks) * self.info.block_tokens
            if bool(new) != full and not row.failed:
                raise ContractBroken(
                    f"sequence {number} at {start} grows before its blocks are full"
                )
            yield Span(number, start, 1, True, new)

    def _extend(self, span: Span) -> None:
        row = self.rows.get(span.sequence)
        if row is None:
            raise ContractBroken(f"sequence {span.sequence} is unknown")
        for page in span.new_blocks:
            if not 0 <= page < self.info.pages:
                raise ContractBroken(f"page {page} is outside the pool")
            for resident in self.slots.values():
                if resident.first_page <= page < resident.first_page + resident.pages:
                    raise ContractBroken(f"page {page} belongs to {resident.digest}")
        row.blocks.extend(span.new_blocks)

    def _compute(self, span: Span, row: _Row) -> int | None:
        stop = span.start + span.count
        if span.count < 1 or stop > len(row.tokens):
            raise ContractBroken(f"span {span} goes beyond {len(row.tokens)} known tokens")
        if stop > len(row.blocks) * self.info.block_tokens:
            raise ContractBroken(f"span {span} goes beyond {len(row.blocks)} blocks")
        if span.samples and stop != len(row.tokens):
            raise ContractBroken(f"span {span} samples before its last token")
        digest = ""
        if row.slot:
            resident = self.slots.get(row.slot)
            if resident is None or not resident.ready:
                raise ContractBroken(f"slot {row.slot} of sequence {span.sequence} is not resident")
            digest = resident.digest
            last = resident.first_page + resident.pages - 1
            if self.memory[resident.first_page, 0] != -1 or self.memory[last, 0] != -1:
                raise ContractBroken(f"the weights of {digest} were overwritten")
        written = {
            row.blocks[position // self.info.block_tokens] for position in range(span.start, stop)
        }
        for number, other in self.rows.items():
            if other is not row and written.intersection(other.blocks):
                raise ContractBroken(f"{span.sequence} writes into a block of {number}")
        mark = self._check_cache(row, span, digest)
        for position in range(span.start, stop):
            mark = fingerprint(mark, row.tokens[position])
            row.marks[position:] = [mark]
            page, offset = divmod(position, self.info.block_tokens)
            self.memory[row.blocks[page], offset] = mark
        if not span.samples:
            return None
        outputs = len(row.tokens) - row.output_start
        token_id = token_after(mark, row.sampling, outputs, self.info.vocabulary)
        row.tokens.append(token_id)
        return token_id

    def _check_cache(self, row: _Row, span: Span, digest: str) -> int:
        """The fingerprint before the span; every position before it must hold its own."""
        mark = row.marks[-1] if row.marks else crc32(digest.encode())
        for position in range(len(row.marks), span.start):
            mark = fingerprint(mark, row.tokens[position])
            row.marks.append(mark)
        for position in range(span.start):
            page, offset = divmod(position, self.info.block_tokens)
            if self.memory.get((row.blocks[page], offset)) != row.marks[position]:
                raise ContractBroken(f"position {position} of {span.sequence} was overwritten")
        return row.marks[span.start - 1] if span.start else crc32(digest.encode())
