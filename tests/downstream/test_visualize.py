"""`vmae2 visualize`: the whole frame out of several passes, from runs and from files, and what became of bad videos."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.checkpoint.made_checkpoint import made_checkpoint
from vmae2_ds.config.model import ClassifierConfig, ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import MaskConfig, PretrainConfig, PretrainDataConfig
from vmae2_ds.contracts import ClipGeometry, Masks, PretrainBatch
from vmae2_ds.data.sources.held_back import is_held_back
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.data.tools.synthetic import SynthArguments, SyntheticSet, write_synthetic_set
from vmae2_ds.disk import write_whole
from vmae2_ds.downstream.visualize import VisualizeArguments, decode_passes, visualize
from vmae2_ds.draw.pictures import (
    Reconstruction,
    caption_of,
    cubes_of,
    draw_prediction,
    draw_reconstruction,
    picture_rows,
)
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import make_masks, passes_over_hidden
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.runs.export import ExportArguments, export_weights
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

GEOMETRY = ClipGeometry(8, 32, 32, 2, 8)
N = GEOMETRY.num_cubes
MODEL = ModelConfig(
    encoder=TowerConfig(width=24, depth=1, heads=2, mlp=32),
    decoder=TowerConfig(width=16, depth=1, heads=2, mlp=32),
    patch=8,
)
RUN = PretrainConfig(model=MODEL, data=PretrainDataConfig(num_frames=8, size=32, views=2))


class SaysWhere:
    """Stands in for an objective: predicts each cube's own number over N, and a little more in each further pass."""

    geometry = GEOMETRY
    more = 1 / 1024  # exact in float32

    def __init__(self) -> None:
        self.asked = 0

    def predict(self, batch: PretrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
        place_BM1 = batch.decode_BM[..., None] / N + self.asked * self.more
        self.asked += 1
        predicted_BMP = place_BM1.expand(-1, -1, GEOMETRY.cube_values)
        return predicted_BMP, torch.zeros_like(predicted_BMP)


@pytest.mark.parametrize(
    "mask",
    [
        *({"decoder_ratio": ratio} for ratio in (0.25, 0.5, 0.75)),
        *({"decoder": "frame", "decoder_ratio": ratio} for ratio in (0.5, 0.75)),
        *({"decoder": "random", "decoder_ratio": ratio} for ratio in (0.5, 0.7)),
        {"decoder_tokens": "disjoint"},
        {"decoder": "none"},
    ],
    ids=str,
)
def test_the_whole_frame_has_each_hidden_cube_in_its_place_and_seen_ones_as_they_are(mask: dict[str, Any]) -> None:
    config = MaskConfig(encoder_ratio=0.75, **mask)
    masks = make_masks(config, GEOMETRY, np.random.default_rng(3))
    passes = passes_over_hidden(config, GEOMETRY, masks, np.random.default_rng(4))
    clip_THWC = np.random.default_rng(5).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    decoded, losses = decode_passes(SaysWhere(), torch.from_numpy(clip_THWC)[None], passes)  # type: ignore[arg-type]
    clip = Reconstruction(clip_THWC, decoded, GEOMETRY, "pixels")
    rows = picture_rows(clip)
    label = (
        f"every hidden cube,\nin {len(passes)} passes,\n+ visible cubes"
        if len(passes) > 1
        else "reconstruction\n+ visible cubes"
    )
    assert list(rows)[-1] == label

    expected_NP = cubes_of(clip_THWC, GEOMETRY) / 255
    hidden = np.setdiff1d(np.arange(N), masks.visible_V)
    by_pass = np.zeros(N)
    for number, one in reversed(list(enumerate(passes))):
        by_pass[one.decode_M] = number * SaysWhere.more
    expected_NP[hidden] = (np.arange(N) / N + by_pass)[hidden, None]
    np.testing.assert_allclose(cubes_of(rows[label], GEOMETRY), expected_NP, atol=1e-6)

    supervised = np.setdiff1d(masks.decode_M, masks.visible_V)
    assert losses["loss"] == pytest.approx(np.square(supervised / N).mean(), rel=1e-6)
    assert losses["loss_hidden"] == pytest.approx(np.square((np.arange(N) / N + by_pass)[hidden]).mean(), rel=1e-6)
    _, losses = decode_passes(SaysWhere(), torch.from_numpy(clip_THWC)[None], passes, 0.25)  # type: ignore[arg-type]
    part = np.where(np.isin(masks.decode_M, masks.visible_V), 0.25, 1)
    assert losses["loss"] == pytest.approx(np.average(np.square(masks.decode_M / N), weights=part), rel=1e-6)
    assert f"the {len(hidden)} cubes that the encoder does not see" in caption_of(clip) or len(passes) == 1


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return write_synthetic_set(
        SynthArguments(folder=tmp_path_factory.mktemp("clips"), train_videos=2, val_videos=2, size=32, frames=16)
    )


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return dict(MaskedAutoencoder(MODEL, GEOMETRY, seed=1).named_parameters())


@pytest.fixture(scope="module")
def file(weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `vmae2 import` writes one: these widths are no published size, so that it notes its model."""
    path = tmp_path_factory.mktemp("files") / "small.safetensors"
    write_weights(to_layout({k: v.detach() for k, v in weights.items()}, MODEL), path, MODEL)
    return path


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are files with nothing in them: what is told of the clips is the same, in a tenth of the time."""
    for name in ("draw_reconstruction", "animate_reconstruction"):
        monkeypatch.setattr(f"vmae2_ds.downstream.visualize.{name}", lambda clip, path: write_whole(path, ""))


def drawn_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "pictures.json").read_text())


def test_a_file_is_drawn_as_the_run_that_it_came_from(
    clips: SyntheticSet, file: Path, weights: dict[str, torch.Tensor], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made_checkpoint(tmp_path / "run", RUN.changed(data={"manifest": clips.val}), weights, stage=1, ranks=1)
    first = visualize(VisualizeArguments(source=tmp_path / "run"))
    assert first == tmp_path / "run" / "pictures" / "step00000001"
    shape = {"num_frames": 8, "size": 32}
    second = visualize(VisualizeArguments(source=file, manifest=clips.val, clips=1, **shape))
    assert second.parent == file.with_name("small_pictures")
    of_run, of_file = drawn_in(first), drawn_in(second)
    assert [Path(one["video"]).name for one in of_run["clips"]] == ["00000.mp4", "00001.mp4"]
    of_one = of_run["clips"][:1]
    assert of_file["clips"] == of_one
    assert of_file["target"] == "normalised"
    names = {path.name for path in second.iterdir()}
    assert names == {"clip00.png", "clip00.gif", "pictures.json"}
    with Image.open(second / "clip00.gif") as moving:
        assert moving.n_frames == 8
    assert "step00000001 clip00" in (tmp_path / "run" / "report.html").read_text()
    request.getfixturevalue("without_pictures")
    # what transformers reads, and the published key names: the same numbers
    export_weights(ExportArguments(source=file, out=tmp_path / "hf", layout="transformers", **shape))
    export_weights(ExportArguments(source=file, out=tmp_path / "published.pth"))
    fields = tmp_path / "fields.json"
    fields.write_text(MODEL.model_dump_json())
    of_folder = visualize(VisualizeArguments(source=tmp_path / "hf", manifest=clips.val, clips=1))
    assert of_folder.parent == tmp_path / "hf_pictures"
    of_published = visualize(
        VisualizeArguments(source=tmp_path / "published.pth", manifest=clips.val, config=fields, clips=1, **shape)
    )
    assert drawn_in(of_folder)["clips"] == drawn_in(of_published)["clips"] == of_one
    # another draw of the same step lies beside the first, and asking again for the first takes its place
    other = visualize(VisualizeArguments(source=tmp_path / "run", seed=1, decoder_ratio=0.75, clips=1))
    assert other == first.with_name("step00000001_decoder-ratio-0.75_seed-1")
    assert drawn_in(other)["clips"][0]["loss"] != of_run["clips"][0]["loss"]
    assert visualize(VisualizeArguments(source=tmp_path / "run", clips=1)) == first
    assert {path.name for path in first.iterdir()} == {"clip00.png", "clip00.gif", "pictures.json"}


def test_a_run_is_drawn_from_another_folder_than_its_training_s(
    clips: SyntheticSet,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_pictures: None,
) -> None:
    """Its list lies where it was started; of a run that does not say where that was, the option is named that helps."""
    run, listed = tmp_path / "run", Path(clips.val.name)
    made_checkpoint(run, RUN.changed(data={"manifest": listed}), weights, stage=1, ranks=1)
    (run / "env.json").write_text(json.dumps({"cwd": str(clips.val.parent)}))
    monkeypatch.chdir(tmp_path)
    (one,) = drawn_in(visualize(VisualizeArguments(source=run, clips=1)))["clips"]
    assert Path(one["video"]) == clips.val.parent / "val/00000.mp4"
    (run / "env.json").unlink()
    with pytest.raises(ConfigError, match=rf"{listed}, the list of the run .*, is not there; name one with --manifest"):
        visualize(VisualizeArguments(source=run, clips=1))


def test_all_hidden_cubes_in_one_pass_where_the_decoder_has_no_mask(
    clips: SyntheticSet, weights: dict[str, torch.Tensor], tmp_path: Path, without_pictures: None
) -> None:
    """Where training's had one, and cubes that both saw counted, too."""
    config = RUN.changed(data={"manifest": clips.val}, objective={"context_weight": 0.5})
    made_checkpoint(tmp_path / "run", config, weights, stage=1, ranks=1)
    folder = visualize(VisualizeArguments(source=tmp_path / "run", decoder="none", clips=1))
    (one,) = drawn_in(folder)["clips"]
    assert one["loss"] == one["loss_hidden"]


def test_a_picture_names_the_bad_video_why_and_what_is_in_its_place(
    clips: SyntheticSet, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, without_pictures: None
) -> None:
    (tmp_path / "torn.mp4").write_bytes(Path(clips.val.parent / "val/00000.mp4").read_bytes()[:900])
    listed = tmp_path / "list.csv"
    listed.write_text(f"path\ntorn.mp4\n{clips.val.parent}/val/00001.mp4\n")
    with caplog.at_level(logging.INFO):
        folder = visualize(
            VisualizeArguments(source=file, manifest=listed, num_frames=8, size=32, clips=1, out=tmp_path / "out")
        )
    (first,) = drawn_in(folder)["clips"]
    assert Path(first["video"]).name == "00001.mp4"
    assert [Path(one["path"]).name for one in first["unused"]] == ["torn.mp4"]
    reason = first["unused"][0]["reason"]
    (title,) = [record.getMessage() for record in caplog.records if "clip00.png" in record.getMessage()]
    assert f"torn.mp4 ({reason})" in title
    assert "could not be used; in " in title
    assert "place: 00001.mp4, loss" in title


def test_what_cannot_be_drawn_is_said_before_anything_is_written(
    clips: SyntheticSet, file: Path, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="is no run, which would name its videos; give --manifest"):
        visualize(VisualizeArguments(source=file, out=out))
    config = ClassifierConfig(encoder=MODEL.encoder, num_classes=3, patch=8)
    classifier = Classifier(config, GEOMETRY, seed=0)
    write_weights(to_layout(classifier.state_dict(), config), tmp_path / "classes.safetensors", config)
    with pytest.raises(ConfigError, match="is a classifier: only a masked autoencoder"):
        visualize(VisualizeArguments(source=tmp_path / "classes.safetensors", manifest=clips.val, out=out))
    shape: dict[str, Any] = {"manifest": clips.val, "num_frames": 8, "size": 32, "out": out}
    for wrong, said in (
        ({"decoder_ratio": 0.3}, "use 0.25, 0.5 or 0.75"),
        ({"size": 36}, "try 40|try 32"),
        ({"out": file}, "is a file; name a folder"),
        ({"out": clips.val.parent}, "which is read"),
    ):
        with pytest.raises(ConfigError, match=said):
            visualize(VisualizeArguments(source=file, **{**shape, **wrong}))
    assert not out.exists() or not list(out.iterdir())  # the place was tried
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds files of something else"):
        visualize(VisualizeArguments(source=file, **{**shape, "out": tmp_path / "theirs"}))


def test_names_of_any_kind_can_be_drawn(tmp_path: Path) -> None:
    """A dollar sign is no formula, a byte that is no text is no end, and a long name takes another line."""
    clip_THWC = np.zeros((8, 32, 32, 3), np.uint8)
    masks = Masks(np.arange(8), np.arange(8, 12), np.ones(4, dtype=bool))
    decoded, _ = decode_passes(SaysWhere(), torch.from_numpy(clip_THWC)[None], [masks])  # type: ignore[arg-type]
    heights = {}
    for name in ("a.mp4", "a$_{$ \udce9 " + "long " * 60):
        clip = Reconstruction(clip_THWC, decoded, GEOMETRY, "pixels", name)
        draw_reconstruction(clip, tmp_path / "still.png")
        draw_prediction(clip_THWC, [name, "b"], [0.75, 0.25], name, tmp_path / "bars.png")
        heights[name] = [Image.open(tmp_path / file).height for file in ("still.png", "bars.png")]
    short, long = heights.values()
    assert long[0] > short[0]
    assert long[1] > short[1]


def measured_in(folder: Path) -> dict[str, Any]:
    return drawn_in(folder)["hidden_cubes"]


def test_the_error_on_hidden_cubes_is_told_printed_and_kept_for_more_clips_than_are_drawn(
    clips: SyntheticSet,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    without_pictures: None,
) -> None:
    config = RUN.changed(data={"manifest": clips.train, "hold_back": 0.0}, objective={"target": "pixels"})
    made_checkpoint(tmp_path / "run", config, weights, stage=1, ranks=1)
    with caplog.at_level(logging.INFO):
        folder = visualize(VisualizeArguments(source=tmp_path / "run", manifest=clips.val, clips=1))
    told = measured_in(folder)
    assert caplog.records[-1].getMessage() == told["line"]
    assert [Path(one["video"]).name for one in told["clips"]] == ["00000.mp4", "00001.mp4"]
    squared = [one["squared_error"] for one in told["clips"]]
    for guess in ("mean_colour", "nearest_cube"):  # all hidden cubes of two clips with as many of them each
        ratio = sum(one["model"] for one in squared) / sum(one[guess] for one in squared)
        assert told[f"error_to_{guess}"] == pytest.approx(ratio)
        assert told[f"error_to_{guess}"] != pytest.approx(np.mean([one[f"error_to_{guess}"] for one in told["clips"]]))
    percent = [f"{100 * told[f'error_to_{guess}']:.0f} %" for guess in ("mean_colour", "nearest_cube")]
    assert told["line"] == (
        f"hidden cubes of 2 unseen videos: squared error {percent[0]} of predicting each clip's mean colour, {percent[1]} of "
        "copying the nearest visible cube"
    )
    # the clip that is drawn has the same figures as where it is measured, and its title has them
    (drawn,) = drawn_in(folder)["clips"]
    assert drawn["squared_error"] == pytest.approx(told["clips"][0]["squared_error"], rel=1e-5)
    assert drawn["squared_error"]["model"] == pytest.approx(drawn["loss_hidden"], rel=1e-5)
    of_one = f"squared error {100 * drawn['error_to_mean_colour']:.0f} % of predicting its mean colour"
    assert any(of_one in record.getMessage() for record in caplog.records if "clip00.png" in record.getMessage())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Hidden cubes of 2 unseen videos: squared error" in page.replace("&#39;", "'")
    none = visualize(VisualizeArguments(source=tmp_path / "run", clips=1, measured_clips=0, out=tmp_path / "out"))
    assert measured_in(none) == {"line": "hidden cubes: not measured, as asked for by --measured-clips 0"}


def test_videos_are_called_unseen_only_where_that_is_known(
    clips: SyntheticSet,
    weights: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_pictures: None,
) -> None:
    folder = clips.val.parent
    for name in ("train.csv", "val.csv"):  # a list as the run has it, and one of the same files by other paths
        rows = [line.split(",")[0] for line in (folder / name).read_text().splitlines()[1:]]
        (tmp_path / name).write_text("path\n" + "".join(f"linked/{row}\n" for row in rows))
    (tmp_path / "linked").symlink_to(folder)
    both = (tmp_path / "train.csv").read_text() + (tmp_path / "val.csv").read_text().split("\n", 1)[1]
    (tmp_path / "both.csv").write_text(both)

    def claim(source: Path, **asked: Any) -> str:
        arguments = VisualizeArguments(source=source, clips=1, out=tmp_path / "out", **asked)
        return measured_in(visualize(arguments))["line"].split(": squared")[0]

    config = RUN.changed(data={"manifest": clips.train}, objective={"target": "pixels"})
    made_checkpoint(tmp_path / "run", config, weights, stage=1, ranks=1)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    assert claim(run) == "hidden cubes of 2 videos it was trained on"
    assert claim(run, manifest=Path("train.csv")) == "hidden cubes of 2 videos it was trained on"
    assert claim(run, manifest=Path("both.csv")) == "hidden cubes of 4 videos, 2 of which it was trained on"
    assert claim(run, manifest=Path("val.csv"), measured_clips=1) == "hidden cubes of 1 unseen video"
    # a list of a run that is gone, weights of a file, and weights that a run began with say nothing about that
    not_known = "hidden cubes of 2 videos (whether it was trained on them is not known)"
    gone = config.changed(data={"manifest": tmp_path / "gone.csv"})
    made_checkpoint(tmp_path / "of_gone", gone, weights, stage=1, ranks=1)
    assert claim(tmp_path / "of_gone", manifest=Path("val.csv")) == not_known
    write_weights(to_layout({k: v.detach() for k, v in weights.items()}, MODEL), tmp_path / "file.safetensors", MODEL)
    shape: dict[str, Any] = {"num_frames": 8, "size": 32, "target": "pixels"}
    assert claim(tmp_path / "file.safetensors", manifest=Path("val.csv"), **shape) == not_known
    begun = config.changed(train={"init": tmp_path / "file.safetensors"})
    made_checkpoint(tmp_path / "begun", begun, weights, stage=1, ranks=1)
    assert (
        claim(tmp_path / "begun", manifest=Path("val.csv"))
        == "hidden cubes of 2 videos that this run was not trained on"
    )


def test_what_a_run_holds_back_of_its_own_list_is_not_left_out_of_another(
    clips: SyntheticSet, weights: dict[str, torch.Tensor], tmp_path: Path, without_pictures: None
) -> None:
    share = next(s for s in (0.3, 0.5, 0.7) if 0 < is_held_back(read_manifest(clips.val), s, "video").sum() < 2)
    config = RUN.changed(data={"manifest": clips.train, "hold_back": share})
    made_checkpoint(tmp_path / "run", config, weights, stage=1, ranks=1)
    asked = VisualizeArguments(source=tmp_path / "run", manifest=clips.val, out=tmp_path / "out")
    assert len(drawn_in(visualize(asked))["clips"]) == 2


def test_a_normalised_prediction_is_said_not_to_be_measured(
    clips: SyntheticSet, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, without_pictures: None
) -> None:
    asked = VisualizeArguments(source=file, manifest=clips.val, num_frames=8, size=32, clips=1, out=tmp_path / "out")
    with caplog.at_level(logging.INFO):
        folder = visualize(asked)
    line = "hidden cubes: not measured, because the prediction of a normalised target carries no colour"
    assert measured_in(folder) == {"line": line}
    assert caplog.records[-1].getMessage() == line
    (drawn,) = drawn_in(folder)["clips"]
    assert "squared_error" not in drawn
