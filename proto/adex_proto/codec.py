"""Dataclass <-> protobuf of the worker's wire, both ways; only codecs know both forms.

Encoding assumes valid dataclasses. Decoding trusts nobody: a message without its kind, with an
unknown enum value or with values its dataclass refuses raises ProtocolViolation.
"""

import math

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import AdexError, ProtocolViolation, error_of
from adex_proto.info_codec import ONE_RELEASE, decode_info, encode_info
from adex_proto.outcome import (
    AdapterEvent,
    Evicted,
    Fetched,
    FetchFailed,
    Heartbeat,
    Held,
    Hello,
    Moved,
    MoveFailed,
    PromptScores,
    SampledTokens,
    SequenceFailure,
    StepOutcome,
    TokenScore,
)
from adex_proto.plan import (
    AdapterCommand,
    Decodes,
    Evict,
    Fetch,
    NewSequence,
    PageIn,
    Span,
    Stage,
    StepPlan,
)
from adex_proto.sampling_codec import sampling_from_wire, sampling_to_wire
from adex_proto.v1 import worker_pb2 as pb

Down = StepPlan | AdapterCommand
Up = Hello | StepOutcome | AdapterEvent | Heartbeat

ToWorkerMessage = pb.ToWorker
FromWorkerMessage = pb.FromWorker
WorkerInfoMessage = pb.WorkerInfo
GetInfoRequestMessage = pb.GetInfoRequest
PrepareGrammarReplyMessage = pb.PrepareGrammarReply

WORKER_SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["Worker"].full_name

_TIER_TO_WIRE = {
    Tier.ABSENT: pb.TIER_ABSENT,
    Tier.DISK: pb.TIER_DISK,
    Tier.HOST: pb.TIER_HOST,
    Tier.DEVICE: pb.TIER_DEVICE,
}


# Down: plans and commands.


def encode_to_worker(down: Down) -> pb.ToWorker:
    match down:
        case StepPlan():
            return pb.ToWorker(plan=_plan_to_wire(down))
        case Fetch():
            return pb.ToWorker(
                fetch=pb.Fetch(key=_key_to_wire(down.key), credential=down.credential)
            )
        case Stage():
            return pb.ToWorker(stage=pb.Stage(digest=down.digest))
        case PageIn():
            page_in = pb.PageIn(
                digest=down.digest, slot=down.slot, first_page=down.first_page, pages=down.pages
            )
            return pb.ToWorker(page_in=page_in)
        case Evict():
            return pb.ToWorker(evict=pb.Evict(digest=down.digest, tier=_TIER_TO_WIRE[down.tier]))


def decode_to_worker(message: pb.ToWorker) -> Down:
    """Raises ProtocolViolation for a message without a kind this side knows."""
    match message.WhichOneof("kind"):
        case "plan":
            return _plan_from_wire(message.plan)
        case "fetch":
            return Fetch(_key_from_wire(message.fetch.key), message.fetch.credential)
        case "stage":
            return Stage(message.stage.digest)
        case "page_in":
            page_in = message.page_in
            return PageIn(page_in.digest, page_in.slot, page_in.first_page, page_in.pages)
        case "evict":
            return Evict(message.evict.digest, _tier_from_wire(message.evict.tier))
        case _:
            raise _unknown_kind("ToWorker")


def _plan_to_wire(plan: StepPlan) -> pb.StepPlan:
    return pb.StepPlan(
        step=plan.step,
        arrived=[_arrived_to_wire(new) for new in plan.arrived],
        spans=[pb.Span(**span._asdict()) for span in plan.spans],
        finished=plan.finished,
        decodes=pb.Decodes(
            sequences=plan.decodes.sequences,
            growing=plan.decodes.growing,
            new_blocks=plan.decodes.new_blocks,
        ),
    )


def _plan_from_wire(plan: pb.StepPlan) -> StepPlan:
    return StepPlan(
        step=plan.step,
        arrived=tuple(_arrived_from_wire(new) for new in plan.arrived),
        spans=tuple(
            Span(span.sequence, span.start, span.count, span.samples, tuple(span.new_blocks))
            for span in plan.spans
        ),
        finished=tuple(plan.finished),
        decodes=_decodes_from_wire(plan.decodes),
    )


def _decodes_from_wire(decodes: pb.Decodes) -> Decodes:
    growing, new_blocks = tuple(decodes.growing), tuple(decodes.new_blocks)
    if len(growing) != len(new_blocks):
        raise ProtocolViolation(
            f"{len(growing)} growing sequences come with {len(new_blocks)} new blocks"
        )
    return Decodes(tuple(decodes.sequences), growing, new_blocks)


def _arrived_to_wire(new: NewSequence) -> pb.NewSequence:
    return pb.NewSequence(
        sequence=new.sequence,
        token_ids=new.token_ids,
        output_start=new.output_start,
        slot=new.slot,
        sampling=sampling_to_wire(new.sampling),
    )


def _arrived_from_wire(new: pb.NewSequence) -> NewSequence:
    return NewSequence(
        sequence=new.sequence,
        token_ids=tuple(new.token_ids),
        output_start=new.output_start,
        slot=new.slot,
        sampling=sampling_from_wire(new.sampling),
    )


# Up: hello, outcomes, adapter events, heartbeats.


def encode_from_worker(up: Up) -> pb.FromWorker:
    match up:
        case Hello():
            held = [_held_to_wire(item) for item in up.held]
            return pb.FromWorker(hello=pb.Hello(info=encode_info(up.info), held=held))
        case StepOutcome():
            return pb.FromWorker(outcome=_outcome_to_wire(up))
        case Fetched():
            version = _version_to_wire(up.version)
            return pb.FromWorker(fetched=pb.Fetched(key=_key_to_wire(up.key), version=version))
        case FetchFailed():
            failed = pb.FetchFailed(key=_key_to_wire(up.key), error=_error_to_wire(up.error))
            return pb.FromWorker(fetch_failed=failed)
        case Moved():
            return pb.FromWorker(moved=pb.Moved(digest=up.digest, tier=_TIER_TO_WIRE[up.tier]))
        case MoveFailed():
            tier, error = _TIER_TO_WIRE[up.tier], _error_to_wire(up.error)
            return pb.FromWorker(
                move_failed=pb.MoveFailed(digest=up.digest, tier=tier, error=error)
            )
        case Evicted():
            return pb.FromWorker(evicted=pb.Evicted(digest=up.digest, tier=_TIER_TO_WIRE[up.tier]))
        case Heartbeat():
            return pb.FromWorker(heartbeat=pb.Heartbeat(step=up.step))


def decode_from_worker(message: pb.FromWorker) -> Up:
    """Raises ProtocolViolation for a message without a kind this side knows."""
    match message.WhichOneof("kind"):
        case "hello":
            held = tuple(_held_from_wire(item) for item in message.hello.held)
            return Hello(decode_info(message.hello.info), held)
        case "outcome":
            return _outcome_from_wire(message.outcome)
        case "fetched":
            fetched = message.fetched
            return Fetched(_key_from_wire(fetched.key), _version_from_wire(fetched.version))
        case "fetch_failed":
            failed = message.fetch_failed
            return FetchFailed(_key_from_wire(failed.key), _error_from_wire(failed.error))
        case "moved":
            return Moved(message.moved.digest, _tier_from_wire(message.moved.tier))
        case "move_failed":
            moving = message.move_failed
            error = _error_from_wire(moving.error)
            return MoveFailed(moving.digest, _tier_from_wire(moving.tier), error)
        case "evicted":
            return Evicted(message.evicted.digest, _tier_from_wire(message.evicted.tier))
        case "heartbeat":
            return Heartbeat(message.heartbeat.step)
        case _:
            raise _unknown_kind("FromWorker")


def encode_grammar_reply(error: AdexError | None) -> pb.PrepareGrammarReply:
    return pb.PrepareGrammarReply(error=None if error is None else _error_to_wire(error))


def decode_grammar_reply(reply: pb.PrepareGrammarReply) -> AdexError | None:
    return _error_from_wire(reply.error) if reply.HasField("error") else None


def _outcome_to_wire(outcome: StepOutcome) -> pb.StepOutcome:
    return pb.StepOutcome(
        step=outcome.step,
        sampled=pb.SampledTokens(
            sequences=outcome.tokens.sequences,
            token_ids=outcome.tokens.token_ids,
            scores={
                number: _score_to_wire(score) for number, score in outcome.tokens.scores.items()
            },
        ),
        failures=[
            pb.SequenceFailure(sequence=item.sequence, error=_error_to_wire(item.error))
            for item in outcome.failures
        ],
        seconds=outcome.seconds,
        scores=[_scores_to_wire(scores) for scores in outcome.scores],
    )


def _outcome_from_wire(outcome: pb.StepOutcome) -> StepOutcome:
    if not 0 <= outcome.seconds < math.inf:
        raise ProtocolViolation(f"step {outcome.step} took {outcome.seconds} s, which is no time")
    return StepOutcome(
        step=outcome.step,
        tokens=_sampled_from_wire(outcome.sampled),
        failures=tuple(
            SequenceFailure(item.sequence, _error_from_wire(item.error))
            for item in outcome.failures
        ),
        seconds=outcome.seconds,
        scores=tuple(_scores_from_wire(scores) for scores in outcome.scores),
    )


def _scores_to_wire(scores: PromptScores) -> pb.PromptScores:
    return pb.PromptScores(
        sequence=scores.sequence,
        start=scores.start,
        tokens=[_score_to_wire(token) for token in scores.tokens],
    )


def _scores_from_wire(scores: pb.PromptScores) -> PromptScores:
    return PromptScores(
        sequence=scores.sequence,
        start=scores.start,
        tokens=tuple(_score_from_wire(token) for token in scores.tokens),
    )


def _sampled_from_wire(sampled: pb.SampledTokens) -> SampledTokens:
    sequences, token_ids = tuple(sampled.sequences), tuple(sampled.token_ids)
    if len(sequences) != len(token_ids):
        raise ProtocolViolation(f"{len(sequences)} sequences gained {len(token_ids)} tokens")
    scores = {number: _score_from_wire(score) for number, score in sampled.scores.items()}
    return SampledTokens(sequences, token_ids, scores)


def _score_to_wire(score: TokenScore) -> pb.TokenScore:
    alternatives = [pb.Alternative(token_id=t, logprob=p) for t, p in score.alternatives]
    return pb.TokenScore(logprob=score.logprob, alternatives=alternatives)


def _score_from_wire(score: pb.TokenScore) -> TokenScore:
    alternatives = tuple([(item.token_id, item.logprob) for item in score.alternatives])
    return TokenScore(score.logprob, alternatives)


# What both directions share.


def _key_to_wire(key: AdapterKey) -> pb.AdapterKey:
    return pb.AdapterKey(tenant=key.tenant, source=key.source, name=key.name, revision=key.revision)


def _key_from_wire(key: pb.AdapterKey) -> AdapterKey:
    return AdapterKey(key.tenant, key.source, key.name, key.revision)


def _version_to_wire(version: AdapterVersion) -> pb.AdapterVersion:
    return pb.AdapterVersion(
        digest=version.digest,
        bundle_bytes=version.bundle_bytes,
        rank_max=version.rank_max,
        modules=version.modules,
    )


def _version_from_wire(version: pb.AdapterVersion) -> AdapterVersion:
    return AdapterVersion(version.digest, version.bundle_bytes, version.rank_max, version.modules)


def _held_to_wire(held: Held) -> pb.Held:
    return pb.Held(version=_version_to_wire(held.version), tier=_TIER_TO_WIRE[held.tier])


def _held_from_wire(held: pb.Held) -> Held:
    return Held(_version_from_wire(held.version), _tier_from_wire(held.tier))


def _tier_from_wire(tier: int) -> Tier:
    try:
        return Tier(tier)
    except ValueError as error:
        raise ProtocolViolation(f"tier {tier} on the wire is none this side knows") from error


def _error_to_wire(error: AdexError) -> pb.Error:
    return pb.Error(
        code=error.code,
        message=error.message,
        field=error.field,
        remedy=error.remedy,
        retry_after_s=error.retry_after_s,
    )


def _error_from_wire(error: pb.Error) -> AdexError:
    return error_of(
        error.code,
        error.message,
        field=error.field if error.HasField("field") else None,
        remedy=error.remedy if error.HasField("remedy") else None,
        retry_after_s=error.retry_after_s if error.HasField("retry_after_s") else None,
    )


def _unknown_kind(message: str) -> ProtocolViolation:
    return ProtocolViolation(
        f"a {message} message carries no kind this side knows", remedy=ONE_RELEASE
    )
