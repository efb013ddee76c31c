"""From tensor names, shapes and config to the low-rank terms of an adapter, or a named refusal.

Every tensor of the file ends in exactly one term (or, where one matrix was trained for fused
linears, in one term per part), every A has its B, and every shape fits the base model: what is left
for the caller is reading numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adex_kernels.layout import LinearShape, ModelShape, Module
from adex_proto.errors import AdapterMalformed, AdapterMismatch, RankTooLarge
from adex_worker.adapters.core.config import CONFIG_FILE, LoraConfig
from adex_worker.adapters.core.header import WEIGHTS_FILE, TensorEntry, check_matrix
from adex_worker.adapters.core.keys import TARGETS, TensorKey, read_key


@dataclass(frozen=True, slots=True)
class LowRankTerm:
    """y += scale * B[b_start:b_stop] (A x) at one (layer, module).

    `a` is [rank, in], `b` [out, rank]. Rows [b_start, b_stop) of `b` are this module's: all of
    them unless the linear is fused.
    """

    layer: int
    module: Module
    rank: int
    scale: float
    a: TensorEntry
    b: TensorEntry
    b_start: int
    b_stop: int


@dataclass(slots=True)
class _Pair:
    """The two matrices of one trained linear as they are found."""

    key: TensorKey
    a: TensorEntry | None = None
    b: TensorEntry | None = None


def low_rank_terms(
    entries: Sequence[TensorEntry], config: LoraConfig, shape: ModelShape, rank_max: int
) -> tuple[LowRankTerm, ...]:
    """The terms of the adapter, ordered by layer and module.

    Raises AdapterMalformed, AdapterUnsupported, AdapterMismatch or RankTooLarge naming the tensor.
    """
    terms: dict[tuple[int, Module], LowRankTerm] = {}
    for pair in _pairs(entries):
        for term in _terms_of(pair, config, shape, rank_max):
            twin = terms.setdefault((term.layer, term.module), term)
            if twin is not term:
                raise AdapterMalformed(
                    f"tensors `{twin.a.name}` and `{term.a.name}` in `{WEIGHTS_FILE}` both change"
                    f" {term.module.name} of layer {term.layer}",
                    field=term.a.name,
                    remedy="Save one adapter, in one naming, per file",
                )
    if not terms:
        raise AdapterMalformed(
            f"`{WEIGHTS_FILE}` changes no module of the base model: it holds no LoRA tensors",
            field=WEIGHTS_FILE,
            remedy="Save the adapter again with PEFT after training",
        )
    return tuple(terms[place] for place in sorted(terms))


def _pairs(entries: Sequence[TensorEntry]) -> list[_Pair]:
    pairs: dict[tuple[str, int], _Pair] = {}
    for entry in entries:
        key = read_key(entry.name, WEIGHTS_FILE)
        check_matrix(entry)
        pair = pairs.setdefault((key.target, key.layer), _Pair(key))
        twin = pair.a if key.side == "A" else pair.b
        if twin is not None:
            raise AdapterMalformed(
                f"tensors `{twin.name}` and `{entry.name}` in `{WEIGHTS_FILE}`"
                " mean the same matrix",
                field=entry.name,
                remedy="Save one adapter, in one naming, per file",
            )
        if key.side == "A":
            pair.a = entry
        else:
            pair.b = entry
    return list(pairs.values())


def _terms_of(
    pair: _Pair, config: LoraConfig, shape: ModelShape, rank_max: int
) -> Iterator[LowRankTerm]:
    key, a, b = pair.key, pair.a, pair.b
    if a is None or b is None:
        present = a or b
        assert present is not None, f"an empty pair for {key.path}"
        missing = "lora_B" if b is None else "lora_A"
        raise AdapterMalformed(
            f"tensor `{present.name}` in `{WEIGHTS_FILE}` has no matching {missing}",
            field=present.name,
            remedy="Save the adapter again with PEFT",
        )
    if key.layer >= shape.layers:
        raise AdapterMismatch(
            f"tensor `{a.name}` in `{WEIGHTS_FILE}` is for layer {key.layer},"
            f" the base model has {shape.layers} layers",
            field=a.name,
            remedy="Use an adapter made for this base model",
        )
    module_scale = config.module_scale(key.path)
    _check_rank(key, a, b, module_scale.rank, rank_max)
    parts = [(module, shape.linear(module)) for module in TARGETS[key.target]]
    _check_shapes(a, b, module_scale.rank, parts)
    start = 0
    for module, linear in parts:
        stop = start + linear.out_features
        yield LowRankTerm(
            key.layer, module, module_scale.rank, module_scale.scale, a, b, start, stop
        )
        start = stop


def _check_rank(key: TensorKey, a: TensorEntry, b: TensorEntry, rank: int, rank_max: int) -> None:
    largest = max(rank, a.shape[0])
    if largest > rank_max:
        raise RankTooLarge(
            f"`{a.name}` has rank {largest} by `{CONFIG_FILE}` and `{WEIGHTS_FILE}`,"
            f" the server's limit is {rank_max}",
            field="r",
            remedy=f"Train with a rank of at most {rank_max}, or raise --rank-max on the worker",
        )
    if a.shape[0] != rank or b.shape[1] != rank:
        raise AdapterMalformed(
            f"`{a.name}` has shape {list(a.shape)} and `{b.name}` {list(b.shape)},"
            f" but `{CONFIG_FILE}` gives `{key.path}` rank {rank}",
            field=a.name,
            remedy="Correct r or rank_pattern, whose first matching key counts (saving sorts them):"
            " the scale depends on it",
        )


def _check_shapes(
    a: TensorEntry, b: TensorEntry, rank: int, parts: Sequence[tuple[Module, LinearShape]]
) -> None:
    in_features = parts[0][1].in_features
    out_features = sum(linear.out_features for _, linear in parts)
    for tensor, expected in ((a, (rank, in_features)), (b, (out_features, rank))):
        if tensor.shape != expected:
            raise AdapterMismatch(
                f"tensor `{tensor.name}` in `{WEIGHTS_FILE}` has shape {list(tensor.shape)},"
                f" the base model needs {list(expected)}",
                field=tensor.name,
                remedy="Use an adapter made for this base model",
            )
