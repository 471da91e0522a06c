"""Where a video's bytes lie: a file, a folder of frames, a member of a tar shard, or any of these behind a URL (fsspec)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import numpy as np

from vmae2_ds.data.entry import ReadAs, VideoEntry
from vmae2_ds.data.readers.common import Choose, FrameCount, Video, check_is_file, choose_checked, in_chosen_order
from vmae2_ds.data.readers.pyav import stream_pyav
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.errors import ConfigError, VideoError, Vmae2Error

PIECE_BYTES, PIECE_FRAMES = 16 << 20, 64
"""A stream hands frames on in pieces no larger than this: a second of video, or a few frames of a large one."""


def check_template(template: str) -> None:
    """Raises ConfigError unless `template` gives every number of a frame a file name of its own."""
    try:
        names = {template.format(number) for number in (1, 2)}
    except (ValueError, IndexError, KeyError) as error:
        raise ConfigError(f"template={template!r} is no format of a number ({error}); write img_{{:05}}.jpg") from None
    if len(names) < 2:
        raise ConfigError(f"template={template!r} gives every frame one name; write {{:05}} for its number")


def read_entry(entry: VideoEntry, how: ReadAs, choose: Choose) -> np.ndarray:
    """The frames that `choose` picks: uint8 (T, H, W, 3). Indices count from the start of the file.

    In a folder of frames they are the numbers in the file names; where the entry does not say how many frames it has,
    they count the pictures there are, in order, from the entry's start.
    Raises VideoError with a reason that does not name the video.
    """
    if how.kind == "frames":
        return in_chosen_order(lambda noted: _stream_folder(entry, how.template, noted, FrameCount()), choose)
    return read_clip(fetch(entry), choose, how.reader)


def stream_entry(entry: VideoEntry, how: ReadAs, choose: Choose, count: FrameCount) -> Iterator[np.ndarray]:
    """The frames that `choose` picks, each once and in their order: uint8 (H, W, 3) one by one, of which none is kept.

    Numbers and errors as `read_entry`; videos are read by PyAV, whatever `how` says. `count` learns what was decoded.
    """
    if how.kind == "frames":
        return _stream_folder(entry, how.template, choose, count)
    video = fetch(entry)
    if isinstance(video, str):
        check_is_file(video)
    return stream_pyav(video, choose, count)


def in_pieces(frames: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Frames in pieces of at most PIECE_BYTES, or of one."""
    piece: list[np.ndarray] = []
    for frame in frames:
        piece.append(frame)
        if (len(piece) + 1) * frame.nbytes > PIECE_BYTES or len(piece) == PIECE_FRAMES:
            yield piece
            piece = []
    if piece:
        yield piece


def fetch(entry: VideoEntry) -> Video:
    """A local file's path as it is; else the video's content. Raises VideoError."""
    if entry.shard is None:
        return entry.path if "://" not in entry.path else _read_url(entry.path, None, None)
    if not entry.size:  # a failed download costs its video, not the list
        raise VideoError("an empty member of its shard")
    if "://" in entry.shard:
        data = _read_url(entry.shard, entry.offset, entry.offset + entry.size)
    else:
        try:
            with open(entry.shard, "rb") as file:
                data = os.pread(file.fileno(), entry.size, entry.offset)
        except OSError as error:
            raise VideoError(f"its shard cannot be opened: {error.strerror}") from None
    if len(data) != entry.size:
        raise VideoError(f"its shard ends early: {len(data)} of {entry.size} bytes from byte {entry.offset}")
    return data


def url_size(url: str) -> int | None:
    """Bytes behind a URL; None where its storage does not say."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        return system.size(path)  # type: ignore[no-any-return]
    except Vmae2Error:  # a signal to stop, which came just then
        raise
    except Exception:  # each file system has errors of its own
        return None


def _read_url(url: str, start: int | None, end: int | None) -> bytes:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        return bytes(system.cat_file(path, start=start, end=end))
    except Vmae2Error:  # as above
        raise
    except Exception as error:  # as above; ValueError: no such protocol; ImportError: its package is missing
        told = str(error).strip().partition("\n")[0][:200]
        raise VideoError(f"cannot be fetched: {type(error).__name__} {told}") from None


# --- folders of frames -----------------------------------------------------------------------------------------------


def _stream_folder(entry: VideoEntry, template: str, choose: Choose, count: FrameCount) -> Iterator[np.ndarray]:
    from PIL import Image, UnidentifiedImageError

    if entry.frames is None:
        names = frame_names(entry.path, template, entry.start)
        end = entry.start + len(names)
    else:
        names, end = None, entry.start + entry.frames
    shape: tuple[int, ...] | None = None
    for index in sorted(set(choose_checked(choose, end, float("nan")))):
        name = template.format(index) if names is None else names[index - entry.start]
        try:
            with Image.open(os.path.join(entry.path, name)) as image:
                frame = np.asarray(image.convert("RGB"))
        except UnidentifiedImageError:
            raise VideoError(f"its frame {name} is no picture") from None
        except OSError as error:
            raise VideoError(f"its frame {name} cannot be read: {error.strerror or error}") from None
        if frame.shape != (shape or frame.shape):
            raise VideoError("its frames have several sizes")
        shape = frame.shape
        count.decoded += 1
        yield frame


def frame_names(folder: str, template: str, start: int = 0) -> list[str]:
    """Files of a folder that are named like the template, from frame number `start` on, in the order of their numbers.

    Raises VideoError where there is none.
    """
    before, _, after = re.sub(r"\{[^}]*\}", "\0", template).partition("\0")
    pattern = re.compile(f"{re.escape(before)}0*(\\d+){re.escape(after)}")
    try:
        matches = [pattern.fullmatch(name) for name in os.listdir(folder)]
    except OSError as error:
        raise VideoError(f"its folder cannot be read: {error.strerror}") from None
    numbered = {int(match[1]): match[0] for match in matches if match}
    names = [numbered[number] for number in sorted(numbered) if number >= start]
    if not names:
        raise VideoError(f"its folder holds no frame named like {template} from number {start} on")
    return names
