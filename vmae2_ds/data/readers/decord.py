"""decord 0.6: the published reader. Wrong, silently, on open GOPs, B-frames in AVI and MPEG-TS (docs/DATA.md)."""

from __future__ import annotations

import io
import re

import numpy as np

from vmae2_ds.data.readers.common import Choose, Video, choose_checked, why_not_opened, why_not_read


def read_decord(video: Video, choose: Choose) -> np.ndarray:
    """Frames of one video: uint8 (T, H, W, 3); raises VideoError."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)  # libav's complaints: what matters of them is in the VideoError
    try:
        opened = decord.VideoReader(
            io.BytesIO(video) if isinstance(video, bytes) else video, ctx=decord.cpu(0), num_threads=1
        )
        length, fps = len(opened), float(opened.get_avg_fps())
    except (decord.DECORDError, RuntimeError) as error:
        raise why_not_opened(video, "decord", str(error)) from None
    indices = choose_checked(choose, length, fps)
    try:
        return opened.get_batch(indices).asnumpy()
    except (decord.DECORDError, RuntimeError) as error:
        # a reader that has failed once may hang (dmlc/decord#375), so it is not asked which frame it was
        if "avcodec_" in str(error):
            reason = f"read error at or before frame {max(indices)} of {length}: damaged or truncated"
            raise why_not_read(video, reason) from None
        told = re.sub(r".*(Check failed: |\.cc:\d+: )", "", str(error).partition("\n")[0])
        reason = f"decord failed ({told[:120]}); try --data.reader pyav, or re-encode it"
        raise why_not_read(video, reason) from None
