"""TorchCodec 0.17, optional, on the system's FFmpeg. Wrong on what decord is wrong on (docs/DATA.md), edit lists apart."""

from __future__ import annotations

import numpy as np

from vmae2_ds.data.readers.common import Choose, Video, choose_checked, why_not_opened, why_not_read
from vmae2_ds.errors import ConfigError


def read_torchcodec(video: Video, choose: Choose) -> np.ndarray:
    """Frames of one video: uint8 (T, H, W, 3); raises VideoError, ConfigError where torchcodec or FFmpeg is missing."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        told = str(error).strip().partition("\n")[0][:120]
        raise ConfigError(
            f"reader torchcodec cannot be loaded ({told}): pip install 'vmae2_ds[torchcodec]' and FFmpeg's shared "
            "libraries (Debian: apt install ffmpeg), or take --data.reader pyav"
        ) from None
    try:
        decoder = VideoDecoder(video, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        length, fps = len(decoder), float(decoder.metadata.average_fps or "nan")
    except (RuntimeError, ValueError, TypeError) as error:
        raise why_not_opened(video, "torchcodec", str(error)) from None
    indices = choose_checked(choose, length, fps)
    try:
        return np.asarray(decoder.get_frames_at(indices).data.numpy())
    except (RuntimeError, IndexError):  # its words name its own source files
        reason = f"read error at or before frame {max(indices)} of {length}: damaged or truncated"
        raise why_not_read(video, reason) from None
