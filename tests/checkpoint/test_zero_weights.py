"""Weights out of ZeRO shards: at any number of ranks, in little memory, and never by running what a shard holds.

That they are DeepSpeed's to the bit is in tests/distributed/test_saved_checkpoints.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.checkpoint.made_checkpoint import counted, list_files, made_checkpoint
from vmae2_ds.checkpoint import zero_shards
from vmae2_ds.checkpoint.whole import WHOLE
from vmae2_ds.checkpoint.zero_shards import ZeroShards
from vmae2_ds.checkpoint.zero_weights import open_weights, read_weights
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.errors import CheckpointError
from vmae2_ds.weights.layouts import to_layout

SMALL = PretrainConfig(
    model=ModelConfig(
        encoder=TowerConfig(width=24, depth=2, heads=3, mlp=50),
        decoder=TowerConfig(width=12, depth=1, heads=2, mlp=24),
        patch=8,
    ),
    data=PretrainDataConfig(num_frames=4, size=16),
)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("ranks", [1, 3, 12])
def test_every_weight_is_put_together(tmp_path: Path, stage: int, ranks: int) -> None:
    """Twelve ranks: file names sort rank 10 before rank 2, and some parameters have fewer values than there are ranks."""
    weights = counted(SMALL.model)
    target = made_checkpoint(tmp_path, SMALL, weights, stage, ranks)
    torch.testing.assert_close(read_weights(target), weights, rtol=0, atol=0)


def test_gaps_between_parameters_are_passed_over(tmp_path: Path) -> None:
    weights = counted(SMALL.model)
    target = made_checkpoint(tmp_path, SMALL, weights, stage=2, ranks=3, gap=3)
    torch.testing.assert_close(read_weights(target), weights, rtol=0, atol=0)


def test_weights_are_read_whatever_became_of_the_optimizer(tmp_path: Path) -> None:
    """DeepSpeed's elastic_checkpoint writes a list; going on from it would lose Adam's moments, and is refused."""
    weights = counted(SMALL.model)
    target = made_checkpoint(tmp_path, SMALL, weights, stage=1, ranks=2)
    for shard in target.glob("*optim_states.pt"):
        held = torch.load(shard, weights_only=True)
        held["optimizer_state_dict"]["base_optimizer_state"] = [{"exp_avg": torch.zeros(3)}]
        torch.save(held, shard)
    list_files(target, stage=1, ranks=2)
    torch.testing.assert_close(read_weights(target), weights, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="the optimizer's states are not there, or not as known here"):
        ZeroShards(target, 2, 1).hyperparameters()


def test_a_tensor_that_was_saved_transposed(tmp_path: Path) -> None:
    """It is copied on the way: what is given back to the system has to be a file's."""
    turned = torch.randn(300, 400).t()
    torch.save({"module": {"model.turned": turned}, "optimizer": None}, tmp_path / "mp_rank_00_model_states.pt")
    list_files(tmp_path, stage=0, ranks=1)
    assert torch.equal(read_weights(tmp_path)["turned"], turned)


@pytest.mark.parametrize("lacks", ["a value", "a rank"])
def test_frozen_parts_that_are_too_short_are_refused(tmp_path: Path, lacks: str) -> None:
    target = made_checkpoint(tmp_path, SMALL, counted(SMALL.model), stage=3, ranks=2)
    models = sorted(target.glob("*model_states.pt"))
    for path in models:
        held = torch.load(path, weights_only=True)
        held["frozen_param_shapes"] = {"model.frozen": torch.Size([10])}
        held["frozen_param_fragments"] = {"model.frozen": torch.arange(4.0 if lacks == "a value" else 5.0)}
        torch.save(held, path)
    if lacks == "a rank":
        models[1].unlink()
    list_files(target, stage=3, ranks=2)
    reason = "the shards end before model.frozen" if lacks == "a value" else r"has \*_model_states.pt of 1 rank"
    with pytest.raises(CheckpointError, match=reason):
        open_weights(target)["frozen"]


@pytest.mark.parametrize(("stage", "most"), [(1, 2), (3, 60)])
def test_a_parameter_costs_the_files_that_hold_it(
    stage: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 300 ranks' files: at stage 1 two neighbours at most for one that is smaller than a shard, at stage 3 one a value."""
    weights = counted(SMALL.model)
    target = made_checkpoint(tmp_path, SMALL, weights, stage, 300)
    read: list[str] = []
    kept = zero_shards.read_shard
    monkeypatch.setattr(zero_shards, "read_shard", lambda path: (read.append(path.name), kept(path))[1])
    shards = ZeroShards(target, 300, stage)
    assert len(read) == 2, "rank 0's"
    name = min(weights, key=lambda name: weights[name].numel())
    assert torch.equal(shards.whole(f"model.{name}"), weights[name])
    assert 0 < len(set(read)) - 2 <= min(most, weights[name].numel())


EXPORT = """
import re, sys
from pathlib import Path
from vmae2_ds.runs.export import ExportArguments, export_weights

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

for run in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    export_weights(ExportArguments(source=Path(run), out=Path(run) / "out.safetensors"))
    print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
def test_an_export_holds_a_few_parameters_at_a_time(tmp_path: Path) -> None:
    """Half of ViT-B, 190 MiB, whose largest parameter has 9 MiB, cut at stages 1 and 3: the peak of a process of its own."""
    base = ModelConfig.of_size("base")
    half = base.model_copy(update={"encoder": base.encoder.model_copy(update={"depth": 6})})
    config = PretrainConfig(model=half)
    weights = counted(config.model)
    model_bytes = sum(4 * tensor.numel() for tensor in weights.values())
    for stage in (1, 3):
        made_checkpoint(tmp_path / f"zero{stage}", config, weights, stage, ranks=2)
    made_checkpoint(tmp_path / "first", SMALL, counted(SMALL.model), 3, ranks=2)  # loads what every export needs
    runs = [str(tmp_path / name) for name in ("first", "zero1", "zero3")]
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}  # no holes in the heap: they add 0 to 20 MiB
    done = subprocess.run([sys.executable, "-c", EXPORT, *runs], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for grown, run in list(zip(map(int, done.stdout.split()), runs, strict=True))[1:]:
        assert grown < model_bytes / 5, f"{run}: {grown / 2**20:.0f} MiB for a model of {model_bytes / 2**20:.0f} MiB"
        expected = to_layout(weights, config.model)
        with safe_open(Path(run) / "out.safetensors", "pt") as file:
            assert set(file.keys()) == set(expected)
            for name in expected:
                assert torch.equal(file.get_tensor(name), expected[name]), name
        assert sorted(path.name for path in Path(run).iterdir()) == ["ckpt", "out.safetensors", "run.json"]


class Harmful:
    """Runs a command where it is unpickled by pickle itself."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("which", ["optim", "model"])
def test_a_shard_that_would_run_code_is_refused(tmp_path: Path, which: str) -> None:
    target = made_checkpoint(tmp_path, SMALL, counted(SMALL.model), stage=1, ranks=2)
    (shard,) = target.glob(f"*{'rank_1_mp_rank_00_optim' if which == 'optim' else 'model'}_states.pt")
    held = torch.load(shard, weights_only=True)
    torch.save(held | {"more": Harmful(tmp_path / "ran")}, shard)
    list_files(target, stage=1, ranks=2)
    with pytest.raises(
        CheckpointError, match=rf"{shard.name} cannot be read .* posix\.system, .* no code in a file is run"
    ):
        read_weights(target)
    torch.load(shard, weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def test_a_folder_that_is_not_as_known_is_refused_in_a_line(tmp_path: Path) -> None:
    target = made_checkpoint(tmp_path, SMALL, counted(SMALL.model), stage=3, ranks=2)
    whole = json.loads((target / WHOLE).read_text())
    (target / WHOLE).write_text(json.dumps(whole | {"world_size": 3}))
    with pytest.raises(CheckpointError, match=r"has \*_model_states.pt of 2 ranks, and of 3 they should be"):
        read_weights(target)
    (target / WHOLE).write_text(json.dumps(whole | {"stage": 1}))
    with pytest.raises(CheckpointError, match=r"has \*_model_states.pt of 2 ranks, and of 1 they should be"):
        read_weights(target)
    (target / "zero_pp_rank_1_mp_rank_00_model_states.pt").rename(tmp_path / "kept")
    (target / WHOLE).write_text(json.dumps(whole | {"stage": 0, "files": {}}))
    with pytest.raises(CheckpointError, match=r"not shards of DeepSpeed as known here \(KeyError\('optimizer'\)"):
        read_weights(target)
    (tmp_path / "kept").rename(target / "zero_pp_rank_1_mp_rank_00_model_states.pt")
    (target / WHOLE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"not shards of DeepSpeed as known here \(KeyError\('files'\)"):
        read_weights(target)
    (target / WHOLE).write_text(json.dumps(whole))
    (shard,) = target.glob("*rank_0_*optim*.pt")
    held = torch.load(shard, weights_only=True)
    held["optimizer_state_dict"]["fp32_flat_groups"] = [
        x[:-5] for x in held["optimizer_state_dict"]["fp32_flat_groups"]
    ]
    torch.save(held, shard)
    list_files(target, stage=3, ranks=2)
    opened = open_weights(target)
    for last in ("decoder.head.weight", "decoder.head.bias"):  # of either group
        with pytest.raises(CheckpointError, match=f"the shards end before model.{last}"):
            opened[last]
