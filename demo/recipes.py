"""How each demonstration adapter is made: its rank, where it sits, and how long it trains.

The recipes differ on purpose. Together they show every usual shape of a LoRA: small and large
ranks, attention only, MLP only, all linear layers, some layers only, ranks that differ between
modules, rank-stabilised scaling, and three storage types.
"""

from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig

BASE_NAME = "adex-demo"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL_LINEAR = ATTENTION + MLP


@dataclass(frozen=True, slots=True)
class Recipe:
    """One adapter. `steps` are of `learn.ADAPTER_BATCH` examples; `dtype` is how it is stored."""

    task: str
    rank: int
    alpha: int
    targets: tuple[str, ...]
    steps: int = 300
    dtype: str = "bfloat16"
    extra: dict[str, Any] = field(default_factory=dict)

    def lora_config(self) -> LoraConfig:
        """The recipe in PEFT's words."""
        return LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=BASE_NAME,
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.targets),
            lora_dropout=0.0,
            **self.extra,
        )

    def where(self) -> str:
        """The targets and whatever else is special, for people."""
        named = {ATTENTION: "attention", MLP: "MLP", ALL_LINEAR: "all linear"}
        text = named.get(self.targets, ", ".join(self.targets))
        return "; ".join([text, *(f"{key}={value}" for key, value in self.extra.items())])


RECIPES: dict[str, Recipe] = {
    recipe.task: recipe
    for recipe in (
        Recipe("reverse-words", 16, 32, ALL_LINEAR),
        Recipe("upper-case", 4, 8, ("q_proj", "v_proj"), dtype="float32"),
        Recipe("snake-case", 2, 4, ATTENTION, dtype="float32"),
        Recipe("sort-words", 24, 48, ALL_LINEAR),
        Recipe("number-words", 8, 16, ATTENTION),
        Recipe("dates-to-iso", 8, 16, ALL_LINEAR, extra={"use_rslora": True}),
        Recipe("fields-to-json", 12, 24, ("q_proj", "v_proj"), dtype="float16"),
        Recipe(
            "sql",
            8,
            16,
            ALL_LINEAR,
            extra={
                "rank_pattern": {"down_proj": 16, "q_proj": 4},
                "alpha_pattern": {"down_proj": 32, "q_proj": 8},
            },
        ),
        Recipe("sentiment", 6, 12, ("v_proj", "o_proj"), dtype="float16"),
        Recipe("support-route", 4, 8, MLP),
        Recipe("to-spanish", 32, 64, ATTENTION),
        Recipe("redact", 10, 20, ALL_LINEAR, extra={"layers_to_transform": [0, 1, 2]}),
    )
}
