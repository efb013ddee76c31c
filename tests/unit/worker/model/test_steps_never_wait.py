"""A step on tensors without contents: anything that reads a value back from the device fails."""

import pytest
import torch

from adex_kernels.batch import AttentionBatch, GroupWeights, LoraBatch
from adex_worker.model.decoder import Decoder
from adex_worker.model.parameters import empty_weights
from adex_worker.model.spec import ModelSpec, model_spec

META = torch.device("meta")

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "vocab_size": 50,
    "head_dim": 16,
}

CONFIGS = {
    "llama-dynamic": {"model_type": "llama", "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "mistral-window": {"model_type": "mistral", "sliding_window": 9},
    "qwen3": {"model_type": "qwen3"},
    "gemma2": {"model_type": "gemma2", "sliding_window": 9},
    "phi3-longrope": {
        "model_type": "phi3",
        "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    },
}


class Slots:
    """One adapter of rank 4 in every linear."""

    def __init__(self, spec: ModelSpec) -> None:
        self._shape = spec.shape

    def record(self, slot: int) -> None:
        """Torch's path is what is looked at here."""

    def group(self, slot: int, layer: int, group: int) -> GroupWeights:
        features = self._shape.linears[(0, 3, 4, 6)[group]].in_features
        outs = [self._shape.linears[m].out_features for m in ((0, 1, 2), (3,), (4, 5), (6,))[group]]
        slices, column = [], 0
        for index, out in enumerate(outs):
            b = torch.empty(4, out, device=META)
            slices.append((index * 4, index * 4 + 4, column, column + out, b))
            column += out
        return GroupWeights(torch.empty(4 * len(outs), features, device=META), tuple(slices))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_mixed_step_with_adapters_reads_nothing_back_from_the_device(
    config: dict[str, object],
) -> None:
    spec = model_spec(SMALL | config)
    decoder = Decoder(spec, empty_weights(spec, META, torch.float32))
    batch = AttentionBatch.build(
        [0, 1, 6, 7, 77], [20, 5, 33, 70], [range(5), range(5, 7), range(9), range(18)], 4, META
    )
    rows = torch.arange(77, device=META)
    logits = decoder.forward(
        rows,
        rows,
        torch.empty(decoder.kv_shape(20, 4), device=META),
        batch,
        LoraBatch([(0, 1, 1), (1, 6, 2)], Slots(spec)),
        torch.tensor([0, 5, 6, 76]).to(META),
    )
    assert logits.shape == (4, 50)
