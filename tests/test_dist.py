"""Launcher variables: every launcher's set is mapped; half a set is refused, never a silent world of one."""

from __future__ import annotations

import pytest

from vmae2_ds.dist import World, map_rank_variables
from vmae2_ds.errors import ConfigError

TORCH = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
OPENMPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NODELIST": "node7"}
MPICH = {"PMI_RANK": "0", "MPI_LOCALRANKID": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        ({}, World(0, 0, 1, "none")),
        (TORCH, World(3, 1, 4, "torch")),
        ({**OPENMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, World(1, 1, 2, "openmpi")),
        ({**OPENMPI, "MASTER_ADDR": "w1"}, World(1, 1, 2, "openmpi")),
        (SLURM, World(5, 1, 8, "slurm")),
        (MPICH, World(0, 0, 2, "mpich")),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, World(0, 0, 1, "none")),  # a shell inside salloc, no srun
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}, World(0, 0, 1, "none")),  # a batch script
        ({**SLURM, "PMI_RANK": "5", "PMI_SIZE": "8"}, World(5, 1, 8, "slurm")),  # srun with the pmi2 plugin
        ({**SLURM, **TORCH}, World(3, 1, 4, "torch")),  # torchrun started by srun
    ],
)
def test_variables_are_mapped(variables: dict[str, str], world: World) -> None:
    env = dict(variables)
    assert map_rank_variables(env) == world
    assert (env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) == tuple(map(str, world[:3]))
    assert env["MASTER_ADDR"]
    assert env["MASTER_PORT"]


def test_slurm_takes_the_first_host() -> None:
    env = dict(SLURM)
    map_rank_variables(env)
    assert env["MASTER_ADDR"] == "node7"


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "WORLD_SIZE", "RANK"])
def test_half_a_set_is_refused(missing: str) -> None:
    env = {name: value for name, value in TORCH.items() if name != missing}
    with pytest.raises(ConfigError, match=missing):
        map_rank_variables(env)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"RANK": "4"}, "contradict"), ({"LOCAL_RANK": "9"}, "contradict"), ({"RANK": "x"}, "not a number")],
)
def test_nonsense_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        map_rank_variables({**TORCH, **change})


def test_a_batch_script_of_many_tasks_without_srun_is_refused() -> None:
    with pytest.raises(ConfigError, match="srun"):
        map_rank_variables({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8"})


def test_two_slurm_jobs_on_a_node_take_two_ports() -> None:
    ports = set()
    for job in ("1001", "1002"):
        env = {**SLURM, "SLURM_JOB_ID": job}
        map_rank_variables(env)
        ports.add(env["MASTER_PORT"])
    assert len(ports) == 2


def test_ranks_on_several_hosts_need_the_address_of_rank_0() -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        map_rank_variables({**OPENMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
