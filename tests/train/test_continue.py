"""Pre-training goes on from trained weights: its first loss against theirs, other clips, an encoder alone, from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.ranks import tiny_finetuning, tiny_pretraining
from tests.golden_data import GOLDEN, clip_by_rule, fill, golden_json
from tests.model.test_golden import make_batch
from tests.train.taken_encoder import assert_pretraining_takes_the_encoder_of
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.cli.main import main
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.stages import read_run_config
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.errors import EXIT_OK
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.runs.first_weights import initial_weights
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import layout_shapes

LOSS = 1e-5
"""In float32, losses near 1: an engine adds up micro batches in another order."""
STEPS = 20
LIKE_SOURCE = [
    "--data.workers",
    "0",
    "--model.drop-path",
    "0",
    "--train.precision",
    "fp32",
    "--train.ds-config",
    "zero1",
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("continue")
    return write_synthetic_set(SynthArguments(folder=folder, train_videos=8, val_videos=1, size=64, frames=16)).train


def vmae2(*words: object) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == EXIT_OK


def pretrain(videos: Path, run: Path, steps: int, *more: object) -> list[dict[str, Any]]:
    """The rows of a tiny run."""
    vmae2(*tiny_pretraining(videos, run, steps), *LIKE_SOURCE, *more)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def source(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("source") / "run"
    pretrain(videos, run, STEPS, "--train.log-every", STEPS)
    return run


def loss_of_first_step(run: Path, weights: dict[str, torch.Tensor] | None) -> float:
    """What plain PyTorch says of the clips that a run saw first, with these weights or fresh ones."""
    config = read_run_config(run)
    assert isinstance(config, PretrainConfig)
    model = MaskedAutoencoder(config.model, config.geometry, seed=config.train.seed)
    model.load_state_dict(weights or model.state_dict())
    objective = Reconstruct(model, config.objective, config.geometry)
    micro_steps = config.train.global_batch // (config.train.micro_batch * config.data.views)
    dataset = PretrainDataset(config, open_mixture(config.data))
    split = {"rank": 0, "world_size": 1, "accumulation": micro_steps}
    batches = [loaded.batch for loaded in make_loader(config, dataset, **split, first_step=0, num_steps=1)]
    assert len(batches) == micro_steps
    with torch.no_grad():
        return sum(float(objective(batch).loss) for batch in batches) / micro_steps


@pytest.mark.slow
def test_the_first_loss_is_the_source_s_own_and_below_a_fresh_model_s(
    videos: Path, source: Path, tmp_path: Path
) -> None:
    """From a checkpoint of ours, and from a file in the published layout: on the same clips as plain PyTorch."""
    file, checkpoint = tmp_path / "published.safetensors", source / f"ckpt/step{STEPS:08d}"
    vmae2("export", source, "--out", file)
    assert "encoder_to_decoder.weight" in load_file(file)
    weights, clips = read_weights(checkpoint), ("--data.num-frames", 12, "--data.size", 48)
    # at other clips, with the old clips' position tables interpolated in both towers
    for name, init, more in (
        ("run", checkpoint, ()),
        ("file", file, ()),
        ("large", source, (*clips, "--model.positions-from", 8, 32)),
    ):
        (row,) = pretrain(videos, tmp_path / name, 1, "--train.init", init, *more)
        assert row["loss"] == pytest.approx(loss_of_first_step(tmp_path / name, weights), abs=LOSS)
        assert row["loss"] < loss_of_first_step(tmp_path / name, None) - 0.05


@pytest.mark.slow
def test_an_encoder_alone_warms_its_decoder_up_and_goes_on_in_the_middle_of_it(
    videos: Path, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fine-tuned run's encoder, for three steps bit for bit, over a stop."""
    tuned, run = tmp_path / "tuned", tmp_path / "run"
    shape = ["--model.encoder.depth", "2", "--model.encoder.width", "192", "--model.encoder.mlp", "768"]
    vmae2(*tiny_finetuning(videos, tuned, 2), *shape, "--train.init", source)
    assert_pretraining_takes_the_encoder_of(tuned)
    encoder = read_weights(tuned / "ckpt/step00000002")
    more = ("--train.init", tuned, "--optim.freeze-encoder-steps", 3, "--train.save-every", 1, "--train.keep", 9)
    caplog.set_level("INFO")
    pretrain(videos, run, 6, *more, "--train.stop-after-steps", 2)
    rows = pretrain(videos, run, 6, *more)
    assert "the encoder is frozen up to step 3, the decoder learns alone" in caplog.text
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    saved = [read_weights(run / f"ckpt/step{step:08d}") for step in (1, 2, 3, 6)]
    taken = [name for name in encoder if name.startswith("encoder.")]
    for weights in saved[:3]:
        assert all(torch.equal(weights[name], encoder[name]) for name in taken)
    assert not any(torch.equal(saved[3][name], encoder[name]) for name in taken)
    assert not torch.equal(saved[0]["bridge.weight"], saved[2]["bridge.weight"])
    # a frozen encoder's backward pass is no work
    assert rows[0]["flops_per_s"] / rows[0]["clips_per_s"] < 0.9 * rows[5]["flops_per_s"] / rows[5]["clips_per_s"]


@pytest.mark.parametrize("mode", ["encoder_only", "dual"])
def test_the_first_loss_from_a_published_file_is_the_published_code_s(tmp_path: Path, mode: str) -> None:
    model = ModelConfig(
        encoder=TowerConfig(width=96, depth=2, heads=3, mlp=384),
        decoder=TowerConfig(width=48, depth=2, heads=3, mlp=192),
        attention="math",
    )
    file = tmp_path / "published.pth"
    write_weights(fill(layout_shapes(model)), file, model)
    config = PretrainConfig(model=model).changed(data={"num_frames": 8, "size": 64}, train={"init": file})
    tensors = load_file(GOLDEN / "pretrain_tiny_p16.safetensors")
    batch = make_batch(clip_by_rule(1, 2, 3, 8, 64, 64), tensors["enc_mask"], tensors["dec_mask"], mode)
    made = MaskedAutoencoder(config.model, config.geometry, seed=None)
    made.load_state_dict(initial_weights(config))
    loss = Reconstruct(made, config.objective, config.geometry)(batch).loss
    assert loss.item() == pytest.approx(golden_json("pretrain_tiny_p16.json")[mode]["loss"], abs=LOSS)
