"""A copy in host memory is written as the same bytes as what it was made of, whatever happens to that meanwhile."""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vmae2_ds.checkpoint import host_copies
from vmae2_ds.checkpoint.host_copies import HostCopies, _KeptMemory


def saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def odd_state() -> dict[str, Any]:
    """What ZeRO's states have among them, and what torch.save treats apart."""
    flat = torch.randn(100)
    numbered = torch.randn(7)
    vars(numbered)["ds_id"] = 3
    groups = [{"lr": 1e-3, "params": [0, 1]}]
    return {
        "views": OrderedDict(first=flat[:40], second=flat[40:].view(6, 10), crossed=flat[:40].view(4, 10).t()),
        "again": flat,
        "half": torch.randn(5).bfloat16(),
        "no values": torch.empty(0, 3),
        "whole numbers": torch.arange(4),
        "step": torch.tensor(3.0),
        "learns": torch.randn(3, requires_grad=True),
        "computed": torch.randn(3, requires_grad=True) * 2,
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "numbered": numbered,
        "groups": groups,
        "same groups": groups,
        "scaler": SimpleNamespace(scale=2.0, shape=torch.Size((2, 3)), dtype=torch.float16),
    }


def test_a_copy_is_written_as_the_same_bytes() -> None:
    state = odd_state()
    assert saved(HostCopies().copy(state)) == saved(state)


def test_what_is_changed_after_it_was_copied_stays_as_it_was_in_the_copy() -> None:
    state = odd_state()
    copy, before = HostCopies().copy(state), saved(state)
    with torch.no_grad():
        for value in (state["again"], state["half"], state["step"], state["learns"], state["parameter"]):
            value.add_(1)
    state["groups"][0]["lr"] = 0.5
    state["scaler"].scale = 1.0
    assert saved(copy) == before != saved(state)


def test_the_memory_of_one_save_is_that_of_the_next() -> None:
    """Else every save would ask for gigabytes anew, and on CUDA pin them anew."""
    copies, places = HostCopies(), []
    for save in range(3):
        copies.begin()
        states = [{"w": torch.full((1000,), 10.0 * save + file)} for file in range(2)]
        copied = [copies.copy(state)["w"] for state in states]
        assert [tensor[0].item() for tensor in copied] == [10.0 * save, 10.0 * save + 1], "a place for each file"
        places.append([tensor.data_ptr() for tensor in copied])
    assert places[0] == places[1] == places[2]
    copies.begin()
    assert copies.copy({"w": torch.ones(5000)})["w"].sum() == 5000, "more than there was"


class Cuda:
    """What of CUDA's runtime pins memory."""

    def __init__(self, refusal: int = 0) -> None:
        self.pinned: dict[int, int] = {}
        self._refusal = refusal

    def cudaHostRegister(self, place: int, size: int, flags: int) -> int:  # noqa: N802
        if not self._refusal:
            self.pinned[place] = size
        return self._refusal

    def cudaHostUnregister(self, place: int) -> int:  # noqa: N802
        del self.pinned[place]
        return 0


def test_memory_is_pinned_once_to_the_byte_and_let_go_before_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    memory = _KeptMemory()
    first = memory.take([100, 0, 3], pinned=True)
    assert [len(place) for place in first] == [100, 0, 3]
    assert cuda.pinned == {first[0].data_ptr(): 128 + 64}
    assert memory.take([90, 60], pinned=True)[0].data_ptr() == first[0].data_ptr()
    larger = memory.take([1000], pinned=True)
    assert cuda.pinned == {larger[0].data_ptr(): 1024}
    del memory
    assert not cuda.pinned, "memory at the same address could not be pinned again"


def test_memory_that_cannot_be_pinned_is_told_and_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forgotten = list[bool]()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Cuda(refusal=2))
    monkeypatch.setattr(host_copies, "_forget_cuda_error", lambda: forgotten.append(True))
    memory = _KeptMemory()
    assert memory.take([100], pinned=True)[0].fill_(1).sum() == 100
    assert "cannot be pinned (CUDA error 2)" in caplog.text
    assert forgotten, "torch would raise it from the next kernel"
    assert len(memory.take([1000], pinned=True)) == 1, "what was not pinned is not let go"


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTFORK"), reason="needs Linux")
def test_a_forked_process_does_not_get_the_memory() -> None:
    """Loader workers are forked beside it, and would keep gigabytes of pages that are written over here."""
    place = HostCopies().copy({"w": torch.ones(1 << 20)})["w"]
    child = os.fork()
    if not child:
        os._exit(any(low <= place.data_ptr() < high for low, high in mapped()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert any(low <= place.data_ptr() < high for low, high in mapped()), "here it is"


def mapped() -> list[tuple[int, int]]:
    ranges = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()]
    return [(int(low, 16), int(high, 16)) for low, high in ranges]


class Odd(torch.Tensor):
    """Of a class of its own."""


@pytest.mark.parametrize("kind", ["class", "attribute"])
def test_a_tensor_that_is_more_than_a_tensor_is_copied_by_value(kind: str) -> None:
    odd = torch.randn(3).as_subclass(Odd) if kind == "class" else torch.randn(3)
    if kind == "attribute":
        vars(odd)["about"] = [1]
    copy = HostCopies().copy([odd])[0]
    before = odd.clone()
    odd.add_(1)
    assert torch.equal(copy, before)
    assert type(copy) is type(odd)
    assert kind == "class" or (vars(copy) == {"about": [1]} and vars(copy)["about"] is not vars(odd)["about"])


def test_what_cannot_be_pickled_is_refused_as_torch_save_refuses_it() -> None:
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        HostCopies().copy({"function": lambda: None})
