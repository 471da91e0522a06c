"""Batches on their way to the device: none lost, repeated or out of order, errors where their batch would have been."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from vmae2_ds.contracts import LoadedBatch, PretrainBatch
from vmae2_ds.errors import DataError
from vmae2_ds.train.feed import Feed

CPU = torch.device("cpu")


def batches(count: int, size: int = 1, pinned: bool = False, error: Exception | None = None) -> Iterator[LoadedBatch]:
    """Batches whose every value is their number, and perhaps an error after them."""
    for number in range(count):
        parts = [torch.full((size,), number, dtype=dtype) for dtype in (torch.uint8, *[torch.int64] * 3)]
        batch = PretrainBatch(*(part.pin_memory() if pinned else part for part in parts))
        yield LoadedBatch(batch, [], {"source": number})
    if error is not None:
        raise error


def number_of(loaded: LoadedBatch) -> int:
    return int(loaded.batch.clip_BTHWC[0])


def test_batches_pass_through_in_order() -> None:
    feed = Feed(batches(3), CPU)
    numbers = []
    for loaded in feed:
        feed.fetch_ahead()
        numbers.append(number_of(loaded))
        assert loaded.sources == {"source": numbers[-1]}
    assert numbers == [0, 1, 2]


def test_on_the_cpu_nothing_is_read_before_it_is_asked_for() -> None:
    source = batches(2)
    feed = Feed(source, CPU)
    next(feed)
    feed.fetch_ahead()
    assert number_of(next(source)) == 1


def test_after_an_error_the_last_batch_comes_again() -> None:
    feed = Feed(batches(2, error=DataError("gone")), CPU)
    assert [number_of(next(feed)) for _ in range(2)] == [0, 1]
    assert feed.error is None
    assert [number_of(next(feed)) for _ in range(3)] == [1, 1, 1]
    assert str(feed.error) == "gone"


def test_errors_without_a_batch_and_defects_are_raised() -> None:
    with pytest.raises(DataError, match="gone"):
        next(Feed(batches(0, error=DataError("gone")), CPU))
    feed = Feed(batches(1, error=ValueError("a defect")), CPU)
    next(feed)
    with pytest.raises(ValueError, match="a defect"):
        next(feed)


def test_the_wait_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which every batch takes 4 s."""
    ticks = iter(range(0, 1000, 4))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    feed = Feed(batches(3), CPU)
    next(feed)
    next(feed)
    assert feed.take_wait_s() == 8
    assert feed.take_wait_s() == 0
    next(feed)
    assert feed.take_wait_s() == 4


class StandIn(NamedTuple):
    """A batch that says it has moved wherever it is sent."""

    clip_BTHWC: torch.Tensor

    def to(self, device: torch.device | str) -> StandIn:
        del device
        return self


class TestWithStandIns:
    """The way of CUDA, with streams and events that stand still in a time of their own."""

    @pytest.fixture
    def now_ms(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The device's time, set by hand; what is recorded is done at once."""
        now = [0.0]

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                del enable_timing

            def record(self, stream: object = None) -> None:
                self.at_ms = now[0]

            def query(self) -> bool:
                return True

            def elapsed_time(self, later: Event) -> float:
                return later.at_ms - self.at_ms

        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
        monkeypatch.setattr(torch.cuda, "stream", nullcontext)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
        return now

    def test_one_batch_is_ahead_and_the_device_s_wait_for_it_is_counted(self, now_ms: list[float]) -> None:
        """Work ends at 1,000 ms; the second batch is read at 1,250 and the third at once."""
        read_at_ms, read = [0.0, 1250.0, 1250.0, 1250.0], []

        def source() -> Iterator[LoadedBatch]:
            for number, at_ms in enumerate(read_at_ms):
                now_ms[0] = at_ms
                read.append(number)
                yield LoadedBatch(StandIn(torch.full((1,), number)), [], {})
            raise DataError("gone")

        feed = Feed(source(), torch.device("cuda"))
        assert number_of(next(feed)) == 0
        feed.take_wait_s()  # of the first, which nothing could hide
        now_ms[0] = 1000.0
        feed.fetch_ahead()
        feed.fetch_ahead()
        assert read == [0, 1], "one ahead, not two"
        assert number_of(next(feed)) == 1
        assert feed.take_wait_s() == pytest.approx(0.25)
        for number in (2, 3):
            feed.fetch_ahead()
            assert number_of(next(feed)) == number
        assert feed.take_wait_s() == 0
        feed.fetch_ahead()
        assert feed.error is None, "its place is after this step"
        assert number_of(next(feed)) == 3
        assert str(feed.error) == "gone"


@pytest.mark.gpu
class TestOnCuda:
    def test_copies_that_overlap_with_work_arrive_whole(self) -> None:
        """Work on a batch is still under way while the next ones come: without record_stream their memory is reused."""
        device = torch.device("cuda")
        feed = Feed(batches(40, size=2**22, pinned=True), device)
        busy = torch.randn(2048, 2048, device=device)
        sums = []
        for loaded in feed:
            for _ in range(10):
                busy = busy @ busy / 2048
            sums.append(torch.stack([part.double().sum() for part in loaded.batch]))
            del loaded
            feed.fetch_ahead()
        expected = torch.arange(40, dtype=torch.float64)[:, None].expand(40, 4) * 2**22
        torch.testing.assert_close(torch.stack(sums).cpu(), expected, rtol=0, atol=0)
        assert feed.take_wait_s() >= 0

    def test_one_batch_is_read_ahead_and_errors_keep_their_place(self) -> None:
        source = batches(3, pinned=True, error=DataError("gone"))
        feed = Feed(source, torch.device("cuda"))
        assert next(feed).batch.decode_BM.is_cuda
        feed.fetch_ahead()
        feed.fetch_ahead()  # one ahead, not two
        assert number_of(next(feed)) == 1
        feed.fetch_ahead()
        assert number_of(next(feed)) == 2
        feed.fetch_ahead()  # meets the error, whose place is after this step
        assert feed.error is None
        assert number_of(next(feed)) == 2
        assert str(feed.error) == "gone"
        feed.fetch_ahead()
        assert number_of(next(feed)) == 2

    def test_waiting_is_what_the_device_waits(self) -> None:
        """Reading costs nothing while the device still computes; where it is idle before the batch is there, it costs."""
        device = torch.device("cuda")
        ready = list(batches(4, pinned=True))  # pinning may wait for the device

        def idle_at_the_end() -> Iterator[LoadedBatch]:
            yield from ready[:3]
            torch.cuda.synchronize()
            yield ready[3]

        feed = Feed(idle_at_the_end(), device)
        next(feed)
        feed.take_wait_s()
        for _ in range(2):
            torch.cuda._sleep(200_000_000)  # cycles
            feed.fetch_ahead()
            torch.cuda.synchronize()
            next(feed)
        assert feed.take_wait_s() == 0
        feed.fetch_ahead()
        torch.cuda.synchronize()
        next(feed)
        assert feed.take_wait_s() > 0
