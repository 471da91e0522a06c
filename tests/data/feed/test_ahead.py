"""Asking ahead: the same answers in the same order; on CUDA the device has its next work before an answer is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from vmae2_ds.data.feed.ahead import ask_ahead
from vmae2_ds.errors import DataError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EMPTY = 2
"""The item that nothing is asked about."""


class Told:
    """What happened, in order."""

    def __init__(self, count: int = 4, error: Exception | None = None) -> None:
        self.log: list[str] = []
        self._count, self._error = count, error

    def items(self) -> Iterator[int]:
        for item in range(self._count):
            self.log.append(f"read {item}")
            yield item
        if self._error is not None:
            raise self._error

    def move(self, item: int) -> Tensor | None:
        return None if item == EMPTY else torch.tensor([item])

    def ask(self, moved: Tensor) -> list[Tensor]:
        self.log.append(f"ask {int(moved)}")
        return [moved * 10, moved * 100]

    def run(self, device: torch.device) -> dict[int, list[int]]:
        found = {}
        for item, answers in ask_ahead(self.items(), self.move, self.ask, device):
            self.log.append(f"got {item}")
            found[item] = [int(answer) for answer in answers]
        return found


EXPECTED = {0: [0, 0], 1: [10, 100], 2: [], 3: [30, 300]}


def test_on_a_cpu_each_item_is_answered_before_the_next_is_read() -> None:
    told = Told()
    assert told.run(CPU) == EXPECTED
    assert told.log == [
        "read 0",
        "ask 0",
        "got 0",
        "read 1",
        "ask 1",
        "got 1",
        "read 2",
        "got 2",
        "read 3",
        "ask 3",
        "got 3",
    ]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Streams and events that note who waits for whom, in place of CUDA's."""
    waits: list[str] = []

    class Stream:
        def __init__(self, name: object) -> None:
            self.name = "computing" if name == "computing" else "copies"

        def wait_stream(self, other: Stream) -> None:
            waits.append(f"{self.name} waits for {other.name}")

    class Event:
        def record(self, stream: Stream) -> None:
            self.of = stream.name

        def synchronize(self) -> None:
            waits.append(f"the host waits for {self.of}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("computing"))
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: waits.append(f"memory is {stream.name}'s too")
    )
    return waits


def test_on_cuda_the_next_is_asked_before_an_answer_is_waited_for(stand_ins: list[str]) -> None:
    told = Told()
    assert told.run(CUDA) == EXPECTED
    assert told.log == [
        "read 0",
        "ask 0",
        "read 1",
        "ask 1",
        "got 0",
        "read 2",
        "got 1",
        "read 3",
        "ask 3",
        "got 2",
        "got 3",
    ]
    assert stand_ins[:2] == ["computing waits for copies", "memory is computing's too"]
    assert stand_ins.count("computing waits for copies") == 3  # once for each that is asked about
    assert stand_ins.count("the host waits for computing") == 4


def test_an_error_of_the_items_is_raised(stand_ins: list[str]) -> None:
    for device in (CPU, CUDA):
        with pytest.raises(DataError, match="gone"):
            Told(error=DataError("gone")).run(device)


@pytest.mark.gpu
def test_answers_are_those_of_the_cpu_while_copies_and_work_overlap() -> None:
    """Integers in float32: exact on any device. The work on a batch is long, so that the next one's copy comes meanwhile."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 256, (2**22,), dtype=torch.uint8, generator=generator) for _ in range(12)]
    expected = [int(batch.long().sum()) for batch in batches]
    busy = torch.randn(2048, 2048, device="cuda")

    def ask(batch: Tensor) -> list[Tensor]:
        for _ in range(10):
            torch.mm(busy, busy)
        return [batch.long().sum()]

    pinned = (batch.pin_memory() for batch in batches)
    found = ask_ahead(pinned, lambda batch: batch.to("cuda", non_blocking=True), ask, CUDA)
    assert [int(answer) for _, (answer,) in found] == expected
