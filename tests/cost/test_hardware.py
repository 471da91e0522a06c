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


@pytest.mark.parametrize(
    # Bus width in bits and Gbit/s on each wire, of the makers' white papers and product briefs: bandwidth is their product
    # over 8. Then cores (SM, CU), the boost clock in GHz for tensor products and for plain ones, and what a core does in a
    # cycle: dense half precision FLOPs with fp32 accumulation, and plain fp32 FLOPs.
    ("key", "memory_gb", "bits", "gbit_s", "cores", "tensor_ghz", "plain_ghz", "half", "fp32"),
    [
        ("t4", 16 * 15 / 16, 256, 10.0, 40, 1.59, 1.59, 1024, 128),
        ("v100-16g", 16, 4096, 1.758, 80, 1.53, 1.53, 1024, 128),
        ("v100-32g", 32, 4096, 1.758, 80, 1.53, 1.53, 1024, 128),
        ("v100-16g-pcie", 16, 4096, 1.758, 80, 1.38, 1.38, 1024, 128),
        ("v100-32g-pcie", 32, 4096, 1.758, 80, 1.38, 1.38, 1024, 128),
        ("v100s", 32, 4096, 2.214, 80, 1.597, 1.597, 1024, 128),
        ("a100-40g", 40, 5120, 2.43, 108, 1.41, 1.41, 2048, 128),
        ("a100-40g-pcie", 40, 5120, 2.43, 108, 1.41, 1.41, 2048, 128),
        ("a100-80g", 80, 5120, 3.186, 108, 1.41, 1.41, 2048, 128),
        ("a100-80g-pcie", 80, 5120, 3.024, 108, 1.41, 1.41, 2048, 128),
        ("a30", 24, 3072, 2.43, 56, 1.44, 1.44, 2048, 128),
        ("a10", 24 * 15 / 16, 384, 12.5, 72, 1.695, 1.695, 1024, 256),
        ("a40", 48 * 15 / 16, 384, 14.5, 84, 1.74, 1.74, 1024, 256),
        ("rtx-a6000", 48, 384, 16.0, 84, 1.8, 1.8, 1024, 256),
        ("rtx-3090", 24, 384, 19.5, 82, 1.695, 1.695, 512, 256),
        ("rtx-4090", 24, 384, 21.0, 128, 2.52, 2.52, 512, 256),
        ("l4", 24 * 15 / 16, 192, 12.5, 58, 2.04, 2.04, 1024, 256),
        ("l40", 48 * 15 / 16, 384, 18.0, 142, 2.49, 2.49, 512, 256),
        ("l40s", 48 * 15 / 16, 384, 18.0, 142, 2.49, 2.52, 1024, 256),
        ("h100", 80, 5120, 5.23, 132, 1.83, 1.98, 4096, 256),
        ("h100-pcie", 80, 5120, 3.2, 114, 1.62, 1.755, 4096, 256),
        ("h100-nvl", 94, 6016, 5.24, 132, 1.545, 1.785, 4096, 256),
        ("h200", 141, 6144, 6.25, 132, 1.83, 1.98, 4096, 256),
        ("h200-nvl", 141, 6144, 6.25, 132, 1.545, 1.785, 4096, 256),
        ("gh200", 96, 6144, 5.2, 132, 1.83, 1.98, 4096, 256),
        ("mi210", 64, 4096, 3.2, 104, 1.7, 1.7, 1024, 128),
        ("mi250x", 64, 4096, 3.2, 110, 1.7, 1.7, 1024, 128),
        ("mi300x", 192, 8192, 5.2, 304, 2.1, 2.1, 2048, 256),
    ],
)
def test_memory_bandwidth_and_peaks_follow_from_wires_cores_and_clocks(
    key: str,
    memory_gb: float,
    bits: int,
    gbit_s: float,
    cores: int,
    tensor_ghz: float,
    plain_ghz: float,
    half: int,
    fp32: int,
) -> None:
    """Makers round: a peak to its last digit, a bandwidth to 2.5 % at most (2.048 TB/s of an H100 PCIe is sold as 2)."""
    found = get_accelerator(key)
    assert found.memory_gb == memory_gb
    assert found.bandwidth_gb_s == pytest.approx(bits * gbit_s / 8, rel=0.025)
    assert found.peak_flops("fp16") == pytest.approx(cores * half * tensor_ghz * 1e9, rel=0.015)
    assert found.peak_flops("fp32") == pytest.approx(cores * fp32 * plain_ghz * 1e9, rel=0.015)
    assert found.peak_flops("bf16") in (None, found.peak_flops("fp16"))
    if (tf32 := found.peak_flops("tf32")) is not None:
        assert tf32 == pytest.approx(cores * half * tensor_ghz * 1e9 / 2, rel=0.015)


def test_every_entry_of_the_table_is_derived() -> None:
    (mark,) = [
        mark
        for mark in test_memory_bandwidth_and_peaks_follow_from_wires_cores_and_clocks.pytestmark
        if mark.name == "parametrize"
    ]
    assert sorted(row[0] for row in mark.args[1]) == sorted(accelerator.key for accelerator in ACCELERATORS)


def test_links_are_one_way() -> None:
    """NVLink 2, 3 and 4 have 6, 12 and 18 links of 25 GB/s each way; PCIe 3, 4 and 5 x16 carry 16, 32 and 64."""
    nvlink = {"v100-16g": 6, "v100-32g": 6, "a100-40g": 12, "a100-80g": 12, "h100": 18, "h200": 18, "gh200": 18}
    pcie = {
        "t4": 3,
        "v100s": 3,
        "a100-40g-pcie": 4,
        "a100-80g-pcie": 4,
        "l40s": 4,
        "rtx-4090": 4,
        "h100-pcie": 5,
        "h200-nvl": 5,
    }
    for key, links in nvlink.items():
        assert get_accelerator(key).link_gb_s == links * 25
    for key, generation in pcie.items():
        assert get_accelerator(key).link_gb_s == 2 ** (generation + 1)
    assert get_accelerator("mi300x").link_gb_s == 7 * 64  # Infinity Fabric: a link to each of seven others
