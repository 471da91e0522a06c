"""Pictures: cubes go where the model has them, statistics come back exactly, grey is where nothing is."""

from __future__ import annotations

import itertools
import logging
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.draw.charts import CURVES, _plot, curve_svg, draw_curves, has_values
from vmae2_ds.draw.pictures import (
    BETWEEN,
    GREY,
    LABELS,
    DecodedPass,
    Reconstruction,
    animate_reconstruction,
    caption_of,
    clip_of,
    cubes_of,
    draw_reconstruction,
    enlarged,
    picture_rows,
    put_statistics_back,
)
from vmae2_ds.masking import make_masks
from vmae2_ds.model.embed import gather_cubes
from vmae2_ds.objectives import normalise_cubes

GEOMETRY = ClipGeometry(8, 32, 48, 2, 8)


@pytest.fixture
def clip_THWC() -> np.ndarray:  # noqa: N802
    return np.random.default_rng(0).integers(0, 256, (8, 32, 48, 3), dtype=np.uint8)


def perfect(clip_THWC: np.ndarray, target: str, **mask: object) -> Reconstruction:
    """What a model that knows the answer would give."""
    masks = make_masks(MaskConfig(encoder_ratio=0.75, **mask), GEOMETRY, np.random.default_rng(0))
    true_MP = torch.from_numpy(cubes_of(clip_THWC, GEOMETRY)[masks.decode_M]).float() / 255
    predicted_MP = normalise_cubes(true_MP[None], GEOMETRY)[0] if target == "normalised" else true_MP
    return Reconstruction(clip_THWC, [DecodedPass(masks, predicted_MP.numpy())], GEOMETRY, target, "a clip")


def test_cubes_are_the_models(clip_THWC: np.ndarray) -> None:
    everything = torch.arange(GEOMETRY.num_cubes)[None]
    ours = cubes_of(clip_THWC, GEOMETRY)
    np.testing.assert_array_equal(ours, gather_cubes(torch.from_numpy(clip_THWC)[None], everything, GEOMETRY)[0])
    np.testing.assert_array_equal(clip_of(ours, GEOMETRY), clip_THWC)


def test_statistics_come_back(clip_THWC: np.ndarray) -> None:
    true_NP = cubes_of(clip_THWC, GEOMETRY).astype(np.float32) / 255
    normalised_NP = normalise_cubes(torch.from_numpy(true_NP)[None], GEOMETRY)[0].numpy()
    # float32 through a division and a product by the same deviation: a few units in the last place of 1
    np.testing.assert_allclose(put_statistics_back(normalised_NP, true_NP), true_NP, atol=2e-6)


@pytest.mark.parametrize("target", ["normalised", "pixels"])
@pytest.mark.parametrize("tokens", ["official", "disjoint"])
def test_a_perfect_prediction_gives_the_clip_or_grey(clip_THWC: np.ndarray, target: str, tokens: str) -> None:
    clip = perfect(clip_THWC, target, decoder_tokens=tokens)
    rows = picture_rows(clip)
    true_NP = cubes_of(clip_THWC / 255, GEOMETRY)
    supervised = clip.masks.decode_M[clip.masks.is_supervised_M]
    for label, shown in (
        ("what the\nencoder sees", clip.masks.visible_V),
        ("reconstruction", supervised),
        ("reconstruction\n+ visible cubes", np.union1d(supervised, clip.masks.visible_V)),
    ):
        expected_NP = np.full_like(true_NP, GREY)
        expected_NP[shown] = true_NP[shown]
        np.testing.assert_allclose(cubes_of(rows[label], GEOMETRY), expected_NP, atol=2e-6)


def test_caption_says_what_is_given(clip_THWC: np.ndarray) -> None:
    assert "mean and deviation of the true cube are put back" in caption_of(perfect(clip_THWC, "normalised"))
    assert "Blue: 12 cubes that both have, not in the loss." in caption_of(perfect(clip_THWC, "pixels"))
    counted = perfect(clip_THWC, "pixels")._replace(context_weight=0.5)
    assert "cubes that both have, with weight 0.5 in it." in caption_of(counted)
    assert "Blue" not in caption_of(perfect(clip_THWC, "pixels", decoder_tokens="disjoint"))


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_files_are_written(clip_THWC: np.ndarray, tmp_path: Path, suffix: str) -> None:
    clip = perfect(clip_THWC, "normalised")
    still, moving = tmp_path / "pictures" / "still.png", tmp_path / "pictures" / f"moving{suffix}"
    draw_reconstruction(clip, still)
    animate_reconstruction(clip, moving)
    assert Image.open(still).width > 1000
    assert Image.open(moving).n_frames == GEOMETRY.num_frames


@pytest.mark.parametrize("size", [(24, 24), (48, 32), (96, 96), (192, 256), (224, 224), (240, 320)], ids=str)
def test_pixels_of_small_clips_are_squares_and_a_frame_is_about_192_pixels(size: tuple[int, int]) -> None:
    frames_THWC = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    shown = enlarged(frames_THWC / 255)
    factor = shown.shape[1] // size[0]
    assert shown.shape == (2, factor * size[0], factor * size[1], 3)
    assert 192 <= min(shown.shape[1:3]) < 288
    for row, column in itertools.product(range(factor), repeat=2):
        np.testing.assert_array_equal(shown[:, row::factor, column::factor], frames_THWC)


def test_pixels_of_large_clips_are_means() -> None:
    frames_THWC = np.random.default_rng(0).integers(0, 256, (2, 392, 392, 3), dtype=np.uint8)
    mean = frames_THWC.reshape(2, 196, 2, 196, 2, 3).mean(axis=(2, 4))
    shown = enlarged(frames_THWC / 255)
    assert shown.shape == (2, 196, 196, 3)
    assert np.abs(shown - mean).max() <= 0.5


def test_a_still_has_each_pixel_as_it_is_in_its_row_and_column(clip_THWC: np.ndarray, tmp_path: Path) -> None:
    clip = perfect(clip_THWC, "pixels")
    draw_reconstruction(clip, tmp_path / "still.png")
    picture = np.asarray(Image.open(tmp_path / "still.png").convert("RGB"))
    tiles = [enlarged(frames_THWC) for frames_THWC in picture_rows(clip).values()]
    height, width = tiles[0].shape[1:3]
    top = next(y for y in range(100) if (picture[y : y + height, LABELS : LABELS + width] == tiles[0][0]).all())
    for row, frames_THWC in enumerate(tiles):
        for column, frame_HWC in enumerate(frames_THWC):
            y, x = top + row * (height + BETWEEN), LABELS + column * (width + BETWEEN)
            np.testing.assert_array_equal(picture[y : y + height, x : x + width], frame_HWC)


@pytest.mark.parametrize(("frames", "duration"), [(8, 250), (16, 125), (64, 67), (4, 250)])
def test_a_clip_is_played_in_about_two_seconds_large_enough_to_be_seen(
    tmp_path: Path, frames: int, duration: int
) -> None:
    geometry = ClipGeometry(frames, 16, 16, 2, 8)
    masks = make_masks(MaskConfig(encoder_ratio=0.5), geometry, np.random.default_rng(0))
    predicted_MP = np.zeros((len(masks.decode_M), geometry.cube_values), np.float32)
    clip_THWC = np.random.default_rng(0).integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8)
    clip = Reconstruction(clip_THWC, [DecodedPass(masks, predicted_MP)], geometry, "pixels", "a clip")
    animate_reconstruction(clip, tmp_path / "moving.webp")
    with Image.open(tmp_path / "moving.webp") as moving:
        assert moving.width >= 3 * 192
        assert moving.height >= 2 * 192
        moving.seek(1)
        moving.load()
        assert moving.info["duration"] == duration
        assert moving.n_frames == frames


def test_curves(tmp_path: Path) -> None:
    rows = [
        {"step": step, "loss": 1 / step, "flat_loss": 0.9, "grad_norm": None if step == 3 else 0.1, "mfu": None}
        for step in range(1, 90)
    ]
    assert has_values(rows, CURVES["loss"])
    assert not has_values(rows, CURVES["mfu"])
    svg = curve_svg(rows, CURVES["loss"])
    assert "flat cubes" in "".join(ET.fromstring(svg).itertext())
    assert svg == curve_svg(rows, CURVES["loss"])  # reproducible: a report can be compared with another
    draw_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    draw_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_matplotlib_s_cache_of_fonts_is_not_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Its line "generated new fontManager" stood in the middle of a user's first run."""
    caplog.set_level(logging.INFO)
    font_manager._log.info("generated new fontManager")  # type: ignore[attr-defined]
    assert not caplog.records


def test_the_loss_of_validation_videos_has_that_of_trained_ones_beside_it_where_a_run_has_both() -> None:
    def lines(rows: list[dict[str, float]]) -> tuple[list[list[list[float]]], list[str]]:
        axes = Figure().add_subplot()
        _plot(axes, rows, CURVES["val_loss"], titled=False)
        legend = axes.get_legend()
        names = [] if legend is None else [text.get_text() for text in legend.get_texts()]
        return [line.get_xydata().tolist() for line in axes.get_lines()], names

    rows = [{"step": 0, "val_loss": 1.0, "seen_loss": 0.9}, {"step": 4, "val_loss": 0.8, "seen_loss": 0.4}]
    both = [[[0, 1.0], [4, 0.8]], [[0, 0.9], [4, 0.4]]]
    assert lines(rows) == (both, ["validation videos", "as many trained ones"])
    assert lines([{"step": 0, "val_loss": 1.0}, {"step": 4, "val_loss": 0.8}]) == (both[:1], [])
