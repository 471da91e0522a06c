"""Copies of a rank's states in host memory, which training cannot change while they are written to disk."""

from __future__ import annotations

import io
import logging
import mmap
import pickle
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import NoneType
from typing import Any

import torch

log = logging.getLogger(__name__)

PLAIN = (int, float, str, NoneType)
ALIGNED = 64
"""Bytes: each storage starts at a multiple, as those of torch do."""


class HostCopies:
    """Copies states one after another; their memory stays for the states of the next save, which have the same sizes.

    What lies on a GPU is copied to pinned memory by that GPU, in the order of its work: the host does not wait, and the
    steps after it do not change what is copied. `wait` returns once it has arrived.
    """

    def __init__(self) -> None:
        self._memory: list[_KeptMemory] = []
        self._used = 0
        self._arrived: list[torch.cuda.Event] = []

    def begin(self) -> None:
        """Start a new save: nothing of the one before is needed any more."""
        self._used = 0
        self._arrived.clear()

    def copy(self, state: Any) -> Any:
        """What torch.save would write the same bytes for, tensors on the CPU: shared storages stay shared, views stay views.

        Everything else is copied by pickling it, which torch.save does as well.
        """
        pickled = io.BytesIO()
        pickler = _TensorsApart(pickled)
        pickler.dump(state)
        unpickler = _TensorsBack(io.BytesIO(pickled.getbuffer()))
        unpickler.tensors = self._copy_tensors(pickler.tensors)
        return unpickler.load()

    def wait(self) -> None:
        """Return once all copies hold what they were made of; for any thread."""
        for event in self._arrived:
            event.synchronize()

    @torch.no_grad()
    def _copy_tensors(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
        on_gpu = any(storage.device.type == "cuda" for storage in storages.values())
        if self._used == len(self._memory):
            self._memory.append(_KeptMemory())
        places = self._memory[self._used].take([storage.nbytes() for storage in storages.values()], pinned=on_gpu)
        self._used += 1
        copies = dict(zip(storages, places, strict=True))
        for key, storage in storages.items():
            source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            copies[key].copy_(source, non_blocking=storage.device.type == "cuda")
        if on_gpu:
            event = torch.cuda.Event()
            event.record()
            self._arrived.append(event)
        return [_like(tensor, copies[tensor.untyped_storage()._cdata]) for tensor in tensors]


def _like(tensor: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    """A tensor that lies in the storage of `content` as `tensor` does in its own."""
    made = torch.empty(0, dtype=tensor.dtype)
    made.set_(content.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    made = torch.nn.Parameter(made) if type(tensor) is torch.nn.Parameter else made
    made.__dict__.update(tensor.__dict__)
    return made.requires_grad_(tensor.requires_grad)


class _KeptMemory:
    """A block of host memory, which grows where it must.

    Forked processes do not get it: a loader worker would keep the pages of the save before it was forked, and of pinned ones
    the kernel makes it a copy at once.
    """

    def __init__(self) -> None:
        self._block: mmap.mmap | None = None
        self._unpin: Callable[[], object] = lambda: None

    def take(self, sizes: list[int], *, pinned: bool) -> list[torch.Tensor]:
        """Bytes for each size, each with a storage of its own; what was taken before is void."""
        starts, end = list[int](), 0
        for size in sizes:
            starts.append(end)
            end += -(-size // ALIGNED) * ALIGNED
        if self._block is None or end > len(self._block):
            self._block = self._replace(max(end, 1), pinned)
        return [
            torch.frombuffer(self._block, dtype=torch.uint8, count=size, offset=start)
            if size
            else torch.empty(0, dtype=torch.uint8)
            for start, size in zip(starts, sizes, strict=True)
        ]

    def _replace(self, size: int, pinned: bool) -> mmap.mmap:
        """Pinned as it is, to the byte: torch's own pinned memory comes in powers of two."""
        self._unpin()
        self._unpin = lambda: None
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_DONTFORK"):
            block.madvise(mmap.MADV_DONTFORK)
        if pinned:
            place = torch.frombuffer(block, dtype=torch.uint8).data_ptr()
            refused = int(torch.cuda.cudart().cudaHostRegister(place, size, 0))
            if refused:
                _forget_cuda_error()
                log.warning(
                    "%.3g GB of host memory cannot be pinned (CUDA error %d): states are copied there slower, and each save "
                    "stops training for longer",
                    size / 1e9, refused,
                )  # fmt: skip
            else:
                # Before the memory goes, whose address another block may get: that could not be pinned then.
                self._unpin = weakref.finalize(self, torch.cuda.cudart().cudaHostUnregister, place)
                self._unpin.atexit = False
        return block


def _forget_cuda_error() -> None:
    """Have the refusal raised and dropped here: CUDA keeps it, and torch would raise it from whatever kernel comes next."""
    with suppress(RuntimeError, AssertionError):
        torch.ones(1, device="cuda") + 1


class _TensorsApart(pickle.Pickler):
    """Pickles a state without its tensors, which it lists."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            return None
        if not all(isinstance(attribute, PLAIN) for attribute in value.__dict__.values()):
            return None  # by value, as any object; ZeRO 3 leaves its numbers on tensors, and nothing else
        number = self._numbers.setdefault(id(value), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(value)
        return number


class _TensorsBack(pickle.Unpickler):
    """Reads what `_TensorsApart` wrote a moment ago in this process."""

    tensors: list[torch.Tensor]

    def persistent_load(self, number: int) -> torch.Tensor:
        return self.tensors[number]
