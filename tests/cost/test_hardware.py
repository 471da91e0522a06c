"""The accelerator table: names as drivers print them, and no peak for anything that is merely similar."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.hardware import ACCELERATORS, FILE_EXAMPLE, find_accelerator, get_accelerator
from vmae2_ds.errors import ConfigError


@pytest.mark.parametrize(
    ("device_name", "bf16_flops"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("A100-SXM4-80GB", 312e12),  # drivers before 470 print no maker
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("AMD Instinct MI300X", 1307.4e12),
    ],
)
def test_known_devices(device_name: str, bf16_flops: float) -> None:
    accelerator = find_accelerator(device_name)
    assert accelerator is not None
    assert accelerator.peak_flops("bf16") == pytest.approx(bf16_flops)


@pytest.mark.parametrize(
    "device_name",
    [
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100",
        "NVIDIA A10G",
        "",
    ],
)
def test_similar_names_are_not_guessed(device_name: str) -> None:
    assert find_accelerator(device_name) is None


def test_no_bf16_before_ampere() -> None:
    v100 = find_accelerator("Tesla V100-SXM2-32GB")
    assert v100 is not None
    assert v100.peak_flops("bf16") is None
    assert v100.peak_flops("fp16") == 125e12


def test_table_is_consistent() -> None:
    names = [name for accelerator in ACCELERATORS for name in accelerator.device_names]
    assert len(names) == len(set(names))
    for accelerator in ACCELERATORS:
        assert accelerator.source
        half, fp32 = accelerator.peak_tflops["fp16"], accelerator.peak_tflops["fp32"]
        # tensor cores run at 2 to 16 times the plain pipe on every device listed: catches a sparse figure or a slip
        assert 1.9 <= half / fp32 <= 16.1


@pytest.mark.parametrize(("key", "gib_of_torch"), [("t4", 14.756), ("a100-80g", 79.15), ("rtx-4090", 23.65)])
def test_memory_is_what_drivers_report(key: str, gib_of_torch: float) -> None:
    """torch.cuda.get_device_properties().total_memory, as users print it; a T4 spends one byte in 16 on ECC."""
    usable = Assumptions().usable_memory
    memory_gb = get_accelerator(key).memory_gb
    assert usable.low * memory_gb <= gib_of_torch <= 1.001 * usable.high * memory_gb


@pytest.mark.parametrize("name", ["a100-80g", "A100-80G", "A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"])
def test_gpu_by_key_or_by_its_own_name(name: str) -> None:
    assert get_accelerator(name).name == "A100 80GB SXM"


def test_unknown_gpu_names_the_nearest_and_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'a100-80g'\?.*gpu\.json"):
        get_accelerator("a100-80gb")
    for name in ("gpu.json", "cpu.json"):
        path = tmp_path / name
        path.write_text(FILE_EXAMPLE)  # what the message says to write can be read back
        assert get_accelerator(str(path)).peak_flops("bf16") == 800e12
        assert get_accelerator(str(path)).key == str(path), "`cpu` would mean this machine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[]", "file: "),
        (FILE_EXAMPLE.replace('"memory_gb": 96, ', ""), "memory_gb: Field required"),
        (FILE_EXAMPLE.replace("96", "-1"), "memory_gb: Input should be greater than 0"),
        (FILE_EXAMPLE.replace('"bf16"', '"bf61"'), "peak_tflops.bf61"),
        (FILE_EXAMPLE.replace("800", "0"), "peak_tflops.bf16: Input should be greater than 0"),
        (FILE_EXAMPLE.replace("4000", "Infinity"), "bandwidth_gb_s: Input should be a finite number"),
        (FILE_EXAMPLE.replace('"name"', '"hbm": 3, "name"'), "hbm: Extra inputs"),
    ],
)
def test_malformed_gpu_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        get_accelerator(str(path))
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="No such file"):
        get_accelerator(str(tmp_path / "absent.json"))
