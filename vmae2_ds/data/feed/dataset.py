"""One video of a mixture -> a sample, each a function of the seed, the sample's key and the view alone."""

from __future__ import annotations

import difflib
import logging
import math
from abc import abstractmethod
from typing import Protocol, TypeVar

import numpy as np
from torch.utils.data import Dataset

from vmae2_ds.config.run import DataConfig
from vmae2_ds.console.progress import counted
from vmae2_ds.contracts import Movable, ReadFailure
from vmae2_ds.data.clips.sampling import SAMPLERS
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.readers.keeping import make_reader
from vmae2_ds.data.seeding import Purpose, generator
from vmae2_ds.data.sources.mixture import Mixture, Source
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.errors import ConfigError, DataError, VideoError

log = logging.getLogger(__name__)

# K views of a video, T frames, S the clip's edge, V visible cubes, M decoded cubes.

MAX_ATTEMPTS = 8
"""Videos tried for one sample. Replacements are drawn from the whole source, so 8 bad ones mean it is mostly bad."""


class Sample(Protocol):
    """What a dataset makes of one video."""

    @property
    def failures(self) -> list[ReadFailure]:
        """Videos tried before it."""

    @property
    def source(self) -> str:
        """The source it is counted under."""


S = TypeVar("S", bound=Sample)


class VideoDataset(Dataset[S]):
    """`dataset[SampleKey]` decodes one video once; a subclass says what is cut from it, and how samples become a batch.

    Videos are read by a child of the process that asks first (data/readers/watchdog.py), unless `data.read_timeout_s` is 0.
    """

    def __init__(self, data: DataConfig, seed: int, mixture: Mixture) -> None:
        """Raises ConfigError for a stride whose source looks like a misspelt one of the mixture.

        A source that is simply absent is fine: the hybrid recipes name SSv2, and other sets have none.
        """
        self._data, self.seed, self.mixture = data, seed, mixture
        self._reader = make_reader(data.read_timeout_s, data.cache, data.cache_folder)
        spelt = {source.lower(): source for source in mixture.names}
        for source in sorted(set(data.source_strides) - set(mixture.names)):
            for near in difflib.get_close_matches(source.lower(), spelt, n=1):
                raise ConfigError(
                    f"--data.source-strides: {mixture.name} has no source {source!r}; did you mean {spelt[near]!r}?"
                )
            log.info(
                "no video has the source %r of --data.source-strides; sources are %s", source, ", ".join(mixture.names)
            )

    @abstractmethod
    def cut(
        self, frames_THWC: np.ndarray, entry: VideoEntry, key: SampleKey, failures: list[ReadFailure], source: str
    ) -> S:
        """The sample made of these frames, which are the reader's and valid until its next read."""

    @abstractmethod
    def collate(self, samples: list[S]) -> Movable:
        """The samples of a micro batch, as `cut` made them, in one batch."""

    def __getitem__(self, key: SampleKey) -> S:
        """Raises DataError when MAX_ATTEMPTS videos of the source in a row cannot be used."""
        failures: list[ReadFailure] = []
        source = self.mixture.sources[key.source]
        for attempt in range(MAX_ATTEMPTS):
            entry = self.entry_of(key, attempt)
            name = source.name or entry.source
            try:
                frames_THWC = self._read(entry, source, name, key, attempt)
            except VideoError as error:
                failures.append(ReadFailure(entry.name, str(error)))
                continue
            return self.cut(frames_THWC, entry, key, failures, name)
        raise DataError(
            f"{source.manifest.file}: none of {MAX_ATTEMPTS} videos drawn for epoch {key.epoch}, row {key.row} could be "
            f"used; the last: {failures[-1].path}: {failures[-1].reason}; check --data.root and the files"
        )

    def describe_cache(self) -> str | None:
        """One line on the videos that are kept decoded; None without `data.cache`."""
        return self._reader.describe()

    def entry_of(self, key: SampleKey, attempt: int = 0) -> VideoEntry:
        """The video that is tried after `attempt` others could not be used."""
        return self.mixture.sources[key.source].manifest[self._row(key, attempt)]

    def _generator(self, purpose: Purpose, key: SampleKey, view: int = 0, attempt: int = 0) -> np.random.Generator:
        return generator(purpose, self.seed, key.epoch, key.row, view, attempt, key.source)

    def _row(self, key: SampleKey, attempt: int) -> int:
        """The key's row, then others of the same source, so that shares hold."""
        if attempt == 0:
            return key.row
        draw = self._generator(Purpose.REPLACEMENT, key, attempt=attempt)
        return int(draw.integers(len(self.mixture.sources[key.source].manifest)))

    def _read(self, entry: VideoEntry, source: Source, name: str, key: SampleKey, attempt: int) -> np.ndarray:
        """(T, H, W, 3) uint8, valid until the next read; raises VideoError."""

        def choose(length: int, fps: float) -> np.ndarray:
            part = max(0, length - entry.start) if entry.frames is None else min(entry.frames, length - entry.start)
            if part < self._data.min_frames:
                whole = "" if part == length else f" from frame {entry.start} of {length}"
                raise VideoError(
                    f"too short: {counted(max(0, part), 'frame')}{whole}; min_frames={self._data.min_frames}"
                )
            return entry.start + self._clip_indices(part, self._stride(source, name, fps), key, attempt)

        return self._reader.read(entry, source.how, choose)

    def _clip_indices(self, length: int, stride: int, key: SampleKey, attempt: int) -> np.ndarray:
        """(T,) indices of a clip in a video of `length` frames."""
        rng = self._generator(Purpose.FRAMES, key, attempt=attempt)
        return SAMPLERS[self._data.sampling](length, self._data.num_frames, stride, rng)

    def _stride(self, source: Source, name: str, fps: float) -> int:
        """Step between frames; raises VideoError where it follows from the video's rate and the video has none."""
        if source.fps is None:
            return source.stride or self._data.source_strides.get(name, self._data.stride)
        if not (math.isfinite(fps) and fps > 0):
            raise VideoError(
                f"does not tell its frame rate, and source {name!r} asks for {source.fps:g} frames a second"
            )
        return max(1, round(fps / source.fps))
