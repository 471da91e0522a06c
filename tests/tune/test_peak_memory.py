"""The whole process: peak resident memory of real ViT-S steps at two batch sizes, against the prediction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmae2_ds.config.ds_config import read_policy
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.hardware import Accelerator
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune.setting_cost import Setting, predict_memory

TOLERANCE = 0.15
CPU = Accelerator(
    key="cpu", name="CPU", memory_gb=24, bandwidth_gb_s=20, link_gb_s=2, peak_tflops={"bf16": 0.2}, source="unused"
)


def vit_s(num_clips: int) -> PretrainConfig:
    config = get_recipe("pretrain", "vit_s_pretrain_hybrid")
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"attention": "math"}),
            "data": config.data.model_copy(update={"views": 1}),
            "train": config.train.model_copy(
                update={"global_batch": num_clips, "micro_batch": num_clips, "ds_config": "cpu"}
            ),
        }
    )


def measure_peak(config: PretrainConfig, folder: Path) -> int:
    """Peak resident bytes of a process of its own that takes two steps."""
    run, out = folder / "run.json", folder / "measured.json"
    run.write_text(config.model_dump_json())
    subprocess.run(
        [sys.executable, "-m", "vmae2_ds.tune.trial", str(run), "2", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        check=True,
        capture_output=True,
        timeout=300,
    )
    return json.loads(out.read_text())["peak_bytes"]


@pytest.mark.slow
def test_peak_resident_memory_of_vit_s(tmp_path: Path) -> None:
    tower = TowerConfig(width=32, depth=1, heads=2, mlp=64)
    nothing = vit_s(1)
    nothing = nothing.model_copy(
        update={
            "model": nothing.model.model_copy(update={"encoder": tower, "decoder": tower}),
            "data": nothing.data.model_copy(update={"num_frames": 4, "size": 32}),
        }
    )
    context = measure_peak(nothing, tmp_path)  # the interpreter, its libraries, and next to no model
    errors = {}
    for num_clips in (1, 4):
        config = vit_s(num_clips)
        setting = Setting(config, ZeroPolicy.of_ds_config(read_policy("cpu")))
        tensors = predict_memory(setting, Cluster(CPU, 1, 1, 24, 24), Assumptions()).tensors
        measured = measure_peak(config, tmp_path)
        errors[num_clips] = (context + tensors) / measured - 1
        print(
            f"{num_clips} clips: predicted {(context + tensors) / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB"
        )
    assert all(abs(error) < TOLERANCE for error in errors.values()), errors
