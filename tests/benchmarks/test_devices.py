"""Devices: what is asked for is taken or refused, and memory is what a call really takes."""

from __future__ import annotations

import subprocess
import sys
import time
from subprocess import PIPE

import pytest
import torch

from benchmarks.devices import attentions_on, clock_timer, family_cpu_s, find_device, keep_freed_memory, measure_memory
from vmae2_ds.errors import ConfigError

CPU = torch.device("cpu")
MIB = 2**20


def test_the_device_asked_for() -> None:
    assert find_device("cpu") == CPU
    if torch.cuda.is_available():
        assert find_device("auto").type == "cuda"
    else:
        assert find_device("auto") == CPU
        with pytest.raises(ConfigError, match="--device cpu"):
            find_device("cuda")


def test_kernels_that_can_run() -> None:
    assert attentions_on(CPU, "bf16") == ("math", "sdpa")


def test_a_timer_takes_differences_of_its_clock() -> None:
    moments = iter([10.0, 12.5])
    assert clock_timer(lambda: next(moments))(lambda: None) == 2.5


def test_the_family_s_clock_counts_what_a_child_does() -> None:
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"

    def of_children() -> float:
        return family_cpu_s() - time.process_time()

    others = of_children()  # earlier tests in this process may have left some that still live
    with subprocess.Popen([sys.executable, "-c", program], stdin=PIPE, stdout=PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = of_children() - others
        child.communicate(b"\n")
    assert with_child > 0.25
    assert of_children() - others < 0.25


@pytest.mark.parametrize("mib", [64, 200])
def test_memory_of_a_call_is_what_it_touches_above_what_was_held(mib: int) -> None:
    held = torch.zeros(100 * MIB, dtype=torch.uint8)

    def call() -> None:
        torch.zeros(mib * MIB, dtype=torch.uint8).add_(1)
        torch.zeros(mib // 2 * MIB, dtype=torch.uint8).add_(1)  # after the first is gone: not above the peak

    measured = measure_memory(call, CPU)
    if measured is None:
        pytest.skip("no /proc/self/clear_refs")
    assert measured.peak_bytes / MIB == pytest.approx(mib, abs=4)
    assert held.numel() == 100 * MIB


def test_keeping_freed_memory_is_glibcs_to_grant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert keep_freed_memory() is False
