"""Ranks: which launcher started this process, and small agreements between ranks.

DeepSpeed reads RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. `deepspeed` and `torchrun` set them; mpirun
and srun set their own, which are mapped here. A half-set group is refused: it would train N separate copies.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from vmae2_ds.errors import ConfigError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

LAUNCHERS: dict[str, tuple[str, str, str]] = {
    # name: its variables for rank, local rank, world size; the first whole set counts
    "torch": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "slurm": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),  # the last is set by srun alone
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpich": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),
}
DEFAULT_PORT = 29500


class World(NamedTuple):
    """This process among all."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    launcher: str = "none"


def map_rank_variables(env: MutableMapping[str, str] = os.environ) -> World:
    """Find the launcher's variables in `env`, write the torch names into it, and return the world.

    With none set the world is this one process. Raises ConfigError where a launcher's variables are set only in part,
    contradict each other, or say nothing of the address of rank 0.
    """
    partial: dict[str, list[str]] = {}
    for launcher, names in LAUNCHERS.items():
        missing = [name for name in names if name not in env]
        if not missing:
            return _write(env, launcher, *(_integer(env, name) for name in names))
        if len(missing) < len(names) and launcher != "slurm":  # a shell inside a SLURM job has some of them
            partial[launcher] = missing
    for launcher, missing in partial.items():
        present = ", ".join(name for name in LAUNCHERS[launcher] if name in env)
        raise ConfigError(
            f"{present} set but {', '.join(missing)} not: each process would train a copy of its own; "
            "start with deepspeed, torchrun, mpirun or srun, or unset them"
        )
    if int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env:
        raise ConfigError(
            f"this SLURM job has {env['SLURM_NTASKS']} tasks, but srun did not start this process: it would train alone; "
            "write srun in front, or unset SLURM_NTASKS to mean it"
        )
    return _write(env, "none", 0, 0, 1)


def _integer(env: MutableMapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise ConfigError(f"{name}={env[name]!r} is not a number") from None


def _write(env: MutableMapping[str, str], launcher: str, rank: int, local_rank: int, size: int) -> World:
    if not 0 <= rank < size or not 0 <= local_rank <= rank:
        raise ConfigError(f"{launcher} rank variables contradict each other: rank={rank} local={local_rank} of {size}")
    if "MASTER_ADDR" not in env:
        if launcher == "slurm":
            env["MASTER_ADDR"] = _first_slurm_host(env)
        elif launcher in ("none", "torch") or _local_size(env, launcher) == size:
            env["MASTER_ADDR"] = "127.0.0.1"
        else:
            raise ConfigError(
                f"{launcher} started {size} processes but MASTER_ADDR is not set; export rank 0's address"
            )
    # two SLURM jobs may share a node, so a job's port follows from its number
    env.setdefault("MASTER_PORT", str(DEFAULT_PORT + int(env.get("SLURM_JOB_ID", "0")) % 10_000))
    env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"] = str(rank), str(local_rank), str(size)
    return World(rank, local_rank, size, launcher)


def _local_size(env: MutableMapping[str, str], launcher: str) -> int:
    name = {"openmpi": "OMPI_COMM_WORLD_LOCAL_SIZE", "mpich": "MPI_LOCALNRANKS"}.get(launcher, "")
    return int(env.get(name, "0"))


def _first_slurm_host(env: MutableMapping[str, str]) -> str:
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or ""
    if hosts and not re.search(r"[\[,]", hosts):
        return hosts
    try:
        listed = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
        return listed.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        raise ConfigError(f"cannot read the first host of {hosts!r} with scontrol; export MASTER_ADDR") from None


class Agreement:
    """Small sums and maxima over all ranks, so that no rank acts alone."""

    def __init__(self, world: World) -> None:
        self._world = world

    def sum(self, *values: float) -> list[float]:
        """Each value summed over ranks, in float64. Waits for the device, as the optimizer's overflow check does."""
        return self._reduce(values, "SUM")

    def max(self, *values: float) -> list[float]:
        """The largest of each value over ranks, in float64. Waits like `sum`."""
        return self._reduce(values, "MAX")

    def _reduce(self, values: tuple[float, ...], operation: str) -> list[float]:
        if self._world.size == 1:
            return list(values)
        import torch.distributed

        results = torch.tensor(values, dtype=torch.float64, device=default_device())
        torch.distributed.all_reduce(results, getattr(torch.distributed.ReduceOp, operation))
        return results.tolist()

    def any(self, flag: bool) -> bool:
        """True on every rank when it is true on one."""
        return self.sum(float(flag))[0] > 0

    def gather(self, value: T) -> list[T] | None:
        """On rank 0 the (picklable) values of all ranks in their order; None elsewhere."""
        if self._world.size == 1:
            return [value]
        import torch.distributed

        box: list[Any] | None = [None] * self._world.size if self._world.rank == 0 else None
        torch.distributed.gather_object(value, box, dst=0)
        return box

    def first_said(self, text: str | None) -> str | None:
        """On every rank what the first rank with something to say says; None where none has."""
        said = self.gather(text)
        return self.from_first(lambda: next((one for one in said or () if one is not None), None))

    def from_first(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 and return its (picklable) result on every rank; an error is raised on every rank."""
        if self._world.size == 1:
            return function()
        import torch.distributed

        box: list[Any] = [None, None]
        if self._world.rank == 0:
            try:
                box[0] = function()
            except Exception as error:  # whatever it is, the others wait for it
                box[1] = error
        torch.distributed.broadcast_object_list(box, src=0, device=default_device())
        if box[1] is not None:
            raise box[1]
        return box[0]


def default_device() -> torch.device:
    """This rank's accelerator; the CPU where there is none or DS_ACCELERATOR=cpu asks for it, as DeepSpeed reads it."""
    import torch

    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
