"""What a ZeRO policy means to the calculators: DeepSpeed's own defaults filled in, read from and written as a ds_config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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
    persistence_threshold: int = 100_000
    sub_group: int = 1_000_000_000
    hpz: int = 1
    """ZeRO++ hpZ: ranks over which a second copy of the weights is divided; 1 is off."""
    quantized_weights: bool = False
    """ZeRO++ qwZ: 8-bit weight gathers."""
    quantized_gradients: bool = False
    """ZeRO++ qgZ: 4-bit gradient reduction between nodes."""

    @classmethod
    def of_ds_config(cls, ds_config: Mapping[str, Any]) -> ZeroPolicy:
        """Read a policy or a resolved ds_config; what it leaves out has DeepSpeed's default."""
        zero = ds_config.get("zero_optimization", {})
        stage = int(zero.get("stage", 0))
        named = {name: zero[key] for name, key in _KEYS.items() if key in zero}
        overlap = zero.get("overlap_comm")
        return cls(
            stage=stage,
            offload_optimizer=_is_offloaded(zero, "offload_optimizer"),
            offload_param=_is_offloaded(zero, "offload_param"),
            overlap_comm=stage == 3 if overlap is None else bool(overlap),
            **{name: bool(value) if isinstance(value, bool) else int(value) for name, value in named.items()},
        )

    def zero_optimization(self) -> dict[str, Any]:
        """The `zero_optimization` section that says this, without what the stage does not read."""
        section: dict[str, Any] = {"stage": self.stage}
        if self.stage == 0:
            return section
        wanted = ["reduce_bucket", "contiguous_gradients"]
        if self.stage == 3:
            wanted += ["prefetch_bucket", "max_live", "persistence_threshold", "sub_group"]
            if self.hpz > 1:
                wanted.append("hpz")
            wanted += [name for name in ("quantized_weights", "quantized_gradients") if getattr(self, name)]
        else:
            wanted.append("allgather_bucket")
        section |= {_KEYS[name]: getattr(self, name) for name in wanted}
        section["overlap_comm"] = self.overlap_comm
        if self.stage == 3:
            section["stage3_max_reuse_distance"] = self.max_live
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
    "persistence_threshold": "stage3_param_persistence_threshold",
    "sub_group": "sub_group_size",
    "hpz": "zero_hpz_partition_size",
    "quantized_weights": "zero_quantized_weights",
    "quantized_gradients": "zero_quantized_gradients",
}


def _is_offloaded(zero: Mapping[str, Any], part: str) -> bool:
    return (zero.get(part) or {}).get("device", "none") != "none"
