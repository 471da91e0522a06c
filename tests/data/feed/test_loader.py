"""The loader: the same batches for any workers, split and resume; and worker processes that behave."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import pin_memory

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.contracts import LoadedBatch
from vmae2_ds.data.clips.device_crops import UncutBatch
from vmae2_ds.data.feed import loader
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.readers import watchdog
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.tools.synthetic import SyntheticSet
from vmae2_ds.errors import DataError

MakeConfig = Callable[..., PretrainConfig]


@pytest.fixture(scope="module")
def mixed(synthetic_set: SyntheticSet, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Twelve good videos and two bad ones."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "text.mp4").write_text("no video\n")
    good = [f"{synthetic_set.train.parent}/train/{number:05d}.mp4,good" for number in range(12)]
    (folder / "list.csv").write_text("\n".join(["path,source", "text.mp4,bad", *good, "none.mp4,bad"]) + "\n")
    return mixture_of(folder / "list.csv")


def mixture_of(path: Path) -> Mixture:
    return Mixture.of_manifest(read_manifest(path), "pyav")


def load(config: PretrainConfig, mixture: Mixture, **where: int) -> list[LoadedBatch]:
    usual = {"rank": 0, "world_size": 1, "accumulation": 1, "first_step": 0, "num_steps": 5}
    return list(make_loader(config, PretrainDataset(config, mixture), **usual | where))


def same(one: list[LoadedBatch], other: list[LoadedBatch]) -> bool:
    return len(one) == len(other) and all(
        all(torch.equal(x, y) for x, y in zip(a.batch, b.batch, strict=True)) and a[1:] == b[1:]
        for a, b in zip(one, other, strict=True)
    )


def test_batches_do_not_depend_on_workers_or_resume(mixed: Mixture, make_config: MakeConfig) -> None:
    alone = load(make_config(micro_batch=3, workers=0), mixed, accumulation=2)
    assert len(alone) == 10
    assert same(load(make_config(micro_batch=3, workers=1, read_timeout_s=30), mixed, accumulation=2), alone)
    assert same(load(make_config(micro_batch=3, workers=2, prefetch=1), mixed, accumulation=2), alone)
    assert same(load(make_config(micro_batch=3, workers=1), mixed, accumulation=2, first_step=3), alone[6:])
    assert load(make_config(), mixed, first_step=5) == []
    failed = {Path(failure.path).name for loaded in alone for failure in loaded.failures}
    assert failed == {"text.mp4", "none.mp4"}
    assert sum((Counter(loaded.sources) for loaded in alone), Counter()) == {"good": 30}


def test_a_micro_batch_is_video_by_video(mixed: Mixture, make_config: MakeConfig) -> None:
    config = make_config(micro_batch=3, views=2)
    (first, *_) = load(config, mixed)
    dataset, order = PretrainDataset(config, mixed), mixed.order(seed=0)
    samples = [dataset[order.key_at(position)] for position in range(3)]
    assert torch.equal(first.batch.clip_BTHWC, torch.cat([sample.clip_KTHWC for sample in samples]))
    assert torch.equal(first.batch.decode_BM, torch.cat([sample.decode_KM for sample in samples]))
    assert first.batch.clip_BTHWC.is_contiguous()
    assert first.batch.clip_BTHWC.shape == (6, 8, 32, 32, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_clips_cut_on_the_device_are_those_cut_by_workers(
    mixed: Mixture, make_config: MakeConfig, workers: int
) -> None:
    cut = load(make_config(micro_batch=3, views=2, flip=0.5), mixed)
    uncut = load(make_config(micro_batch=3, views=2, flip=0.5, crop_on="device", workers=workers), mixed)
    for one, other in zip(cut, uncut, strict=True):
        assert isinstance(other.batch, UncutBatch)
        assert [video.shape for video in other.batch.videos_THWC] == [(8, 64, 64, 3)] * 3
        for x, y in zip(one.batch.to("cpu"), other.batch.to("cpu"), strict=True):
            assert torch.equal(x, y)
        assert one[1:] == other[1:]


@pytest.mark.parametrize(("micro_batch", "accumulation", "world_size"), [(4, 2, 1), (2, 2, 2), (2, 1, 4), (1, 4, 2)])
def test_a_step_holds_the_same_clips_for_any_split(
    mixed: Mixture, make_config: MakeConfig, micro_batch: int, accumulation: int, world_size: int
) -> None:
    """Five steps of 8 videos, over three epochs of 14 rows, against one micro batch of 8 on one rank."""

    def clips(loaded: LoadedBatch) -> Counter[bytes]:
        batch = loaded.batch
        pairs = zip(batch.clip_BTHWC, batch.visible_BV, batch.decode_BM, strict=True)
        return Counter(b"".join(part.numpy().tobytes() for part in clip) for clip in pairs)

    whole = [clips(loaded) for loaded in load(make_config(micro_batch=8), mixed)]
    ranks = [
        load(make_config(micro_batch=micro_batch), mixed, rank=rank, world_size=world_size, accumulation=accumulation)
        for rank in range(world_size)
    ]
    for step, expected in enumerate(whole):
        parts = [rank[step * accumulation : (step + 1) * accumulation] for rank in ranks]
        assert sum((clips(loaded) for part in parts for loaded in part), Counter()) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_usable_is_one_readable_line(make_config: MakeConfig, tmp_path: Path, workers: int) -> None:
    (tmp_path / "text.mp4").write_text("no video\n")
    (tmp_path / "list.csv").write_text("path\ntext.mp4\n")
    with pytest.raises(DataError) as refusal:
        load(make_config(workers=workers), mixture_of(tmp_path / "list.csv"))
    assert "\n" not in str(refusal.value)
    assert "text, not a video" in str(refusal.value)


def children() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def test_workers_leave_signals_to_the_main_process_and_end_at_close(mixed: Mixture, make_config: MakeConfig) -> None:
    alone = load(make_config(), mixed, num_steps=12)
    before = children()
    config = make_config(workers=2)
    batches = make_loader(
        config, PretrainDataset(config, mixed), rank=0, world_size=1, accumulation=1, first_step=0, num_steps=12
    )
    found = [next(batches), next(batches)]  # both workers have started
    workers = children() - before
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGINT)
    found += [next(batches) for _ in range(6)]
    assert children() - before == workers
    assert same(found, alone[:8])
    batches.close()
    assert children() == before


def test_a_hung_reader_ends_the_run_and_is_killed(
    mixed: Mixture, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "STALL_S", 1.0)
    monkeypatch.setattr(watchdog, "read_entry", lambda *_: time.sleep(600))
    before = children()
    with pytest.raises(DataError, match=r"worker hung: no batch for \d+ s; .*--data.reader pyav"):
        load(make_config(workers=1, read_timeout_s=0), mixed)  # nobody watches over the read
    assert children() == before


def test_a_slow_batch_is_waited_for_and_none_is_lost(
    mixed: Mixture, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for far more often than it comes."""
    monkeypatch.setattr(loader, "POLL_S", 0.01)
    made = PretrainDataset.collate

    def slow(self: PretrainDataset, samples: list[Any]) -> Any:
        time.sleep(0.2)
        return made(self, samples)

    alone = load(make_config(), mixed)
    monkeypatch.setattr(PretrainDataset, "collate", slow)
    assert same(load(make_config(workers=2), mixed), alone)


@pytest.fixture
def pinning(monkeypatch: pytest.MonkeyPatch) -> Callable[[], threading.Thread]:
    """torch's thread that pins, at work without a device: what it pins stays as it is. Returns a way to find it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    if hasattr(torch, "accelerator"):
        stand_ins = {
            "is_available": lambda: True,
            "current_accelerator": lambda *_, **__: torch.device("cuda"),
            "current_device_index": lambda: 0,
            "current_device_idx": lambda: 0,
            "set_device_index": lambda _: None,
            "set_device_idx": lambda _: None,
        }
        for name, stand_in in stand_ins.items():
            monkeypatch.setattr(torch.accelerator, name, stand_in, raising=False)
    monkeypatch.setattr(pin_memory, "pin_memory", lambda data, device=None: data)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    return lambda: next(thread for thread in threading.enumerate() if "_pin_memory_loop" in repr(thread._target))


def test_pinned_batches_are_the_same(
    mixed: Mixture, make_config: MakeConfig, pinning: Callable[[], threading.Thread]
) -> None:
    alone = load(make_config(), mixed)
    config = make_config(workers=2)
    batches = make_loader(
        config, PretrainDataset(config, mixed), rank=0, world_size=1, accumulation=1, first_step=0, num_steps=5
    )
    found = [next(batches)]
    assert pinning().is_alive()
    found += list(batches)
    assert same(found, alone)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("moment", ["it reads", "its batch is fetched"])
def test_a_dead_worker_is_noticed_with_pinned_memory(moment: str, pinning: Callable[[], threading.Thread]) -> None:
    """Long before a stall would be; the other worker lives on."""
    has_begun = multiprocessing.Event()

    def die(number: int) -> Any:
        if number != 1:
            return number
        has_begun.wait()
        if moment == "it reads":
            os.kill(os.getpid(), signal.SIGKILL)
        return CutOff(ConnectionResetError(104, "Connection reset by peer"), os.getpid())

    items = DataLoader(
        range(9),
        batch_size=None,
        collate_fn=die,
        num_workers=2,
        timeout=loader.POLL_S,
        pin_memory=True,
        multiprocessing_context="fork",
    )
    before = children()
    found = loader.iterate(items)
    assert next(found) == 0
    pins, began = pinning(), time.monotonic()
    has_begun.set()
    with pytest.raises(DataError, match=r"loader worker died with code -9; .*--data.reader pyav"):
        next(found)
    assert time.monotonic() - began < loader.STALL_S / 10
    assert children() == before
    assert not pins.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_pins_and_ends_is_no_worker_s_fault(
    pinning: Callable[[], threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "DYING_S", 0.1)
    items = DataLoader(
        [0],
        collate_fn=lambda _: CutOff(OSError(24, "Too many open files")),
        num_workers=1,
        timeout=0.1,
        pin_memory=True,
        multiprocessing_context="fork",
    )
    with pytest.raises(DataError, match="the thread that pins batches ended"):
        next(loader.iterate(items))


class Unsendable:
    """What torch says of a batch for which /dev/shm has no room left, or of one that cannot be pickled at all."""

    def __init__(self, words: str) -> None:
        self.words = words

    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError(self.words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)",
            "found no room .* in /dev/shm: ",
        ),
        ("cannot pickle this", "died with code 1; "),
    ],
)
def test_a_batch_that_cannot_be_sent_ends_its_worker(words: str, told: str) -> None:
    """torch would drop it, and wait for it until the run stalls."""
    items = DataLoader(
        [0],
        collate_fn=lambda _: Unsendable(words),
        num_workers=1,
        timeout=loader.POLL_S,
        worker_init_fn=loader.start_worker,
        multiprocessing_context="fork",
    )
    with pytest.raises(DataError, match=f"a loader worker {told}.*--data.workers"):
        next(loader.iterate(items))


class CutOff:
    """An item whose sender is gone when it is unpacked, as a batch whose worker is killed while its memory is fetched."""

    def __init__(self, error: Exception, sender: int | None = None) -> None:
        self.error, self.sender = error, sender

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Exception, int | None]]:
        return _cut_off, (self.error, self.sender)


def _cut_off(error: Exception, sender: int | None) -> None:
    if sender is not None:
        os.kill(sender, signal.SIGKILL)
    raise error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_its_batch_is_fetched_is_named(error: Exception) -> None:
    items = DataLoader(
        [0], collate_fn=lambda _: CutOff(error, os.getpid()), num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(DataError, match=r"loader worker died with code -9; .*--data.reader pyav"):
        next(loader.iterate(items))


def test_an_error_of_the_main_process_is_not_blamed_on_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "DYING_S", 0.1)
    error = OSError(24, "Too many open files")
    items = DataLoader([0], collate_fn=lambda _: CutOff(error), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(OSError, match="Too many open files"):
        next(loader.iterate(items))


@pytest.mark.slow  # torch's workers look for their parent every 5 s
def test_workers_die_with_their_parent(synthetic_set: SyntheticSet, tmp_path: Path) -> None:
    program = f"""
import multiprocessing, time
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.config.run import TrainConfig
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.sources.mixture import open_mixture
data = PretrainDataConfig(manifest={str(synthetic_set.train)!r}, workers=2, size=32)
config = PretrainConfig(model=ModelConfig.of_size("tiny"), data=data, train=TrainConfig(micro_batch=1))
dataset = PretrainDataset(config, open_mixture(data))
batches = make_loader(config, dataset, rank=0, world_size=1, accumulation=1, first_step=0, num_steps=99)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(workers) == 2
    deadline_s = time.monotonic() + 30
    while any(Path(f"/proc/{worker}/cmdline").exists() and is_running(worker) for worker in workers):
        assert time.monotonic() < deadline_s, "workers outlived their parent"
        time.sleep(0.2)


def is_running(process: int) -> bool:
    """False for one that has ended and waits to be reaped by whoever adopted it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
