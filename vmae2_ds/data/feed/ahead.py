"""To the device ahead of the work, and back behind it: on CUDA neither device nor process waits for the copies of the other.

Copies out of pinned memory run on a stream of their own; on a CPU there is nothing to copy, and all happens in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Moved = TypeVar("Moved")
Asked = TypeVar("Asked", Tensor, tuple[Tensor, ...])


class CopyStream:
    """Copies to a CUDA device beside the work that is under way there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def send(self, move: Callable[[T], Moved], item: T) -> Moved:
        """Start `move`, which copies without waiting."""
        with torch.cuda.stream(self.stream):
            return move(item)

    def arrive(self, tensors: Iterable[Tensor]) -> None:
        """Tell the work that follows to wait for all copies so far, these tensors among them."""
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for tensor in tensors:
            tensor.record_stream(computing)  # its memory belongs to the other stream


def ask_ahead(
    items: Iterator[T],
    move: Callable[[T], Asked | None],
    ask: Callable[[Asked], Iterable[Tensor]],
    device: torch.device,
) -> Iterator[tuple[T, list[Tensor]]]:
    """Each item, and the answers to it on the host; on CUDA an item's are waited for once the next has been asked about.

    Args:
        move: gives what is asked about on the device, copied without waiting; None: nothing is asked about this item.
        ask: launches the work and returns its results where they are; what it launches for one item never waits for the host.
    """
    if device.type != "cuda":
        for item in items:
            moved = move(item)
            yield item, [] if moved is None else list(ask(moved))
        return
    copies = CopyStream(device)
    before: tuple[T, list[Tensor], torch.cuda.Event] | None = None
    for item in items:
        moved = copies.send(move, item)
        answers: list[Tensor] = []
        if moved is not None:
            copies.arrive([moved] if isinstance(moved, Tensor) else moved)
            answers = [answer.to("cpu", non_blocking=True) for answer in ask(moved)]
        are_there = torch.cuda.Event()
        are_there.record(torch.cuda.current_stream(device))
        if before is not None:
            before[2].synchronize()
            yield before[0], before[1]
        before = item, answers, are_there
    if before is not None:
        before[2].synchronize()
        yield before[0], before[1]
