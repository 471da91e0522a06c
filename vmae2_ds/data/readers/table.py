"""One video -> the frames asked for, by the reader asked for, or a VideoError with a short reason.

All readers give the same frames to the last bit except where docs/DATA.md says otherwise. Frames come upright
(rotation metadata applied), in stored pixels (no sample aspect ratio), counted in the order in which they are shown.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vmae2_ds.data.readers.common import Choose, Video, check_is_file
from vmae2_ds.data.readers.decord import read_decord
from vmae2_ds.data.readers.pyav import read_pyav
from vmae2_ds.data.readers.torchcodec import read_torchcodec
from vmae2_ds.errors import ConfigError, VideoError

# T frames asked for, H x W pixels as stored and turned upright, 3 colours (RGB).

Reader = Callable[[Video, Choose], np.ndarray]
READERS: dict[str, Reader] = {"pyav": read_pyav, "decord": read_decord, "torchcodec": read_torchcodec}
"""(path or content, choose) -> uint8 (T, H, W, 3), by DataConfig.reader."""
PACKAGES = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}


def find_reader(name: str) -> Reader:
    """The reader called `name`, one of READERS or `module:function` of the user's own; raises ConfigError."""
    if name in READERS:
        return READERS[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(f"unknown reader {name!r}; choose one of {sorted(READERS)}, or module:function of your own")
    try:
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"reader {name!r} cannot be imported ({error}); is its folder in PYTHONPATH?") from None


def installed_readers() -> list[str]:
    """Names of READERS whose packages can be loaded here."""
    found = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is not None]
    if "torchcodec" in found:  # it may be there and not find FFmpeg
        try:
            read_torchcodec(b"no video", lambda frames, fps: np.zeros(1, np.int64))
        except ConfigError:
            found.remove("torchcodec")
        except VideoError:
            pass  # as it should: this is text
    return found


def read_clip(video: str | Path | bytes, choose: Choose, reader: str = "pyav") -> np.ndarray:
    """Open a video once, let `choose` pick frames by its length and rate, decode only those: uint8 (T, H, W, 3).

    Args:
        video: its path, or its content.

    Raises VideoError with a reason without the path, ConfigError for an unknown reader.
    """
    read = find_reader(reader)
    if isinstance(video, bytes):
        if not video:
            raise VideoError("an empty file")
        return read(video, choose)
    check_is_file(str(video))
    return read(str(video), choose)
