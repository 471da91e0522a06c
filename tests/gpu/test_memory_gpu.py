"""Predicted against allocated memory of real steps on a CUDA device: what docs/SCALING.md could not measure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmae2_ds.config.ds_config import read_policy
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.hardware import Accelerator
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune.setting_cost import Setting, predict_memory

TOLERANCE = 0.10  # of the bytes that tensors take at the peak (docs/PAPER.md#memory-of-the-published-code)


CLIPS = 4, 16
CASES = [(attention, checkpointing) for attention in ("math", "sdpa") for checkpointing in ("none", "all")]


def run_of(size: str, num_clips: int, attention: str, checkpointing: str) -> PretrainConfig:
    small = {"num_frames": 4, "size": 64} if size == "tiny" else {}
    run = get_recipe("pretrain", "vit_b_pretrain_hybrid").changed(
        data={"views": 1, **small}, train={"global_batch": num_clips, "micro_batch": num_clips, "ds_config": "zero1"}
    )
    model = ModelConfig.of_size(size, attention=attention, checkpointing=checkpointing)
    return run.model_copy(update={"model": model})


def measure(folder: Path, size: str, cases: list[tuple[str, str]], env: dict[str, str]) -> dict[str, dict[str, int]]:
    """What each (attention, checkpointing, clips) took, all in one process."""
    files: dict[str, tuple[Path, Path]] = {}
    for attention, checkpointing in cases:
        for num_clips in CLIPS:
            name = f"{attention} {checkpointing} {num_clips}"
            files[name] = folder / f"{name}.json", folder / f"{name} measured.json"
            files[name][0].write_text(run_of(size, num_clips, attention, checkpointing).model_dump_json())
    words = [sys.executable, "-m", "tests.gpu.trials", *(str(path) for pair in files.values() for path in pair)]
    subprocess.run(words, env={**os.environ, **env}, check=True, timeout=600)
    return {name: json.loads(out.read_text()) for name, (_, out) in files.items()}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    return measure(tmp_path_factory.mktemp("trials"), "base", CASES, {"CUDA_VISIBLE_DEVICES": "0"})


@pytest.mark.gpu
@pytest.mark.parametrize(("attention", "checkpointing"), CASES)
def test_allocated_memory_of_vit_b(attention: str, checkpointing: str, measured: dict[str, dict[str, int]]) -> None:
    """Of each batch size, and what one more clip costs."""
    gpu = Accelerator(name="any", memory_gb=80, bandwidth_gb_s=1, link_gb_s=1, peak_tflops={"bf16": 1}, source="unused")
    policy = ZeroPolicy.of_ds_config(read_policy("zero1"))
    predicted, allocated = {}, {}
    for num_clips in CLIPS:
        config = run_of("base", num_clips, attention, checkpointing)
        allocated[num_clips] = measured[f"{attention} {checkpointing} {num_clips}"]["allocated_bytes"]
        predicted[num_clips] = predict_memory(
            Setting(config, policy), Cluster(gpu, 1, 1, 80, 80), Assumptions()
        ).tensors
    assert predicted == pytest.approx(allocated, rel=TOLERANCE)
    few, many = CLIPS
    assert predicted[many] - predicted[few] == pytest.approx(allocated[many] - allocated[few], rel=TOLERANCE)


@pytest.mark.slow
def test_trials_follow_each_other_in_one_process(tmp_path: Path) -> None:
    """The same on a CPU, where nobody counts tensors: every trial comes to its end, on a process group of its own."""
    measured = measure(tmp_path, "tiny", [("math", "none")], {})
    assert [result["allocated_bytes"] for result in measured.values()] == [0, 0]
    assert all(len(result["step_times_s"]) == 3 for result in measured.values())
