"""Bytes counted without a GPU are those that torch's own tracker finds, which takes four times as long."""

from __future__ import annotations

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks import fake_memory
from benchmarks.steps import MASKS, geometry_of
from vmae2_ds.config.model import ModelConfig

pytestmark = pytest.mark.usefixtures("few_blocks")


def test_live_bytes_are_those_of_torch_s_tracker() -> None:
    """Where a forward pass ends, and at the peak of a whole step, on fake CPU tensors, whose bytes nothing rounds."""
    geometry, model = geometry_of("tiny"), ModelConfig.of_size("tiny", attention="math")
    objective = fake_memory._build(model, geometry, "fp32", "cpu")
    with fake_memory.FAKE:
        batch = fake_memory._batch(MASKS["dual"], geometry, 2)
        for parameter in objective.parameters():
            parameter.grad = torch.zeros_like(parameter)
        tracker = MemTracker()
        tracker.track_external(objective, *batch)
        with tracker:
            out = objective(batch)
            held = sum(snapshot["Total"] for snapshot in tracker.get_tracker_snapshot("current").values())
            out.loss.backward()
            peak = sum(snapshot["Total"] for snapshot in tracker.get_tracker_snapshot("peak").values())
            del out
        assert fake_memory._step(objective, batch, "fp32", backward=True) == (held, peak)
        assert peak > held
