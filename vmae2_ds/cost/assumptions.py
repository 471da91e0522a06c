"""What the calculators cannot know in closed form: named constants with bounds, a reason, and a file that replaces them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import ValidationError, model_validator

from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.errors import ConfigError

End = Literal["best", "expected", "worst"]
"""Which end of every range a figure is for."""


class Range(StrictModel):
    """A constant: the value that the expected case uses, and the two that give the bounds."""

    low: float
    """Lower bound."""
    value: float
    """Expected value."""
    high: float
    """Upper bound."""

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not 0 <= self.low <= self.value <= self.high:
            raise ValueError(f"0 <= low={self.low:g} <= value={self.value:g} <= high={self.high:g} does not hold")
        return self


def _range(low: float, value: float, high: float) -> Range:
    return Range(low=low, value=value, high=high)


class Assumptions(StrictModel):
    """Engineering guesses until measured: `vmae2 tune --measure` refits some and names them."""

    source: str = "priors, nothing measured here"
    """Where the values come from."""
    usable_memory: Range = _range(0.975, 0.985, 0.99)
    """Share of a GPU's nominal memory, its marketing GB read as GiB, that the driver leaves to programs."""
    context_gib: Range = _range(0.5, 0.8, 1.2)
    """CUDA context and loaded kernels of one process; on a CPU the interpreter with its libraries."""
    workspace_gib: Range = _range(0.3, 0.5, 1.0)
    """Workspaces of cuBLAS and NCCL."""
    fragmentation: Range = _range(0.03, 0.06, 0.12)
    """Share of what torch's allocator holds that no tensor uses."""
    matmul_efficiency: Range = _range(0.35, 0.5, 0.65)
    """Share of the dense peak that matrix products reach."""
    half_rate_tokens: Range = _range(100, 400, 1000)
    """Encoder tokens in a micro batch at which matrix products reach half of that: small products leave a GPU's cores idle."""
    launch_s: Range = _range(3e-6, 6e-6, 15e-6)
    """Host time to start one operation; a GPU that is busier than that hides it."""
    zero3_module_s: Range = _range(80e-6, 150e-6, 300e-6)
    """Host time of ZeRO-3's hooks around one module, forward and backward; hidden as `launch_s` (one rank of a 3 GHz server
    core: 0.17 to 0.29 ms, step times of stage 3 less stage 1 over 172 and 292 modules)."""
    memory_efficiency: Range = _range(0.6, 0.75, 0.9)
    """Share of device memory bandwidth that norms, activations, softmax and the optimizer reach."""
    link_efficiency: Range = _range(0.6, 0.75, 0.9)
    """Share of a link's one-way bandwidth that collectives reach."""
    network_gb_s: Range = _range(6.25, 25.0, 50.0)
    """Network bandwidth of one GPU's share of its node, one way: 50, 200 and 400 Gbit/s."""
    overlap: Range = _range(0.4, 0.7, 0.9)
    """Share of communication hidden behind the backward pass, where overlap_comm is on."""
    decode_core_s: Range = _range(0.03, 0.055, 0.12)
    """CPU core seconds to open, seek and decode 16 frames of a 340x256 h264 video (0.07 to 0.11 of
    426x240 in benchmarks/results/cpu/data.jsonl)."""
    transform_core_s: Range = _range(0.003, 0.0035, 0.008)
    """CPU core seconds to cut and resize one 16 x 224 x 224 view as uint8 (0.0022 from 426x240
    in benchmarks/results/cpu/data.jsonl)."""
    cores_per_gpu: Range = _range(8, 12, 16)
    """CPU cores that may read data for one GPU."""
    collective_s: Range = _range(15e-6, 40e-6, 150e-6)
    """Start-up time of one collective over many GPUs."""
    host_link_gb_s: Range = _range(10, 20, 25)
    """PCIe between host and GPU, one way, for offload."""
    host_adam_params_s: Range = _range(0.4e9, 1e9, 1.8e9)
    """Parameters that fused AdamW updates per second and CPU core (0.7e9 to 1.3e9 in
    benchmarks/results/cpu/optimizer.jsonl)."""
    host_memory_gib: Range = _range(64, 128, 256)
    """Host memory for one GPU, for offload."""

    @model_validator(mode="after")
    def _can_be_divided_by(self) -> Assumptions:
        for name, constant in self:
            if isinstance(constant, Range) and name not in LESS_IS_BETTER and name != "overlap" and constant.low == 0:
                raise ValueError(f"{name}.low=0: rates and shares are divided by; it has to be more than 0")
        for name in ("fragmentation", "overlap", "usable_memory"):
            if getattr(self, name).high > 1 or (name == "fragmentation" and self.fragmentation.high == 1):
                raise ValueError(f"{name}.high={getattr(self, name).high:g}: it is a share, below 1")
        return self

    def at(self, end: End) -> Assumptions:
        """Every range narrowed to one of its ends, so that `.value` is the best, the expected or the worst case."""
        narrowed: dict[str, object] = {"source": self.source}
        for name, constant in self:
            if isinstance(constant, Range):
                best, worst = (constant.low, constant.high)[:: 1 if name in LESS_IS_BETTER else -1]
                value = {"best": best, "expected": constant.value, "worst": worst}[end]
                narrowed[name] = _range(value, value, value)
        return Assumptions.model_validate(narrowed)


LESS_IS_BETTER = frozenset(
    (
        "context_gib",
        "workspace_gib",
        "fragmentation",
        "decode_core_s",
        "transform_core_s",
        "collective_s",
        "half_rate_tokens",
        "launch_s",
        "zero3_module_s",
    )
)
"""The constants whose low end is the best case."""


def read_assumptions(path: Path | None) -> Assumptions:
    """The priors, or those with the values of a calibration file put in. Raises ConfigError."""
    if path is None:
        return Assumptions()
    try:
        return Assumptions.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise ConfigError(f"--calibration {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"--calibration {path}: line {error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--calibration {path}: not a text file; `vmae2 tune --measure` writes one") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise ConfigError(
            f"--calibration {path}: {where}: {first['msg']}; known: {', '.join(Assumptions.model_fields)}"
        ) from None
