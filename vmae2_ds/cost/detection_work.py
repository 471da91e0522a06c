"""What a detector's micro step has to do, in the units of a device's rates (cost/compute_time.py); no torch.

FLOPs are exact. What the pyramid moves is taken from what it keeps, and its operations are counted by kind: it is a small part
beside an encoder.
"""

from __future__ import annotations

from vmae2_ds.cost.activations import WIDTHS
from vmae2_ds.cost.adapters import AdaptedShape
from vmae2_ds.cost.compute_time import ATTENTION_PRODUCTS, Work
from vmae2_ds.cost.detection import DetectorShape, detector_activations, detector_macs
from vmae2_ds.cost.flops import block_parts
from vmae2_ds.cost.traffic import (
    BLOCK_KERNELS,
    AttentionKind,
    ComputePrecision,
    block_traffic,
    score_traffic,
    widths_of,
)

PYRAMID_TRAFFIC = 7.7
"""Times that a value kept by the pyramid is moved, forward and backward, with what is not kept."""
BLOCK_OF_PYRAMID, LEVEL_OF_PYRAMID = 105, 62
"""Operations of a block of the pyramid and of a level's answers, forward and backward, views left out."""
WEIGHT_KERNELS = 10
"""Operations of a block's backward pass that make gradients of weights, which frozen ones have none of."""
ADAPTER_KERNELS = 8, 18
"""Operations of an adapter, forward and backward."""


def detector_work(shape: DetectorShape, windows: int, *, attention: AttentionKind, precision: ComputePrecision) -> Work:
    """Forward and backward of the windows of a micro step, with what is computed again; without the optimizer."""
    macs = detector_macs(shape)
    head = detector_activations(shape, windows, attention=attention, precision=precision).head
    blocks = shape.head.stem + shape.head.levels - 1
    linear_flops = 2 * windows * (macs.forward + macs.backward + macs.recomputed)
    kernels = blocks * BLOCK_OF_PYRAMID + shape.head.levels * LEVEL_OF_PYRAMID
    pyramid = Work(linear_flops=linear_flops, memory_bytes=PYRAMID_TRAFFIC * head, kernels=kernels)
    if shape.encoder is None:
        return pyramid
    return pyramid + _encoder_work(shape.encoder, windows * shape.clips, attention, precision)


def _encoder_work(encoder: AdaptedShape, clips: int, attention: AttentionKind, precision: ComputePrecision) -> Work:
    """What `detector_macs` does not say: attention's products at their own rate, bytes, and operations."""
    tower, tokens, widths = encoder.tower, encoder.clip.num_cubes, widths_of(precision, "encoder")
    behind, adapters, chunks = len(encoder.learning_blocks), len(encoder.numbers), -(-clips // encoder.clips_at_once)
    forward, backward = ATTENTION_PRODUCTS[attention]
    product = block_parts(tower, tokens)["attention"]  # both
    as_linear = 2 * product * (tower.depth + 3 * behind)
    products = product * (forward * (tower.depth + behind) + backward * behind)
    moved, scores = block_traffic(tower, tokens, attention, widths), score_traffic(tower, tokens, attention, widths)
    value = WIDTHS[precision].linear
    # a frozen layer's bias has no gradient to be summed
    of_backward = moved.backward - 5 * widths.activation * tokens * tower.width
    # the sum with x and the gain; GELU, the convolution over time and a sum in between; both again, and backward
    adapter = tokens * value * ((2 * 5 + 8) * tower.width + (2 * 7 + 11) * encoder.hidden)
    pixels = tokens * encoder.clip.cube_values * (2 + 5 + value)
    per_clip = moved.forward * (tower.depth + behind) + of_backward * behind + adapters * adapter + pixels
    of_block, of_adapter = BLOCK_KERNELS[attention], sum(ADAPTER_KERNELS) + ADAPTER_KERNELS[0]
    kernels = of_block.forward * (tower.depth + behind) + (of_block.backward - WEIGHT_KERNELS) * behind
    return Work(
        linear_flops=-clips * as_linear,
        attention_flops=clips * products,
        memory_bytes=clips * per_clip,
        score_bytes=clips * (scores.forward * (tower.depth + behind) + scores.backward * behind),
        kernels=chunks * kernels + adapters * of_adapter,
    )
