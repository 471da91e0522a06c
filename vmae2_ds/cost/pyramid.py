"""Work and kept memory of the temporal detection head as closed forms: plain integers, no torch.

A MAC is one as in cost/flops.py.
"""

from __future__ import annotations

from vmae2_ds.config.tad_head import HeadConfig, attention_chunk

KERNEL = 3
"""Positions that each convolution sees."""


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


def pyramid_held(head: HeadConfig, input_width: int, length: int, value: int) -> int:
    """Bytes that the forward pass of one sequence keeps for the backward pass, on a GPU with a fused kernel.

    `value` is the bytes of an activation; `length` as in `level_points`. Some small tensors are left out.
    """
    width, points, windows = head.width, level_points(head, length), head.level_windows
    # a convolution keeps its input, a norm its own, a ReLU its result
    values = length * (input_width + 2 * head.embed_convs * width)
    values += head.stem * _block_values(head, points[0], points[0], windows[0])
    for before, after, window in zip(points, points[1:], windows[1:], strict=False):
        values += _block_values(head, before, after, window)
    values += points[-1] * width  # no block reads the last level
    values += sum(points) * width * (1 + 2 * 2 * head.head_convs)
    places = 8 * width * sum(points[1:])  # int64, of the largest of three
    return value * values + places


def _block_values(head: HeadConfig, before: int, points: int, window: int) -> int:
    """Activations of a block from `before` points to `points`, in values."""
    width = head.width
    chunk = attention_chunk(window, points)
    queries = -(-points // chunk) * chunk
    keys = points if chunk == points else chunk + 2 * (window // 2)
    # queries and results, each chunk's own keys and values, the mask as numbers
    attention = 2 * queries * width + 2 * (queries // chunk) * keys * width + queries * keys
    gains = 2 if head.layer_scale else 0
    # both norms' inputs and results, those of q, k and v, the MLP's four widths before and after its GELU
    return width * (2 * before + points * (2 + 3 * 2 + 2 * 4 + gains)) + attention
