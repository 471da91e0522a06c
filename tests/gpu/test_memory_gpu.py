"""Predicted against allocated memory of real steps on a CUDA device: what docs/SCALING.md could not measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vmae2_ds.config.ds_config import read_policy
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.hardware import Accelerator
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune.setting_cost import Setting, predict_memory

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

TOLERANCE = 0.10  # of the bytes that tensors take at the peak (docs/PAPER.md#memory-of-the-published-code)


def vit_b(num_clips: int, attention: str, checkpointing: str) -> PretrainConfig:
    config = get_recipe("pretrain", "vit_b_pretrain_hybrid")
    model = config.model.model_copy(update={"attention": attention, "checkpointing": checkpointing})
    data = config.data.model_copy(update={"views": 1})
    train = config.train.model_copy(update={"global_batch": num_clips, "micro_batch": num_clips, "ds_config": "zero1"})
    return config.model_copy(update={"model": model, "data": data, "train": train})


@pytest.mark.parametrize("attention", ["math", "sdpa"])
@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_allocated_memory_of_vit_b(attention: str, checkpointing: str, tmp_path: Path) -> None:
    """One process a batch size, as the allocator's peak is the process's; and what one more clip costs."""
    gpu = Accelerator(name="any", memory_gb=80, bandwidth_gb_s=1, link_gb_s=1, peak_tflops={"bf16": 1}, source="unused")
    policy = ZeroPolicy.of_ds_config(read_policy("zero1"))
    predicted, allocated = {}, {}
    for num_clips in (4, 16):
        config = vit_b(num_clips, attention, checkpointing)
        run, out = tmp_path / "run.json", tmp_path / "measured.json"
        run.write_text(config.model_dump_json())
        subprocess.run(
            [sys.executable, "-m", "vmae2_ds.tune.trial", str(run), "3", str(out)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "0"},
            check=True,
            timeout=600,
        )
        allocated[num_clips] = json.loads(out.read_text())["allocated_bytes"]
        predicted[num_clips] = predict_memory(
            Setting(config, policy), Cluster(gpu, 1, 1, 80, 80), Assumptions()
        ).tensors
    assert predicted == pytest.approx(allocated, rel=TOLERANCE)
    assert predicted[16] - predicted[4] == pytest.approx(allocated[16] - allocated[4], rel=TOLERANCE)
