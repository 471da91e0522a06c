"""A frozen encoder with temporal adapters (model/adapters.py) as closed forms: work and activations, no torch.

What is kept for the backward pass and what is computed again is the module's own layout: a block on some clips at a time, the
part of an adapter that reaches across clips on all of them. tests/cost/test_adapters.py compares both with torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmae2_ds.config.model import TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.activations import STATISTICS, WIDTHS
from vmae2_ds.cost.flops import StepMacs, block_macs, block_parts
from vmae2_ds.cost.traffic import AttentionKind, ComputePrecision

ADAPTER_STEPS = 3
"""Steps that an adapter's convolution over time sees (model/adapters.py)."""

# C clips of N tokens go through together, D width, M hidden width of the MLP, H width of an adapter.


@dataclass(frozen=True)
class AdaptedShape:
    """The shape of a frozen encoder and its adapters."""

    tower: TowerConfig
    clip: ClipGeometry
    """A clip as cubes; all of them are seen."""
    numbers: tuple[int, ...]
    """Blocks with an adapter after them, in order; at least one."""
    hidden: int
    """H, the width of an adapter."""
    clips_at_once: int
    """Clips that go through a block at once."""

    @property
    def learning_blocks(self) -> range:
        """Blocks that gradients go through: those behind the first adapter."""
        return range(self.numbers[0] + 1, self.tower.depth)


@dataclass(frozen=True)
class AdaptedActivations:
    """Bytes of all clips of a micro step, without weights."""

    pixels: int
    """The uint8 windows."""
    inputs: int
    """The input of every block behind the first adapter, and the output of the block before it."""
    projections: int
    """What each adapter's first layer makes, in front of its GELU."""
    transient: int
    """At the worst moment: what is computed again, and gradients, less what has been given back by then."""

    @property
    def held(self) -> int:
        """Alive at the end of the encoder's forward pass."""
        return self.pixels + self.inputs + self.projections

    @property
    def peak(self) -> int:
        """Alive at the worst moment of the encoder's step."""
        return self.held + self.transient


def adapter_macs(width: int, hidden: int, tokens: int) -> int:
    """Forward MACs of one adapter."""
    return tokens * (2 * width * hidden + hidden * hidden + ADAPTER_STEPS * hidden)


def adapted_macs(encoder: AdaptedShape) -> StepMacs:
    """Work of one clip: forward, backward, and again where checkpointing computes twice.

    Frozen weights need no gradient: a linear layer's backward pass is one product, attention's are four for its two. Blocks up
    to the first adapter have none. Behind it a block is computed again as far as it is asked for: to its adapter, or without
    one to the MLP's last product; an adapter is but for its first projection, which is kept.
    """
    tower, tokens, hidden = encoder.tower, encoder.clip.num_cubes, encoder.hidden
    block, attention = block_macs(tower, tokens), block_parts(tower, tokens)["attention"]
    adapter, down = adapter_macs(tower.width, hidden, tokens), tokens * tower.width * hidden
    embed = tokens * encoder.clip.cube_values * tower.width
    behind, count = len(encoder.learning_blocks), len(encoder.numbers)
    last_product = (behind - (count - 1)) * tokens * tower.mlp * tower.width
    return StepMacs(
        forward=embed + tower.depth * block + count * adapter,
        backward=behind * (block + attention) + 2 * count * adapter - down,  # nobody asks for what is before the first
        recomputed=behind * block - last_product + count * (adapter - down),
    )


def adapted_activations(
    encoder: AdaptedShape, clips: int, *, attention: AttentionKind, precision: ComputePrecision
) -> AdaptedActivations:
    """Activation memory of `clips` clips that go through the encoder together, forward and backward."""
    sizes = _Sizes(encoder, clips, attention, WIDTHS[precision].linear, WIDTHS[precision].score_backward)
    clip = encoder.clip
    return AdaptedActivations(
        pixels=clips * clip.num_frames * clip.height * clip.width * 3,
        inputs=(1 + len(encoder.learning_blocks)) * sizes.stream,
        projections=len(encoder.numbers) * sizes.projection,
        transient=max(sizes.moments()),
    )


@dataclass(frozen=True)
class _Sizes:
    """The tensors of a micro step in bytes, and how many are there at once."""

    encoder: AdaptedShape
    clips: int
    attention: AttentionKind
    value: int
    """Bytes of one value of an activation."""
    score: int
    """Bytes held for a score in the softmax's backward pass."""

    @property
    def stream(self) -> int:
        """(C, N, D)."""
        return self.value * self.clips * self.encoder.clip.num_cubes * self.encoder.tower.width

    @property
    def projection(self) -> int:
        """(C, N, H)."""
        return self.value * self.clips * self.encoder.clip.num_cubes * self.encoder.hidden

    def moments(self) -> Iterator[int]:
        """Candidates for the peak, beside all that is held when the forward pass ends, from the last block to the first."""
        released = 0
        for number in reversed(range(self.encoder.numbers[0], self.encoder.tower.depth)):
            adapted = number in self.encoder.numbers
            if adapted:
                # Forward: what the block made, in chunks and in one; of the adapter its first layer's chunks, h, up's output
                # and that times gamma. Backward: the gradient, h, what both convolutions make of it, and up's output, beside
                # the product's two gradients.
                yield 4 * self.stream + 2 * self.projection - released
                yield 4 * self.stream + 3 * self.projection - released
            if number > self.encoder.numbers[0]:
                yield from (moment - released for moment in self._of_chunks(adapted))
            released += self.stream + adapted * self.projection
        # before the first adapter, with no graph: chunks and what they are joined to, or the MLP of a chunk
        kept = self.stream + self.projection  # of the first adapter, not there yet
        yield 2 * self.stream - kept
        first = self._chunks()[0]
        yield self.stream - first.stream + 2 * (first.stream + first.hidden) - kept

    def _of_chunks(self, adapted: bool) -> Iterator[int]:
        """A block's backward pass, the last chunk first: computed again, then its gradients.

        The gradients of the whole output and of the whole projection, which has been given back, are there until the last chunk
        adds up its parts of both; those of the inputs are collected.
        """
        chunks, done = self._chunks(), 0
        for number in reversed(range(len(chunks))):
            chunk = chunks[number]
            whole = -self.projection if adapted and number == 0 else self.stream
            # the MLP: GELU's own gradient and that of what it makes, and of the block's output in the place of the output
            moment = chunk.computed_again + 2 * chunk.hidden - (0 if adapted else chunk.stream)
            if self.attention == "math":
                # softmax: q, k and the gradients of v and of the residual stream; what the MLP kept is gone
                moment = max(moment, 4 * chunk.stream + self.score * chunk.scores)
            yield whole + done + moment
            done += chunk.stream

    def _chunks(self) -> list[_Chunk]:
        whole, rest = divmod(self.clips, self.encoder.clips_at_once)
        return [
            _Chunk(self.encoder, clips, self.attention, self.value)
            for clips in [self.encoder.clips_at_once] * whole + [rest] * (rest > 0)
        ]


@dataclass(frozen=True)
class _Chunk:
    """Some clips in one block, in bytes."""

    encoder: AdaptedShape
    clips: int
    attention: AttentionKind
    value: int

    @property
    def _tokens(self) -> int:
        return self.clips * self.encoder.clip.num_cubes

    @property
    def stream(self) -> int:
        return self.value * self._tokens * self.encoder.tower.width

    @property
    def hidden(self) -> int:
        return self.value * self._tokens * self.encoder.tower.mlp

    @property
    def scores(self) -> int:
        """Number of scores of all heads."""
        return self.clips * self.encoder.tower.heads * self.encoder.clip.num_cubes**2

    @property
    def computed_again(self) -> int:
        """What a frozen block keeps beside its input: no linear layer keeps its own, which only a weight's gradient needs.

        The second norm's input, q, k and v, GELU's input, the block's output where an adapter's first layer reads it; a fused
        kernel its output and a float32 log-sum-exp of each row of scores, math the scores.
        """
        kept = 5 * self.stream + self.hidden + 2 * STATISTICS * self._tokens
        if self.attention == "math":
            return kept + self.value * self.scores
        return kept + self.stream + 4 * self._tokens * self.encoder.tower.heads
