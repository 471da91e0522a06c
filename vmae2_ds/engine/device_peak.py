"""The peak that MFU is measured against: an override, a datasheet, or on a CPU a matrix product timed here.

The peak comes with the name of its source. An unknown accelerator has no peak: MFU is then left out, not guessed.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import Literal, NamedTuple

import torch

from vmae2_ds.cost.hardware import NumberFormat, find_accelerator

logger = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


SMALL, LARGE, FEW_THREADS = 1024, 2048, 4
"""Edges of the matrices that are timed before a run's first step: on few threads the small ones show the same peak, in an
eighth of the time."""


class Peak(NamedTuple):
    """What 100 % MFU means."""

    flops: float
    """FLOP/s of one device."""
    name: str
    """Source of the figure, in words."""


def device_peak(device: torch.device, precision: Literal["bf16", "fp32"], override: float | None = None) -> Peak | None:
    """The peak of one device at a training precision; None (after one warning) for an accelerator not in the table.

    `override` is train.peak_flops. float32 on CUDA counts against TF32 only where torch was allowed to use it.
    """
    if override is not None:
        return Peak(override, f"--train.peak-flops, {override / 1e12:g} TFLOP/s")
    if device.type == "cpu":
        return measure_matmul(precision, SMALL if torch.get_num_threads() <= FEW_THREADS else LARGE)
    device_name = torch.cuda.get_device_name(device)
    number_format: NumberFormat = precision
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        number_format = "tf32"
    accelerator = find_accelerator(device_name)
    flops = None if accelerator is None else accelerator.peak_flops(number_format)
    if accelerator is None or flops is None:
        logger.warning(
            "no %s peak is known for %r, so MFU is left out; set --train.peak-flops to the dense FLOP/s of its datasheet",
            number_format,
            device_name,
        )
        return None
    return Peak(flops, f"{device_name}, {flops / 1e12:g} TFLOP/s {number_format} dense ({accelerator.source})")


def measure_matmul(precision: Literal["bf16", "fp32"], size: int = LARGE, repeats: int = 5) -> Peak:
    """Time size^3 matrix products on the CPU with the threads torch uses now: the fastest is the peak.

    One rank's threads, as training uses them; CPU time over threads, so that a busy machine does not lower the peak.
    """
    threads = torch.get_num_threads()
    left = torch.randn(size, size).to(DTYPES[precision])
    right = torch.randn(size, size).to(DTYPES[precision])
    seconds = []
    for _ in range(repeats + 1):  # the first one allocates and picks kernels
        start = time.process_time()
        torch.mm(left, right)
        seconds.append((time.process_time() - start) / threads)
    flops = 2 * size**3 / min(seconds[1:])
    spread = statistics.median(seconds[1:]) / min(seconds[1:]) - 1
    logger.debug("matrix product %s: %.1f GFLOP/s, median %.0f %% slower", precision, flops / 1e9, 100 * spread)
    return Peak(flops, f"measured {size}^3 {precision} matrix product, {threads} thread{'s' if threads > 1 else ''}")
