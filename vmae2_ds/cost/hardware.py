"""Accelerators we are sure about: dense matrix peaks, memory and bandwidth from the makers' datasheets; no torch.

Every peak is *dense*, per device as torch sees it: a figure that a datasheet prints with 2:4 sparsity is halved here.
A name that is not in the table gives None, never a similar entry: a 4090 Laptop is no 4090, a MIG slice no A100.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

NumberFormat = Literal["bf16", "fp16", "tf32", "fp32"]


@dataclass(frozen=True)
class Accelerator:
    """One accelerator as torch sees it (for MI250X that is one of its two dies)."""

    name: str
    device_names: tuple[str, ...]
    """What torch.cuda.get_device_name() says, without `NVIDIA `, `Tesla ` or `AMD `."""
    memory_gb: float
    bandwidth_gb_s: float
    """Device memory bandwidth."""
    peak_tflops: Mapping[NumberFormat, float]
    """Dense TFLOP/s, fp32 accumulation. fp32 is the plain pipe, tf32 the tensor cores on float32 tensors."""
    source: str

    def peak_flops(self, number_format: NumberFormat) -> float | None:
        """Dense FLOP/s, or None where the device has no such unit."""
        tflops = self.peak_tflops.get(number_format)
        return None if tflops is None else tflops * 1e12


def _peaks(half: float, tf32: float | None, fp32: float, has_bf16: bool = True) -> Mapping[NumberFormat, float]:
    """bf16 and fp16 run at one rate on every device in the table that has bf16."""
    peaks: dict[NumberFormat, float] = {"fp16": half, "fp32": fp32}
    if has_bf16:
        peaks["bf16"] = half
    if tf32 is not None:
        peaks["tf32"] = tf32
    return MappingProxyType(peaks)


_V100 = "NVIDIA V100 datasheet (2020)"
_A100 = "NVIDIA A100 datasheet (2021)"
_H100 = "NVIDIA H100 datasheet (2023, sparse figures halved) and Hopper white paper"
_H200 = "NVIDIA H200 datasheet (2024, sparse figures halved)"
_GA102 = "NVIDIA Ampere GA102 white paper v2, appendix A"
_CDNA2 = "AMD Instinct MI200 series datasheets"

ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator("T4", ("T4",), 16, 320, _peaks(65, None, 8.1, False), "NVIDIA T4 datasheet and Turing white paper"),
    Accelerator("V100 SXM2", ("V100-SXM2-16GB", "V100-SXM2-32GB"), 32, 900, _peaks(125, None, 15.7, False), _V100),
    Accelerator("V100 PCIe", ("V100-PCIE-16GB", "V100-PCIE-32GB"), 32, 900, _peaks(112, None, 14, False), _V100),
    Accelerator("V100S PCIe", ("V100S-PCIE-32GB",), 32, 1134, _peaks(130, None, 16.4, False), _V100),
    Accelerator("A100 40GB", ("A100-SXM4-40GB", "A100-PCIE-40GB"), 40, 1555, _peaks(312, 156, 19.5), _A100),
    Accelerator("A100 80GB SXM", ("A100-SXM4-80GB",), 80, 2039, _peaks(312, 156, 19.5), _A100),
    Accelerator("A100 80GB PCIe", ("A100 80GB PCIe",), 80, 1935, _peaks(312, 156, 19.5), _A100),
    Accelerator("A30", ("A30",), 24, 933, _peaks(165, 82, 10.3), "NVIDIA A30 datasheet (2022)"),
    Accelerator("A10", ("A10",), 24, 600, _peaks(125, 62.5, 31.2), "NVIDIA A10 datasheet (2021)"),
    Accelerator("A40", ("A40",), 48, 696, _peaks(149.7, 74.8, 37.4), "NVIDIA A40 datasheet (2021)"),
    Accelerator("RTX A6000", ("RTX A6000",), 48, 768, _peaks(154.8, 77.4, 38.7), _GA102),
    Accelerator("RTX 3090", ("GeForce RTX 3090",), 24, 936, _peaks(71, 35.6, 35.6), _GA102),
    Accelerator(
        "RTX 4090", ("GeForce RTX 4090",), 24, 1008, _peaks(165.2, 82.6, 82.6), "NVIDIA Ada white paper, appendix A"
    ),
    Accelerator("L4", ("L4",), 24, 300, _peaks(121, 60, 30.3), "NVIDIA L4 datasheet (2023, sparse figures halved)"),
    Accelerator("L40", ("L40",), 48, 864, _peaks(181.05, 90.5, 90.5), "NVIDIA L40 datasheet (2022)"),
    Accelerator("L40S", ("L40S",), 48, 864, _peaks(362.05, 183, 91.6), "NVIDIA L40S datasheet (2023)"),
    Accelerator("H100 SXM", ("H100 80GB HBM3",), 80, 3350, _peaks(989.4, 494.7, 66.9), _H100),
    Accelerator("H100 PCIe", ("H100 PCIe",), 80, 2000, _peaks(756, 378, 51.2), _H100),
    Accelerator("H100 NVL", ("H100 NVL",), 94, 3938, _peaks(835.5, 417.5, 60), _H100),
    Accelerator("H200 SXM", ("H200",), 141, 4800, _peaks(989.4, 494.7, 66.9), _H200),
    Accelerator("H200 NVL", ("H200 NVL",), 141, 4800, _peaks(835.5, 417.5, 60), _H200),
    Accelerator("GH200 96GB", ("GH200 480GB",), 96, 4000, _peaks(989.4, 494.7, 66.9), "NVIDIA GH200 datasheet (2023)"),
    Accelerator("MI210", ("Instinct MI210",), 64, 1638, _peaks(181, None, 22.6), _CDNA2),
    Accelerator("MI250X, one die", ("Instinct MI250X",), 64, 1638, _peaks(191.5, None, 23.9), _CDNA2),
    Accelerator(
        "MI300X",
        ("Instinct MI300X", "Instinct MI300X OAM"),
        192,
        5300,
        _peaks(1307.4, 653.7, 163.4),
        "AMD Instinct MI300X datasheet (2023)",
    ),
)

_BY_NAME = {name.casefold(): accelerator for accelerator in ACCELERATORS for name in accelerator.device_names}


def find_accelerator(device_name: str) -> Accelerator | None:
    """The table's entry for a name as torch gives it, e.g. `NVIDIA A100-SXM4-80GB`; None if not in the table."""
    name = device_name.strip()
    for maker in ("NVIDIA ", "Tesla ", "AMD "):
        name = name.removeprefix(maker)
    return _BY_NAME.get(name.casefold())
