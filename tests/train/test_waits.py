"""How often a step of the loop waits for the device: once, besides what DeepSpeed waits for itself."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch

from tests.distributed.steps import NUM_VIDEOS, make_clips, make_config
from tests.train.quiet_hooks import QuietHooks
from tests.train.waits import Waits
from vmae2_ds.checkpoint.state import TrainState
from vmae2_ds.config.ds_config import resolve_ds_config
from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.contracts import LoadedBatch
from vmae2_ds.engine.ranks import start_ranks
from vmae2_ds.guard.spikes import SpikeGuard
from vmae2_ds.guard.stopping import StopRequests
from vmae2_ds.train.build import build_engine
from vmae2_ds.train.loop import LoopSetup, train
from vmae2_ds.train.row import ModelFlops

WATCHED, STEPS = 3, 4


class Watch(QuietHooks):
    """Counts the waits of one step that is neither the first nor the last."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = Waits()

    def stepped(self, step: int) -> None:
        if step == WATCHED - 1:
            self.waits.__enter__()
        if step == WATCHED:
            self.waits.__exit__(None, None, None)

    def name_bad_files(self, failures: list[Any]) -> None:
        pass

    def check_bad_share(self, bad: int, tried: int) -> None:
        pass

    def spiked(self, *told: object) -> None:
        pass

    def save(self, state: TrainState) -> None:
        pass


def as_on_cuda(monkeypatch: pytest.MonkeyPatch, waits: Waits) -> Counter[str]:
    """Has DeepSpeed take the CPU for a device with streams; counts where it waits for all work of a device or a stream."""
    from deepspeed.accelerator import get_accelerator

    accelerator, waited = type(get_accelerator()), Counter[str]()

    def wait(*_: object) -> None:
        callers = (frame.f_code.co_name for frame, _ in traceback.walk_stack(sys._getframe(1)))
        if waits.is_on:
            waited[next(callers)] += 1

    stream, event = mock.MagicMock(synchronize=wait), mock.MagicMock(synchronize=wait)
    found: dict[str, Any] = {"synchronize": wait, "Stream": lambda *_, **__: stream, "Event": lambda **_: event}
    found |= {name: lambda *_: stream for name in ("current_stream", "default_stream")}
    found |= {name: lambda *_: False for name in ("is_synchronized_device", "resolves_data_dependency")}
    for name, function in {**found, "stream": lambda stream: nullcontext()}.items():
        monkeypatch.setattr(accelerator, name, staticmethod(function))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    return waited


def waits_of(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[list[str], Counter[str]]:
    """Where the watched step waits for a number, and where for all of the device's or a stream's work."""
    ranks, config = start_ranks(), make_config(1, **changes)
    hooks = Watch()
    waited = as_on_cuda(monkeypatch, hooks.waits)
    plan = plan_run(config, NUM_VIDEOS, 1)
    engine = build_engine(config, resolve_ds_config(config, plan, on_cpu=True))
    setup = LoopSetup(
        plan=plan,
        config=config.train.model_copy(update={"stop_after_steps": STEPS, "log_every": 100}),
        sources=("one",),
        guard=SpikeGuard(GuardConfig(on_spike="skip"), ranks),
        stop=StopRequests(),
        flops=ModelFlops(0, None),
        reseed=True,
    )
    clips = make_clips(config, 0, 0, plan.micro_batch)
    batches = iter([LoadedBatch(clips, [], {"one": plan.micro_batch})] * STEPS * plan.accumulation)
    train(engine, batches, setup, TrainState(), hooks, ranks)
    engine.deepspeed.destroy()
    return hooks.waits.places, waited


BACKWARD_ENDS = "independent_gradient_partition_epilogue"
KEPT: dict[tuple[str, int], dict[str, int]] = {
    ("fp32", 0): {},
    ("fp32", 1): {BACKWARD_ENDS: 1},
    ("bf16", 1): {BACKWARD_ENDS: 1},
    ("bf16", 2): {BACKWARD_ENDS: 2},
    ("bf16", 3): {BACKWARD_ENDS: 2, "wait": 1},
}
"""What DeepSpeed keeps, by the function in which it waits, in a step of two micro steps whose gradients fit one bucket."""


@pytest.mark.parametrize(("precision", "stage"), KEPT)
def test_a_step_waits_once_besides_what_deepspeed_keeps(
    precision: str, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"precision": precision, "ds_config": f"zero{stage}"}
    places, waited = waits_of(monkeypatch, train=section)
    assert places == ["step.py:_wait"]
    assert waited == KEPT[precision, stage]
