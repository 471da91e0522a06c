"""What a step starts on its device, and whether the device waits for that."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import launches
from benchmarks.devices import Step
from benchmarks.launches import count_launches, is_host_bound
from benchmarks.steps import MASKS, Workbench
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.cost.traffic import count_kernels

CPU = torch.device("cpu")


def launches_of(step: Step) -> int:
    seen = count_launches(step, CPU)
    assert seen is not None
    return seen.launches


def test_what_computes_is_counted_and_views_are_not() -> None:
    x, weight = torch.randn(4, 6), torch.randn(6, 6, requires_grad=True)

    def step() -> None:
        y = (x @ weight).t().reshape(-1).view(3, 8)  # a product, and the copy that reshape makes of a transposed matrix
        (y.relu() * 2).sum()  # three more
        torch.empty(7)

    assert launches_of(step) == 5


def test_the_backward_pass_is_counted_too() -> None:
    weight = torch.randn(6, requires_grad=True)

    def step() -> None:
        (weight * 2).sum().backward()
        weight.grad = None

    assert launches_of(step) == 2 + 2  # product, sum; the gradient that starts it, and the product's


def test_a_step_launches_what_the_closed_form_counts() -> None:
    """The planner prices the launches of a micro step with this count."""
    step = Workbench("tiny", "fp32", CPU).step(MASKS["dual"], 1, ("math", "math"), until="backward")
    predicted = count_kernels(ModelConfig.of_size("tiny"), ("math", "math"))
    assert launches_of(step) == pytest.approx(predicted, rel=0.15)


@pytest.mark.parametrize(
    ("host_s", "device_s", "bound"),
    [(0.5, 0.4, False), (0.95, 0.4, True), (0.95, None, True), (0.95, 0.97, False), (0.89, 0.2, False)],
)
def test_a_step_of_a_second_waits_for_a_host_that_is_not_hidden(
    host_s: float, device_s: float | None, bound: bool
) -> None:
    """Not where the queue was full: there the device is never idle."""
    assert is_host_bound(host_s, 1.0, device_s) is bound


def test_a_named_range_on_the_device_is_not_counted_beside_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch before the attribute has no such events to tell apart: what lacks it counts."""

    def event(name: str, us: float, device: DeviceType, **more: bool) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(elapsed_us=lambda: us), **more)

    events = [
        event("cudaLaunchKernel", 5, DeviceType.CPU, is_user_annotation=False),
        event("gemm", 300, DeviceType.CUDA, is_user_annotation=False),
        event("Memcpy DtoD", 200, DeviceType.CUDA),
        event("Optimizer.step#AdamW.step", 450, DeviceType.CUDA, is_user_annotation=True),
    ]
    monkeypatch.setattr(launches, "profile", lambda **_: nullcontext(SimpleNamespace(events=lambda: events)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert count_launches(lambda: None, torch.device("cuda")) == (1, pytest.approx(500e-6))
