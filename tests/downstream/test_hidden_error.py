"""The error on hidden cubes, against a loop over single pixels, closed cases, and clips whose answer is known by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoint.made_checkpoint import made_checkpoint
from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import MaskConfig, ObjectiveConfig, PretrainConfig, PretrainDataConfig
from vmae2_ds.contracts import ClipGeometry, Masks, PretrainBatch
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.downstream import hidden_error as measured
from vmae2_ds.downstream.hidden_error import (
    HiddenError,
    hidden_error,
    in_words,
    measure_run,
    nearest_visible,
    predict_hidden,
    summed,
)
from vmae2_ds.draw.pictures import cubes_of
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import make_masks, passes_over_hidden
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct

GEOMETRY = ClipGeometry(8, 24, 32, 2, 8)
N, P = GEOMETRY.num_cubes, GEOMETRY.cube_values


def random_clip(seed: int = 0, geometry: ClipGeometry = GEOMETRY) -> np.ndarray:
    shape = (geometry.num_frames, geometry.height, geometry.width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def some_visible(seed: int = 0, count: int = 9) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(N)[:count])


def by_loops(
    clip_THWC: np.ndarray, predicted_THWC: np.ndarray, visible: set[int], geometry: ClipGeometry
) -> list[float]:
    """Model, nearest cube and mean colour, pixel by pixel in float64; cubes and their distances are counted out here again."""
    t_step, edge = geometry.tubelet, geometry.patch
    steps, rows, columns = geometry.num_frames // t_step, geometry.height // edge, geometry.width // edge
    cubes = list(itertools.product(range(steps), range(rows), range(columns)))
    clip = clip_THWC.astype(np.float64) / 255
    mean = [math.fsum(clip[..., colour].ravel()) / clip[..., colour].size for colour in range(3)]
    sums = [0.0, 0.0, 0.0]
    for number, (t, y, x) in enumerate(cubes):
        if number in visible:
            continue
        best, source = math.inf, (0, 0, 0)
        for other in sorted(visible):
            s, v, u = cubes[other]
            apart = ((s - t) * t_step) ** 2 + ((v - y) * edge) ** 2 + ((u - x) * edge) ** 2
            if apart < best:
                best, source = apart, (s, v, u)
        for i, j, k, colour in itertools.product(range(t_step), range(edge), range(edge), range(3)):
            true = clip[t * t_step + i, y * edge + j, x * edge + k, colour]
            copied = clip[source[0] * t_step + i, source[1] * edge + j, source[2] * edge + k, colour]
            said = predicted_THWC[t * t_step + i, y * edge + j, x * edge + k, colour]
            for place, guess in enumerate((said, copied, mean[colour])):
                sums[place] += (guess - true) ** 2
    return sums


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("geometry", [GEOMETRY, ClipGeometry(16, 16, 16, 4, 4)], ids=str)
def test_sums_are_those_of_a_loop_over_pixels(seed: int, geometry: ClipGeometry) -> None:
    clip_THWC = random_clip(seed, geometry)
    predicted_THWC = np.random.default_rng(seed + 9).uniform(-0.2, 1.2, clip_THWC.shape)
    visible_V = np.sort(np.random.default_rng(seed).permutation(geometry.num_cubes)[:7])
    found = hidden_error(clip_THWC, cubes_of(predicted_THWC, geometry), visible_V, geometry)
    expected = by_loops(clip_THWC, predicted_THWC, set(visible_V.tolist()), geometry)
    np.testing.assert_allclose(found[:3], expected, rtol=1e-12)  # float64, sums in another order
    assert found.values == (geometry.num_cubes - 7) * geometry.cube_values


def test_pixels_as_bytes_and_as_floats_are_the_same() -> None:
    clip_THWC, predicted_NP, visible_V = random_clip(), np.full((N, P), 0.25), some_visible()
    as_bytes, as_floats = (
        hidden_error(clip, predicted_NP, visible_V, GEOMETRY)
        for clip in (clip_THWC, clip_THWC.astype(np.float64) / 255)
    )
    assert as_bytes == as_floats


def test_closed_cases() -> None:
    """The clip itself is 0 of both; the mean colour is 1 of the mean colour, the nearest cube is 1 of the nearest cube."""
    clip_THWC, visible_V = random_clip(), some_visible()
    true_NP = cubes_of(clip_THWC, GEOMETRY) / 255
    hidden_U = np.setdiff1d(np.arange(N), visible_V)
    exact = hidden_error(clip_THWC, true_NP, visible_V, GEOMETRY)
    assert (exact.error_to_mean_colour, exact.error_to_nearest_cube) == (0, 0)
    colour = np.tile((clip_THWC / 255).reshape(-1, 3).mean(axis=0), P // 3)
    flat = hidden_error(clip_THWC, np.tile(colour, (N, 1)), visible_V, GEOMETRY)
    assert flat.error_to_mean_colour == 1
    copied_NP = np.full_like(true_NP, np.nan)  # what is not hidden is not looked at
    copied_NP[hidden_U] = true_NP[nearest_visible(visible_V, GEOMETRY)]
    copied = hidden_error(clip_THWC, copied_NP, visible_V, GEOMETRY)
    assert copied.error_to_nearest_cube == 1
    assert copied.error_to_mean_colour == pytest.approx(copied.nearest_cube / copied.mean_colour)


def test_the_mean_colour_is_that_of_the_whole_clip_a_colour_at_a_time() -> None:
    """One cube is seen and white, all others are hidden and red: (1 + (N - 1) * colour) / N, hidden ones are in the mean."""
    cubes_NP = np.tile(np.array([255, 0, 0], np.uint8), (N, P // 3))
    cubes_NP[0] = 255
    clip_THWC = cubes_NP.reshape(*GEOMETRY.grid, 2, 8, 8, 3).transpose(0, 3, 1, 4, 2, 5, 6).reshape(8, 24, 32, 3)
    found = hidden_error(clip_THWC, np.zeros((N, P)), np.array([0]), GEOMETRY)
    pixels = (N - 1) * P // 3
    assert found.mean_colour == pytest.approx(
        pixels * 2 * (1 / N) ** 2
    )  # green and blue are off by 1 / N, red is right
    assert found.nearest_cube == pixels * 2  # white in place of red
    assert found.model == pixels  # black in place of red


def test_the_nearest_cube_of_a_moving_edge_by_hand() -> None:
    """One row of four cubes at four times; an edge moves right by a cube in each. Seen: column 0, and all of time 0."""
    geometry = ClipGeometry(8, 4, 16, 2, 4)
    white_TX = np.array([[t >= x for x in range(4)] for t in range(4)])
    clip_THWC = np.repeat(np.repeat(white_TX, 2, axis=0)[:, None], 4, axis=1).repeat(4, axis=2)[..., None]
    clip_THWC = np.repeat(clip_THWC, 3, axis=-1).astype(np.uint8) * 255
    visible_V = np.array([0, 1, 2, 3, 4, 8, 12])
    # A step in time is 2, one in space 4. Time 1: time 0 is 2 away. Time 2: time 0 and, from column 1, column 0 are both 4
    # away, and the earlier is taken. Time 3: time 0 is 6 away, which column 0 beats from column 1 alone.
    assert nearest_visible(visible_V, geometry).tolist() == [1, 2, 3, 1, 2, 3, 12, 2, 3]
    # wrong of these copies: (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)
    found = hidden_error(clip_THWC, np.zeros((16, geometry.cube_values)), visible_V, geometry)
    assert found.nearest_cube == 5 * geometry.cube_values
    assert found.model == 6 * geometry.cube_values  # black, where six of nine are white


def test_of_equally_near_cubes_the_earliest_uppermost_leftmost_is_copied() -> None:
    geometry = ClipGeometry(6, 6, 6, 2, 2)
    around = {4: "before", 10: "above", 12: "left", 14: "right", 16: "below", 22: "after"}
    for taken in ([], [4], [4, 10], [4, 10, 12], [4, 10, 12, 14], [4, 10, 12, 14, 16]):
        visible = sorted(set(around) - set(taken))
        hidden = np.setdiff1d(np.arange(27), visible)
        chosen = nearest_visible(np.array(visible[::-1]), geometry)
        assert chosen[hidden.tolist().index(13)] == visible[0], around[visible[0]]


def test_distances_of_a_few_cubes_at_a_time_are_those_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    visible_V = some_visible()
    at_once = nearest_visible(visible_V, GEOMETRY)
    assert len(set(at_once.tolist())) > 5
    for pairs in (1, 9 * 5):  # one hidden cube at a time, and five
        monkeypatch.setattr(measured, "PAIRS_AT_ONCE", pairs)
        assert nearest_visible(visible_V, GEOMETRY).tolist() == at_once.tolist()


def test_what_has_no_error_to_compare_with_has_no_ratio() -> None:
    grey = np.full((8, 24, 32, 3), 128, np.uint8)
    found = hidden_error(grey, np.zeros((N, P)), some_visible(), GEOMETRY)
    assert found.model > 0
    assert (found.error_to_mean_colour, found.error_to_nearest_cube) == (None, None)
    told = found.as_json()
    assert told["error_to_mean_colour"] is None
    assert told["squared_error"]["model"] == pytest.approx((128 / 255) ** 2)
    assert told["squared_error"]["nearest_cube"] == 0


def test_clips_together_have_the_ratio_of_their_sums() -> None:
    one, other = HiddenError(1.0, 2.0, 4.0, 10), HiddenError(9.0, 10.0, 16.0, 30)
    both = summed([one, other])
    assert both == HiddenError(10.0, 12.0, 20.0, 40)
    assert both.error_to_mean_colour == 0.5
    assert both.error_to_nearest_cube == pytest.approx(10 / 12)
    assert both.as_json()["squared_error"] == {"model": 0.25, "nearest_cube": 0.3, "mean_colour": 0.5}
    assert summed([one, HiddenError(3.0, 0.0, 0.0, 10)]).error_to_mean_colour == 1, (
        "its error counts, without a guess's"
    )


def test_a_diverged_model_is_said_to_be_one_and_its_files_are_json() -> None:
    broken = HiddenError(math.nan, 70.0, 100.0, 9)
    assert in_words(broken).startswith("what the model predicts of them is not finite")
    told = json.loads(json.dumps(broken.as_json(), allow_nan=False))
    assert told["error_to_mean_colour"] is None
    assert told["squared_error"]["mean_colour"] == pytest.approx(100 / 9)


def test_in_words() -> None:
    assert in_words(HiddenError(38.2, 70.0, 100.0, 9)) == (
        "squared error 38 % of predicting each clip's mean colour, 55 % of copying the nearest visible cube"
    )
    assert in_words(HiddenError(0.5, 2.0, 100.0, 9), "its").startswith(
        "squared error 0.5 % of predicting its mean colour"
    )
    exact = "copying the nearest visible cube makes no error here, so there is nothing to compare with"
    assert (
        in_words(HiddenError(2.0, 0.0, 1.0, 9)) == f"squared error 200 % of predicting each clip's mean colour, {exact}"
    )
    assert in_words(HiddenError(2.0, 0.0, 0.0, 9)).endswith(exact)
    assert in_words(HiddenError(2.0, 0.0, 0.0, 9)).startswith("predicting each clip's mean colour makes no error here")


class SaysWhere:
    """Stands in for an objective: predicts clip b's cube n as n + 1000 b."""

    geometry = GEOMETRY

    def predict(self, batch: PretrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
        which_B11 = 1000 * torch.arange(len(batch.decode_BM))[:, None, None]
        said_BMP = (batch.decode_BM[..., None] + which_B11).float().expand(-1, -1, P)
        return said_BMP, torch.zeros_like(said_BMP)


@pytest.mark.parametrize(
    "mask", [{}, {"decoder_ratio": 0.25}, {"decoder": "random", "decoder_ratio": 0.7}, {"decoder": "none"}], ids=str
)
def test_every_hidden_cube_of_every_clip_is_predicted_in_its_place(mask: dict[str, Any]) -> None:
    config = MaskConfig(encoder_ratio=0.75, **mask)
    passes = []
    for clip in range(3):
        masks = make_masks(config, GEOMETRY, np.random.default_rng(clip))
        passes.append(passes_over_hidden(config, GEOMETRY, masks, np.random.default_rng(clip + 5)))
    found_BNP = predict_hidden(SaysWhere(), torch.zeros(3, 8, 24, 32, 3, dtype=torch.uint8), passes)  # type: ignore[arg-type]
    for clip, masks_of_clip in enumerate(passes):
        expected_N = np.arange(N) + 1000.0 * clip
        expected_N[masks_of_clip[0].visible_V] = np.nan
        np.testing.assert_array_equal(found_BNP[clip], np.repeat(expected_N[:, None], P, axis=1))


def test_the_first_pass_that_decodes_a_cube_has_the_last_word() -> None:
    said = iter((2.0, 1.0))  # the passes are asked backwards

    def predict(batch: PretrainBatch) -> tuple[torch.Tensor, None]:
        return torch.full((1, 3, P), next(said)), None

    visible_V = np.arange(4, N)
    passes = [[Masks(visible_V, np.array(cubes), np.ones(3, bool)) for cubes in ([0, 1, 2], [1, 2, 3])]]
    objective = SimpleNamespace(geometry=GEOMETRY, predict=predict)
    found_BNP = predict_hidden(objective, torch.zeros(1, 8, 24, 32, 3), passes)  # type: ignore[arg-type]
    assert found_BNP[0, :4, 0].tolist() == [1, 1, 1, 2]


MODEL = ModelConfig(
    encoder=TowerConfig(width=24, depth=1, heads=2, mlp=32),
    decoder=TowerConfig(width=16, depth=1, heads=2, mlp=32),
    patch=8,
)
DATA = PretrainDataConfig(num_frames=8, size=32, views=2)


def test_a_run_is_measured_as_its_videos_say_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = write_synthetic_set(
        SynthArguments(folder=tmp_path / "set", train_videos=1, val_videos=5, size=32, frames=16)
    )
    config = PretrainConfig(model=MODEL, data=DATA.model_copy(update={"manifest": clips.train}),
                            objective=ObjectiveConfig(target="pixels"))  # fmt: skip
    weights = dict(MaskedAutoencoder(MODEL, config.geometry, seed=1).named_parameters())
    made_checkpoint(tmp_path / "run", config, weights, stage=1, ranks=1)
    together = measure_run(tmp_path / "run", clips.val)
    assert [Path(one.video).name for one in together] == [f"{number:05}.mp4" for number in range(5)]
    assert all(one.error.values == sum(one.error.values for one in together) / 5 for one in together)

    seen: list[int] = []
    predict = Reconstruct.predict

    def counting(self: Reconstruct, batch: PretrainBatch) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(batch.clip_BTHWC))
        return predict(self, batch)

    monkeypatch.setattr(Reconstruct, "predict", counting)
    monkeypatch.setattr(measured, "VALUES_AT_ONCE", 2 * config.geometry.num_cubes * config.geometry.cube_values)
    by_twos = measure_run(tmp_path / "run", clips.val)
    assert seen == [2, 2, 2, 2, 1, 1]  # clips of each forward pass: two passes over each clip
    for one, other in zip(together, by_twos, strict=True):  # float32 products of other shapes
        np.testing.assert_allclose(one.error, other.error, rtol=1e-5)
    assert [one.video for one in measure_run(tmp_path / "run", clips.val, clips=2)] == [
        together[0].video,
        together[2].video,
    ]
    made_checkpoint(tmp_path / "other", config.changed(objective={"target": "normalised"}), weights, stage=1, ranks=1)
    with pytest.raises(ConfigError, match="only a masked autoencoder that predicts pixels has an error in pixels"):
        measure_run(tmp_path / "other", clips.val)
