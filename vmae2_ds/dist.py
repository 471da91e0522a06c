"""Ranks: which launcher started this process, and small agreements between ranks.

DeepSpeed reads RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. `deepspeed` and `torchrun` set them; mpirun
and srun set their own, which are mapped here. A half-set group is refused, and so is a process that several launchers
or none of the known ones started: it would train a copy of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vmae2_ds.errors import ConfigError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

LAUNCHERS: dict[str, tuple[str, str, str]] = {
    # name: its variables for rank, local rank, world size; the first whole set counts
    "torch": ("RANK", "LOCAL_RANK", "WORLD_SIZE"),
    "slurm": ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"),  # the last is set by srun alone
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpich": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE"),  # Intel MPI too: both start through hydra
    "mvapich": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE"),
}
LOCAL_SIZES = {
    "torch": "LOCAL_WORLD_SIZE",
    "openmpi": "OMPI_COMM_WORLD_LOCAL_SIZE",
    "mpich": "MPI_LOCALNRANKS",
    "mvapich": "MV2_COMM_WORLD_LOCAL_SIZE",
}
"""Launcher -> its variable for the number of ranks on this host."""
UNMAPPED = {
    "PMIX_RANK": "a PMIx launcher",
    "PMI_ID": "a PMI launcher",
    "PALS_RANKID": "PALS",
    "ALPS_APP_PE": "aprun",
    "JSM_NAMESPACE_RANK": "jsrun",
    "FLUX_TASK_RANK": "flux",
}
"""Rank variables that no set above belongs to -> who sets them."""
PARALLEL_PARENTS = {"mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prterun", "orted", "prted", "hydra_pmi_proxy"}
"""Process names of what starts the ranks of an MPI job; Linux cuts a name at 15 characters."""
NODES = ("GROUP_WORLD_SIZE", "CROSS_SIZE")
"""Hosts of the job as torchrun and `deepspeed` have it."""
TRAINS = "train a copy of its own"
"""What a process does that takes itself for the only one."""
DEFAULT_PORT = 29500
SLURM_PORTS = 20000
"""First of the 10,000 ports for SLURM jobs; Linux hands out those from 32768 on to everybody else."""


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among all that train together, and what they agree on, so that no rank acts alone.

    To agree takes the process group (`engine.ranks.start_ranks`), and all ranks asking alike; one process agrees with itself.
    """

    rank: int = 0
    """Number of this process among all; rank 0 writes what is written once."""
    local_rank: int = 0
    """Number of this process on its host."""
    size: int = 1
    """How many there are."""
    launcher: str = "none"
    """Who started it: a key of LAUNCHERS."""

    def sum(self, *values: float) -> list[float]:
        """Each value summed over ranks, in float64. Waits for the device."""
        return self._reduce(values, "SUM")

    def max(self, *values: float) -> list[float]:
        """The largest of each value over ranks, in float64. Waits like `sum`."""
        return self._reduce(values, "MAX")

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """`values`, which lie on the device, summed over ranks in place. Waits for nothing: the device has it to do."""
        if self.size > 1:
            import torch.distributed

            torch.distributed.all_reduce(values)
        return values

    def _reduce(self, values: tuple[float, ...], operation: str) -> list[float]:
        if self.size == 1:
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
        if self.size == 1:
            return [value]
        import torch.distributed

        box: list[Any] | None = [None] * self.size if self.rank == 0 else None
        torch.distributed.gather_object(value, box, dst=0)
        return box

    def first_said(self, text: str | None) -> str | None:
        """On every rank what the first rank with something to say says; None where none has."""
        said = self.gather(text)
        return self.from_first(lambda: next((one for one in said or () if one is not None), None))

    def from_first(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 and return its (picklable) result on every rank; an error is raised on every rank."""
        if self.size == 1:
            return function()
        import torch.distributed

        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = function()
            except Exception as error:  # whatever it is, the others wait for it
                box[1] = error
        torch.distributed.broadcast_object_list(box, src=0, device=default_device())
        if box[1] is not None:
            raise box[1]
        return box[0]


def is_alone(env: Mapping[str, str] = os.environ) -> bool:
    """Whether no launcher started other ranks beside this process, as far as it is told before ranks meet."""
    return env.get("WORLD_SIZE", "1") == "1"


def map_rank_variables(env: MutableMapping[str, str] = os.environ) -> Ranks:
    """Find the launcher's variables in `env`, write the torch names into it, and return where this process stands.

    Raises ConfigError as `find_ranks`, and where nothing says the address of rank 0.
    """
    return _write(env, find_ranks(env))


def find_ranks(env: MutableMapping[str, str] = os.environ, alone: str = TRAINS) -> Ranks:
    """Where the launcher's variables in `env` say that this process stands: enough for work without a process group.

    With none set this process is the only one. `alone` is what it then does, for the words of a refusal. Raises ConfigError
    where a launcher's variables are set only in part or contradict each other, where two launchers disagree, or where an
    unknown one started this process.
    """
    whole: dict[str, Ranks] = {}
    for launcher, names in LAUNCHERS.items():
        present = [name for name in names if env.get(name)]
        if len(present) == len(names):
            whole[launcher] = _whole_set(env, launcher)
        elif present and not (launcher == "slurm" and "SLURM_STEP_NUM_TASKS" not in present):
            if launcher == "mpich" and "slurm" in whole:
                continue  # srun with the pmi2 plugin
            missing = [name for name in names if name not in present]
            raise ConfigError(
                f"{', '.join(present)} set but {', '.join(missing)} not: each process would {alone}; "
                "start with deepspeed, torchrun, mpirun or srun, or unset them"
            )
    if whole:
        return _choose(env, whole, alone)
    _refuse_a_silent_copy(env, alone)
    return Ranks()


def _whole_set(env: MutableMapping[str, str], launcher: str) -> Ranks:
    rank, local_rank, size = (_integer(env, name) for name in LAUNCHERS[launcher])
    if not 0 <= rank < size or not 0 <= local_rank <= rank:
        raise ConfigError(f"{launcher} rank variables contradict each other: rank={rank} local={local_rank} of {size}")
    return Ranks(rank, local_rank, size, launcher)


def _choose(env: MutableMapping[str, str], whole: dict[str, Ranks], does: str) -> Ranks:
    """The place among those whose variables are whole: torch's names before all, then srun's, then MPI's."""
    chosen = next(iter(whole.values()))
    for other in whole.values():
        if chosen.launcher == "torch":
            # a launcher inside srun or mpirun knows its hosts; one that was told of none copies itself on each task
            alone = chosen.size == 1 or any(env.get(name) == "1" for name in NODES)
            agrees = chosen == replace(other, launcher=chosen.launcher) or other.size == 1 or not alone
        elif chosen.size == 1:
            chosen, agrees = other, True  # mpirun in a shell that srun has opened
        else:
            agrees = (chosen.rank, chosen.size) == (other.rank, other.size) or other.size == 1
        if not agrees:
            raise ConfigError(
                f"two launchers disagree: {_said(chosen)}, {_said(other)}: {other.size} processes would each {does}; "
                "keep one of the two, tell the inner one of all hosts, or unset the variables of one"
            )
    return chosen


def _said(ranks: Ranks) -> str:
    rank, _, size = LAUNCHERS[ranks.launcher]
    return f"{rank}={ranks.rank} {size}={ranks.size}"


def _refuse_a_silent_copy(env: MutableMapping[str, str], alone: str) -> None:
    """Without any whole set: refuse what looks like one of several processes."""
    tasks = _integer(env, "SLURM_NTASKS") if env.get("SLURM_NTASKS") else 1
    if tasks > 1:
        raise ConfigError(
            f"this SLURM job has {tasks} tasks, but srun did not start this process, which would {alone}; "
            "write srun in front, or unset SLURM_NTASKS to mean it"
        )
    way_out = (
        "start with deepspeed, torchrun, srun or another mpirun, or set RANK, LOCAL_RANK, WORLD_SIZE and MASTER_ADDR"
    )
    for name, who in UNMAPPED.items():
        if name in env:
            raise ConfigError(
                f"{name}={env[name]} says that {who} started this process, but nothing says among how many: each would "
                f"{alone}; {way_out}"
            )
    parent = _parent_name() if env is os.environ else ""
    if parent in {name[:15] for name in PARALLEL_PARENTS}:
        raise ConfigError(
            f"{parent} started this process, but no variable says its rank: each would {alone}; {way_out}"
        )


def _parent_name() -> str:
    try:
        return Path(f"/proc/{os.getppid()}/comm").read_text().strip()
    except OSError:
        return ""  # no Linux, or a hidden parent: the variables have to do


def _integer(env: MutableMapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise ConfigError(f"{name}={env[name]!r} is not a number") from None


def _write(env: MutableMapping[str, str], ranks: Ranks) -> Ranks:
    if not env.get("MASTER_ADDR"):
        if ranks.launcher == "slurm":
            env["MASTER_ADDR"] = _first_slurm_host(env)
        elif ranks.size == 1 or env.get(LOCAL_SIZES.get(ranks.launcher, "")) == str(ranks.size):
            env["MASTER_ADDR"] = "127.0.0.1"
        else:
            raise ConfigError(
                f"{ranks.launcher} started {ranks.size} processes but MASTER_ADDR is not set; export rank 0's address"
            )
    job = _integer(env, "SLURM_JOB_ID") if env.get("SLURM_JOB_ID") else None
    # two SLURM jobs may share a node, so a job's port follows from its number
    if not env.get("MASTER_PORT"):
        env["MASTER_PORT"] = str(DEFAULT_PORT if job is None else SLURM_PORTS + job % 10_000)
    if not 0 < _integer(env, "MASTER_PORT") < 2**16:
        raise ConfigError(f"MASTER_PORT={env['MASTER_PORT']} is no port: 1 to 65535")
    env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"] = str(ranks.rank), str(ranks.local_rank), str(ranks.size)
    return ranks


def _first_slurm_host(env: MutableMapping[str, str]) -> str:
    """`gpu[01-04,7],big1` -> gpu01: the first number of each bracket, then the first name."""
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or ""
    first = re.sub(r"\[(\w+)[^\]]*\]", r"\1", hosts).split(",")[0]
    if not re.fullmatch(r"[\w.-]+", first):
        raise ConfigError(f"cannot read the first host of the job's list {hosts!r}; export MASTER_ADDR")
    return first


def default_device() -> torch.device:
    """This rank's accelerator; the CPU where there is none or DS_ACCELERATOR=cpu asks for it, as DeepSpeed reads it."""
    import torch

    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")
