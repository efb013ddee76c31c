"""Weights, tensor by tensor, from a checkpoint straight into the decoder's fused tensors.

Every tensor of the checkpoint is either placed or known to follow from the config, and every place
is filled. At no time is more than one checkpoint tensor in memory beside the model.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adex_kernels.native.panels import packable
from adex_proto.errors import ValidationError
from adex_worker.model.decoder import Decoder
from adex_worker.model.parameters import Place, empty_weights, pack, placements, plain
from adex_worker.model.source import ModelSource
from adex_worker.model.spec import ModelSpec

# Called with the tensors placed so far and in all.
Progress = Callable[[int, int], None]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Tensors of old checkpoints that hold nothing but what the config says.
_DERIVED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")

_NAMES_SHOWN = 5


def load_model(
    model_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    progress: Progress | None = None,
    revision: str | None = None,
    int8: bool = False,
) -> Decoder:
    """Load a model from a folder or, where there is no such folder, from the Hugging Face hub.

    `dtype` None means the type that config.json names, or float32 where it names none; `progress`
    is called with tensors done and in all. With `int8` the layers' linears are rounded to eight
    bits, one scale per row, but for those that would lose too much.

    Raises ValidationError for a model that cannot be served, naming the reason, and
    SourceUnavailable when the hub does not answer.
    """
    source = ModelSource(str(model_id), revision)
    spec = source.spec()
    chosen = dtype if dtype is not None else spec.dtype or "float32"
    if isinstance(chosen, str):
        if chosen not in DTYPES:
            remedy = f"Choose one of {', '.join(DTYPES)}"
            raise ValidationError(f"no such dtype: {chosen!r}", field="dtype", remedy=remedy)
        chosen = DTYPES[chosen]
    weights = empty_weights(spec, torch.device(device), chosen)
    if int8 and not packable(plain(weights.layers[0].qkv)):
        raise ValidationError(
            "weights of eight bits are served by the compiled CPU kernels only",
            field="weights",
            remedy="Leave --weights out, or serve on a CPU that has a C compiler",
        )
    _fill(spec, placements(spec, weights), source.checkpoint_files(), progress)
    pack(weights, int8)
    return Decoder(spec, weights)


def _fill(
    spec: ModelSpec, places: dict[str, Place], files: list[Path], progress: Progress | None
) -> None:
    unfilled, unknown, total = set(places), list[str](), len(places)
    for file in files:
        try:
            with safe_open(file, framework="pt", device="cpu") as checkpoint:
                for key in checkpoint.keys():  # noqa: SIM118 -- not a mapping
                    name = key.removeprefix("model.")
                    if name in places:
                        _put(places[name], key, checkpoint.get_tensor(key))
                        unfilled.discard(name)
                        if progress is not None:
                            progress(total - len(unfilled), total)
                    elif not _follows_from_config(spec, name):
                        unknown.append(key)
        except (SafetensorError, OSError) as error:
            raise _refused(f"{file.name} cannot be read: {error}") from error
    if unknown:
        raise _refused(f"it has tensors without a place: {_some(unknown)}")
    if unfilled:
        raise _refused(f"it lacks {_some(sorted(unfilled))}")


def _put(place: Place, key: str, tensor: Tensor) -> None:
    if tuple(tensor.shape) != place.shape:
        reason = f"{key} is {tuple(tensor.shape)} where config.json asks for {place.shape}"
        raise _refused(reason)
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise _refused(f"{key} is stored as {tensor.dtype}, a quantized form")
    place.put(tensor)


def _follows_from_config(spec: ModelSpec, name: str) -> bool:
    tied_copy = spec.tied_embeddings and name == "lm_head.weight"
    return tied_copy or _DERIVED.search(name) is not None


def _some(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _refused(reason: str) -> ValidationError:
    return ValidationError(
        f"the model's checkpoint does not fit: {reason}",
        field="model_id",
        remedy="Serve an unquantized checkpoint that matches its config.json",
    )
