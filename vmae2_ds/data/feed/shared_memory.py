"""What a rank's loader workers hold in /dev/shm, as a closed form: no torch.

A worker copies every tensor of a finished micro batch into a file of its own there, of whole pages, and torch takes the name
away at once: `ls` shows nothing, `df` does. A container has 64 MB by default; a worker that meets the end is killed by SIGBUS.
"""

from __future__ import annotations

import mmap
import shutil
from pathlib import Path
from typing import NamedTuple

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.masking import count_masks

SHM = Path("/dev/shm")
WHOLE_FRAME = (320, 568)
"""Height and width taken for a video's own frames, which travel whole with --data.crop-on device: a short side of 320, as
Kinetics is kept, at 16:9."""
_INDEX, _FLOAT = 8, 4  # bytes


class Room(NamedTuple):
    """A folder's file system, in bytes."""

    total: int
    free: int


def room_in(folder: Path = SHM) -> Room | None:
    """What a folder's file system has; None where there is no such folder, as on a system without /dev/shm."""
    try:
        total, _, free = shutil.disk_usage(folder)
    except OSError:
        return None
    return Room(total, free)


def loader_bytes(config: RunConfig, whole_frame: tuple[int, int] = WHOLE_FRAME) -> int:
    """Bytes of /dev/shm that the loader of one rank takes when its workers are ahead; 0 without workers.

    torch keeps workers x prefetch micro batches asked for, and one more is in the hands of the rank.
    """
    batches = config.data.workers * config.data.prefetch
    return (batches + 1) * sum(map(_in_pages, tensor_bytes(config, whole_frame))) if batches else 0


def tensor_bytes(config: RunConfig, whole_frame: tuple[int, int] = WHOLE_FRAME) -> list[int]:
    """Bytes of each tensor of a micro batch as its worker sends it (contracts.py); a teacher's answers, a thousandth, apart.

    Args:
        whole_frame: height and width of the videos, for --data.crop-on device.
    """
    data, videos = config.data, config.train.micro_batch
    clips = videos * data.views
    cut = [clips * data.num_frames * data.size**2 * 3]
    if not isinstance(config, PretrainConfig):
        return [*cut, clips * _INDEX, _FLOAT, _FLOAT]
    counts = count_masks(config.mask, config.geometry)
    masks = [clips * counts.visible * _INDEX, clips * counts.decode * _INDEX, clips * counts.decode]
    if config.data.crop_on == "device":
        height, width = whole_frame
        return [data.num_frames * height * width * 3] * videos + masks
    return cut + masks


def _in_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
