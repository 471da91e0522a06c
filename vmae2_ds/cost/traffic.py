"""Bytes that a training step moves besides the operands of linear layers: what our modules' operations read and write.

Per element of what is named, read + written; w, s and r are the bytes of an activation, of a norm's or softmax's value and
of the residual stream; (a>b) is a copy from a to b bytes, a + b, and nothing where a = b:

| in a block, per token and channel    | forward                       | backward                  |
|--------------------------------------|-------------------------------|---------------------------|
| two norms, channels of the width     | 2 (r>s) + 4 s + 2 (s>w)       | 2 (w>s) + 6 s + 2 (s>r)   |
| two residual additions               | 4 r + 2 w                     | 6 r + 2 (r>w)             |
| qkv, proj and fc2 biases (sums of gradients) | 0                     | 5 w                       |
| layout of q, k, v and the output     | math 10 w, else 0             | math 16 w, sdpa 12 w, flash 0 |
| GELU and fc1's bias, MLP channels    | 2 w                           | 4 w                       |
| scores h n^2, math only: softmax     | w + s + (s>w)                 | (w>s) + 2 s + w           |
| the same: read or written by products | 2 w                          | 4 w                       |

math scales q, copies q, k, v for the batched product and its result back; the backward pass stacks three gradients and
copies them into the packed layout, which sdpa does too and flash_attn does not. At the two ends of the model lie pixels,
positions, targets and the loss. Held against a count over every operation of a real step in tests/cost/test_traffic.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from vmae2_ds.config.model import AttentionName, ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry

AttentionKind = Literal["math", "sdpa", "flash"]
"""math keeps n x n scores of every head in memory; sdpa (fused kernels with a gradient each for q, k and v) and flash (with
one packed gradient) do not."""
ATTENTION_KINDS: dict[AttentionName, AttentionKind] = {
    **dict.fromkeys(("math", "by_head"), "math"),
    **dict.fromkeys(("sdpa", "cudnn", "torch_flash", "efficient", "flash4"), "sdpa"),
    **dict.fromkeys(("flash", "flash3"), "flash"),
}
"""What a kernel counts as, by the names of `model.attention`; auto is none."""
Side = Literal["encoder", "decoder"]
ComputePrecision = Literal["bf16", "fp32", "autocast"]
"""bf16 and fp32: weights and activations. autocast: fp16 on float32 weights, norms and softmax in float32, as published."""


class Widths(NamedTuple):
    """Bytes of one value."""

    activation: int
    norm: int
    """Norms and softmax."""
    residual: int


class Passes(NamedTuple):
    """Forward and backward."""

    forward: int
    backward: int


@dataclass(frozen=True)
class Traffic:
    """Bytes of one clip's forward and backward pass, read + written, with what activation checkpointing repeats."""

    ends: int
    """Pixels, embedding, positions, final norms, targets and loss."""
    blocks: int
    """What grows with tokens: norms, residuals, GELU, biases, layouts."""
    scores: int
    """What grows with the square of the tokens; 0 unless attention is math."""


def widths_of(precision: ComputePrecision, tower: Side) -> Widths:
    """Under autocast the encoder's stream starts from a half precision product, the decoder's from a float32 mask token."""
    if precision == "autocast":
        return Widths(2, 4, 2 if tower == "encoder" else 4)
    size = {"bf16": 2, "fp32": 4}[precision]
    return Widths(size, size, size)


def mae_traffic(
    model: ModelConfig,
    geometry: ClipGeometry,
    visible: int,
    decode: int,
    *,
    attention: tuple[AttentionKind, AttentionKind],
    precision: ComputePrecision,
) -> Traffic:
    """One clip with `visible` encoder tokens and `decode` mask tokens; `attention` of encoder and decoder."""
    encoder, decoder = widths_of(precision, "encoder"), widths_of(precision, "decoder")
    blocks = scores = 0
    for tower, widths, tokens, kind, repeated in zip(
        (model.encoder, model.decoder),
        (encoder, decoder),
        (visible, visible + decode),
        attention,
        recomputed_blocks(model),
        strict=True,
    ):
        # torch's checkpoint stops before the block's last addition, as it stops before fc2 (cost.flops.recomputed_macs)
        skipped = 0 if model.checkpointing == "deepspeed" else _addition(widths) * tokens * tower.width
        per_block = block_traffic(tower, tokens, kind, widths)
        per_scores = score_traffic(tower, tokens, kind, widths)
        blocks += tower.depth * sum(per_block) + repeated * (per_block.forward - skipped)
        scores += tower.depth * sum(per_scores) + repeated * per_scores.forward
    ends = encoder_ends(model.encoder.width, geometry, visible, encoder) + _decoder_ends(
        model, geometry, visible, decode, decoder
    )
    return Traffic(ends, blocks, scores)


def block_traffic(tower: TowerConfig, tokens: int, attention: AttentionKind, widths: Widths) -> Passes:
    """One block, but for its scores."""
    w, s, r = widths
    forward_layout, backward_layout = {"math": (10 * w, 16 * w), "sdpa": (0, 12 * w), "flash": (0, 0)}[attention]
    norms = Passes(2 * (_copy(r, s) + 2 * s + _copy(s, w)), 2 * (_copy(w, s) + 3 * s + _copy(s, r)))
    residuals = Passes(2 * _addition(widths), 2 * (3 * r + _copy(r, w)))
    channels, hidden = tokens * tower.width, tokens * tower.mlp
    return Passes(
        forward=channels * (norms.forward + residuals.forward + forward_layout) + hidden * 2 * w,
        backward=channels * (norms.backward + residuals.backward + backward_layout + 5 * w) + hidden * 4 * w,
    )


def score_traffic(tower: TowerConfig, tokens: int, attention: AttentionKind, widths: Widths) -> Passes:
    """The tokens x tokens scores of every head, where they are held in memory: by the softmax and by the products.

    With 64 channels in a head a product does little with each score, and moving the scores takes as long or longer.
    """
    w, s, _ = widths
    scores = tower.heads * tokens * tokens if attention == "math" else 0
    return Passes(scores * (w + s + _copy(s, w) + 2 * w), scores * (_copy(w, s) + 2 * s + w + 4 * w))


def weight_traffic(num_parameters: int, precision: ComputePrecision) -> int:
    """Per micro batch, whatever its size: autocast copies every weight to 16 bit and every gradient back."""
    return 2 * _copy(4, 2) * num_parameters if precision == "autocast" else 0


def recomputed_blocks(model: ModelConfig) -> tuple[int, int]:
    """Blocks of encoder and decoder that `model.checkpointing` runs forward twice."""
    encoder, decoder = model.recomputed_blocks
    return len(encoder), len(decoder)


BLOCK_KERNELS: dict[AttentionKind, Passes] = {"math": Passes(18, 26), "sdpa": Passes(11, 20), "flash": Passes(11, 18)}
END_KERNELS = 65
"""Operations outside the blocks; about 30 of them compute indices and scalars and cost nothing but their launch."""


def count_kernels(model: ModelConfig, attention: tuple[AttentionKind, AttentionKind]) -> int:
    """Operations that a micro step launches, views left out; casts of autocast are not counted."""
    total = END_KERNELS
    skipped = 0 if model.checkpointing == "deepspeed" else 2  # fc2 and the last addition, as above
    towers = zip((model.encoder, model.decoder), attention, recomputed_blocks(model), strict=True)
    for tower, kind, repeated in towers:
        total += tower.depth * sum(BLOCK_KERNELS[kind]) + repeated * (BLOCK_KERNELS[kind].forward - skipped)
    return total


def _copy(source: int, target: int) -> int:
    """Bytes to convert one value; nothing to do where both have one width."""
    return 0 if source == target else source + target


def _addition(widths: Widths) -> int:
    """x + branch(x), per value: two reads and a write."""
    return 2 * widths.residual + widths.activation


def _gather(geometry: ClipGeometry, cubes: int) -> int:
    """uint8 pixels of some cubes, copied by runs of 3 * patch values, each with an int64 index written and read."""
    values = cubes * geometry.cube_values
    return 2 * values + 16 * values // (3 * geometry.patch)


def _positions(values: int, widths: Widths) -> int:
    """Rows of a float32 table copied, cast to the stream and added to it."""
    return values * (8 + _copy(4, widths.residual) + 3 * widths.residual)


def _final_norm(values: int, widths: Widths) -> int:
    """Forward and backward."""
    w, s, r = widths
    return values * (_copy(r, s) + 2 * s + _copy(s, w) + _copy(w, s) + 3 * s + _copy(s, r))


def encoder_ends(width: int, geometry: ClipGeometry, visible: int, widths: Widths) -> int:
    """Pixels, embedding, positions and final norm of a clip of which some cubes are seen."""
    w = widths.activation
    values = visible * geometry.cube_values
    tokens = visible * width
    # uint8 to normalised float, cast to the weights' dtype
    pixels = _gather(geometry, visible) + values * (5 + _copy(4, w))
    bias_gradient = w * tokens
    return pixels + bias_gradient + _positions(tokens, widths) + _final_norm(tokens, widths)


def _decoder_ends(model: ModelConfig, geometry: ClipGeometry, visible: int, decode: int, widths: Widths) -> int:
    w, _, r = widths
    width = model.decoder.width
    seen, predicted = visible * width, decode * width
    tokens = seen + predicted
    values = decode * geometry.cube_values
    # encoder tokens and mask tokens joined; backward, the two parts' gradients are a sum and a copy
    joined = w * seen + r * tokens + r * predicted + (r + w) * seen
    # the norm sees the mask tokens only: its gradient is written into zeros of all tokens
    sliced = r * predicted + r * tokens
    ends = joined + _positions(tokens, widths) + sliced + _final_norm(predicted, widths)
    # uint8 to float, sum, - mean, square, sum; the rest, scaled, off the prediction; the error's norm
    forward = values * (5 + 4 + 8 + 8 + 4 + (w + 8) + 4)
    # of each cube, twice: sums by column, added up by colour, and what follows from them for each column
    lines = 2 * 4 * 4 * decode * 3 * geometry.patch
    # the error scaled in its place, in the prediction's dtype; the head's bias
    backward = values * (8 + _copy(4, w) + w)
    return ends + _gather(geometry, decode) + forward + lines + backward
