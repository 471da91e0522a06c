"""What a ZeRO policy means to the calculators: DeepSpeed's own defaults filled in, read from and written as a ds_config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vmae2_ds.errors import ConfigError


@dataclass(frozen=True)
class ZeroPolicy:
    """The part of `zero_optimization` that decides memory and traffic. Sizes are in elements, as DeepSpeed counts them.

    The defaults are DeepSpeed's (deepspeed/runtime/zero/config.py, 0.19.8), not this project's.
    """

    stage: int
    offload_optimizer: bool = False
    """Master weights, moments and gradients in host memory."""
    offload_param: bool = False
    """Stage 3: weights in host memory too."""
    reduce_bucket: int = 500_000_000
    allgather_bucket: int = 500_000_000
    overlap_comm: bool = False
    contiguous_gradients: bool = True
    prefetch_bucket: int = 50_000_000
    max_live: int = 1_000_000_000
    """Stage 3: prefetching stops when this many gathered elements are alive. It releases nothing."""
    max_reuse: int = 1_000_000_000
    """Stage 3: a gathered weight that is used again within this many elements is kept."""
    persistence_threshold: int = 100_000
    sub_group: int = 1_000_000_000
    multi_rank_allreduce: bool = True
    """Stages 1 and 2: all-reduce whole gradient buckets; off, each gradient is reduced to the rank that owns it."""
    hpz: int = 1
    """ZeRO++ hpZ: ranks over which a second copy of the weights is divided; 1 is off."""
    quantized_weights: bool = False
    """ZeRO++ qwZ: 8-bit weight gathers."""
    quantized_gradients: bool = False
    """ZeRO++ qgZ: 4-bit gradient reduction between nodes."""

    @classmethod
    def of_ds_config(cls, ds_config: Mapping[str, Any]) -> ZeroPolicy:
        """Read a policy or a resolved ds_config; what it leaves out has DeepSpeed's default.

        Raises:
            ConfigError: a size that is no number, such as "auto"; offload to NVMe, which nothing here prices.
        """
        zero = ds_config.get("zero_optimization", {})
        stage = int(zero.get("stage", 0))
        named = {name: zero[key] for name, key in _KEYS.items() if key in zero}
        for name, value in named.items():
            if not isinstance(value, (bool, int, float)):
                raise ConfigError(
                    f"ds_config: zero_optimization.{_KEYS[name]}={value!r}: write a number, or leave it out"
                )
        sizes: dict[str, Any] = {k: v if isinstance(v, bool) else int(v) for k, v in named.items()}
        overlap = zero.get("overlap_comm")
        return cls(
            stage=stage,
            offload_optimizer=_is_offloaded(zero, "offload_optimizer"),
            offload_param=_is_offloaded(zero, "offload_param"),
            overlap_comm=stage == 3 if overlap is None else bool(overlap),
            **sizes,
        )

    def on(self, num_ranks: int) -> ZeroPolicy:
        """This policy with hpZ as DeepSpeed has it on `num_ranks` ranks (utils/groups.py:_create_zero_param_parallel_group).

        Raises:
            ConfigError: the ranks do not divide into groups of hpZ.
        """
        ranks = min(self.hpz, num_ranks)
        if ranks > 1 and num_ranks % ranks:
            raise ConfigError(
                f"zero_hpz_partition_size={self.hpz} does not divide {num_ranks} GPUs; set it to the GPUs of a node"
            )
        return replace(self, hpz=max(1, ranks))

    def zero_optimization(self) -> dict[str, Any]:
        """The `zero_optimization` section that says this, without what the stage does not read."""
        section: dict[str, Any] = {"stage": self.stage}
        if self.stage == 0:
            return section
        wanted = ["reduce_bucket", "contiguous_gradients"]
        if self.stage == 3:
            wanted += ["prefetch_bucket", "max_live", "max_reuse", "persistence_threshold", "sub_group"]
            if self.hpz > 1:
                wanted.append("hpz")
            wanted += [name for name in ("quantized_weights", "quantized_gradients") if getattr(self, name)]
        else:
            wanted += ["allgather_bucket", *(["multi_rank_allreduce"] if not self.multi_rank_allreduce else [])]
        section |= {_KEYS[name]: getattr(self, name) for name in wanted}
        section["overlap_comm"] = self.overlap_comm
        for part in ("offload_optimizer", "offload_param"):
            if getattr(self, part):
                section[part] = {"device": "cpu", "pin_memory": "auto"}
        return section


_KEYS = {
    "reduce_bucket": "reduce_bucket_size",
    "allgather_bucket": "allgather_bucket_size",
    "contiguous_gradients": "contiguous_gradients",
    "prefetch_bucket": "stage3_prefetch_bucket_size",
    "max_live": "stage3_max_live_parameters",
    "max_reuse": "stage3_max_reuse_distance",
    "persistence_threshold": "stage3_param_persistence_threshold",
    "sub_group": "sub_group_size",
    "multi_rank_allreduce": "use_multi_rank_bucket_allreduce",
    "hpz": "zero_hpz_partition_size",
    "quantized_weights": "zero_quantized_weights",
    "quantized_gradients": "zero_quantized_gradients",
}


def _is_offloaded(zero: Mapping[str, Any], part: str) -> bool:
    device = (zero.get(part) or {}).get("device", "none")
    if device not in ("none", "cpu"):
        raise ConfigError(f"ds_config: {part} to {device!r} is not modelled; plan with device cpu")
    return device == "cpu"
