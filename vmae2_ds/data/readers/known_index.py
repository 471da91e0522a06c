"""Indices of long videos that a process has read before: without them each clip of a movie costs a pass over the whole file."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

import numpy as np

from vmae2_ds.data.readers.common import Video
from vmae2_ds.data.readers.frame_index import FrameIndex, index_frames, read_first

LONG = 2000
"""Frames from which on an index is kept: shorter videos are indexed in a few milliseconds, and seldom read again soon."""
MOST_FRAMES = 8_000_000
"""Frames of all videos whose indices are kept, some 64 MB: about 300 movies of a quarter of an hour. What was not used for the
longest time goes first."""

_known: OrderedDict[tuple[str, int, int], FrameIndex] = OrderedDict()


def known_index(video: Video, container: Any, stream: Any) -> FrameIndex:
    """`index_frames`, without packets where it is of a long file that has been read before and has its size and time still."""
    if not isinstance(video, str):
        return index_frames(video, container, stream)
    about = os.stat(video)
    key = (video, about.st_size, about.st_mtime_ns)
    if key in _known:
        _known.move_to_end(key)
        read_first(container, stream)
        return _known[key]
    index = index_frames(video, container, stream)
    if len(index.times) >= LONG:
        nothing = np.zeros(0, np.int64)
        packets = index.packets._replace(pts=nothing, dts=nothing, is_key=nothing > 0, is_shown=nothing > 0)
        _known[key] = index._replace(packets=packets)
        while sum(len(kept.times) for kept in _known.values()) > MOST_FRAMES:
            _known.popitem(last=False)
    return index
