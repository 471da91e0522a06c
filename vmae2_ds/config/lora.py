"""Settings of low-rank adapters (LoRA): two thin matrices beside a frozen one, which learn in its place."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from vmae2_ds.config.strict import Size, StrictModel

LoraTarget = Literal["q", "k", "v", "proj", "mlp"]
"""Layers of a block that an adapter can stand beside."""
LETTERS: tuple[LoraTarget, ...] = ("q", "k", "v")
"""Those that one matrix holds, in its order: each has an adapter of its own."""
TARGETS: tuple[LoraTarget, ...] = (*LETTERS, "proj", "mlp")


class LoraConfig(StrictModel):
    """Low-rank adapters (arXiv 2106.09685): W x becomes W x + alpha / rank * B A x, where W is frozen, A has `rank` rows and B,
    which starts as zeros, `rank` columns."""

    rank: int = Field(0, ge=0, le=2**20)
    """Rank of the adapters of a fine-tuned encoder, whose own weights then stay as they are, while the norm behind the pooling
    and the head learn too. 0: there are none, and the encoder itself learns."""
    alpha: Size | None = None
    """What an adapter adds is multiplied by alpha / rank; default: the rank, so by 1."""
    targets: tuple[LoraTarget, ...] = TARGETS
    """Layers of every block that get adapters: q, k and v (attention's queries, keys and values), proj (its projection), mlp
    (both layers of the MLP)."""

    @field_validator("targets")
    @classmethod
    def _in_order(cls, targets: tuple[LoraTarget, ...]) -> tuple[LoraTarget, ...]:
        """The order in which they are named makes no other model."""
        return tuple(sorted(targets, key=TARGETS.index))

    @model_validator(mode="after")
    def _fits_together(self) -> LoraConfig:
        if not self.rank and self.alpha is not None:
            raise ValueError(
                f"alpha={self.alpha:g} is for adapters, and rank=0 makes none; set a rank, or leave alpha out"
            )
        if not self.targets or len(set(self.targets)) < len(self.targets):
            what = f"names one twice: {' '.join(self.targets)}" if self.targets else "is empty"
            raise ValueError(f"targets {what}; choose from {' '.join(TARGETS)}, or set rank=0 for no adapters")
        return self

    @property
    def scale(self) -> float:
        """What is added is multiplied by this. Only where there are adapters."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def rank_of(self, target: LoraTarget) -> int:
        """Rank of the adapter beside this layer; 0: it has none."""
        return self.rank if target in self.targets else 0
