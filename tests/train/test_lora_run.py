"""A run with low-rank adapters: cut and gone on, split anew, exported, evaluated, and what the next stage starts from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.ranks import tiny_finetuning
from vmae2_ds.checkpoint.whole import tag_of
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.cli.main import main
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.config.stages import read_run_config
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.finetuning import tuned_macs, tuned_shape
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import every_cube, normalise_pixels
from vmae2_ds.runs.export import ExportArguments, export_weights
from vmae2_ds.runs.open import load_for, open_classifier, open_model
from vmae2_ds.runs.ready import load_classifier, load_encoder
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

pytestmark = pytest.mark.slow
STEPS, CUT = 4, 2
LORA = ("--model.lora.rank", "3", "--model.lora.alpha", "12")
OTHERWISE = ["--model.encoder.depth", "2", "--optim.layer-decay", "0.8", "--optim.ema-decay", "0.8"]
OTHERWISE += ["--optim.warmup-epochs", "0.5", "--train.log-every", "1", "--train.save-every", "2"]
OTHERWISE += ["--train.precision", "fp32"]


def run(words: list[str], *more: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, *more])
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run from weights without adapters, and its second half once more, at ZeRO stages 1 and 3."""
    top = tmp_path_factory.mktemp("lora")
    clips = write_synthetic_set(SynthArguments(folder=top / "clips", train_videos=12, val_videos=1, size=48, frames=8))
    found = {name: top / name for name in ("whole", "cut", "zero3")}
    words = {name: [*tiny_finetuning(clips.train, run, STEPS), *OTHERWISE] for name, run in found.items()}
    first = ClassifierConfig(encoder=TowerConfig(width=96, depth=2, heads=3, mlp=192), patch=8, num_classes=12)
    before = found["before"] = top / "before.safetensors"
    write_weights(
        to_layout(Classifier(first, ClipGeometry(8, 32, 32, 2, 8), seed=7).state_dict(), first), before, first
    )
    adapted = (*LORA, "--train.init", str(before))
    run(words["whole"], *adapted, "--train.ds-config", "zero1")
    for name, policy in (("cut", "zero1"), ("zero3", "zero3")):
        shutil.copytree(found["whole"], found[name], ignore=shutil.ignore_patterns(tag_of(STEPS), "finished.json"))
        run(words[name], *adapted, "--train.ds-config", policy)
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def last(run: Path, *, mean: bool = False) -> dict[str, torch.Tensor]:
    return read_weights(run / "ckpt" / tag_of(STEPS), mean=mean)


def test_a_run_gone_on_has_the_bits_of_one_never_cut_and_those_of_the_encoder_do_not_move(
    folders: dict[str, Path],
) -> None:
    whole, before = last(folders["whole"]), open_model(folders["before"]).weights
    for mean in (False, True):
        expected, found = (last(folders[name], mean=mean) for name in ("whole", "cut"))
        assert all(torch.equal(found[name], x) for name, x in expected.items())
    assert rows(folders["cut"])[CUT]["loss"] == rows(folders["whole"])[CUT]["loss"]
    config = read_run_config(folders["whole"])
    assert isinstance(config, FinetuneConfig)
    macs, row = tuned_macs(tuned_shape(config)), rows(folders["whole"])[0]
    assert macs.backward < 1.5 * macs.forward, "frozen weights need no gradient"
    assert row["flops_per_s"] / row["clips_per_s"] == pytest.approx(2 * (macs.forward + macs.backward))
    frozen = [name for name in before if name.startswith("encoder.")]
    assert len(frozen) == 2 + 2 * 13
    assert all(torch.equal(whole[name], before[name]) for name in frozen)
    moved = [name for name, x in whole.items() if name not in before and ".up." in name and x.any()]
    assert len(moved) == 2 * 6, "q, k, v, proj, fc1 and fc2 of both blocks"


def test_a_run_split_anew_goes_on_at_another_stage(folders: dict[str, Path]) -> None:
    whole, other = last(folders["whole"]), last(folders["zero3"])
    assert read_run_config(folders["zero3"]).train.ds_config == "zero1", "it began so"
    for name, x in whole.items():
        torch.testing.assert_close(other[name], x, rtol=0, atol=1e-6, msg=name)


def adapted(run: Path, weights: dict[str, torch.Tensor]) -> Any:
    """Logits of the model as it was trained, adapters beside its layers."""
    config = read_run_config(run)
    assert isinstance(config, FinetuneConfig)
    model = Classifier(config.model, config.geometry, seed=None)
    model.load_state_dict(weights)
    clip_BTHWC = torch.randint(0, 256, (2, 8, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        return clip_BTHWC, model.eval()(normalise_pixels(every_cube(clip_BTHWC, config.geometry)))


def test_what_leaves_a_run_is_merged_and_computes_the_same_here_and_in_transformers(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip extra: hf)")
    source = folders["whole"]
    clip_BTHWC, expected_BC = adapted(source, last(source))
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(load_classifier(source)(clip_BTHWC).cpu(), expected_BC, **close)
    export_weights(ExportArguments(source=source, out=tmp_path / "hf", layout="transformers"))
    model = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf").eval()
    mean, std = (torch.tensor(value) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels_BTCHW = ((clip_BTHWC / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels_BTCHW).logits, expected_BC, **close)
    assert expected_BC.std() > 0.01, "or a plain model would do as well"

    export_weights(ExportArguments(source=source, out=tmp_path / "w.safetensors"))
    assert not any("lora" in name for name in load_file(tmp_path / "w.safetensors"))
    torch.testing.assert_close(
        load_classifier(tmp_path / "w.safetensors", num_frames=8, size=32)(clip_BTHWC).cpu(), expected_BC, **close
    )
    _, mean_BC = adapted(source, last(source, mean=True))
    torch.testing.assert_close(load_classifier(source / "ema.safetensors")(clip_BTHWC).cpu(), mean_BC, **close)
    assert (mean_BC - expected_BC).abs().max() > 1e-3


def test_a_later_stage_starts_from_the_merged_weights(folders: dict[str, Path]) -> None:
    run, merged, _ = open_classifier(folders["whole"])
    assert not run.model.lora.rank
    for config in (run.model, read_run_config(folders["whole"]).model):
        weights, report = load_for(folders["whole"], config)
        assert (report.new, report.dropped) == ((), ()), "adapters are drawn anew without a word"
        assert all(torch.equal(weights[name], x) for name, x in merged.items())
    assert (
        load_encoder(folders["whole"])
        .module.encoder.blocks[0]
        .attn.qkv.weight.equal(  # type: ignore[operator, union-attr]
            merged["encoder.blocks.0.attn.qkv.weight"]
        )
    )
    before = open_model(folders["before"]).weights
    assert not torch.equal(merged["encoder.blocks.0.attn.qkv.weight"], before["encoder.blocks.0.attn.qkv.weight"])
