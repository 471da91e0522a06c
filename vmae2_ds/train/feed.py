"""Micro batches on their way to the device: copied one ahead on CUDA, never missing, and how long the device waited.

On CUDA the copy of the next micro batch, out of pinned memory, runs on a stream of its own while the device computes.
What counts as waiting is then what the device had to wait: not the seconds that this process spent asking for a batch
while the device was still busy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from vmae2_ds.contracts import LoadedBatch
from vmae2_ds.data.feed.ahead import CopyStream
from vmae2_ds.errors import DataError


class Feed(Iterator[LoadedBatch]):
    """`batches` in order, on `device`. After a DataError the last one comes again, so that no other rank is left waiting.

    A DataError with no batch before it is raised.
    """

    def __init__(self, batches: Iterator[LoadedBatch], device: torch.device) -> None:
        self.error: DataError | None = None
        """What ended the batches, once they have been used up."""
        self._wait_s = 0.0
        self._batches, self._device = batches, device
        self._ahead: LoadedBatch | DataError | StopIteration | None = None
        self._last: LoadedBatch | None = None
        self._copies = None
        if device.type == "cuda":
            self._copies = CopyStream(device)
            self._computed = torch.cuda.Event(enable_timing=True)
            self._read = torch.cuda.Event(enable_timing=True)

    def __next__(self) -> LoadedBatch:
        if self.error is None:
            if self._ahead is None:
                began = time.perf_counter()
                self._ahead = self._fetch()
                self._wait_s += time.perf_counter() - began
            elif self._copies is not None and self._computed.query() and self._read.query():  # else it is still busy
                self._wait_s += max(0.0, self._computed.elapsed_time(self._read)) / 1e3
            found, self._ahead = self._ahead, None
            if isinstance(found, StopIteration) or (isinstance(found, DataError) and self._last is None):
                raise found
            if isinstance(found, DataError):
                self.error = found
            else:
                self._last = self._arrived(found)
        assert self._last is not None, "an error that is kept has a batch before it"
        return self._last

    def fetch_ahead(self) -> None:
        """On CUDA: read the next batch and start its copy. For when the device has been given its work."""
        if self._copies is not None and self._ahead is None and self.error is None:
            self._computed.record()
            self._ahead = self._fetch()

    def take_wait_s(self) -> float:
        """Seconds that the device had no work for lack of a batch, since this was last asked."""
        waited, self._wait_s = self._wait_s, 0.0
        return waited

    def _fetch(self) -> LoadedBatch | DataError | StopIteration:
        """The next batch, on its way to the device; errors are values, to be met where their batch would be."""
        try:
            loaded = next(self._batches)
        except (DataError, StopIteration) as end:
            return end
        if self._copies is None:
            return loaded
        self._read.record(self._copies.stream)
        batch = self._copies.send(lambda batch: batch.to(self._device), loaded.batch)
        return loaded._replace(batch=batch)  # type: ignore[arg-type]  # it can move again

    def _arrived(self, loaded: LoadedBatch) -> LoadedBatch:
        """The batch, with the work that follows told to wait for its copy."""
        if self._copies is not None:
            self._copies.arrive(loaded.batch.to(self._device))  # which it is on
        return loaded
