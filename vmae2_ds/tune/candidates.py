"""Search every setting for the fastest that fits: candidates, what rejects them, the Pareto front, and what would help."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.errors import ConfigError
from vmae2_ds.tune.search_space import all_settings
from vmae2_ds.tune.setting_cost import GpuMemory, Setting, StepTime, accumulation, predict_memory, predict_time

SAME_TIME = 1.02
"""Settings whose predicted times differ by less are equally fast: the simpler one is taken."""


@dataclass(frozen=True)
class Candidate:
    """A setting and what it is predicted to take."""

    setting: Setting
    cluster: Cluster
    memory: GpuMemory
    """Expected."""
    worst_memory: GpuMemory
    """With every assumption at its worse end."""
    time: StepTime
    """Expected."""
    host_memory_gib: float
    """What a GPU's share of its host has, expected."""
    worst_host_memory_gib: float

    @property
    def margin_gib(self) -> float:
        """Expected memory left on the GPU; negative where it does not fit."""
        return self.cluster.memory_gib - self.memory.total_gib

    @property
    def fits(self) -> bool:
        """Expected to fit, on the GPU and in host memory."""
        return self.margin_gib >= 0 and self.memory.host_gib <= self.host_memory_gib

    @property
    def is_safe(self) -> bool:
        """Fits even with every assumption at its worse end."""
        on_host = self.memory.host_gib <= self.worst_host_memory_gib
        return self.fits and on_host and self.worst_memory.total_gib <= self.cluster.worst_memory_gib

    @property
    def complexity(self) -> tuple[int, ...]:
        """Smaller is simpler: fewer things that can go wrong."""
        policy, model = self.setting.policy, self.setting.config.model
        return (
            policy.offload_optimizer + policy.offload_param + policy.quantized_weights,
            policy.stage + (policy.hpz > 1) + (not policy.multi_rank_allreduce),
            model.checkpointing != "none",
        )

    def describe(self) -> str:
        """The setting in a line; micro 8 x 4 is 8 videos in each of 4 micro steps."""
        micro = f"micro {self.setting.config.train.micro_batch} x {accumulation(self.setting.config, self.cluster)}"
        buckets = f", buckets {self.setting.policy.reduce_bucket / 1e6:.3g} M" if self.setting.policy.stage else ""
        owners = "" if self.setting.policy.multi_rank_allreduce else " reduced to owners"
        return f"{layout_name(self.setting)}, {checkpointing_name(self.setting)}, {micro}{buckets}{owners}"


@dataclass(frozen=True)
class Search:
    """All candidates of a recipe on a cluster."""

    config: PretrainConfig
    cluster: Cluster
    candidates: list[Candidate]

    @cached_property
    def fitting(self) -> list[Candidate]:
        """Candidates that fit, fastest first; where the data binds all alike, the one that leaves the GPU most to spare."""
        fits = [candidate for candidate in self.candidates if candidate.fits]
        return sorted(fits, key=_slowness)

    @cached_property
    def ranked(self) -> list[Candidate]:
        """One for each way to lay out the work, best first: those that fit in the worst case before those that may not."""
        best = _best_of(self.fitting, lambda c: (layout_name(c.setting), checkpointing_name(c.setting)))
        return sorted(best, key=lambda c: (not c.is_safe, c.time.total_s))

    @cached_property
    def chosen(self) -> Candidate | None:
        """The simplest of the fastest settings that fit in the worst case, or else in the expected one; None if none fits."""
        close = [candidate for candidate in self._pool if candidate.time.total_s <= self.same_time_s]
        least_s = min((candidate.time.device_s for candidate in close), default=0.0)
        close = [candidate for candidate in close if candidate.time.device_s <= SAME_TIME * least_s]
        return min(close, key=lambda c: (c.complexity, c.memory.total), default=None)

    @cached_property
    def same_time_s(self) -> float:
        """Up to here a setting counts as fast as the fastest of those that are safe."""
        return SAME_TIME * min((candidate.time.total_s for candidate in self._pool), default=0.0)

    @cached_property
    def _pool(self) -> list[Candidate]:
        return [candidate for candidate in self.fitting if candidate.is_safe] or self.fitting

    @cached_property
    def front(self) -> list[Candidate]:
        """Pareto front: no other setting that fits is both faster and smaller; fastest first."""
        front: list[Candidate] = []
        for candidate in self.fitting:
            if not front or candidate.memory.total < 0.995 * front[-1].memory.total:
                front.append(candidate)
        return front

    def families(self, name_of: Callable[[Setting], str]) -> dict[str, Candidate]:
        """The best candidate of each family: the one taken, the fastest that fits, or the one that needs the least memory."""
        families: dict[str, Candidate] = {}
        for candidate in self.candidates:
            name = name_of(candidate.setting)
            if name not in families or _better(candidate, families[name]):
                families[name] = candidate
        return families | ({name_of(self.chosen.setting): self.chosen} if self.chosen else {})


def search(
    config: PretrainConfig, cluster: Cluster, assumptions: Assumptions, *, quantized: bool = False, offload: bool = True
) -> Search:
    """Predict every setting that keeps the recipe's global batch.

    Raises:
        ConfigError: a global batch that these GPUs cannot make, or a precision they cannot compute in.
    """
    # As many loader workers as there are cores for them: they change no result, and the command to start says how many.
    fed = config.changed(data={"workers": max(1, int(assumptions.cores_per_gpu.value))})
    settings = all_settings(fed, cluster, quantized=quantized, offload=offload)
    expected, worst = assumptions.at("expected"), assumptions.at("worst")
    return Search(config, cluster, [_predict(setting, cluster, expected, worst) for setting in settings])


def predict_candidate(setting: Setting, cluster: Cluster, assumptions: Assumptions) -> Candidate:
    """Predict one setting."""
    return _predict(setting, cluster, assumptions.at("expected"), assumptions.at("worst"))


def anything_fits(
    config: PretrainConfig, cluster: Cluster, assumptions: Assumptions, *, quantized: bool = False, offload: bool = True
) -> bool:
    """Would the smallest buckets fit? Quicker than `search`: no times are predicted. False where the batch does not divide."""
    try:
        settings = list(all_settings(config, cluster, quantized=quantized, offload=offload))
    except ConfigError:
        return False
    expected = assumptions.at("expected")
    smallest = min(setting.policy.reduce_bucket for setting in settings)
    memories = (
        predict_memory(setting, cluster, expected)
        for setting in reversed(settings)  # all of the recomputation first
        if setting.policy.reduce_bucket in (smallest, ZeroPolicy(stage=0).reduce_bucket)
    )
    return any(
        memory.total_gib <= cluster.memory_gib and memory.host_gib <= expected.host_memory_gib.value
        for memory in memories
    )


def _predict(setting: Setting, cluster: Cluster, expected: Assumptions, worst: Assumptions) -> Candidate:
    return Candidate(
        setting,
        cluster,
        predict_memory(setting, cluster, expected),
        predict_memory(setting, cluster, worst),
        predict_time(setting, cluster, expected),
        expected.host_memory_gib.value,
        worst.host_memory_gib.value,
    )


def layout_name(setting: Setting) -> str:
    """Short name of where a setting's states live: stage, offload, ZeRO++."""
    policy = setting.policy
    name = f"stage {policy.stage}"
    if policy.offload_param:
        name += " + offload of states and weights"
    elif policy.offload_optimizer:
        name += " + offload of states"
    if policy.quantized_weights:
        name += " + ZeRO++ quantised"
    elif policy.hpz > 1:
        name += " + ZeRO++ hpZ"
    return name


def checkpointing_name(setting: Setting) -> str:
    """What is computed again."""
    model = setting.config.model
    mode = model.checkpointing
    return f"recompute {f'1 block in {model.checkpoint_every}' if mode == 'every_k' else mode}"


def _best_of(candidates: Iterable[Candidate], key: Callable[[Candidate], Hashable]) -> list[Candidate]:
    """The first of each kind."""
    best: dict[Hashable, Candidate] = {}
    for candidate in candidates:
        best.setdefault(key(candidate), candidate)
    return list(best.values())


def _slowness(candidate: Candidate) -> tuple[float, float, float]:
    return candidate.time.total_s, candidate.time.device_s, candidate.memory.total


def _better(candidate: Candidate, than: Candidate) -> bool:
    if candidate.fits != than.fits:
        return candidate.fits
    if candidate.fits:
        return _slowness(candidate) < _slowness(than)
    return candidate.memory.total < than.memory.total
