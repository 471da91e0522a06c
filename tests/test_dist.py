"""Launcher variables: every launcher's set is mapped; half a set, two that disagree or an unknown one is refused."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import pytest

from vmae2_ds.dist import LAUNCHERS, UNMAPPED, Ranks, map_rank_variables
from vmae2_ds.errors import ConfigError

TORCH = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
OPENMPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NODELIST": "node7"}
MPICH = {"PMI_RANK": "0", "MPI_LOCALRANKID": "0", "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}
MVAPICH = {"MV2_COMM_WORLD_RANK": "3", "MV2_COMM_WORLD_LOCAL_RANK": "0", "MV2_COMM_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
SRUN_SHELL = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NODELIST": "node7"}
"""What `srun --pty bash` sets."""
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({}, Ranks(0, 0, 1, "none")),
        (TORCH, Ranks(3, 1, 4, "torch")),
        ({**OPENMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Ranks(1, 1, 2, "openmpi")),
        ({**OPENMPI, "MASTER_ADDR": "w1"}, Ranks(1, 1, 2, "openmpi")),
        (SLURM, Ranks(5, 1, 8, "slurm")),
        (MPICH, Ranks(0, 0, 2, "mpich")),
        (MVAPICH, Ranks(3, 0, 4, "mvapich")),
        ({"SLURM_NTASKS": "1", "SLURM_JOB_ID": "1"}, Ranks(0, 0, 1, "none")),  # a shell inside salloc
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}, Ranks(0, 0, 1, "none")),  # a batch script
        ({**SLURM, "PMI_RANK": "5", "PMI_SIZE": "8"}, Ranks(5, 1, 8, "slurm")),  # srun with the pmi2 plugin
        ({**SLURM, **TORCH}, Ranks(3, 1, 4, "torch")),  # torchrun started by srun
        ({**SRUN_SHELL, **OPENMPI, "MASTER_ADDR": "a"}, Ranks(1, 1, 2, "openmpi")),  # mpirun in a shell of srun
        ({**SRUN_SHELL, **TORCH}, Ranks(3, 1, 4, "torch")),
        ({**SLURM, **TORCH, "GROUP_WORLD_SIZE": "2"}, Ranks(3, 1, 4, "torch")),  # torchrun --nnodes 2 on each task
        ({"SLURM_NTASKS": "2", **OPENMPI, "MASTER_ADDR": "a"}, Ranks(1, 1, 2, "openmpi")),  # mpirun in a batch script
        (ALONE, Ranks(0, 0, 1, "torch")),
        (dict.fromkeys(TORCH, ""), Ranks(0, 0, 1, "none")),
    ],
)
def test_variables_are_mapped(variables: dict[str, str], ranks: Ranks) -> None:
    env = dict(variables)
    assert map_rank_variables(env) == ranks
    assert (env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"]) == tuple(map(str, astuple(ranks)[:3]))
    assert env["MASTER_ADDR"]
    assert env["MASTER_PORT"]


def test_a_second_look_finds_the_same_world() -> None:
    for variables in (TORCH, {**OPENMPI, "MASTER_ADDR": "a"}, SLURM, MPICH, MVAPICH, SRUN_SHELL, {}):
        env = dict(variables)
        assert astuple(map_rank_variables(env))[:3] == astuple(map_rank_variables(env))[:3]


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("gpu[001-004,9]", "gpu001"),
        ("gpu[3,9-12]-ib,other", "gpu3-ib"),
        ("rack[2-3]n[08-15].site.edu", "rack2n08.site.edu"),
    ],
)
def test_slurm_takes_the_first_host(hosts: str, first: str) -> None:
    """As `scontrol show hostnames` lists them."""
    env = {**SLURM, "SLURM_NODELIST": hosts}
    map_rank_variables(env)
    assert env["MASTER_ADDR"] == first


@pytest.mark.parametrize("hosts", ["", "$(id)", "a b", "[1-2"])
def test_a_host_list_that_is_none_is_refused(hosts: str) -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        map_rank_variables({**SLURM, "SLURM_NODELIST": hosts})


PARTS = [
    part
    for launcher, names in LAUNCHERS.items()
    for size in (1, 2)
    for part in itertools.combinations(names, size)
    if launcher != "slurm" or "SLURM_STEP_NUM_TASKS" in part  # the rest of srun's are in every batch script
]


@pytest.mark.parametrize("part", PARTS, ids="+".join)
def test_every_half_of_a_set_is_refused(part: tuple[str, ...]) -> None:
    missing = {name for names in LAUNCHERS.values() if set(part) <= set(names) for name in names} - set(part)
    with pytest.raises(ConfigError, match="copy of its own") as told:
        map_rank_variables(dict.fromkeys(part, "1"))
    assert all(name in str(told.value) for name in missing)


@pytest.mark.parametrize(
    "variables",
    [
        {**SLURM, **ALONE},  # srun -n 8 torchrun --nproc_per_node 1, without --nnodes
        {**SLURM, **TORCH, "GROUP_WORLD_SIZE": "1"},  # each task's torchrun knows of its own host alone
        {**SLURM, **TORCH, "CROSS_SIZE": "1"},  # the same with deepspeed
        {**OPENMPI, **ALONE},  # an image that exports RANK=0 WORLD_SIZE=1
        {**SLURM, **OPENMPI},  # mpirun -n 2 on each of 8 tasks
    ],
)
def test_two_launchers_that_disagree_are_refused(variables: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="two launchers disagree"):
        map_rank_variables({**variables, "MASTER_ADDR": "a"})


@pytest.mark.parametrize("name", UNMAPPED)
def test_a_launcher_that_is_not_known_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=1 .* copy of its own"):
        map_rank_variables({name: "1"})


NO_VARIABLES = "from vmae2_ds.dist import map_rank_variables as m; from vmae2_ds.errors import ConfigError\n"
NO_VARIABLES += "try: print(m())\nexcept ConfigError as error: print('refused:', error)"


def bare_environment() -> dict[str, str]:
    """This one without any launcher's variables."""
    known = {name for names in LAUNCHERS.values() for name in names} | set(UNMAPPED)
    return {name: value for name, value in os.environ.items() if name not in known and not name.startswith("SLURM")}


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="no /proc: the parent's name is not to be had")
@pytest.mark.parametrize(("parent", "refused"), [("mpirun", True), ("hydra_pmi_proxy", True), ("sh", False)])
def test_a_process_whose_parent_starts_ranks_but_named_none_is_refused(
    parent: str, refused: bool, tmp_path: Path
) -> None:
    (tmp_path / parent).symlink_to(shutil.which("bash") or "/bin/bash")
    script = '"$@"; exit $?'  # two commands, so that bash stays the parent
    command = [str(tmp_path / parent), "-c", script, "_", sys.executable, "-c", NO_VARIABLES]
    said = subprocess.run(command, env=bare_environment(), capture_output=True, text=True, check=True).stdout
    assert said.startswith("refused:") == refused


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not here: Debian's openmpi-bin")
def test_two_processes_of_a_real_mpirun_are_two_ranks_with_or_without_its_variables() -> None:
    mpirun = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    command = [*mpirun, sys.executable, "-c", NO_VARIABLES]
    said = subprocess.run(command, env=bare_environment(), capture_output=True, text=True, check=True).stdout
    assert {line.split("(")[1][:6] for line in said.splitlines()} == {"rank=0", "rank=1"}
    assert said.count("size=2") == 2
    unset = ["env", *(word for name in LAUNCHERS["openmpi"] for word in ("-u", name))]
    command = [*mpirun, *unset, sys.executable, "-c", NO_VARIABLES]
    said = subprocess.run(command, env=bare_environment(), capture_output=True, text=True, check=True).stdout
    assert said.count("refused:") == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "4"}, "contradict"),
        ({"RANK": "-1"}, "contradict"),
        ({"WORLD_SIZE": "0"}, "contradict"),
        ({"LOCAL_RANK": "9"}, "contradict"),
        ({"RANK": "x"}, "not a number"),
        ({"MASTER_PORT": "x"}, "not a number"),
        ({"MASTER_PORT": "70000"}, "no port"),
        ({"SLURM_JOB_ID": "x"}, "not a number"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
    ],
)
def test_nonsense_is_refused(change: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        map_rank_variables({**TORCH, **change})


@pytest.mark.parametrize("inside", [{"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, {}], ids=["sbatch", "salloc"])
def test_a_slurm_job_of_many_tasks_without_srun_is_refused(inside: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="srun"):
        map_rank_variables({**inside, "SLURM_NTASKS": "8"})


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
