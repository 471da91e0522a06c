"""The machines a run is planned for: how many GPUs of which kind, over how many nodes, with how much memory each."""

from __future__ import annotations

from dataclasses import dataclass

from vmae2_ds.console.progress import counted
from vmae2_ds.cost.assumptions import Range
from vmae2_ds.cost.hardware import Accelerator
from vmae2_ds.errors import ConfigError

CPU_KEY = "cpu"
"""What `--gpu` calls this machine's CPU."""
USUAL_NODE = 8
"""GPUs in a node where nobody says otherwise."""


@dataclass(frozen=True)
class Cluster:
    """`num_gpus` equal GPUs over `num_nodes` equal nodes."""

    gpu: Accelerator
    num_gpus: int
    num_nodes: int
    memory_gib: float
    """What programs may use of one GPU's memory, expected."""
    worst_memory_gib: float

    @property
    def gpus_per_node(self) -> int:
        """GPUs that share a node."""
        return self.num_gpus // self.num_nodes

    @property
    def on_cpu(self) -> bool:
        """Are the "GPUs" ranks on this machine's CPU?"""
        return self.gpu.key == CPU_KEY

    @property
    def one(self) -> str:
        """What people call one of them: a GPU, or a rank where there is none."""
        return "rank" if self.on_cpu else "GPU"

    def __str__(self) -> str:
        nodes = f"{self.num_nodes} node{'s' if self.num_nodes > 1 else ''}"
        return f"{self.num_gpus} x {self.gpu.name} on {nodes}, {self.memory_gib:.1f} GiB usable of each"


def make_cluster(
    gpu: Accelerator, num_gpus: int, num_nodes: int | None, memory_gib: float | None, usable_share: Range
) -> Cluster:
    """Check and fill in: nodes of 8, and `usable_share` of the nominal memory, where they are not given.

    Raises:
        ConfigError: GPUs that do not divide over the nodes, or more memory than the GPU has.
    """
    if num_gpus < 1:
        raise ConfigError(f"--gpus {num_gpus}: at least 1")
    if num_nodes is not None and num_nodes < 1:
        raise ConfigError(f"--nodes {num_nodes}: at least 1")
    nodes = num_nodes if num_nodes is not None else -(-num_gpus // USUAL_NODE)
    if num_gpus % nodes:
        near = max(1, num_gpus // nodes) * nodes
        raise ConfigError(
            f"--gpus {num_gpus} do not divide over {counted(nodes, 'node')}; try --gpus {near}, or say --nodes"
        )
    if memory_gib is not None and not 0 < memory_gib <= gpu.memory_gb:
        raise ConfigError(
            f"--memory {memory_gib:g}: {gpu.name} has {gpu.memory_gb:g} GB; say less, or leave --memory out"
        )
    if memory_gib is not None:
        return Cluster(gpu, num_gpus, nodes, memory_gib, memory_gib)
    return Cluster(gpu, num_gpus, nodes, gpu.memory_gb * usable_share.value, gpu.memory_gb * usable_share.low)
