"""The features of many videos into a folder: shared out over ranks, each video whole or not there, what was done is kept."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.contracts import ReadFailure
from vmae2_ds.data.bad_files import BadFileLedger
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.feed.ahead import ask_ahead
from vmae2_ds.data.readers.watchdog import GuardedReader
from vmae2_ds.disk import hold, write_whole
from vmae2_ds.dist import Ranks, default_device
from vmae2_ds.downstream.features.arguments import LOCK, ExtractArguments, Extracted, Listed, megabytes
from vmae2_ds.downstream.features.read_ahead import Read, read_videos
from vmae2_ds.downstream.features.sidecar import (
    MISSING,
    FeatureFile,
    FeatureInfo,
    VideoFeatures,
    claim_folder,
    declare_finished,
    finished_video,
    is_finished,
    read_missing,
)
from vmae2_ds.downstream.features.video_windows import Pooled, VideoWindows
from vmae2_ds.errors import ConfigError, DataError, Vmae2Error
from vmae2_ds.model.embed import unit_pixels
from vmae2_ds.model.encoder import ClipEncoder

log = logging.getLogger(__name__)

MOST_OFF_S = 0.5
"""Seconds that a feature may stand beside its time without a word."""


def extract_into(
    module: ClipEncoder, info: FeatureInfo, listed: Sequence[Listed], asked: ExtractArguments, ranks: Ranks
) -> Extracted:
    """Write what is not there yet of the features of `listed` into `asked.out`; rank r does every ranks-th of them.

    Raises ConfigError where the folder holds other features, also of another part of a video under the same name, or another
    job writes into it.
    """
    folder, began = asked.out, time.monotonic()
    with contextlib.ExitStack() as held:

        def begin() -> tuple[list[int], int, int]:
            if (lock := hold(folder / LOCK)) is None:
                raise ConfigError(
                    f"{folder}: another job writes its features into it; wait for it, or give another --out"
                )
            held.enter_context(lock)
            claim_folder(folder, info)
            unreadable = read_missing(folder)
            missing = set(unreadable) if asked.missing == "skip" else set()
            found = [finished_video(folder, one.name, info) for one in listed]
            _check_same_videos(folder, listed, found)
            done = [about is not None for about in found]
            todo = [row for row, one in enumerate(listed) if not done[row] and one.name not in missing]
            todo.sort(
                key=lambda row: -_bytes_of(listed[row].entry)
            )  # ranks have about as much, and end with the short ones
            return todo, sum(done), len(listed) - len(todo) - sum(done)

        todo, before, left_out = ranks.from_first(begin)
        if ranks.rank == 0 and before + left_out:
            log.info("%s: %d of %s are done, %d left out", folder, before, counted(len(listed), "video"), left_out)
        part = _Part(encoder_for(module, info), info, asked, ranks)
        mine = [listed[row] for row in todo[ranks.rank :: ranks.size]]
        error = None
        try:
            part.run(mine, len(todo))
        except (OSError, Vmae2Error) as found:  # said to all: the others would wait for this rank
            error = found
        said = ranks.first_said(None if error is None else f"rank {ranks.rank}: {error}")
        if said is not None:
            raise error or DataError(f"stopped with {said}")
        parts = ranks.gather((part.counts, part.failures))

        def end() -> Extracted:
            assert parts is not None, "rank 0 has them"
            named = {*read_missing(folder), *(one.name for one in listed)}  # also those of other lists, from before
            absent = sorted(name for name in named if not is_finished(folder, name, info))
            write_whole(folder / MISSING, "".join(f"{name}\n" for name in absent))
            videos, windows, frames, decoded, size = (
                sum(counts) for counts in zip(*(one for one, _ in parts), strict=True)
            )
            failures = tuple(failure for _, some in parts for failure in some)
            seconds = time.monotonic() - began
            return Extracted(str(folder), videos, before, left_out, failures, windows, frames, decoded, size, seconds)

        return ranks.from_first(end)


def encoder_for(module: ClipEncoder, info: FeatureInfo) -> ClipEncoder:
    """The encoder as the settings want it, in inference on this rank's device."""
    if info.pixels == "unit":
        module.pixels = unit_pixels
    if info.precision == "bf16":
        module.bfloat16()
    return module.to(default_device()).requires_grad_(False).eval()


class _Part:
    """One rank's videos."""

    def __init__(self, module: ClipEncoder, info: FeatureInfo, asked: ExtractArguments, ranks: Ranks) -> None:
        self._module, self._info, self._asked, self._ranks = module, info, asked, ranks
        self._ledger = BadFileLedger(asked.out / "bad_files.jsonl")
        self._open: dict[int, tuple[FeatureFile, Pooled]] = {}
        self._began, self._windows = time.monotonic(), 0
        self.counts = [0, 0, 0, 0, 0]
        """Videos, windows, frames, frames decoded, bytes of the videos."""
        self.failures: list[str] = []

    def run(self, listed: Sequence[Listed], total: int) -> None:
        """Write the features of these videos; `total` is over all ranks."""
        how = ReadAs() if self._asked.frame_folders is None else ReadAs("frames", self._asked.frame_folders)
        device, size = default_device(), self._ranks.size

        def open_video(number: int, reader: GuardedReader) -> VideoWindows:
            return VideoWindows(listed[number].entry, self._info, reader, how, self._asked.batch)

        def move(item: Read) -> Tensor | None:
            return None if item.batch is None else item.batch.windows(device)

        ticker = Ticker(log, "videos extracted", total, speaks=self._ranks.rank == 0, also=self._rates)
        workers, timeout_s = self._asked.workers, self._asked.timeout_s
        items = read_videos(open_video, len(listed), workers, timeout_s, pinned=device.type == "cuda")
        try:
            with heard(ticker), torch.inference_mode(), contextlib.closing(items):
                for item, answers in ask_ahead(items, move, self._ask, device):
                    self._take(listed[item.number], item, answers)
                    if item.batch is None:
                        ticker.tell(
                            min((self.counts[0] + len(self.failures)) * size, total)
                        )  # the others are about as far
        except BaseException:
            for file, _ in self._open.values():
                file.abandon()
            raise

    def _ask(self, windows: Tensor) -> Iterator[Tensor]:
        yield (self._module.tokens if self._info.pooling == "tokens" else self._module)(windows)

    def _take(self, one: Listed, item: Read, answers: Sequence[Tensor]) -> None:
        """Some windows' features, or the end of a video."""
        video, folder = item.video, self._asked.out
        if answers:
            if item.number not in self._open:
                shape = {"window": (video.rows,), "video": (1,), "tokens": (video.rows, answers[0].shape[1])}
                whole = (*shape[self._info.pooling], self._info.width)
                file = FeatureFile(folder, one.name, whole, np.dtype(self._info.dtype))
                self._open[item.number] = file, Pooled(self._info)
            file, pooled = self._open[item.number]
            rows = pooled.add(answers[0])
            self._windows += len(rows)
            if self._info.pooling != "video":
                file.add(rows)
            return
        opened = self._open.pop(item.number, None)
        if item.reason is not None:
            if opened is not None:
                opened[0].abandon()
            self.failures.append(f"{one.entry.name}: {item.reason}")
            self._ledger.record([ReadFailure(one.entry.name, item.reason)])
            log.warning("%s: %s", one.entry.name, item.reason)
            return
        assert opened is not None, "a video that was read has windows"
        file, pooled = opened
        with file:
            if self._info.pooling == "video":
                file.add(pooled.mean())
        declare_finished(folder, one.name, video.about)
        if video.count.off_s > MOST_OFF_S:
            log.warning(
                "%s: its frame rate varies, and its features stand up to %.1f s beside their times; encode it anew with a "
                "constant rate (ffmpeg -i IN -fps_mode cfr OUT)",
                one.entry.name, video.count.off_s,
            )  # fmt: skip
        found = (1, video.rows, video.frames, video.count.decoded, _bytes_of(one.entry))
        self.counts = [counted_ + more for counted_, more in zip(self.counts, found, strict=True)]

    def _rates(self) -> str:
        """Speeds of all ranks, as far as this one can tell: the others are about as fast."""
        seconds = max(time.monotonic() - self._began, 1e-9) / self._ranks.size
        return (
            f"{self.counts[0] / seconds:.3g} videos/s, {self._windows / seconds:.4g} windows/s, "
            f"{megabytes(self.counts[-1] / seconds)}/s"
        )


def _check_same_videos(folder: Path, listed: Sequence[Listed], found: Sequence[VideoFeatures | None]) -> None:
    """Refuse features of another part of a video than the list names; tell of those that were read from another place."""
    moved: list[str] = []
    for (name, entry), about in zip(listed, found, strict=True):
        if about is None:
            continue
        if (about.start, about.asked_frames) != (entry.start, entry.frames):
            there, asked = _part(about.start, about.asked_frames), _part(entry.start, entry.frames)
            raise ConfigError(
                f"{folder / name}.npy holds {there} of its video, and the list names {asked}; give another --out, or one list "
                "with all parts"
            )
        if about.video not in ("", entry.name):
            moved.append(f"{name} of {about.video}, now {entry.name}")
    if moved:
        log.warning(
            "%s: %s read from another place than the list says, and are kept, the first %s; if these are other videos of the "
            "same names, give another --out",
            folder, counted(len(moved), "finished video was", "finished videos were"), moved[0],
        )  # fmt: skip


def _part(start: int, frames: int | None) -> str:
    if frames is None:
        return f"all from frame {start} on"
    return f"frames {start} to {start + frames - 1}"


def _bytes_of(entry: VideoEntry) -> int:
    """Size of a video file or of a member of a shard; 0 where nobody knows it."""
    if entry.shard is not None:
        return entry.size
    return Path(entry.path).stat().st_size if os.path.isfile(entry.path) else 0
