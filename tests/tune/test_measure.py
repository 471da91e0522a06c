"""Measured settings: a real trial under the launcher, failures that stay rows, and the refit by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tune.test_search_space import cluster_of
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.cost.assumptions import Assumptions, read_assumptions
from vmae2_ds.errors import ConfigError
from vmae2_ds.recipes import get_recipe
from vmae2_ds.tune import tuner
from vmae2_ds.tune.arguments import TuneArguments
from vmae2_ds.tune.candidates import predict_candidate, search
from vmae2_ds.tune.measure import Measured, Trial, refit
from vmae2_ds.tune.setting_cost import GIB, Setting
from vmae2_ds.tune.tuner import _cluster_here, _fastest_measured, describe_tuning, tune, tuning_json

NOTHING = Measured(None, None, None, None, None)


def little_recipe(**train: object) -> PretrainConfig:
    """The desk recipe, small enough for a trial in seconds."""
    config = get_recipe("pretrain", "vit_ti_pretrain_desk")
    tower = TowerConfig(width=32, depth=2, heads=2, mlp=64)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"encoder": tower, "decoder": tower, "attention": "math"}),
            "data": config.data.model_copy(update={"num_frames": 8, "size": 32, "views": 1}),
            "train": config.train.model_copy(update={"global_batch": 4, **train}),
        }
    )


def trial_of(**measured: object) -> Trial:
    """A prediction on a GPU beside made-up measurements."""
    cluster = cluster_of(8)
    candidate = search(get_recipe("pretrain", "vit_b_pretrain_hybrid"), cluster, Assumptions(), offload=False).ranked[0]
    return Trial(candidate, candidate, NOTHING._replace(**measured))


def test_refit_explains_what_was_measured() -> None:
    """A GPU half as fast as assumed, with 2 GiB of context and a tenth of the allocator unused."""
    trial = trial_of(peak_gib=50.0, outside_gib=2.0, unused_share=0.1)
    time = trial.candidate.time
    slow = trial._replace(
        measured=trial.measured._replace(step_s=2 * time.compute_s + time.network_s + time.optimizer_s)
    )
    fitted, names = refit(Assumptions(), [slow], "test")
    assert set(names) == {
        "matmul_efficiency", "memory_efficiency", "launch_s", "zero3_module_s", "context_gib", "workspace_gib", "fragmentation",
    }  # fmt: skip
    assert fitted.matmul_efficiency.value == pytest.approx(Assumptions().matmul_efficiency.value / 2)
    assert fitted.context_gib.value == pytest.approx(2.0)
    assert fitted.fragmentation.value == pytest.approx(0.1)
    assert fitted.overlap == Assumptions().overlap, "not seen in a trial"
    again = predict_candidate(slow.candidate.setting, slow.candidate.cluster, fitted)
    assert again.time.device_s == pytest.approx(
        slow.measured.step_s, rel=0.03
    )  # the optimizer's bandwidth is halved too


def test_refit_without_a_trial_that_ended_well_changes_nothing() -> None:
    fitted, names = refit(Assumptions(), [trial_of(error="OutOfMemoryError")], "test")
    assert fitted == Assumptions()
    assert names == []


@pytest.mark.slow
def test_measuring_on_this_machine(tmp_path: Path) -> None:
    """A setting under the real launcher on two ranks; the calibration is one that plan and tune take."""
    arguments = TuneArguments(gpus=2, gpu="cpu", measure=1, out=tmp_path / "ds.json")
    tuning = tune(little_recipe(), arguments, [])
    [trial] = tuning.trials
    assert trial.measured.error is None
    assert trial.measured.step_s is not None
    assert trial.measured.peak_gib is not None
    assert trial.measured.peak_gib > trial.candidate.memory.tensors / GIB, "a process holds its tensors and more"
    fitted = read_assumptions(tuning.calibration)
    assert "context_gib" in tuning.refitted
    assert fitted.context_gib.value > 0.1
    text = describe_tuning(tuning)
    assert "Measured on 2 ranks" in text
    assert "--calibration" in text
    assert json.loads(json.dumps(tuning_json(tuning)))["trials"][0]["measured"]["error"] is None
    again = tune(little_recipe(), arguments.model_copy(update={"measure": 0, "calibration": tuning.calibration}), [])
    assert again.chosen.memory.parts["context"] == pytest.approx(fitted.context_gib.value * GIB)


@pytest.mark.slow
def test_a_trial_that_dies_is_a_row(tmp_path: Path) -> None:
    """A kernel that is not installed: the rank ends with an error, which becomes the row's reason."""
    config = little_recipe()
    config = config.model_copy(update={"model": config.model.model_copy(update={"attention": "flash"})})
    tuning = tune(config, TuneArguments(gpus=1, gpu="cpu", measure=1, out=tmp_path / "ds.json"), [])
    assert tuning.trials[0].measured.step_s is None
    assert "flash_attn" in str(tuning.trials[0].measured.error)
    assert tuning.calibration is None
    assert (tmp_path / "ds.json").is_file(), "the predicted best is still written"
    assert "failed" in describe_tuning(tuning)


def test_a_trial_that_dies_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next is measured after it, alone makes the calibration, and is taken."""
    results = [NOTHING._replace(error="OutOfMemoryError"), NOTHING._replace(step_s=1.0, peak_gib=2.0)]
    folders: list[Path] = []

    def measured(setting: Setting, ds_config: Path, num_ranks: int, folder: Path, **_: object) -> Measured:
        assert (ds_config.parent, num_ranks) == (folder, 2)
        assert json.loads(ds_config.read_text())["train_micro_batch_size_per_gpu"] == setting.config.train.micro_batch
        folders.append(folder)
        return results[len(folders) - 1]

    monkeypatch.setattr(tuner, "measure", measured)
    tuning = tune(little_recipe(), TuneArguments(gpus=2, gpu="cpu", measure=2, out=tmp_path / "ds.json"), [])
    assert folders == [tmp_path / "ds" / "trial0", tmp_path / "ds" / "trial1"]
    died, ended = tuning.trials
    assert (died.measured, ended.measured) == tuple(results)
    assert tuning.chosen is ended.asked
    assert died.asked is not ended.asked
    context_gib = 2.0 - ended.candidate.memory.tensors / GIB
    assert read_assumptions(tuning.calibration).context_gib.value == pytest.approx(context_gib)
    assert [row["measured"]["error"] for row in tuning_json(tuning)["trials"]] == ["OutOfMemoryError", None]
    assert "failed" in describe_tuning(tuning)


def test_the_fastest_measured_is_taken_if_as_many_ranks_ran() -> None:
    slow, fast = trial_of(step_s=2.0), trial_of(step_s=1.0)
    fast = fast._replace(asked=replace(fast.asked))
    assert _fastest_measured([slow, fast]) is fast.asked
    assert _fastest_measured([slow, fast._replace(measured=NOTHING)]) is slow.asked
    on_one = replace(fast.candidate, cluster=cluster_of(1))
    assert _fastest_measured([slow, fast._replace(candidate=on_one)]) is slow.asked


def test_measuring_another_gpu_than_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its times would be fitted into the wrong datasheet."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    with pytest.raises(ConfigError, match="this machine has H200 SXM, not A100 80GB SXM; say --gpu h200"):
        _cluster_here(cluster_of(8))
    assert _cluster_here(cluster_of(8, gpu="h200")).num_gpus == 4


def test_measuring_gpus_without_any_is_refused(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="this machine has no GPU"):
        tune(
            get_recipe("pretrain", "vit_b_pretrain_hybrid"),
            TuneArguments(gpus=8, gpu="a100-80g", measure=1, out=tmp_path / "ds.json"),
            [],
        )
