"""A folder of features: `features.json` says what all of them are, and beside each `<video>.npy` a `<video>.json` what the
video is. A file counts once its `<video>.json` is there, which is written last."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import Field, ValidationError

from vmae2_ds.config.strict import Amount, ClipLength, Count, Edge, StrictModel, Whole
from vmae2_ds.disk import whole_file, write_whole
from vmae2_ds.downstream.features.windows import GridName, WindowGrid
from vmae2_ds.errors import ConfigError, DataError

# R rows (windows) of a video, N tokens of a window, D width.

INFO = "features.json"
MISSING = "missing_files.txt"
"""A line for each video that has no features, as OpenTAD names and reads it."""
Pooling = Literal["window", "video", "tokens"]
"""window: the mean token of each window (R, D); video: their mean over the video (1, D); tokens: all of them (R, N, D)."""
Model = TypeVar("Model", bound=StrictModel)


class FeatureInfo(StrictModel):
    """What the features of a folder are. Two folders can be used together where `differing` names nothing."""

    model: str
    """The model, for people: its size and stage."""
    weights: str
    """SHA-256 of the weights; empty: unknown, as of published features."""
    grid: GridName
    """How windows lie in a video."""
    window: ClipLength
    """Frames of a window."""
    stride: ClipLength
    """Frames from one window to the next."""
    interval: ClipLength
    """Frames from one frame of a window to its next."""
    offset_frames: Annotated[float, Field(ge=-1e6, le=1e6)]
    """Feature i stands for the time (i * stride + offset_frames) / fps seconds."""
    pixels: Literal["imagenet", "unit"]
    """What the model was given. imagenet: pixels less the mean and by the deviation of ImageNet; unit: pixels from 0 to 1 as
    they are (the published extractor)."""
    resize: Literal["crop", "squash", "squash_no_antialias"]
    """How frames become squares. crop: the short side is resized and the middle cut out; squash: the whole frame is;
    squash_no_antialias: the same without smoothing before, as the published extractor does."""
    size: Edge
    """Height and width of a window in pixels."""
    pooling: Pooling = "window"
    """What a file holds."""
    precision: Literal["fp32", "bf16"]
    """Number format that the model computed in."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number format of the files."""
    width: Count
    """Width D of a feature."""
    made_by: Literal["extract", "others"] = "extract"
    """others: brought along, with nothing beside `<video>.npy`."""

    @property
    def window_grid(self) -> WindowGrid:
        """Which frames a window has."""
        return WindowGrid(self.grid, self.window, self.stride, self.interval)

    def differing(self, other: FeatureInfo) -> list[str]:
        """What keeps features of `other` from being used as ours, a phrase each: "stride 8, not 4"; empty: nothing does."""
        said = {"model", "made_by"}
        mine, theirs = self.model_dump(exclude=said), other.model_dump(exclude=said)
        return [
            f"{name} {_shown(theirs[name])}, not {_shown(mine[name])}" for name in mine if mine[name] != theirs[name]
        ]


_GIANT: dict[str, Any] = {
    **{"model": "VideoMAE V2-g, published", "weights": "", "window": 16, "interval": 1, "size": 224},
    **{"precision": "fp32", "width": 1408, "made_by": "others"},
}


class VideoFeatures(StrictModel):
    """What is one video's own."""

    frames: Whole | None
    """Frames of the video (or of the part of it that the list names); None: unknown."""
    fps: Annotated[float, Field(gt=0)] | None
    """Frames a second; None: unknown."""
    rows: Whole
    """Number of windows."""
    off_s: Amount = 0.0
    """Seconds between the time of a frame of the file and its number over `fps`, at most; large where the rate varies."""
    video: str = ""
    """Where it was read from."""
    start: Whole = 0
    """First frame of the part that the list names."""
    asked_frames: Whole | None = None
    """Frames of that part as the list says; None: to the end of the video."""

    @property
    def end_s(self) -> float | None:
        """When it ends, in seconds from the start of its file; None where frames or rate are unknown."""
        return None if self.frames is None or self.fps is None else (self.start + self.frames) / self.fps


def read_feature_info(folder: Path) -> FeatureInfo:
    """What the features of a folder are. Raises DataError where it does not say that, or nothing that is understood."""
    return _read(folder / INFO, FeatureInfo, f"{folder}: no {INFO}, in which a folder of features says what they are")


def claim_folder(folder: Path, info: FeatureInfo) -> None:
    """Say what the features of `folder` are going to be. Raises ConfigError where it holds others, which stay as they are."""
    if not (folder / INFO).is_file():
        write_whole(folder / INFO, info.model_dump_json(indent=1) + "\n")
        return
    if differing := info.differing(read_feature_info(folder)):
        raise ConfigError(
            f"{folder} holds other features than these: {'; '.join(differing)}; give another --out, or the same settings"
        )


def write_features(folder: Path, name: str, array: np.ndarray, about: VideoFeatures) -> None:
    """`<name>.npy`, then `<name>.json`, each whole or not at all. Raises OSError."""
    with FeatureFile(folder, name, array.shape, array.dtype) as file:
        file.add(array)
    declare_finished(folder, name, about)


class FeatureFile:
    """`<name>.npy`, filled from its first row to its last; whole once the block has ended well, and else not there.

    No other process may write it: what a killed one left half is removed. Raises OSError.
    """

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._stack, self._dtype = contextlib.ExitStack(), dtype
        part = self._stack.enter_context(whole_file(folder / f"{name}.npy", alone=True))
        self._file = self._stack.enter_context(part.open("wb"))
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, rows: np.ndarray) -> None:
        """The next rows."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)

    def abandon(self) -> None:
        """Leave nothing of it."""
        with contextlib.suppress(_Abandoned), self:
            raise _Abandoned

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, at)


class _Abandoned(Exception):
    """A file that is not going to be whole."""


def declare_finished(folder: Path, name: str, about: VideoFeatures) -> None:
    """`<name>.json`, behind its `<name>.npy`."""
    write_whole(folder / f"{name}.json", about.model_dump_json() + "\n")


def read_missing(folder: Path) -> tuple[str, ...]:
    """The videos that the folder's missing_files.txt names, which have no features; none where there is no such file.

    Raises DataError where it is no text.
    """
    file = folder / MISSING
    try:
        return tuple(filter(None, map(str.strip, file.read_text().splitlines()))) if file.is_file() else ()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read: {_line(error)}; remove it, and the next extraction writes it"
        ) from None


def feature_names(folder: Path) -> list[str]:
    """The videos whose features are there, in the order of their names. Raises DataError as `read_feature_info`."""
    suffix = ".json" if read_feature_info(folder).made_by == "extract" else ".npy"
    return sorted(
        path.name.removesuffix(suffix)
        for path in folder.iterdir()
        if path.name.endswith(suffix) and path.name != INFO and not path.name.startswith(".")
    )


def is_finished(folder: Path, name: str, info: FeatureInfo | None = None) -> bool:
    """Whether the features of a video are there, as many as are said; a file that was cut short since is not."""
    return finished_video(folder, name, info) is not None


def finished_video(folder: Path, name: str, info: FeatureInfo | None = None) -> VideoFeatures | None:
    """What is known of a video whose features are there, as `is_finished` says; None of others. `info`: see `read_features`."""
    if not (folder / f"{name}.json").is_file():
        return None
    try:
        return read_features(folder, name, info)[1]
    except DataError:
        return None


def read_features(folder: Path, name: str, info: FeatureInfo | None = None) -> tuple[np.ndarray, VideoFeatures]:
    """The features of a video, mapped from its file, and what is known of the video.

    Args:
        folder: Of features.
        name: The video's, without ".npy".
        info: `read_feature_info(folder)`, where that was read before.

    Raises DataError, a line that names the file, where it is missing, cut short, or does not hold what the folder says.
    """
    info = info or read_feature_info(folder)
    file = folder / f"{name}.npy"
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{file}: there are no features of this video; extract them, or leave the video out") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{file} is cut short or no feature file ({_line(error)}); remove it and extract it again"
        ) from None
    axes = 3 if info.pooling == "tokens" else 2
    if array.ndim != axes or array.shape[-1] != info.width or array.dtype.name != info.dtype:
        raise DataError(
            f"{file} holds {array.dtype.name} {array.shape}, and {INFO} says {info.dtype} of {axes} axes, the last "
            f"{info.width}; was it put there by something else?"
        )
    if info.made_by == "others":
        return array, VideoFeatures(frames=None, fps=None, rows=len(array))
    about = _read(
        folder / f"{name}.json",
        VideoFeatures,
        f"{file}: not finished, there is no {name}.json; extract it again",
    )
    rows = 1 if info.pooling == "video" else about.rows
    if len(array) != rows:
        raise DataError(
            f"{file} has {len(array)} rows, and {name}.json says {rows}; remove both and extract them again"
        )
    return array, about


PUBLISHED = {
    "opengvlab_thumos": FeatureInfo(
        **_GIANT, grid="opengvlab", stride=4, offset_frames=8, pixels="unit", resize="squash_no_antialias"
    ),
    "opengvlab_fineaction": FeatureInfo(
        **_GIANT, grid="opengvlab", stride=16, offset_frames=8, pixels="unit", resize="squash_no_antialias"
    ),
    "opentad_thumos": FeatureInfo(
        **_GIANT, grid="opentad", stride=4, offset_frames=2, pixels="imagenet", resize="crop"
    ),
}
"""What is known of published features of VideoMAE V2-g (docs/PAPER.md#clip-features-of-long-videos); whether OpenTAD cropped or
squashed frames is not: its script is not public. In a folder of them, features.json says it."""


def _read(file: Path, model: type[Model], absent: str) -> Model:
    try:
        found: Any = json.loads(file.read_text())
        return model.model_validate(found)
    except FileNotFoundError:
        raise DataError(absent) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{file} is no description of features: {where}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {_line(error)}") from None


def _shown(value: Any) -> str:
    if value == "":
        return "unknown"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else str(value)
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0][:120]
