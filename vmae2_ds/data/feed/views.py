"""Labelled videos for testing: fixed views of every video, each video once, and what could not be read."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vmae2_ds.config.finetune import FinetuneConfig, ViewsConfig
from vmae2_ds.data.clips.crops import crop_resize, view_crops
from vmae2_ds.data.clips.sampling import TEST_SAMPLERS, middle_clip
from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.feed.ahead import ask_ahead
from vmae2_ds.data.feed.loader import load_items
from vmae2_ds.data.feed.shared_memory import check_views
from vmae2_ds.data.readers.keeping import make_reader
from vmae2_ds.data.sources.labels import check_labels
from vmae2_ds.data.sources.manifest import Manifest
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import VideoError

# K views of a video, T frames, S the clip's edge.


class ViewedVideo(NamedTuple):
    """One video's views; none where it could not be read, and then why."""

    row: int
    label: int
    """-1 where it has none."""
    clip_KTHWC: Tensor | None
    """uint8 (K, T, S, S, 3), clip by clip, crop by crop."""
    reason: str | None


class ViewsDataset(Dataset[ViewedVideo]):
    """`dataset[row]`: every view that `views` names of the manifest's video, or with None one crop of the middle clip."""

    def __init__(
        self,
        config: FinetuneConfig,
        manifest: Manifest | Sequence[VideoEntry],
        views: ViewsConfig | None,
    ) -> None:
        """A manifest's videos have labels, entries by themselves need none.

        Raises ConfigError for labels that the model has no class for.
        """
        if isinstance(manifest, Manifest):
            check_labels(manifest, config.model.num_classes)
        self.data, self.manifest, self.views = config.data, manifest, views
        reader = "pyav" if self.data.reader == "auto" else self.data.reader
        self._how = ReadAs(reader=reader)
        self._reader = make_reader(self.data.read_timeout_s, self.data.cache, self.data.cache_folder)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> ViewedVideo:
        entry = self.manifest[row]
        label = -1 if entry.label is None else entry.label
        indices_KT = np.empty((0, 0), np.int64)

        def choose(length: int, fps: float) -> np.ndarray:
            nonlocal indices_KT
            del fps
            end = length if entry.frames is None else min(length, entry.start + entry.frames)
            if end - entry.start < 1:
                raise VideoError(f"no frame from frame {entry.start} of {length}")
            stride = self.data.source_strides.get(entry.source, self.data.stride)
            indices_KT = entry.start + self._indices(end - entry.start, stride)
            return np.unique(indices_KT)  # clips share frames: each is decoded once

        try:
            frames_THWC = self._reader.read(entry, self._how, choose)
        except VideoError as error:
            return ViewedVideo(row, label, None, f"{entry.name}: {error}")
        place = np.searchsorted(np.unique(indices_KT), indices_KT)
        frames = torch.from_numpy(frames_THWC)
        boxes = view_crops(frames.shape[1], frames.shape[2], self.views.crops if self.views else 1)
        views = [crop_resize(frames[list(clip)], box, self.data.size) for clip in place for box in boxes]
        return ViewedVideo(row, label, torch.stack(views), None)

    def _indices(self, length: int, stride: int) -> np.ndarray:
        if self.views is None:
            return middle_clip(self.data.sampling, length, self.data.num_frames, stride)[None]
        return TEST_SAMPLERS[self.views.sampling](length, self.data.num_frames, stride, self.views.clips)

    def iterate(self, rows: Sequence[int]) -> Generator[ViewedVideo, None, None]:
        """These rows in order, read by `data.workers` processes. Raises DataError where one of them dies or hangs."""
        return load_items(self.data, self, rows)

    def answers(
        self, rows: Sequence[int], ask: Callable[[Tensor], Iterable[Tensor]], device: torch.device
    ) -> Iterator[tuple[ViewedVideo, list[Tensor]]]:
        """Each video of these rows, and on the host what `ask` says of its clips on `device`; [] of one without clips.

        As `ask_ahead`. Raises as `iterate`.
        """

        def move(video: ViewedVideo) -> Tensor | None:
            return None if video.clip_KTHWC is None else video.clip_KTHWC.to(device, non_blocking=True)

        return ask_ahead(self.iterate(rows), move, ask, device)

    def check_shared_memory(self, ranks: Ranks) -> None:
        """Warn or raise ConfigError where /dev/shm may be full before the videos are read; all ranks have to ask."""
        workers = min(self.data.workers, -(-len(self) // ranks.size))
        views = 1 if self.views is None else self.views.clips * self.views.crops
        check_views(self.data.model_copy(update={"workers": workers}), views, ranks)
