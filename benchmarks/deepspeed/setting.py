"""How DeepSpeed is set up in a case: a policy of ds_configs/, a precision, and what is set beyond them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Setting(NamedTuple):
    """How DeepSpeed is set up."""

    policy: str
    """A name in ds_configs/."""
    precision: str
    more: str = ""
    """Name of further settings, in `MORE`."""

    def __str__(self) -> str:
        return f"{self.policy} {self.precision}" + (f", {self.more}" if self.more else "")


MORE: dict[str, dict[str, Any]] = {
    "": {},
    "grad_accum_dtype fp32": {"data_types": {"grad_accum_dtype": "fp32"}},
    "hpZ": {"zero_hpz_partition_size": 2},
    "reduced to owners": {"use_multi_rank_bucket_allreduce": False},
    "deepcompile": {"compile": {"deepcompile": True}},
    "zenflow": {"zenflow": {"topk_ratio": 0.5, "update_interval": 2, "select_interval": 2, "select_strategy": "step"}},
    "superoffload": {"offload_optimizer": {"device": "cpu", "super_offload": True}},
}
"""Beyond what the policies hold. Names of ZeRO go into `zero_optimization`."""
