"""What a forward pass keeps for its backward pass, counted as autograd keeps it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def count_held_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes of the different storages that one call of `forward` saves; not what activation checkpointing keeps by itself."""
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        out = forward()
    assert out.requires_grad, "nothing is saved for a result that needs no gradient"
    return sum(held.values())
