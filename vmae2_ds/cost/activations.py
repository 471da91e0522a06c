"""Activation memory of one training step as closed forms: bytes per clip, plain integers, no torch.

What autograd saves in our own modules (model/, objectives.py), operation by operation, and what else is alive at the
worst moment of the backward pass. tests/cost/test_activations.py compares both with fake tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vmae2_ds.config.model import CheckpointingName, ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.traffic import AttentionKind, ComputePrecision

# n tokens, d width, m hidden width, h heads of a block; V visible cubes, M decoded cubes, P values in a cube.


class TowerWidths(NamedTuple):
    """Bytes of one value, by what it is saved for."""

    linear: int
    """Input of a matrix product or of GELU."""
    norm: int
    """Input of a layer norm."""
    encoder_stream: int
    """Residual stream between encoder blocks."""
    decoder_stream: int
    score: int
    """One score of math attention: the softmax's output, saved by the softmax and by the product with v."""
    score_backward: int
    """Bytes held during the softmax's backward pass: its output, the gradient of that, and the gradient it makes."""


WIDTHS: dict[ComputePrecision, TowerWidths] = {
    "bf16": TowerWidths(2, 2, 2, 2, 2, 3 * 2),
    "fp32": TowerWidths(4, 4, 4, 4, 4, 3 * 4),
    # Autocast runs norms and softmax in fp32 and casts their results down for the next product, which saves the copy
    # (softmax: 4 + 2). The embedding leaves 16 bit; joining the fp32 mask token makes the decoder's stream fp32.
    "autocast": TowerWidths(2, 4, 2, 4, 4 + 2, 3 * 4),
}
STATISTICS = 4 + 4
"""float32 mean and reciprocal deviation, which a layer norm saves per token."""


@dataclass(frozen=True)
class Activations:
    """Bytes per clip. Up to `clip`: held when the forward pass ends, by part. Then: what differs at the peak."""

    embed: int
    encoder: int
    bridge: int
    """With the encoder's final norm."""
    decoder: int
    head: int
    """With the decoder's final norm."""
    loss: int
    clip: int
    """The uint8 clip and its index arrays on the device."""
    released: int
    """Held at the end of the forward pass, and given back before the peak."""
    recomputed: int
    """The checkpointed block that is computed again at the peak, without the input it kept; 0 if the peak has none."""
    transient: int
    """Gradients of activations at the peak, less what their block has given back."""

    @property
    def held(self) -> int:
        """Alive at the end of the forward pass."""
        return self.embed + self.encoder + self.bridge + self.decoder + self.head + self.loss + self.clip

    @property
    def peak(self) -> int:
        """Alive at the worst moment of the step."""
        return self.held - self.released + self.recomputed + self.transient


def mae_activations(
    model: ModelConfig,
    geometry: ClipGeometry,
    visible: int,
    decode: int,
    *,
    attention: AttentionKind,
    precision: ComputePrecision,
    published_loop: bool = False,
) -> Activations:
    """Activation memory for `visible` encoder tokens and `decode` mask tokens of one clip.

    Only what grows with the number of clips: no weights, no 16-bit copies of weights under autocast, no workspaces.
    `published_loop` adds what the published code holds beside the same blocks: whole float32 clips, and an embedding of all
    cubes (VideoMAEv2 engine_for_pretraining.py:50-110, modeling_finetune.py PatchEmbed).
    """
    width = WIDTHS[precision]
    tokens, predicted = visible + decode, decode * geometry.cube_values
    again, mode = model.recomputed_blocks, model.checkpointing
    encoder = TowerActivations(model.encoder, again[0], mode, visible, attention, width, width.encoder_stream)
    decoder = TowerActivations(model.decoder, again[1], mode, tokens, attention, width, width.decoder_stream)

    # int64 places of visible and decoded cubes, and a bool for each decoded one
    clip = geometry.num_frames * geometry.height * geometry.width * 3 + 8 * tokens + decode
    embed = width.linear * visible * geometry.cube_values  # the projection's input; adding positions saves nothing
    # Input of the final norm (the last block's output) and of the projection behind it.
    bridge = visible * ((width.norm + width.linear) * model.encoder.width + STATISTICS)
    # The norm reads the mask tokens as a slice, which keeps the last block's whole output alive.
    head = (tokens * width.norm + decode * width.linear) * model.decoder.width + decode * STATISTICS
    # float32, the pixels once and its own gradient later, with a weight for each cube; the prediction goes with the objective.
    error = 4 * predicted + 4 * decode
    loss = error
    # Still in the forward pass: beside the pixels that will be the error, their squares and the prediction, and of each cube a
    # line of sums, and two values by colour. Backward the error becomes its gradient where it lies, and is at most copied to
    # the prediction's dtype.
    scoring = (4 + width.linear) * predicted + 4 * (3 * geometry.patch + 2 * 3) * decode
    if published_loop:
        values = geometry.num_frames * geometry.height * geometry.width * 3
        embed = width.linear * values  # the convolution's input
        # Local variables until the next step: the clip normalised, in [0, 1], cut into cubes, and those normalised; two
        # boolean masks; prediction and target.
        clip = 4 * 4 * values + 2 * geometry.num_cubes
        loss += (width.linear + 4) * predicted
        scoring = 4 * 4 * predicted  # autograd's: the square's gradient, error ** 1, 2 * error ** 1, and the product

    def moments() -> Iterator[tuple[int, int, int]]:
        """Candidates for the peak, in the order of the backward pass: (released, recomputed, transient)."""
        yield 0, 0, scoring
        released = error + head
        for tower, below in ((decoder, bridge), (encoder, 0)):
            for block in reversed(range(tower.config.depth)):
                yield released, tower.recomputed(block), tower.transient(block)
                released += tower.held(block)
            released += below

    peak = max(moments(), key=lambda moment: moment[1] + moment[2] - moment[0])
    return Activations(embed, encoder.total_held(), bridge, decoder.total_held(), head, loss, clip, *peak)


@dataclass(frozen=True)
class TowerActivations:
    """The blocks of one tower on the n tokens of one clip, in bytes."""

    config: TowerConfig
    recomputed_blocks: range
    checkpointing: CheckpointingName
    tokens: int
    attention: AttentionKind
    width: TowerWidths
    stream: int
    """Bytes of one value of the residual stream."""
    drops: bool = False
    """Whether branches are dropped at random, in all blocks but the first."""

    def held(self, block: int) -> int:
        """What this block keeps until its backward pass: everything, or its input if it is recomputed."""
        return self.stream * self._nd if block in self.recomputed_blocks else self._saved()

    def total_held(self) -> int:
        """All blocks."""
        return sum(self.held(block) for block in range(self.config.depth))

    def recomputed(self, block: int) -> int:
        """What computing the block again adds to the input that it kept."""
        if block not in self.recomputed_blocks:
            return 0
        # The first norm saves the very input that was kept, unless autocast gives it a wider copy.
        shared = self.stream * self._nd if self.width.norm == self.stream else 0
        # DeepSpeed's own checkpoint computes the output again too; torch's stops before the last product (fc2).
        output = self.stream * self._nd if self.checkpointing == "deepspeed" else 0
        return self._saved() - shared + output

    def transient(self, block: int) -> int:
        """Gradients at the worst moment of the block's backward pass, less what it has given back by then."""
        nd, nm = self._nd, self.tokens * self.config.mlp
        linear, norm = self.width.linear, self.width.norm
        # fc2: the output's gradient (and autocast's copy of it in 16 bit), and the one it makes of its input. GELU's
        # backward has as much: its own gradients in and out, after fc2's input has gone.
        mlp = self.stream * nd + (linear * nd if self.stream != linear else 0) + linear * nm
        if self.drops and block:
            mlp += linear * nd  # the branch's own gradient, scaled, beside that of the stream
        if self.attention != "math":
            return mlp  # the fused backward makes dq, dk, dv: less, now that the MLP has given back 2nm
        # Softmax: what the MLP, the output projection and v saved is gone. Left are the input of the first norm, its
        # output, q and k; beside them the gradients of v and of the residual stream.
        left = (norm + 3 * linear) * nd + STATISTICS * self.tokens
        scores = self.width.score_backward * self._scores
        return max(mlp, left + (linear + self.stream) * nd + scores - self._saved())

    def _saved(self) -> int:
        """What autograd saves in a block that is not recomputed."""
        nd, nm = self._nd, self.tokens * self.config.mlp
        linear, norm = self.width.linear, self.width.norm
        norms = 2 * (norm * nd + STATISTICS * self.tokens)  # their inputs: the residual stream, before and after
        projections = (
            2 * linear * nd + 2 * linear * nm
        )  # inputs of qkv and fc1 (what the norms give), of GELU and of fc2
        # Inputs of attention and of its output projection. A fused kernel saves the packed q, k, v and its own output;
        # math, the copies of scaled q, of k and of v that its batched products read, and the packed one goes.
        attention = 3 * linear * nd + linear * nd
        if self.attention != "math":
            attention += 4 * self.tokens * self.config.heads  # float32 log-sum-exp of each row of scores
        else:
            attention += self.width.score * self._scores
        return norms + projections + attention

    @property
    def _nd(self) -> int:
        return self.tokens * self.config.width

    @property
    def _scores(self) -> int:
        return self.config.heads * self.tokens**2
