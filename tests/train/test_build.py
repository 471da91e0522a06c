"""Which attention kernels a run gets: a named one or none, what auto measured, and what it measured before."""

from __future__ import annotations

import logging

import pytest
import torch

from vmae2_ds.config.model import ModelConfig
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import MaskCounts
from vmae2_ds.model.attention import AttentionChoice
from vmae2_ds.train import build
from vmae2_ds.train.build import attention_shapes, resolve_attention

CPU, BF16 = torch.device("cpu"), torch.bfloat16
SHAPES = attention_shapes(ModelConfig.of_size("giant"), MaskCounts(208, 1024, None), 4)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What auto measures, which is sdpa for the encoder and math for the decoder."""
    asked: list[tuple[int, ...]] = []

    def choose(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> AttentionChoice:
        asked.append(shape)
        return AttentionChoice("sdpa" if shape[1] == 208 else "math", {}, {})

    monkeypatch.setattr(build, "choose_attention", choose)
    return asked


def test_auto_measures_each_tower_at_its_own_shape(measured: list[tuple[int, ...]]) -> None:
    """docs/PAPER.md#sizes: 16 heads of 88 channels in the encoder of g, 8 of 64 in its decoder."""
    assert resolve_attention("auto", SHAPES, BF16, CPU) == ("sdpa", "math")
    assert measured == [(4, 208, 16, 88), (4, 1232, 8, 64)]


def test_what_auto_chose_before_stays(measured: list[tuple[int, ...]]) -> None:
    assert resolve_attention("auto", SHAPES, BF16, CPU, ("math", "by_head")) == ("math", "by_head")
    assert not measured


def test_what_cannot_run_any_more_is_measured_again_and_said(
    measured: list[tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    """A run that began on a GPU goes on on a CPU."""
    with caplog.at_level(logging.WARNING):
        assert resolve_attention("auto", SHAPES, BF16, CPU, ("cudnn", "math")) == ("sdpa", "math")
    (line,) = caplog.messages
    assert line == "attention auto had chosen cudnn, which runs on a CUDA device only, and this is cpu: measured again"


def test_a_named_kernel_is_taken_or_refused(measured: list[tuple[int, ...]]) -> None:
    assert resolve_attention("math", SHAPES, BF16, CPU) == ("math", "math")
    for kept in (None, ("math", "math")):
        with pytest.raises(ConfigError, match="attention flash runs on a CUDA device only"):
            resolve_attention("flash", SHAPES, BF16, CPU, kept)
    assert not measured
