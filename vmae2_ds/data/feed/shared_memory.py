"""What a rank's loader workers hold in /dev/shm, as a closed form, and whether it has room there: no torch.

A worker copies every tensor of a finished micro batch into a file of its own there, of whole pages, and torch takes the name
away at once: `ls` shows nothing, `df` does. A container has 64 MB by default; a worker that meets the end loses its batch, or
is killed by SIGBUS, as torch's version has it. Frames that a reader child decodes lie elsewhere (data/readers/watchdog.py).
"""

from __future__ import annotations

import logging
import mmap
import platform
import shutil
from pathlib import Path
from typing import NamedTuple

from vmae2_ds.config.ava import KEY_FRAMES_AT_ONCE, AvaConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import DataConfig, RunConfig
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import count_masks

log = logging.getLogger(__name__)

SHM = Path("/dev/shm")
WHOLE_FRAME = (320, 568)
"""Height and width taken for a video's own frames, which travel whole with --data.crop-on device: a short side of 320, as
Kinetics is kept, at 16:9."""
ACTIONS = 100
"""Actions taken for a stretch of a long video, of whose bytes they are the least."""
PEOPLE = 8
"""People taken for the clip of a batch that has most of them, of whose bytes they are the least."""
_INDEX, _FLOAT = 8, 4  # bytes
MIB = 2**20


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
    return _when_ahead(config.data, tensor_bytes(config, whole_frame))


def views_bytes(data: DataConfig, views: int) -> int:
    """Bytes of /dev/shm that reading a list to test on takes on one rank, `views` clips of a video in one piece."""
    return _when_ahead(data, [views * _clip_bytes(data)])


def validation_bytes(config: RunConfig) -> int:
    """Bytes of /dev/shm that reading the videos of a validation takes on one rank, a clip of each; 0 where there is none."""
    data = config.data
    masks = _mask_bytes(config, clips=1) if isinstance(config, PretrainConfig) else []
    return _when_ahead(data, [_clip_bytes(data), *masks]) if data.validates else 0


def key_frames_bytes(config: AvaConfig, whole_frame: tuple[int, int] = WHOLE_FRAME) -> int:
    """Bytes of /dev/shm that testing on key frames takes on one rank; clips are as wide as their videos are."""
    return _when_ahead(config.data, _of_key_frames(config, whole_frame))


def check_run(config: RunConfig, ranks: Ranks) -> None:
    """Compare what a run's loaders take with what each host has; all ranks have to ask. As `check_room`."""
    data, batch = config.data, tensor_bytes(config)
    needed, least = loader_bytes(config), data.workers * sum(map(_in_pages, batch))
    needed += validation_bytes(config)  # the workers of training keep what they have made
    if isinstance(config, AvaConfig) and config.data.val_truth:
        needed += key_frames_bytes(config)
    check_room(needed, least, data, ranks)


def check_views(data: DataConfig, views: int, ranks: Ranks) -> None:
    """Compare what reading a list to test on takes with what each host has; all ranks have to ask. As `check_room`."""
    check_room(views_bytes(data, views), data.workers * _in_pages(views * _clip_bytes(data)), data, ranks)


def check_key_frames(config: AvaConfig, ranks: Ranks) -> None:
    """Compare what testing on key frames takes with what each host has; all ranks have to ask. As `check_room`."""
    least = config.data.workers * sum(map(_in_pages, _of_key_frames(config, WHOLE_FRAME)))
    check_room(key_frames_bytes(config), least, config.data, ranks)


def check_room(needed: int, least: int, data: DataConfig, ranks: Ranks) -> None:
    """Warn where the workers of some host may fill its /dev/shm.

    Args:
        needed: bytes that one rank's workers take when they are ahead.
        least: a batch of each of them, without which they end at once.

    Raises ConfigError on every rank where a host has less than the least.
    """
    here = int(ranks.max(ranks.local_rank)[0]) + 1
    room = room_in(SHM)
    lack = describe_lack(needed * here, room, data)
    if lack is not None and ranks.size > 1:
        lack = f"{platform.node()}: {lack}"
    if refusal := ranks.first_said(lack if room is not None and least * here > room.free else None):
        raise ConfigError(refusal)
    if (warning := ranks.first_said(lack)) and ranks.rank == 0:
        log.warning("%s", warning)


def describe_lack(needed: int, room: Room | None, data: DataConfig) -> str | None:
    """One line with what a host's workers need, what there is and what to do; None where it fits, or nobody knows."""
    if room is None or needed <= room.free:
        return None
    return (
        f"{SHM} has {room.free / MIB:,.0f} MiB free, and the loader workers of this host may need {needed / MIB:,.0f} "
        f"(--data.workers {data.workers}, --data.prefetch {data.prefetch}): give a container more (docker run "
        f"--shm-size={-(-needed // 2**30)}g, or --ipc=host), or lower --data.workers or --data.prefetch"
    )


def tensor_bytes(config: RunConfig, whole_frame: tuple[int, int] = WHOLE_FRAME) -> list[int]:
    """Bytes of each tensor of a micro batch as its worker sends it (contracts.py); a teacher's answers, a thousandth, apart.

    Args:
        whole_frame: height and width of the videos, for --data.crop-on device.
    """
    data, videos = config.data, config.train.micro_batch
    clips = videos * data.views
    cut = [clips * _clip_bytes(data)]
    if isinstance(config, TadConfig):
        return _of_windows(config)
    if isinstance(config, AvaConfig):
        people = clips * PEOPLE
        return [*cut, people * 4 * _FLOAT, people, people * config.model.num_classes * _FLOAT]
    if not isinstance(config, PretrainConfig):
        return [*cut, clips * _INDEX, _FLOAT, _FLOAT]
    masks = _mask_bytes(config, clips)
    if config.data.crop_on == "device":
        height, width = whole_frame
        return [data.num_frames * height * width * 3] * videos + masks
    return cut + masks


def _mask_bytes(config: PretrainConfig, clips: int) -> list[int]:
    counts = count_masks(config.mask, config.geometry)
    return [clips * counts.visible * _INDEX, clips * counts.decode * _INDEX, clips * counts.decode]


def _of_windows(config: TadConfig) -> list[int]:
    """Features or frames, where they are real, the actions' ends and their labels."""
    data, windows = config.data, config.train.micro_batch
    seen = data.length * config.model.encoder.width * _FLOAT
    if config.model.is_end_to_end:
        seen = data.window_frames * data.size**2 * 3
    actions = windows * ACTIONS
    return [windows * seen, windows * data.length, 2 * actions * _FLOAT, actions * _INDEX]


def _of_key_frames(config: AvaConfig, whole_frame: tuple[int, int]) -> list[int]:
    """Clips and boxes of some key frames that a test decodes in one go, each in a tensor of its own."""
    data, patch = config.data, config.model.patch
    short, long = data.test_short_side, data.test_short_side * max(whole_frame) // min(whole_frame)
    pixels = -(-short // patch) * patch * -(-long // patch) * patch
    return [data.num_frames * pixels * 3, PEOPLE * 4 * _FLOAT] * KEY_FRAMES_AT_ONCE


def _clip_bytes(data: DataConfig) -> int:
    return data.num_frames * data.size**2 * 3


def _when_ahead(data: DataConfig, tensors: list[int]) -> int:
    batches = data.workers * data.prefetch
    return (batches + 1) * sum(map(_in_pages, tensors)) if batches else 0


def _in_pages(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
