"""Small tensors that follow from plain values alone (indices, zeros, constants by colour): made once, not in every pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Protocol

import torch
from torch import Tensor

_kept: dict[tuple[Hashable, ...], Tensor] = {}


class Kept(Protocol):
    """`make` by its values, and a tensor on the device where the result is wanted."""

    def __call__(self, *values: Hashable, like: Tensor) -> Tensor:
        """What `make(*values, device=like.device)` gives. Read it only: all callers share it."""


def once_per_device(make: Callable[..., Tensor], *, most: int | None = None) -> Kept:
    """Keep what `make(*values, device)` returns, by values and device, for as long as the process lives; or of a function that
    is asked for ever others, only the `most` that were asked for last.

    No buffers, because those follow their module to 16 bit. A compiler gets the making itself, which it folds into the
    kernel that reads the result; where tensors are fake, or of another kind than torch's own, each call makes its own.
    """

    @wraps(make)
    def get(*values: Hashable, like: Tensor) -> Tensor:
        if not _can_keep(like):
            return make(*values, device=like.device)
        key = (make, like.device, *values)
        if key not in _kept:
            with torch.inference_mode(False):  # made inside it, training could not use it
                _kept[key] = make(*values, device=like.device)
        tensor = _kept[key]
        if most is not None:
            _kept[key] = _kept.pop(key)  # the last that was asked for stands behind
            own = [one for one in _kept if one[0] is make]
            for forgotten in own[: len(own) - most]:
                del _kept[forgotten]
        return tensor

    return get


def _can_keep(like: Tensor) -> bool:
    return not torch.compiler.is_compiling() and type(like) is Tensor
