"""Memory, traffic and time of one configuration on one cluster, put together from the closed forms of `cost`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal, NamedTuple

from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.comm import CommBytes, comm_bytes
from vmae2_ds.cost.compute_time import DeviceRates, muon_time, optimizer_time, rates_of, time_of
from vmae2_ds.cost.gathers import count_modules
from vmae2_ds.cost.muon import KERNELS, most_work
from vmae2_ds.cost.parameters import muon_matrices
from vmae2_ds.cost.states import MASTER_BYTES, WEIGHT_BYTES, StateBytes, state_bytes
from vmae2_ds.cost.traffic import ATTENTION_KINDS, AttentionKind
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.tune.workload import Planned, Workload, workload_of

GIB = 2**30
OVERHEAD = ("fragmentation", "context", "workspaces")
"""Parts of a GPU's memory that are assumed."""
MANY_MICRO_STEPS = 8
"""Accumulating more than this in bf16 is worth a word: each addition rounds to 8 bits."""
Bind = Literal["compute", "network", "optimizer", "data"]


@dataclass(frozen=True)
class GpuMemory:
    """Bytes of one GPU at the worst moment of a step, by what holds them; `host` beside it, per GPU."""

    parts: Mapping[str, float]
    host: float

    @property
    def total(self) -> float:
        """All parts."""
        return sum(self.parts.values())

    @property
    def total_gib(self) -> float:
        """All parts, in GiB."""
        return self.total / GIB

    @property
    def host_gib(self) -> float:
        """Host memory, in GiB."""
        return self.host / GIB

    @property
    def tensors(self) -> float:
        """What tensors take, without what the process and the allocator take on top."""
        return sum(value for part, value in self.parts.items() if part not in OVERHEAD)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by what takes them."""

    compute_s: float
    """Forward, backward, recomputation."""
    network_s: float
    """Communication that nothing hides."""
    hidden_s: float
    """Communication behind the backward pass."""
    optimizer_s: float
    """Update, with the way to the host and back under offload."""
    data_s: float
    """What the cores of one GPU need to read its videos, in parallel to the rest."""

    @property
    def device_s(self) -> float:
        """What the GPU needs."""
        return self.compute_s + self.network_s + self.optimizer_s

    @property
    def total_s(self) -> float:
        """The step: the GPU, or the data where that takes longer."""
        return max(self.device_s, self.data_s)

    @property
    def binds(self) -> Bind:
        """What the step spends most of its time on."""
        if self.data_s > self.device_s:
            return "data"
        costs: dict[Bind, float] = {
            "compute": self.compute_s,
            "network": self.network_s,
            "optimizer": self.optimizer_s,
        }
        return max(costs, key=lambda name: costs[name])


class Setting(NamedTuple):
    """What the tuner varies, complete: the run config with its policy beside it."""

    config: Planned
    policy: ZeroPolicy

    @property
    def clips(self) -> int:
        """Clips one GPU holds in a micro step."""
        return self.config.train.micro_batch * self.config.data.views

    def workload(self, on_cpu: bool) -> Workload:
        """What the run asks of a GPU."""
        return workload_of(self.config, attention_kind(self.config, on_cpu), zero_stage=self.policy.stage)


def attention_kind(config: Planned, on_cpu: bool) -> AttentionKind:
    """What the kernel that runs counts as.

    What `auto` will measure to be fastest: in bf16 flash on a GPU, math on a CPU; in fp32 sdpa.
    """
    if config.model.attention != "auto":
        return ATTENTION_KINDS[config.model.attention]
    if config.train.precision == "fp32":  # flash_attn has no float32
        return "sdpa"
    return "math" if on_cpu else "flash"


def notes_on(setting: Setting, cluster: Cluster) -> list[str]:
    """What memory and time do not show, and a user should know before choosing this."""
    notes = []
    micro_steps = accumulation(setting.config, cluster)
    if micro_steps > MANY_MICRO_STEPS and setting.config.train.precision == "bf16":
        notes.append(
            f"gradients add up in bf16 over {micro_steps} micro steps (DeepSpeed's default, docs/TRAINING.md): more GPUs, or "
            "more recomputation and larger micro batches, keep more digits"
        )
    elements, flops, _ = newton_schulz(setting.workload(cluster.on_cpu), setting.policy, cluster.num_gpus)
    if elements:
        notes.append(
            f"Muon (experimental) makes the blocks' matrices orthogonal in each update: {elements / 1e6:.3g} M parameters and "
            f"{flops / 1e12:.3g} TFLOP on the fullest GPU, in the optimizer's time; no GPU has run it"
        )
    if setting.policy.quantized_gradients:
        notes.append("ZeRO++ rounds weights to 8 bit and gradients to 4 bit on their way: not quite the same training")
    return notes


def predict_memory(setting: Setting, cluster: Cluster, assumptions: Assumptions) -> GpuMemory:
    """Bytes at the worst moment of a step; `.value` of every assumption is used (see `Assumptions.at`)."""
    config, policy = setting
    asked, precision = setting.workload(cluster.on_cpu), config.train.precision
    micro_steps = accumulation(config, cluster)
    states = _states(asked.zero_model, policy, cluster.num_gpus, precision=precision, accumulation=micro_steps)
    activations = asked.activations(setting.clips) + (micro_steps - 1) * setting.clips * asked.waiting_bytes
    found = add_up(states, activations, assumptions, asked.mean_bytes(cluster.num_gpus, policy))
    whole = 0 if config.train.ds_zero_init else asked.num_parameters
    found = _or_start(found, WEIGHT_BYTES[precision] * whole)
    # A model that is not built partitioned stands whole, in float32, in every rank's host memory while it is built.
    return GpuMemory(found.parts, max(found.host, MASTER_BYTES * whole))


def _or_start(memory: GpuMemory, whole: int) -> GpuMemory:
    """The larger of a step's memory and the start's: the whole model on the GPU before ZeRO divides it, unless built
    divided."""
    if whole <= memory.tensors:
        return memory
    overhead = {part: value for part, value in memory.parts.items() if part in OVERHEAD}
    nothing = {part: 0.0 for part in memory.parts if part not in OVERHEAD}
    return GpuMemory(nothing | {"weights": whole} | overhead, memory.host)


def add_up(states: StateBytes, activations: float, assumptions: Assumptions, mean: float = 0) -> GpuMemory:
    """States and activations at the worst moment of a step, with what the process and the allocator take on top.

    `mean`: bytes of a running mean of the weights.
    """
    tensors: dict[str, float] = {"weights": states.weights, "master weights": states.master, "moments": states.moments}
    if mean:
        tensors["mean of weights"] = mean
    if states.backward + activations >= states.step:
        tensors |= {
            "gradients": states.gradients,
            "buckets": states.buckets,
            "gathered weights": states.live + states.secondary,
            "activations": activations,
        }
    else:  # large models in small batches: the fullest moment is the update, when activations are gone
        tensors |= {
            "gradients": states.update,
            "buckets": states.kept,
            "gathered weights": states.secondary,
            "activations": 0,
        }
    unused = assumptions.fragmentation.value
    parts = tensors | {
        "fragmentation": sum(tensors.values()) * unused / (1 - unused),
        "context": assumptions.context_gib.value * GIB,
        "workspaces": assumptions.workspace_gib.value * GIB,
    }
    return GpuMemory(parts, states.host)


def predict_time(setting: Setting, cluster: Cluster, assumptions: Assumptions) -> StepTime:
    """Seconds of one optimizer step; `.value` of every assumption is used (see `Assumptions.at`).

    Raises:
        ConfigError: a precision that the GPU cannot compute in.
    """
    config = setting.config
    micro_steps = accumulation(config, cluster)
    asked = setting.workload(cluster.on_cpu)
    filled = 1 / (1 + assumptions.half_rate_tokens.value / (asked.tokens * setting.clips))
    rates = rates_of(
        cluster.gpu,
        config.train.precision,
        matmul_efficiency=assumptions.matmul_efficiency.value * filled,
        memory_efficiency=assumptions.memory_efficiency.value,
        tf32=config.train.tf32,
    )
    work = asked.work(setting.clips)
    host_s = work.kernels * assumptions.launch_s.value
    if setting.policy.stage == 3:
        host_s += _modules(asked.zero_model) * assumptions.zero3_module_s.value
    busy_s = time_of(work, rates).total_s
    # A GPU computes while the host starts the next operation; a CPU does one after the other.
    compute_s = micro_steps * (busy_s + host_s if cluster.on_cpu else max(busy_s, host_s))
    hidden_s, network_s = _network(setting, cluster, assumptions, compute_s, micro_steps)
    return StepTime(
        compute_s=compute_s,
        network_s=network_s,
        hidden_s=hidden_s,
        optimizer_s=_optimizer_s(setting, asked, cluster, assumptions, rates),
        data_s=asked.core_s(assumptions) * config.train.global_batch
        / (config.data.views * cluster.num_gpus * reading_cores(config, assumptions)),
    )  # fmt: skip


def accumulation(config: Planned, cluster: Cluster) -> int:
    """Micro steps of one optimizer step."""
    return config.train.global_batch // (config.train.micro_batch * config.data.views * cluster.num_gpus)


def reading_cores(config: Planned, assumptions: Assumptions) -> float:
    """Cores that read for one GPU: one for each loader worker, which decodes in one thread, as far as there are cores."""
    return min(assumptions.cores_per_gpu.value, max(1, config.data.workers))


def traffic_of(setting: Setting, cluster: Cluster) -> CommBytes:
    """What the ranks exchange in one optimizer step."""
    config, policy = setting
    return _comm(
        setting.workload(cluster.on_cpu).zero_model,
        policy,
        world_size=cluster.num_gpus,
        num_nodes=cluster.num_nodes,
        accumulation=accumulation(config, cluster),
        precision=config.train.precision,
    )


def _network(
    setting: Setting, cluster: Cluster, assumptions: Assumptions, compute_s: float, micro_steps: int
) -> tuple[float, float]:
    """Seconds of communication that are hidden and that are not.

    With overlap_comm, `overlap` of what runs beside computation is hidden, as far as there is computation: the backward
    pass, two thirds of the time (at stage 3 the forward pass too); in stages 0 and 1 only that of the last micro step,
    which is when they reduce. Stages 1 and 2 gather the new weights after the update, where nothing hides it.
    """
    policy = setting.policy
    comm = traffic_of(setting, cluster)
    link_s = comm.intra_node / (cluster.gpu.link_gb_s * 1e9 * assumptions.link_efficiency.value)
    network_s = comm.inter_node / (assumptions.network_gb_s.value * 1e9 * assumptions.link_efficiency.value)
    calls = sum(each.calls for each in comm.collectives)
    total_s = max(link_s, network_s) + calls * assumptions.collective_s.value
    weight = {"all_reduce": 2, "all_gather": cluster.num_gpus}  # of a payload, all ranks together
    sent = [weight.get(each.kind, 1) * each.payload for each in comm.collectives]
    after_update = [
        size
        for each, size in zip(comm.collectives, sent, strict=True)
        if policy.stage in (1, 2) and each.kind in ("all_gather", "exchange")
    ]
    beside_s = total_s * (1 - sum(after_update) / max(1, sum(sent)))
    cover_s = compute_s * (1.0 if policy.stage == 3 else 2 / 3)
    if policy.stage < 2:
        cover_s /= micro_steps
    overlap = assumptions.overlap.value if policy.overlap_comm else 0.0
    hidden_s = min(overlap * beside_s, cover_s)
    return hidden_s, total_s - hidden_s


def newton_schulz(asked: Workload, policy: ZeroPolicy, num_gpus: int) -> tuple[int, int, int]:
    """Elements that Muon updates on one GPU, and of an update the most FLOPs and the most matrices of any GPU."""
    ranks = num_gpus if policy.stage else 1
    elements = flops = matrices = 0
    for shapes in muon_matrices(asked.zero_model).values():
        part = -(-sum(map(prod, shapes)) // (2 * ranks)) * 2
        more_flops, more_matrices = most_work(shapes, part, ranks)
        elements, flops, matrices = elements + part, flops + more_flops, matrices + more_matrices
    return elements, flops, matrices


def _optimizer_s(
    setting: Setting, asked: Workload, cluster: Cluster, assumptions: Assumptions, rates: DeviceRates
) -> float:
    """AdamW, and Muon, on this rank's part; under offload on the host's cores, gradients down and weights up over PCIe."""
    config, policy = setting
    total, precision = asked.num_learning, config.train.precision
    share = total if policy.stage == 0 else -(-total // cluster.num_gpus)
    if not policy.offload_optimizer:
        elements, flops, matrices = newton_schulz(asked, policy, cluster.num_gpus)
        with_adam = optimizer_time(max(0, share - elements), rates, precision=precision)
        busy_s = muon_time(elements, flops, rates, precision=precision)
        host_s = matrices * KERNELS * assumptions.launch_s.value
        return with_adam + (busy_s + host_s if cluster.on_cpu else max(busy_s, host_s))
    size = 2 if config.train.precision == "bf16" else 4
    micro_steps = accumulation(config, cluster)
    moved = (4 + size) * share  # once: the gradient down in float32, the new weights up
    # What adds up lives on the host: stage_1_and_2.py:async_accumulate_grad_in_cpu_via_gpu, stage3.py:partition_grads.
    if policy.stage == 2 and micro_steps > 1:
        moved += (2 * micro_steps - 1) * size * share
    elif policy.stage == 3:
        moved += 2 * size * share * micro_steps
    if policy.offload_param:
        moved += 2 * size * share * micro_steps
    update_s = share / (assumptions.host_adam_params_s.value * assumptions.cores_per_gpu.value)
    return moved / (assumptions.host_link_gb_s.value * 1e9) + update_s


# One layout is priced with hundreds of micro batches and buckets: each closed form is evaluated once per argument.
_states = lru_cache(maxsize=4096)(state_bytes)
_comm = lru_cache(maxsize=4096)(comm_bytes)
_modules = lru_cache(maxsize=64)(count_modules)
