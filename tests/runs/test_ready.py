"""`vmae2_ds.load_encoder`, `load_classifier` and `load_autoencoder`: what was written is computed, whatever the source."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vmae2_ds
from tests.checkpoint.made_checkpoint import made_checkpoint
from tests.model.test_second_implementation import CONFIG, GEOMETRY, logits_by_hand
from tests.weights.test_layouts import model_of
from vmae2_ds.config.finetune import FinetuneConfig, LabelledDataConfig
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.data.tools.synthetic import write_video
from vmae2_ds.errors import CheckpointError, ConfigError, VideoError
from vmae2_ds.runs.export import ExportArguments, export_weights
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import StateDict, to_layout

ROOT = Path(__file__).parents[2]
AUTOENCODER = ModelConfig(encoder=CONFIG.encoder, decoder=TowerConfig(width=96, depth=1, heads=3, mlp=40))
NAMES = ("wave", "jump", "sit", "stand", "fall")
CLIPS = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
CLIP = {"num_frames": 4, "size": 32, "stride": 3}


@pytest.fixture(scope="module")
def weights() -> StateDict:
    return dict(model_of(CONFIG, GEOMETRY).state_dict())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, weights: StateDict) -> dict[str, Path]:
    """One classifier as a run, one of its checkpoints, files and a folder."""
    top = tmp_path_factory.mktemp("places")
    run: Any = FinetuneConfig(model=CONFIG, data=LabelledDataConfig(**CLIP))
    step = made_checkpoint(top / "run", run, weights, stage=3, ranks=2)
    (top / "run" / "labels.txt").write_text("\n".join(NAMES))
    export_weights(ExportArguments(source=top / "run", out=top / "w.safetensors", layout="mmaction2"))
    export_weights(ExportArguments(source=top / "run", out=top / "hf", layout="transformers"))
    write_weights(to_layout(weights, CONFIG), top / "w.pth", CONFIG)
    return {
        "run": top / "run",
        "step": step,
        "file": top / "w.safetensors",
        "folder": top / "hf",
        "bare": top / "w.pth",
    }


@pytest.mark.parametrize("place", ["run", "step", "file", "folder", "bare"])
def test_a_classifier_is_ready_from_wherever_it_lies(places: dict[str, Path], place: str, weights: StateDict) -> None:
    """Against a video transformer written in plain float64 (test_second_implementation.py)."""
    asked = {"num_frames": 4, "size": 32} if place == "bare" else {}  # a bare file does not say its clips
    model = vmae2_ds.load_classifier(str(places[place]), **asked)
    expected_BC = logits_by_hand(to_layout(weights, CONFIG), "published", CLIPS)
    for clips in (CLIPS, CLIPS.numpy(), CLIPS.float() / 255):
        torch.testing.assert_close(model(clips).double(), expected_BC, rtol=1e-4, atol=1e-4)
    assert model.labels == (NAMES if place != "bare" else tuple("01234"))
    assert model.geometry == GEOMETRY
    wants = model.preprocessing
    assert wants.shape == (4, 32, 32, 3)
    assert (wants.sampling, wants.stride) == ("dense", 3 if place in ("run", "step", "file") else 4)
    assert (wants.pixel_range, wants.mean, wants.std) == ((0, 1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("place", ["run", "step", "file", "folder", "bare"])
def test_an_encoder_gives_what_the_head_of_its_classifier_sees(
    places: dict[str, Path], place: str, weights: StateDict
) -> None:
    asked = {"num_frames": 4, "size": 32} if place == "bare" else {}
    encoder = vmae2_ds.load_encoder(places[place], **asked)
    feature_BD = encoder(CLIPS)
    logits_BC = feature_BD @ weights["head.weight"].T + weights["head.bias"]
    expected_BC = logits_by_hand(to_layout(weights, CONFIG), "published", CLIPS)
    torch.testing.assert_close(logits_BC.double(), expected_BC, rtol=1e-4, atol=1e-4)
    tokens_BND = encoder.tokens(CLIPS)
    assert tokens_BND.shape == (2, 2 * 2 * 2, 192)
    mean_BD, norm = tokens_BND.mean(1), weights["fc_norm.weight"]
    scaled_BD = (mean_BD - mean_BD.mean(-1, keepdim=True)) / mean_BD.std(-1, correction=0, keepdim=True)
    torch.testing.assert_close(scaled_BD * norm + weights["fc_norm.bias"], feature_BD, rtol=1e-3, atol=1e-3)


def test_an_autoencoder_predicts_the_cubes_that_are_decoded(tmp_path: Path) -> None:
    """What the encoder sees moves its clip's predictions, and nothing else does."""
    weights = dict(model_of(AUTOENCODER, GEOMETRY).state_dict())
    made_checkpoint(
        tmp_path, PretrainConfig(model=AUTOENCODER, data=PretrainDataConfig(**CLIP)), weights, stage=1, ranks=1
    )
    model = vmae2_ds.load_autoencoder(tmp_path)
    masks = model.draw_masks(2, seed=1)
    predicted_BMP = model(CLIPS, masks)
    assert predicted_BMP.shape == (2, len(masks[0].decode_M), GEOMETRY.cube_values)
    seen = set(masks[0].visible_V.tolist())

    def changed(cube: int) -> Tensor:
        step, row, column = np.unravel_index(cube, GEOMETRY.grid)
        clips = CLIPS.clone()
        clips[0, 2 * step : 2 * step + 2, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] ^= 255
        return model(clips, masks)

    for cube in range(GEOMETRY.num_cubes):
        found_BMP = changed(cube)
        assert torch.equal(found_BMP[0], predicted_BMP[0]) == (cube not in seen), cube
        torch.testing.assert_close(found_BMP[1], predicted_BMP[1])
    encoder = vmae2_ds.load_encoder(tmp_path)
    assert isinstance(encoder.module.norm, torch.nn.Identity)
    torch.testing.assert_close(encoder(CLIPS), encoder.tokens(CLIPS).mean(1))


def test_the_precision_is_the_one_that_is_asked_for(places: dict[str, Path]) -> None:
    exact, half = (vmae2_ds.load_classifier(places["file"], precision=name) for name in ("fp32", "bf16"))
    assert {p.dtype for p in exact.module.parameters()} == {torch.float32}
    assert {p.dtype for p in half.module.parameters()} == {torch.bfloat16}
    assert half(CLIPS).dtype == torch.float32
    torch.testing.assert_close(half(CLIPS), exact(CLIPS), rtol=0.1, atol=0.3)


def test_what_does_not_fit_is_said_in_one_line(places: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "mae.safetensors"
    write_weights(to_layout(model_of(AUTOENCODER, GEOMETRY).state_dict(), AUTOENCODER), file, AUTOENCODER)
    for call, message in (
        (lambda: vmae2_ds.load_classifier(file), "is a masked autoencoder, which has no classes"),
        (lambda: vmae2_ds.load_autoencoder(places["file"]), "is a classifier, which has no decoder"),
        (
            lambda: vmae2_ds.load_encoder(places["file"])(CLIPS[:, :2]),
            r"\(2, 2, 32, 32, 3\): the model takes \(B, 4, 32,",
        ),
        (lambda: vmae2_ds.load_encoder(places["file"])(CLIPS.long()), "clips of torch.int64"),
        (lambda: vmae2_ds.load_encoder(places["file"], size=33), "33 is not a positive multiple"),
        (lambda: vmae2_ds.load_encoder(places["run"], model_config={"patch": 8}), "--config is for files"),
        (lambda: vmae2_ds.load_encoder(tmp_path / "nothing.pth"), "No such file"),
    ):
        with pytest.raises((ConfigError, CheckpointError), match=message):
            call()


def gradient_video(path: Path, frames: int = 20, height: int = 48, width: int = 80) -> None:
    """Green grows with time, red from left to right: a clip's frames and its square can be told from its pixels."""
    picture_HWC = np.zeros((height, width, 3), np.uint8)
    picture_HWC[..., 0] = np.linspace(0, 255, width)
    images = [picture_HWC + np.array([0, 12 * number, 0], np.uint8) for number in range(frames)]
    write_video(path, images, fps=10)


def test_read_cuts_the_middle_of_a_video_and_its_square(places: dict[str, Path], tmp_path: Path) -> None:
    """Against the published rule by hand: `dense` takes 4 frames evenly over the middle 4 x 3 of 20, so 4 .. 15."""
    gradient_video(tmp_path / "a.mp4")
    model = vmae2_ds.load_classifier(places["run"])
    clip_BTHWC = model.read(str(tmp_path / "a.mp4"), tmp_path / "a.mp4")
    assert clip_BTHWC.dtype == torch.uint8
    assert clip_BTHWC.shape == (2, *model.preprocessing.shape)
    assert torch.equal(clip_BTHWC[0], clip_BTHWC[1])
    green_T = clip_BTHWC[0, ..., 1].float().mean((1, 2)) / 12
    torch.testing.assert_close(green_T, torch.tensor([4.0, 8.0, 12.0, 15.0]), atol=0.3, rtol=0)
    red_W = clip_BTHWC[0, ..., 0].float().mean((0, 1))  # columns 16 .. 63 of 0 .. 79
    assert abs(red_W[0] - 255 * 16.25 / 79) < 5
    assert abs(red_W[-1] - 255 * 62.75 / 79) < 5
    assert model(clip_BTHWC).shape == (2, 5)


def test_what_read_cannot_read_is_named(places: dict[str, Path], tmp_path: Path) -> None:
    model = vmae2_ds.load_encoder(places["run"])
    (tmp_path / "text.mp4").write_text("no video")
    for video, reason in (("gone.mp4", "No such file"), ("text.mp4", "text, not a video"), ("", "a directory")):
        with pytest.raises(VideoError, match=f"^{re.escape(str(tmp_path / video))}: .*{reason}"):
            model.read(tmp_path / video)
    with pytest.raises(ConfigError, match="at least one video"):
        model.read()


@pytest.fixture
def example_folder(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pages' examples find their files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "W.safetensors").write_bytes(places["file"].read_bytes())
    for name in ("a.mp4", "b.mp4"):
        gradient_video(tmp_path / name)
    return tmp_path


def run_example(place: str, loader: str) -> tuple[dict[str, Any], str]:
    """The three lines of a page that begin with a loader: the names that they make, and what they print."""
    example = re.search(rf"^( *)\w+ = vmae2_ds\.{loader}.*\n(?:\1\S.*\n){{2}}", (ROOT / place).read_text(), re.M)
    assert example, "three lines"
    said, names = io.StringIO(), {"vmae2_ds": vmae2_ds, "numpy": np}
    with contextlib.redirect_stdout(said):
        exec(re.sub(r"^ +", "", example[0], flags=re.M), names)
    return names, said.getvalue()


@pytest.mark.usefixtures("example_folder")
@pytest.mark.parametrize("place", ["docs/FINETUNING.md", "vmae2_ds/__init__.py"])
def test_the_example_runs(place: str) -> None:
    said = run_example(place, "load_classifier")[1]
    assert re.fullmatch(r"\{'wave': tensor\(.*'fall': tensor\(.*\}\n", said)


@pytest.mark.usefixtures("example_folder")
def test_the_encoder_s_example_goes_from_files_to_features() -> None:
    names, _ = run_example("docs/FINETUNING.md", "load_encoder")
    assert names["features"].shape == (2, 192)
    assert names["tokens"].shape == (2, 8, 192)
    assert names["features"].dtype == torch.float32


def test_importing_the_package_loads_no_torch() -> None:
    code = "import vmae2_ds, sys; dir(vmae2_ds); vmae2_ds.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert {"load_autoencoder", "load_classifier", "load_encoder"} <= set(dir(vmae2_ds))
    with pytest.raises(AttributeError, match="has no attribute 'load_decoder'"):
        vmae2_ds.load_decoder  # type: ignore[attr-defined]  # noqa: B018
