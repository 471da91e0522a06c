"""Features of a long video as the published extractor takes them, written here from its facts, to measure ours against.

Every window is asked of the reader anew, its frames become floats in [0, 1] and are resized whole without antialias, and the
model gets one window at a time (docs/PAPER.md#clip-features-of-long-videos).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# R windows, W frames of a window, S the clip's edge, D width.

Model = Callable[[Tensor], Tensor]
"""(1, W, S, S, 3) floats in [0, 1] -> (1, D)."""


class Extracted(NamedTuple):
    """Features, and what was decoded for them."""

    feature_RD: np.ndarray
    frames: int | None
    """Frames that came out of the decoder; None where the reader does not say."""


class Windows(NamedTuple):
    """What is taken of a video."""

    window: int
    """Frames of a window, one after the other."""
    stride: int
    """Frames from one window to the next."""
    size: int
    """Height and width in pixels."""
    most_frames: int | None = None
    """The video counts as no longer than this."""

    def starts(self, frames: int) -> range:
        """First frames of the windows: whole ones alone."""
        return range(0, min(frames, self.most_frames or frames) - self.window + 1, self.stride)


def extract_with_decord(video: str | Path, model: Model, windows: Windows) -> Extracted:
    """Window by window with decord, as published: it seeks for each window, and does not say what it decodes."""
    import decord

    opened = decord.VideoReader(str(video), ctx=decord.cpu(0), num_threads=1)
    features = [
        _feature(opened.get_batch(np.arange(start, start + windows.window)).asnumpy(), model, windows.size)
        for start in windows.starts(len(opened))
    ]
    return Extracted(np.vstack(features), None)


def extract_with_pyav(video: str | Path, model: Model, windows: Windows) -> Extracted:
    """Window by window with PyAV, from the key frame before each; the file's rate has to be constant."""
    import av

    features, decoded = [], 0
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        ticks = float(1 / (stream.average_rate * stream.time_base))
        for start in windows.starts(stream.frames):
            frames, count = _window_of(container, stream, start, windows.window, ticks)
            decoded += count
            features.append(_feature(frames, model, windows.size))
    return Extracted(np.vstack(features), decoded)


def _window_of(container: Any, stream: Any, start: int, window: int, ticks: float) -> tuple[np.ndarray, int]:
    """Frames from `start` on, and how many were decoded for them; `ticks` of the stream's clock are one frame."""
    first = stream.start_time or 0
    container.seek(round(start * ticks) + first, stream=stream)
    found, decoded = [], 0
    for frame in container.decode(stream):
        decoded += 1
        if round((frame.pts - first) / ticks) >= start:
            found.append(frame.to_ndarray(format="rgb24"))
        if len(found) == window:
            break
    return np.stack(found), decoded


def _feature(frames_WHWC: np.ndarray, model: Model, size: int) -> np.ndarray:
    clip_WCHW = torch.from_numpy(frames_WHWC).permute(0, 3, 1, 2).float() / 255
    clip_WCSS = F.interpolate(clip_WCHW, size=(size, size), mode="bilinear", align_corners=False)
    with torch.inference_mode():
        return model(clip_WCSS.permute(0, 2, 3, 1)[None]).float().cpu().numpy()
