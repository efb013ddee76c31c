"""How a sequence is sampled, to the wire and back."""

from adex_proto.errors import ProtocolViolation, ValidationError
from adex_proto.grammar import Grammar, GrammarKind
from adex_proto.sampling import SamplingParams
from adex_proto.v1 import worker_pb2 as pb

GrammarMessage = pb.Grammar

_KIND_TO_WIRE = {
    GrammarKind.JSON_SCHEMA: pb.GRAMMAR_KIND_JSON_SCHEMA,
    GrammarKind.REGEX: pb.GRAMMAR_KIND_REGEX,
    GrammarKind.CHOICE: pb.GRAMMAR_KIND_CHOICE,
    GrammarKind.LARK: pb.GRAMMAR_KIND_LARK,
}
_KIND_FROM_WIRE = {number: kind for kind, number in _KIND_TO_WIRE.items()}


def sampling_to_wire(sampling: SamplingParams) -> pb.SamplingParams:
    return pb.SamplingParams(
        max_new_tokens=sampling.max_new_tokens,
        min_new_tokens=sampling.min_new_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        typical_p=sampling.typical_p,
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        logit_bias=[pb.LogitBias(token_id=t, bias=bias) for t, bias in sampling.logit_bias],
        seed=sampling.seed,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        grammar=None if sampling.grammar is None else grammar_to_wire(sampling.grammar),
    )


def sampling_from_wire(sampling: pb.SamplingParams) -> SamplingParams:
    try:
        return SamplingParams(
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.min_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            typical_p=sampling.typical_p,
            repetition_penalty=sampling.repetition_penalty,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            logit_bias=tuple((item.token_id, item.bias) for item in sampling.logit_bias),
            seed=sampling.seed,
            stop_token_ids=tuple(sampling.stop_token_ids),
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
            prompt_logprobs=(
                sampling.prompt_logprobs if sampling.HasField("prompt_logprobs") else None
            ),
            grammar=grammar_from_wire(sampling.grammar) if sampling.HasField("grammar") else None,
        )
    except ValidationError as error:
        # The front has checked what callers send, so a bad value here is not the caller's fault.
        raise ProtocolViolation(f"sampling on the wire: {error.message}") from error


def grammar_to_wire(grammar: Grammar) -> pb.Grammar:
    return pb.Grammar(kind=_KIND_TO_WIRE[grammar.kind], text=grammar.text)


def grammar_from_wire(grammar: pb.Grammar) -> Grammar:
    """Raises ProtocolViolation for a kind this side does not know and a text of no legal size."""
    kind = _KIND_FROM_WIRE.get(grammar.kind)
    if kind is None:
        raise ProtocolViolation(f"grammar kind {grammar.kind} on the wire is none this side knows")
    try:
        return Grammar(kind, grammar.text)
    except ValidationError as error:
        raise ProtocolViolation(f"a grammar on the wire: {error.message}") from error
