"""What a trial counts as its own on a GPU that others use too; nvidia-smi and torch's counters are stand-ins."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vmae2_ds.tune.trial import peak_memory, used_by_others

MIB = 2**20
CUDA = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """80 GiB, of which others hold 30 GiB; this process 400 MiB of context and 2 GiB by torch's allocator."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU-1234, 30720'\necho 'GPU-5678, 5'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    stand_ins = {
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "mem_get_info": lambda device: ((80 - 30 - 2) * 1024 * MIB - 400 * MIB, 80 * 1024 * MIB),
        "memory_reserved": lambda device: 2048 * MIB,
        "max_memory_reserved": lambda device: 3072 * MIB,
        "max_memory_allocated": lambda device: 1024 * MIB,
        "get_device_properties": lambda device: SimpleNamespace(uuid="1234"),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


def test_what_others_held_before_is_not_this_process_s_context(gpu: None) -> None:
    others = used_by_others()
    assert others == {"GPU-1234": 30720 * MIB, "GPU-5678": 5 * MIB}
    measured = peak_memory(CUDA, others)
    assert measured == {"peak_bytes": 3472 * MIB, "reserved_bytes": 3072 * MIB, "allocated_bytes": 1024 * MIB}


def test_without_nvidia_smi_and_in_a_second_trial_nothing_is_taken_off(
    gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert used_by_others() == {}  # this process is among those that use it
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert used_by_others() == {}
    assert peak_memory(CUDA, {})["peak_bytes"] == (30 * 1024 + 3472) * MIB
