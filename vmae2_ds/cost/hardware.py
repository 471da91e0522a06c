"""Accelerators we are sure about: dense matrix peaks, memory, bandwidth and links from the makers' datasheets; no torch.

Every peak is *dense*, per device as torch sees it: a figure that a datasheet prints with 2:4 sparsity is halved here.
A name that is not in the table is never matched to a similar entry: a 4090 Laptop is no 4090, a MIG slice no A100.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.console.spelling import did_you_mean
from vmae2_ds.errors import ConfigError

NumberFormat = Literal["bf16", "fp16", "tf32", "fp32"]


class Accelerator(StrictModel):
    """One accelerator as torch sees it (for MI250X that is one of its two dies); also the schema of a GPU file."""

    key: str = ""
    """Name that `--gpu` takes."""
    name: str
    """Full name, for reports."""
    device_names: tuple[str, ...] = ()
    """Names that torch.cuda.get_device_name() gives it, without `NVIDIA `, `Tesla ` or `AMD `."""
    memory_gb: float = Field(gt=0, allow_inf_nan=False)
    """Memory as sold, less inline ECC where it is on by default. Drivers report about 98.5 % of this number in GiB."""
    bandwidth_gb_s: float = Field(gt=0, allow_inf_nan=False)
    """Device memory bandwidth."""
    link_gb_s: float = Field(gt=0, allow_inf_nan=False)
    """One way between one GPU and the others of its node: NVLink, or the PCIe slot where there is none."""
    peak_tflops: dict[NumberFormat, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1)
    """Dense TFLOP/s, fp32 accumulation. fp32 is the plain pipe, tf32 the tensor cores on float32 tensors."""
    source: str
    """Where the figures come from."""

    def peak_flops(self, number_format: NumberFormat) -> float | None:
        """Dense FLOP/s, or None where the device has no such unit."""
        tflops = self.peak_tflops.get(number_format)
        return None if tflops is None else tflops * 1e12


def _gpu(
    key: str,
    name: str,
    device_names: tuple[str, ...],
    memory_gb: float,
    bandwidth_gb_s: float,
    link_gb_s: float,
    peak_tflops: dict[NumberFormat, float],
    source: str,
) -> Accelerator:
    return Accelerator(
        key=key, name=name, device_names=device_names, memory_gb=memory_gb, bandwidth_gb_s=bandwidth_gb_s,
        link_gb_s=link_gb_s, peak_tflops=peak_tflops, source=source,
    )  # fmt: skip


def _peaks(half: float, tf32: float | None, fp32: float, has_bf16: bool = True) -> dict[NumberFormat, float]:
    """bf16 and fp16 run at one rate on every device in the table that has bf16."""
    peaks: dict[NumberFormat, float] = {"fp16": half, "fp32": fp32}
    if has_bf16:
        peaks["bf16"] = half
    if tf32 is not None:
        peaks["tf32"] = tf32
    return peaks


# One way: half of what the datasheets print for both.
_PCIE3, _PCIE4, _PCIE5 = 16.0, 32.0, 64.0
_NVLINK2, _NVLINK3, _NVLINK4 = 150.0, 300.0, 450.0

_T4 = "NVIDIA T4 datasheet and Turing white paper"
_V100 = "NVIDIA V100 datasheet (2020)"
_A100 = "NVIDIA A100 datasheet (2021)"
_H100 = "NVIDIA H100 datasheet (2023, sparse figures halved) and Hopper white paper"
_H200 = "NVIDIA H200 datasheet (2024, sparse figures halved)"
_GA102 = "NVIDIA Ampere GA102 white paper v2, appendix A"
_ADA = "NVIDIA Ada white paper, appendix A"
_CDNA2 = "AMD Instinct MI200 series datasheets"
_MI300 = "AMD Instinct MI300X datasheet (2023)"

# Inline ECC, which the GDDR6 data centre cards (t4, a10, a40, l4, l40, l40s) are delivered with, takes one byte in 16:
# 15 of 16, 22.5 of 24 and 45 of 48 GB are left (a T4's driver reports 15110 MiB).
ACCELERATORS: tuple[Accelerator, ...] = (
    _gpu("t4", "T4", ("T4",), 15, 320, _PCIE3, _peaks(65, None, 8.1, False), _T4),
    _gpu("v100-16g", "V100 16GB SXM2", ("V100-SXM2-16GB",), 16, 900, _NVLINK2, _peaks(125, None, 15.7, False), _V100),
    _gpu("v100-32g", "V100 32GB SXM2", ("V100-SXM2-32GB",), 32, 900, _NVLINK2, _peaks(125, None, 15.7, False), _V100),
    _gpu("v100-16g-pcie", "V100 16GB PCIe", ("V100-PCIE-16GB",), 16, 900, _PCIE3, _peaks(112, None, 14, False), _V100),
    _gpu("v100-32g-pcie", "V100 32GB PCIe", ("V100-PCIE-32GB",), 32, 900, _PCIE3, _peaks(112, None, 14, False), _V100),
    _gpu("v100s", "V100S PCIe", ("V100S-PCIE-32GB",), 32, 1134, _PCIE3, _peaks(130, None, 16.4, False), _V100),
    _gpu("a100-40g", "A100 40GB SXM", ("A100-SXM4-40GB",), 40, 1555, _NVLINK3, _peaks(312, 156, 19.5), _A100),
    _gpu("a100-40g-pcie", "A100 40GB PCIe", ("A100-PCIE-40GB",), 40, 1555, _PCIE4, _peaks(312, 156, 19.5), _A100),
    _gpu("a100-80g", "A100 80GB SXM", ("A100-SXM4-80GB",), 80, 2039, _NVLINK3, _peaks(312, 156, 19.5), _A100),
    _gpu("a100-80g-pcie", "A100 80GB PCIe", ("A100 80GB PCIe",), 80, 1935, _PCIE4, _peaks(312, 156, 19.5), _A100),
    _gpu("a30", "A30", ("A30",), 24, 933, _PCIE4, _peaks(165, 82, 10.3), "NVIDIA A30 datasheet (2022)"),
    _gpu("a10", "A10", ("A10",), 22.5, 600, _PCIE4, _peaks(125, 62.5, 31.2), "NVIDIA A10 datasheet (2021)"),
    _gpu("a40", "A40", ("A40",), 45, 696, _PCIE4, _peaks(149.7, 74.8, 37.4), "NVIDIA A40 datasheet (2021)"),
    _gpu("rtx-a6000", "RTX A6000", ("RTX A6000",), 48, 768, _PCIE4, _peaks(154.8, 77.4, 38.7), _GA102),
    _gpu("rtx-3090", "RTX 3090", ("GeForce RTX 3090",), 24, 936, _PCIE4, _peaks(71, 35.6, 35.6), _GA102),
    _gpu("rtx-4090", "RTX 4090", ("GeForce RTX 4090",), 24, 1008, _PCIE4, _peaks(165.2, 82.6, 82.6), _ADA),
    _gpu("l4", "L4", ("L4",), 22.5, 300, _PCIE4, _peaks(121, 60, 30.3), "NVIDIA L4 datasheet (2023, sparse halved)"),
    _gpu("l40", "L40", ("L40",), 45, 864, _PCIE4, _peaks(181.05, 90.5, 90.5), "NVIDIA L40 datasheet (2022)"),
    _gpu("l40s", "L40S", ("L40S",), 45, 864, _PCIE4, _peaks(362.05, 183, 91.6), "NVIDIA L40S datasheet (2023)"),
    _gpu("h100", "H100 SXM", ("H100 80GB HBM3",), 80, 3350, _NVLINK4, _peaks(989.4, 494.7, 66.9), _H100),
    _gpu("h100-pcie", "H100 PCIe", ("H100 PCIe",), 80, 2000, _PCIE5, _peaks(756, 378, 51.2), _H100),
    _gpu("h100-nvl", "H100 NVL", ("H100 NVL",), 94, 3938, _PCIE5, _peaks(835.5, 417.5, 60), _H100),
    _gpu("h200", "H200 SXM", ("H200",), 141, 4800, _NVLINK4, _peaks(989.4, 494.7, 66.9), _H200),
    _gpu("h200-nvl", "H200 NVL", ("H200 NVL",), 141, 4800, _PCIE5, _peaks(835.5, 417.5, 60), _H200),
    _gpu(
        "gh200",
        "GH200 96GB",
        ("GH200 480GB",),
        96,
        4000,
        _NVLINK4,
        _peaks(989.4, 494.7, 66.9),
        "NVIDIA GH200 datasheet (2023)",
    ),
    _gpu("mi210", "MI210", ("Instinct MI210",), 64, 1638, _PCIE4, _peaks(181, None, 22.6), _CDNA2),
    _gpu("mi250x", "MI250X, one die", ("Instinct MI250X",), 64, 1638, 50, _peaks(191.5, None, 23.9), _CDNA2),
    _gpu(
        "mi300x",
        "MI300X",
        ("Instinct MI300X", "Instinct MI300X OAM"),
        192,
        5300,
        448,
        _peaks(1307.4, 653.7, 163.4),
        _MI300,
    ),
)

_BY_NAME = {name.casefold(): accelerator for accelerator in ACCELERATORS for name in accelerator.device_names}
_BY_KEY = {accelerator.key: accelerator for accelerator in ACCELERATORS}

FILE_EXAMPLE = (
    '{"name": "B42", "memory_gb": 96, "bandwidth_gb_s": 4000, "link_gb_s": 300, "peak_tflops": {"bf16": 800, "fp32": 60}, '
    '"source": "its datasheet"}'
)
"""A GPU file."""


def find_accelerator(device_name: str) -> Accelerator | None:
    """The table's entry for a name as torch gives it, e.g. `NVIDIA A100-SXM4-80GB`; None if not in the table."""
    name = device_name.strip()
    for maker in ("NVIDIA ", "Tesla ", "AMD "):
        name = name.removeprefix(maker)
    return _BY_NAME.get(name.casefold())


def get_accelerator(name: str) -> Accelerator:
    """What `--gpu NAME` means: a key of the table, a name as torch gives it, or the path of a GPU file (JSON).

    Raises:
        ConfigError: an unknown name, with the nearest one and how to describe another in a file; or a malformed file.
    """
    if name.endswith(".json"):
        return _read_accelerator(Path(name))
    known = _BY_KEY.get(name.casefold()) or find_accelerator(name)
    if known is not None:
        return known
    guess = did_you_mean(name.casefold(), _BY_KEY)
    raise ConfigError(
        f"--gpu {name!r} is not in the table; {guess}known: {', '.join(_BY_KEY)}; "
        f"describe another one in a file and give its path: echo '{FILE_EXAMPLE}' > gpu.json"
    )


def _read_accelerator(path: Path) -> Accelerator:
    try:
        return Accelerator.model_validate({**json.loads(path.read_text()), "key": str(path)})
    except OSError as error:
        raise ConfigError(f"--gpu {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--gpu {path}: not a text file; a whole one: {FILE_EXAMPLE}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"--gpu {path}: line {error.lineno}: not JSON: {error.msg}") from None
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "not a JSON object"}
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"--gpu {path}: {where or 'file'}: {first['msg']}; a whole file: {FILE_EXAMPLE}") from None
