"""The MFU peak: never silently wrong."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pytest
import torch

from vmae2_ds.engine.device_peak import device_peak

CUDA = torch.device("cuda", 0)


@contextlib.contextmanager
def threads_set(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


def test_override_wins() -> None:
    peak = device_peak(CUDA, "bf16", 5e12)
    assert peak is not None
    assert peak == (5e12, "--train.peak-flops, 5 TFLOP/s")


def test_cpu_is_measured_and_says_so() -> None:
    for threads, size in ((1, 1024), (6, 2048)):
        with threads_set(threads):
            peak = device_peak(torch.device("cpu"), "fp32")
        assert peak is not None
        assert peak.flops > 1e8
        assert peak.name.startswith(f"measured {size}^3 fp32 matrix product, {threads} thread")


def test_datasheet_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    peak = device_peak(CUDA, "bf16")
    assert peak is not None
    assert peak.flops == 312e12
    assert "NVIDIA A100-SXM4-80GB, 312 TFLOP/s bf16 dense" in peak.name


def test_float32_counts_against_tf32_only_when_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100-SXM4-80GB")
    for allowed, flops in (("highest", 19.5e12), ("high", 156e12)):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda allowed=allowed: allowed)
        peak = device_peak(CUDA, "fp32")
        assert peak is not None
        assert peak.flops == flops


@pytest.mark.parametrize("device_name", ["Some GPU of 2031", "Tesla V100-SXM2-16GB"])
def test_unknown_peak_warns_and_stays_unknown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device_name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: device_name)
    with caplog.at_level(logging.WARNING):
        assert device_peak(CUDA, "bf16") is None
    assert device_name in caplog.text
    assert "--train.peak-flops" in caplog.text
