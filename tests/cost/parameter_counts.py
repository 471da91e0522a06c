"""Numbers of parameters of a detector as closed forms, by hand: what the package's shapes and modules are held against."""

from __future__ import annotations

from vmae2_ds.config.tad_head import HeadConfig
from vmae2_ds.cost.adapters import AdaptedShape
from vmae2_ds.cost.flops import tower_parameters

KERNEL = 3
"""Positions, or steps, that each convolution sees."""


def adapter_parameters(width: int, hidden: int) -> int:
    """Two projections, a depth-wise convolution over time, one of channels, and the gain."""
    projections = 2 * width * hidden + hidden + width
    return projections + (KERNEL + 1) * hidden + hidden * hidden + hidden + 1


def encoder_parameters(encoder: AdaptedShape) -> int:
    """What is frozen: embedding and blocks; the final norm of pre-training is not there."""
    width = encoder.tower.width
    return (encoder.clip.cube_values + 1) * width + tower_parameters(encoder.tower) - 2 * width


def pyramid_parameters(head: HeadConfig, input_width: int, num_classes: int) -> int:
    """Exact number of parameters."""
    width = head.width
    conv_norm = KERNEL * width * width + 2 * width
    embed = KERNEL * input_width * width + 2 * width + (head.embed_convs - 1) * conv_norm
    linear = width * width + width
    projection = KERNEL * width + 2 * width + linear
    mlp = 2 * 4 * width * width + 4 * width + width
    gains = 2 * width if head.layer_scale else 0
    block = 3 * projection + linear + mlp + 2 * 2 * width + gains
    heads = 2 * head.head_convs * conv_norm + (KERNEL * width + 1) * (num_classes + 2)
    return embed + (head.stem + head.levels - 1) * block + head.levels * 2 * width + heads + head.levels
