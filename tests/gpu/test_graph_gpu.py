"""A step whose forward and backward are a CUDA graph trains as the one that launches them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases.compiled import graph_step
from benchmarks.steps import MASKS
from tests.benchmarks.test_compiled import MATH, weights_after

pytestmark = pytest.mark.gpu


def test_a_graph_trains_the_same_weights() -> None:
    device = torch.device("cuda")
    eager = weights_after(lambda bench: bench.step(MASKS["dual"], 2, MATH), device, steps=3)
    replayed = weights_after(lambda bench: graph_step(bench, 2, MATH), device, steps=3)
    for name, weight in eager.items():
        torch.testing.assert_close(replayed[name], weight, rtol=1e-3, atol=1e-4, msg=name)
