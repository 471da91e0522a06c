"""What `vmae2 extract` is asked, and what it says of its work."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from vmae2_ds.config.strict import ClipLength, Count, Edge, Part, ReadLimit, StrictModel, Workers
from vmae2_ds.console.progress import counted
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.downstream.features.windows import GridName

LOCK = ".extract.lock"
"""Held in the folder by the job that writes into it."""


class ExtractArguments(StrictModel):
    """Write features of long videos: a vector for each window of frames, as detectors of actions in time read them.

    Each frame is decoded once, by PyAV. <video>.npy holds the features, (rows, width); <video>.json beside it frames,
    frame rate and rows; features.json what all files of the folder are: model and hash of its weights, grid, window,
    stride, offset, pixels, size. The same command goes on where it was stopped; a finished video is not done again.
    """

    source: tyro.conf.Positional[Path]
    """Model: a run folder (its newest whole checkpoint is taken), a folder of runs (the newest), a checkpoint
    runs/.../ckpt/stepN, or a checkpoint file or folder that vmae2 import can read."""
    manifest: Path
    """List of videos, or an indexed folder; labels are not looked at. Rows may name a part of a video (start, frames)."""
    out: Path
    """Folder to write: new, or one of the same features, which is completed. One with features of another model, grid,
    window, stride, size or the like is refused and stays as it is."""
    root: Path | None = None
    """Folder that relative paths in the list start from; default: the list's own folder."""
    grid: GridName = "opengvlab"
    """Where windows lie. opengvlab: window i begins at frame i x stride, only whole windows count, feature i stands for
    the middle of its window (8 frames behind i x stride for 16 frames); opentad: window i has frame i x stride in its
    middle, edge frames are repeated, feature i stands for half a stride behind frame i x stride (2 frames for a stride of
    4). The two published sets of THUMOS14 features differ in this: a detector has to be told which."""
    window: ClipLength | None = None
    """Number of frames in a window; default: the model's number of frames."""
    stride: ClipLength = 4
    """Frames from one window to the next. Published: 4 for THUMOS14, 16 for FineAction."""
    interval: ClipLength = 1
    """Step between two frames of a window."""
    what: Literal["windows", "video", "tokens"] = "windows"
    """windows: the mean token of each window; video: one vector of each video, the mean over its windows, for retrieval
    and probing; tokens: every token of each window in front of the pooling, (rows, tokens, width), which is large."""
    size: Edge | None = None
    """Height and width of a window in pixels; default: the run's. Of a checkpoint file: what the file says, else 224."""
    aspect: Literal["crop", "squash"] = "crop"
    """How frames become square. crop: the middle square of the short side, as in testing; squash: the whole frame,
    without its aspect."""
    published_pixels: bool = False
    """Give the model what the published extractor of OpenGVLab gave it: pixels from 0 to 1 without ImageNet's mean and
    deviation, though the model was trained with them, and whole frames squashed without antialias. features.json says so."""
    precision: Literal["bf16", "fp32"] | None = None
    """Number format of the forward pass; default: the run's, for a checkpoint file bf16."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number format of the files; published ones have float32."""
    batch: Count = 16
    """Number of windows that the model sees at once."""
    workers: Workers = 2
    """Number of videos that each rank reads at the same time, each in a process of its own; 0 reads in the main process,
    where a hanging reader cannot be stopped."""
    timeout_s: ReadLimit = 300
    """Seconds after which opening a video, or its next frames, are given up: its reader is killed and the video counts as
    bad. To open one is to go through the file once."""
    missing: Literal["retry", "skip"] = "retry"
    """What to do with videos that missing_files.txt in the folder names, which could not be read before."""
    max_bad_share: Part = 0.0
    """Largest share of videos that may be unreadable; with more the command ends with exit code 77 after all others are
    written. Every unreadable video is named in any case, in missing_files.txt and, with the reason, in bad_files.jsonl."""
    frame_folders: str | None = None
    """The list is of folders of frames, whose files are named by this Python format of the frame number, such as
    img_{:05}.jpg; default: of videos."""
    config: Path | None = None
    """JSON file with fields of the model config that the weights of a checkpoint file do not show, such as {"encoder":
    {"heads": 8}}. A run says them itself."""


class Extracted(NamedTuple):
    """What came of it, over all ranks."""

    folder: str
    videos: int
    """Videos that were done now."""
    before: int
    """Videos that were finished before."""
    left_out: int
    """Videos that missing_files.txt named, with `missing` skip."""
    failures: tuple[str, ...]
    """`name: reason` of each that could not be read."""
    windows: int
    frames: int
    """Frames of the videos done now."""
    decoded: int
    """Frames that came out of decoders."""
    size: int
    """Bytes of the videos done now; 0 of folders of frames."""
    seconds: float


class Listed(NamedTuple):
    """A video and what its files are called."""

    name: str
    entry: VideoEntry


def describe(result: Extracted) -> str:
    """What was done, how fast, and where it lies."""
    seconds = max(result.seconds, 1e-9)
    line = f"{counted(result.videos, 'video')} done, {counted(result.windows, 'window')}"
    if result.before:
        line += f"; {counted(result.before, 'video')} before"
    if result.left_out:
        line += f"; {result.left_out} left out, as in missing_files.txt"
    if result.failures:
        line += f"; {len(result.failures)} could not be used"
    rates = f"{result.videos / seconds:.3g} videos/s, {result.windows / seconds:.4g} windows/s"
    rates += f", {megabytes(result.size / seconds)}/s" if result.size else ""
    frames = f"{counted(result.decoded, 'frame')} decoded of {result.frames}"
    return f"{line}; {frames}; {result.seconds:.1f} s, {rates}; {result.folder}"


def megabytes(size: float) -> str:
    """Bytes in MB."""
    return f"{size / 1e6:.3g} MB"
