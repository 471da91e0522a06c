"""Settings of temporal adapters: small networks after some blocks of a frozen encoder, which learn in its place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vmae2_ds.config.strict import Count, Size, StrictModel

Number = Annotated[int, Field(ge=0, lt=2**20)]


class AdapterConfig(StrictModel):
    """Temporal adapters (AdaTAD, arXiv 2311.17241; docs/PAPER.md#temporal-adapters)."""

    blocks: Literal["none", "all", "last_half"] | tuple[Number, ...] = "none"
    """Blocks of the encoder with an adapter after them: none, all, last_half, or their numbers, counted from 0. What lies
    before the first of them runs without a graph, so that nothing of it is kept for the backward pass."""
    ratio: float = Field(0.25, gt=0, le=1)
    """Width of an adapter divided by that of the encoder."""
    clips_at_once: Count = 8
    """Clips that go through a block at once. Fewer take less memory while a block is computed and computed again. What is
    learnt does not depend on it, but for which branches stochastic depth drops: they are drawn chunk by chunk."""
    lr_scale: Size = 1.0
    """Learning rate of the adapters divided by that of the head."""

    def numbers(self, depth: int) -> tuple[int, ...]:
        """The numbers of the blocks with an adapter, in order, of an encoder of `depth` blocks.

        Raises ValueError for a block that it does not have, or that is named twice.
        """
        if isinstance(self.blocks, str):
            return tuple({"none": range(0), "all": range(depth), "last_half": range(depth // 2, depth)}[self.blocks])
        if beyond := [number for number in self.blocks if number >= depth]:
            raise ValueError(f"adapters.blocks names block {beyond[0]}, and the encoder has blocks 0 to {depth - 1}")
        if len(set(self.blocks)) < len(self.blocks):
            raise ValueError(f"adapters.blocks names a block twice: {' '.join(map(str, self.blocks))}")
        return tuple(sorted(self.blocks))

    def hidden(self, width: int) -> int:
        """Width of an adapter beside an encoder of this width, rounded down as published, at least 1."""
        return max(1, int(width * self.ratio))
