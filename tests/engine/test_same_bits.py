"""`train.deterministic`: the flags come and go with the run, and no step runs an operator that has no fixed order on CUDA."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import tiny_pretraining
from tests.model.conftest import TINY, TINY_GEOMETRY, make_batch
from tests.operators import Operators
from tests.test_distil_objective import objective_of, taught_batch
from vmae2_ds.cli.main import main
from vmae2_ds.config.pretrain import MaskConfig, ObjectiveConfig
from vmae2_ds.contracts import LabelledBatch
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.engine.same_bits import same_bits
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Classify, Reconstruct


def flags() -> tuple[bool, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        not torch.backends.cudnn.benchmark,
        not torch.backends.cuda.cudnn_sdp_enabled(),
    )


def test_flags_are_on_inside_and_as_before_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = flags()
    with same_bits(False):
        assert flags() == before
    with same_bits(True):
        assert flags() == (True, True, True, True)
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.empty(4096).isnan().sum() < 4096, "new memory is not filled"
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert os.environ["NCCL_ALGO"] == "Ring"
    assert flags() == before
    with pytest.raises(RuntimeError, match="a step failed"), same_bits(True):
        raise RuntimeError("a step failed")
    assert flags() == before


@pytest.mark.parametrize(("set_to", "started", "words"), [
    (":0:0", False, "CUBLAS_WORKSPACE_CONFIG=:0:0 cuBLAS may add in another order"),
    (None, True, "CUDA has started in this process before"),
])  # fmt: skip
def test_what_cublas_would_do_otherwise_is_refused(
    set_to: str | None, started: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if set_to is not None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", set_to)
    with pytest.raises(ConfigError, match=words), same_bits(True):
        pytest.fail("entered")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_workspace_that_is_fixed_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with same_bits(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


# --- operators --------------------------------------------------------------------------------------------------------

RAISE_ON_CUDA = """
avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward max_pool3d_with_indices_backward
adaptive_max_pool2d_backward fractional_max_pool2d_backward fractional_max_pool3d_backward max_unpool2d max_unpool3d
upsample_linear1d_backward upsample_bilinear2d_backward upsample_bicubic2d_backward upsample_trilinear3d_backward
reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward nll_loss2d_forward nll_loss2d_backward
_ctc_loss_backward _embedding_bag_backward put_ histc bincount kthvalue median nanmedian grid_sampler_2d_backward
grid_sampler_3d_backward cumsum scatter_reduce
"""
"""The aten names of what "torch.use_deterministic_algorithms" lists as raising on CUDA (torch's documentation, 2.14)."""


def pretraining() -> Any:
    return Reconstruct(MaskedAutoencoder(TINY, TINY_GEOMETRY), ObjectiveConfig(), TINY_GEOMETRY)(
        make_batch(MaskConfig(encoder_ratio=0.75), TINY_GEOMETRY)
    )


def fine_tuning() -> Any:
    objective = objective_of()
    return Classify(objective.model, 0.1, objective.geometry)(LabelledBatch(*taught_batch()[:4]))


def distillation() -> Any:
    return objective_of(feature_weight=0.5, alpha=0.5)(taught_batch())


@pytest.mark.parametrize("step", [pretraining, fine_tuning, distillation])
def test_no_step_needs_an_operator_without_a_fixed_order(step: Callable[[], Any]) -> None:
    with same_bits(True), Operators() as operators:
        step().loss.backward()
    assert {"_softmax_backward_data", "native_layer_norm_backward", "gelu_backward"} & set(operators.names)
    assert not set(operators.names) & set(RAISE_ON_CUDA.split())


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_has_the_flags_and_says_which_kernel_sdpa_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bool] = []
    forward = Reconstruct.forward

    def spied(objective: Reconstruct, batch: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return forward(objective, batch)

    monkeypatch.setattr(Reconstruct, "forward", spied)
    clips = write_synthetic_set(
        SynthArguments(folder=tmp_path / "clips", train_videos=4, val_videos=1, size=48, frames=8)
    )
    run = tmp_path / "run"
    words = [*tiny_pretraining(clips.train, run, 2), "--data.workers", "0", "--train.peak-flops", "1e12"]
    with pytest.raises(SystemExit) as stop, caplog.at_level(logging.INFO):
        main([*words, "--model.attention", "sdpa", "--train.deterministic"])
    assert not stop.value.code
    assert seen
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()
    environment = json.loads((run / "env.json").read_text())
    assert environment["attention"] == ["sdpa", "sdpa"]
    assert environment["sdpa_took"] == "cpu_flash"
    assert "attention: sdpa, sdpa; sdpa takes cpu_flash" in caplog.text
