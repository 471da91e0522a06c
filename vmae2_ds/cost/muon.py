"""Which weights Muon updates, how ranks put them together, and what Newton-Schulz takes: closed forms, no torch."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from math import prod
from typing import NamedTuple

MatrixShape = tuple[int, int]
NEWTON_SCHULZ_STEPS = 5
"""Number of steps in torch.optim.Muon and in Jordan's."""
KERNELS = 26
"""Operations that an update starts for a matrix: three products a step, and eleven before and after them."""


def matrices_of(name: str, shape: Sequence[int]) -> list[MatrixShape]:
    """Shapes of the matrices that Muon takes out of a parameter, one below the other: none outside the towers' blocks.

    Queries, keys and values, which lie in one parameter, are three.
    """
    if not re.search(r"\b(encoder|decoder)\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])\.weight$", name):
        return []
    rows, columns = shape
    parts = 3 if ".qkv." in name else 1
    return [(rows // parts, columns)] * parts


def newton_schulz_flops(shape: MatrixShape) -> int:
    """FLOPs to make a matrix orthogonal: X X^T, its square, and their product with X, in each step."""
    rows, columns = sorted(shape)
    return NEWTON_SCHULZ_STEPS * (4 * rows * rows * columns + 2 * rows**3)


class Exchange(NamedTuple):
    """What one rank needs of others' parts, and they of its own, where ranks hold matrices end to end in equal parts."""

    start: int
    """First element of the first matrix of which the rank has elements."""
    stop: int
    """Behind the last element of the last one."""
    asked: tuple[tuple[int, int], ...]
    """Elements of the own part that each rank needs, by rank."""
    comes: tuple[int, ...]
    """Number of elements that come from each rank, by rank."""
    is_needed: bool
    """Whether any rank needs anything: all have to take part then."""


@lru_cache(maxsize=64)
def exchange_of(shapes: tuple[MatrixShape, ...], part: int, rank: int, size: int) -> Exchange:
    """The exchange of one of `size` ranks, which hold `part` elements each, with padding behind the last matrix."""
    spans = _spans(shapes, part, size)
    own = rank * part, (rank + 1) * part
    nothing = 0, 0
    return Exchange(
        *spans[rank],
        asked=tuple(nothing if other == rank else _both(spans[other], own) for other in range(size)),
        comes=tuple(
            0 if other == rank else len(range(*_both(spans[rank], (other * part, (other + 1) * part))))
            for other in range(size)
        ),
        is_needed=any(
            start < stop and (start < other * part or stop > (other + 1) * part)
            for other, (start, stop) in enumerate(spans)
        ),
    )


@lru_cache(maxsize=8)
def _spans(shapes: tuple[MatrixShape, ...], part: int, size: int) -> list[tuple[int, int]]:
    """From the first element to the last of all matrices of which a rank has elements, by rank."""
    edges = [0, *accumulate(map(prod, shapes))]

    def span(first: int, last: int) -> tuple[int, int]:
        last = min(last, edges[-1])
        return (edges[bisect_right(edges, first) - 1], edges[bisect_left(edges, last)]) if first < last else (0, 0)

    return [span(rank * part, (rank + 1) * part) for rank in range(size)]


def exchanged_elements(shapes: tuple[MatrixShape, ...], part: int, size: int) -> int:
    """Elements that all of `size` ranks with `part` elements each send each other."""
    total = sum(map(prod, shapes))
    return sum(
        stop - start - max(0, min(total, (rank + 1) * part) - rank * part)
        for rank, (start, stop) in enumerate(_spans(shapes, part, size))
        if start < stop
    )


@lru_cache(maxsize=64)
def most_work(shapes: tuple[MatrixShape, ...], part: int, size: int) -> tuple[int, int]:
    """FLOPs of Newton-Schulz on the rank that has most of them, and the most matrices of any rank; `part` elements on each."""
    inside = [[shape for shape, _, _ in matrices_inside(shapes, *span)] for span in {*_spans(shapes, part, size)}]
    return max(sum(map(newton_schulz_flops, mine)) for mine in inside), max(map(len, inside))


@lru_cache(maxsize=64)
def update_bytes(shapes: tuple[MatrixShape, ...], part: int, size: int) -> int:
    """Bytes at the worst moment of an update, on the fullest rank, beside weights, gradients and momentum.

    The direction of all elements in float32, where ranks exchange matrices those that a rank puts together, and of the largest
    matrix: what is moved, its gradient, torch's own momentum of it and the answer of the one before in float32, X before and
    after a product and two squares in bfloat16.
    """
    is_needed = exchanged_elements(shapes, part, size) > 0

    def of_rank(start: int, stop: int) -> int:
        inside = [shape for shape, _, _ in matrices_inside(shapes, start, stop)]
        largest = max((20 * prod(shape) + 4 * min(shape) ** 2 for shape in inside), default=0)
        return 4 * (stop - start) * is_needed + largest

    return 4 * part + max(of_rank(*span) for span in {*_spans(shapes, part, size)})


def _both(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    start, stop = max(one[0], other[0]), min(one[1], other[1])
    return (start, stop) if start < stop else (0, 0)


def matrices_inside(shapes: Sequence[MatrixShape], start: int, stop: int) -> Iterator[tuple[MatrixShape, int, int]]:
    """Each matrix between two elements, with its own first element and the one behind its last."""
    end = 0
    for shape in shapes:
        first, end = end, end + prod(shape)
        if start <= first and end <= stop:
            yield shape, first, end
