"""What a run asks of its GPU before the first step: TF32 for float32 products, and room that can grow for the allocator."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from vmae2_ds.errors import ConfigError

SEGMENTS = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
"""Every torch from 2.6 on reads this name; the newer PYTORCH_ALLOC_CONF is read from 2.9 on, and 2.9.1 ignores this key there
(https://github.com/pytorch/pytorch/issues/183387)."""


def allow_tf32(device: torch.device) -> None:
    """Let float32 matrix products round their inputs to TF32, 10 bits instead of 23, on the device's matrix units.

    Raises ConfigError where the device has none for it.
    """
    if device.type != "cuda":
        raise ConfigError("--train.tf32 is for GPUs, and this run is on the CPU; leave it out")
    if torch.version.cuda and torch.cuda.get_device_capability(device) < (8, 0):
        raise ConfigError(
            f"--train.tf32: {torch.cuda.get_device_name(device)} has no TF32 units (compute capability 8.0 and later have); "
            "leave it out"
        )
    torch.set_float32_matmul_precision("high")  # the one name for it that 2.6 to 2.14 share


def allocator_advice(
    device: torch.device, *, stage: int, checkpointing: str, env: Mapping[str, str] = os.environ
) -> str | None:
    """What to set where a GPU's memory will be cut into pieces; None where it is set, or there is no need.

    Stage 3 gathers and frees weights of all sizes in every pass; recomputation frees activations that are made again elsewhere.
    """
    said = env.get("PYTORCH_CUDA_ALLOC_CONF", "") + env.get("PYTORCH_ALLOC_CONF", "")
    reasons = ["ZeRO stage 3"] * (stage == 3) + [f"--model.checkpointing {checkpointing}"] * (checkpointing != "none")
    if device.type != "cuda" or "expandable_segments" in said or not reasons:
        return None
    return (
        f"{' and '.join(reasons)} cut device memory into pieces; {SEGMENTS} in the environment lets them grow together"
    )
