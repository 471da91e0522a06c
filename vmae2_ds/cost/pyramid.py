"""Parameters and work of the temporal detection head as closed forms: plain integers, no torch. A MAC as in cost/flops.py."""

from __future__ import annotations

from vmae2_ds.config.tad_head import HeadConfig, attention_chunk

KERNEL = 3
"""Positions that each convolution sees."""


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


def level_points(head: HeadConfig, length: int) -> tuple[int, ...]:
    """Points of each level for a sequence of `length` positions, which fills the pyramid's own length.

    A shorter one is computed with `strides[-1]` positions more, of padding, but no more than fill it (pyramid.py).
    """
    return tuple(-(-length // stride) for stride in head.strides)


def pyramid_macs(head: HeadConfig, input_width: int, num_classes: int, length: int) -> int:
    """Work of the forward pass of one sequence; for one that does not fill the pyramid, see `level_points`."""
    width = head.width
    points = level_points(head, length)
    embed = length * KERNEL * width * (input_width + (head.embed_convs - 1) * width)
    windows = head.level_windows
    blocks = head.stem * _block_macs(width, points[0], windows[0])
    blocks += sum(
        _block_macs(width, of_level, window) for of_level, window in zip(points[1:], windows[1:], strict=True)
    )
    of_point = KERNEL * width * (2 * head.head_convs * width + num_classes + 2)
    return embed + blocks + sum(points) * of_point


def _block_macs(width: int, points: int, window: int) -> int:
    """One block that ends with so many points: convolutions, matrices, and both products of attention."""
    matrices = points * (3 * KERNEL * width + 4 * width * width + 8 * width * width)
    chunk = attention_chunk(window, points)
    keys = points if chunk == points else chunk + 2 * (window // 2)
    return matrices + 2 * -(-points // chunk) * chunk * keys * width
