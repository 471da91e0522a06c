"""Ranks meet, join the process group under DeepSpeed, and leave it."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import platform
import time
import warnings
from datetime import timedelta
from typing import NamedTuple

import torch

from vmae2_ds.dist import Ranks, default_device, map_rank_variables
from vmae2_ds.engine.lean_import import import_deepspeed
from vmae2_ds.errors import RankLost
from vmae2_ds.host import allow_open_files

log = logging.getLogger(__name__)
TIMEOUT_S = 1800.0
"""Seconds that ranks wait for each other where nothing else is set: PyTorch's under gloo."""
LONGEST_WAIT_S = 3 * 86400.0
"""Ranks that have done their videos wait for those that have longer ones: three days at most."""
CONNECTIONS = 2
"""Rank 0 has so many to every other: that of torch's store, and that of guard/peers.py."""
OTHER_FILES = 1024
"""What a process opens beside those, loaders and libraries among it."""
GLOO_LETS_GO_S = 0.2
"""A thread of gloo drops a collective's tensors after it has told that it is done. One that does so while Python ends aborts
the process (pytorch/pytorch pull request 179291), and references of DeepSpeed's keep it from being joined."""


class Meeting(NamedTuple):
    """Ranks that have found each other and not formed a process group yet."""

    ranks: Ranks
    store: torch.distributed.Store | None
    """What they can write into for each other; None for one process, and where a group was there before."""
    timeout_s: float


def meet_ranks(timeout_s: float = TIMEOUT_S) -> Meeting:
    """Map the launcher's variables, take the device, and wait for the other ranks at the address of rank 0.

    Raises ConfigError for variables that make no world, RankLost where not all ranks come within `timeout_s` seconds.
    """
    ranks = map_rank_variables()
    device = default_device()
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    else:
        torch.cuda.set_device(device)
    if ranks.size == 1 or torch.distributed.is_initialized():
        return Meeting(ranks, None, timeout_s)
    needed = OTHER_FILES + CONNECTIONS * ranks.size
    if (allowed := allow_open_files(needed)) < needed and ranks.rank == 0:
        log.warning(
            "rank 0 holds %d connections to each of %d ranks and may open %d files, of which it wants %d: raise the hard limit "
            "(ulimit -Hn) on %s, or ranks may not find it",
            CONNECTIONS, ranks.size, allowed, needed, platform.node(),
        )  # fmt: skip
    try:
        store, *_ = next(torch.distributed.rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    except (torch.distributed.DistError, OSError) as error:
        raise RankLost(
            f"rank {ranks.rank} of {ranks.size} on {platform.node()} did not meet all others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {timeout_s:g} s ({str(error).splitlines()[0]}); "
            "is every host up, is the port open, and do all have the same MASTER_ADDR, MASTER_PORT and WORLD_SIZE?"
        ) from None
    return Meeting(ranks, store, timeout_s)


def start_ranks(meeting: Meeting | None = None) -> Ranks:
    """Join the process group; without a `meeting`, meet first. One process needs no launcher and no free port."""
    ranks, store, timeout_s = meeting or meet_ranks()
    timeout = timedelta(seconds=timeout_s)
    device = default_device()
    import_deepspeed()
    import deepspeed.comm.comm
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    logger.addFilter(lambda record: "OVERFLOW!" not in record.getMessage())  # the loop says which step, and why
    # DeepSpeed still calls torch's old names, once per parameter and step
    warnings.filterwarnings("ignore", r"`torch.distributed.\w+_tensor` is deprecated", FutureWarning)
    if device.type == "cpu":
        # init_distributed would compile shm_comm with a C++ compiler; only inference_all_reduce uses it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size))))
        if ranks.rank == 0:
            log.info("on the CPU: DeepSpeed's shm_comm op (inference only) is left out, so no C++ compiler is needed")
    if not torch.distributed.is_initialized():
        on_gpu = device.type == "cuda"  # NCCL that is not told its device guesses one in a barrier
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=store or torch.distributed.HashStore(),  # one process: several may share a machine, and need no port
            rank=ranks.rank,
            world_size=ranks.size,
            timeout=timeout,
            device_id=device if on_gpu else None,
        )
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, timeout=timeout)
        if ranks.size == 1:
            atexit.register(
                _leave_group
            )  # a busy machine aborts at exit, now and then, where gloo's threads still live
    # ZeRO talks in groups of its own, which DeepSpeed 0.19 makes with torch's time-out (gloo: 30 min), whatever the world has
    deepspeed.comm.comm.cdb.new_group = functools.partial(torch.distributed.new_group, timeout=timeout)
    return ranks


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def stop_ranks(ranks: Ranks) -> None:
    """Leave the process group where all ranks end together. One process keeps its own: DeepSpeed cannot join another."""
    if ranks.size > 1:
        on_cpu = torch.distributed.get_backend() == "gloo"
        torch.distributed.destroy_process_group()
        if on_cpu:
            time.sleep(GLOO_LETS_GO_S)
