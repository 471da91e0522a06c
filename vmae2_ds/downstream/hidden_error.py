"""How well a masked autoencoder paints the cubes that it does not see, beside two guesses that need no model.

Squared errors are summed over the values of all hidden cubes, in plain pixels from 0 to 1. A ratio of 1.0 is no better than
the guess; 0 is the clip itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vmae2_ds.contracts import ClipGeometry, Masks, PretrainBatch, ReadFailure
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.draw.pictures import cubes_of
from vmae2_ds.json_lines import finite_or_none
from vmae2_ds.masking import passes_over_hidden

if TYPE_CHECKING:
    from torch import Tensor

    from vmae2_ds.config.pretrain import PretrainConfig
    from vmae2_ds.data.feed.pretrain import PretrainDataset
    from vmae2_ds.objectives import Reconstruct

# B clips, T frames, H x W pixels, C = 3 colours, N cubes, V visible cubes, U hidden cubes, P values in a cube.

VALUES_AT_ONCE = 1 << 25
"""Values of the clips that are predicted together, at most; one clip may have more."""
PAIRS_AT_ONCE = 1 << 22
"""Pairs of a hidden and a visible cube whose distances are held at once."""


class HiddenError(NamedTuple):
    """Squared errors of one clip or of several, each summed over all values of all hidden cubes; pixels are in [0, 1]."""

    model: float
    """Error of the prediction as the decoder gives it: it is not clipped to [0, 1]."""
    nearest_cube: float
    """Error of copying the nearest visible cube: `nearest_visible`."""
    mean_colour: float
    """Error of painting one RGB colour: the mean over all frames and pixels of the whole clip, hidden ones included."""
    values: int
    """Numbers summed over: 3 for each hidden pixel of each frame."""

    @property
    def error_to_mean_colour(self) -> float | None:
        """The model's error as a part of that of the clip's mean colour; None where that has none, in clips of one colour."""
        return self.model / self.mean_colour if self.mean_colour else None

    @property
    def error_to_nearest_cube(self) -> float | None:
        """The model's error as a part of that of the nearest visible cube; None where copying is exact."""
        return self.model / self.nearest_cube if self.nearest_cube else None

    def as_json(self) -> dict[str, Any]:
        """Both ratios, and the mean squared errors of a value that they are made of; None for what is not finite."""
        squared = {
            name: finite_or_none(getattr(self, name) / self.values) for name in ("model", "nearest_cube", "mean_colour")
        }
        return {
            "error_to_mean_colour": finite_or_none(self.error_to_mean_colour),
            "error_to_nearest_cube": finite_or_none(self.error_to_nearest_cube),
            "squared_error": squared,
        }


class ChosenClip(NamedTuple):
    """One view of a video, and what the encoder sees and the decoder is asked for in it."""

    entry: VideoEntry
    """The video that it is of, where others could not be used the one in their place."""
    clip_THWC: Tensor
    """uint8."""
    passes: list[Masks]
    """Masks that between them decode all hidden cubes."""
    failures: list[ReadFailure]
    """Videos that could not be used."""


class MeasuredClip(NamedTuple):
    """The error of one clip of a list."""

    entry: VideoEntry
    error: HiddenError

    @property
    def video(self) -> str:
        """Name of the video."""
        return self.entry.name


def summed(errors: Iterable[HiddenError]) -> HiddenError:
    """The error of several clips together: its ratios are those of sums, so a clip that is hard to guess counts for more."""
    return HiddenError(*(sum(column) for column in zip(*errors, strict=True)))


def in_words(error: HiddenError, whose: str = "each clip's") -> str:
    """What the model's error is of both guesses': "squared error 38 % of predicting each clip's mean colour, 55 % of ..."."""
    if not math.isfinite(error.model):
        return "what the model predicts of them is not finite: its weights are broken, or it has diverged"
    guesses = (
        (error.error_to_mean_colour, f"predicting {whose} mean colour"),
        (error.error_to_nearest_cube, "copying the nearest visible cube"),
    )
    told = [f"{_percent(ratio)} of {guess}" for ratio, guess in guesses if ratio is not None]
    exact = [
        f"{guess} makes no error here, so there is nothing to compare with" for ratio, guess in guesses if ratio is None
    ]
    return ", ".join(["squared error " + ", ".join(told)] * bool(told) + exact)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %" if ratio >= 0.0995 else f"{100 * ratio:.2g} %"


def hidden_error(
    clip_THWC: np.ndarray, predicted_NP: np.ndarray, visible_V: np.ndarray, geometry: ClipGeometry
) -> HiddenError:
    """The three errors of one clip over its hidden cubes, all that are not in `visible_V`, in float64.

    Args:
        clip_THWC: uint8, or floats in [0, 1].
        predicted_NP: Pixels in [0, 1] that the model predicts, of each hidden cube; rows of visible ones are not looked at.
        visible_V: Numbers of the cubes that the encoder sees, at least one.
        geometry: How the clip is cut.
    """
    one = 255 if clip_THWC.dtype == np.uint8 else 1
    true_NP = cubes_of(clip_THWC, geometry).astype(np.float64) / one
    hidden_U = np.setdiff1d(np.arange(geometry.num_cubes), visible_V)
    true_UP = true_NP[hidden_U]
    first_C = true_NP[0, :3]
    mean_C = first_C + (true_NP.reshape(-1, 3) - first_C).mean(axis=0)  # exact where the clip has one colour
    guesses = (
        predicted_NP[hidden_U],
        true_NP[nearest_visible(visible_V, geometry)],
        np.tile(mean_C, geometry.cube_values // 3),
    )
    model, nearest_cube, mean_colour = (float(np.square(guess - true_UP).sum()) for guess in guesses)
    return HiddenError(model, nearest_cube, mean_colour, true_UP.size)


def nearest_visible(visible_V: np.ndarray, geometry: ClipGeometry) -> np.ndarray:
    """For each hidden cube, in order, the number of the visible cube to copy: (U,).

    Nearest in (time, height, width) between the cubes' middles, where a frame counts as much as a pixel: the same place in
    another frame comes before another place, which is the better copy where a camera stands still. Of several that are
    equally near it is the earliest, then the uppermost, then the leftmost.
    """
    place_N3 = np.indices(geometry.grid).reshape(3, -1).T * (geometry.tubelet, geometry.patch, geometry.patch)
    visible_V = np.sort(visible_V)  # argmin takes the first of equals, and cubes are numbered t, h, w
    place_U3 = np.delete(place_N3, visible_V, axis=0)
    block = max(1, PAIRS_AT_ONCE // len(visible_V))
    chosen = []
    for first in range(0, len(place_U3), block):
        apart_UV3 = place_U3[first : first + block, None] - place_N3[visible_V]
        chosen.append(np.square(apart_UV3).sum(axis=-1).argmin(axis=1))  # whole numbers: equal is equal
    return visible_V[np.concatenate(chosen)]


def predict_hidden(objective: Reconstruct, clip_BTHWC: Tensor, passes: Sequence[Sequence[Masks]]) -> np.ndarray:
    """What the model predicts of all cubes that the encoder does not see: float32 (B, N, P), NaN where it sees.

    `passes`: for each clip the masks of `passes_over_hidden`; a cube is taken as the first pass that decodes it has it. With
    the target `pixels` these are pixels in [0, 1].
    """
    import torch

    from vmae2_ds.dist import default_device

    geometry = objective.geometry
    found_BNP = np.full((len(clip_BTHWC), geometry.num_cubes, geometry.cube_values), np.nan, np.float32)
    for masks_B in reversed(list(zip(*passes, strict=True))):  # the first pass has the last word
        batch = PretrainBatch.of_clips(clip_BTHWC, masks_B).to(default_device())
        with torch.no_grad():
            predicted_BMP = objective.predict(batch)[0].float().cpu().numpy()
        for found_NP, predicted_MP, masks in zip(found_BNP, predicted_BMP, masks_B, strict=True):
            found_NP[masks.decode_M[masks.is_supervised_M]] = predicted_MP[masks.is_supervised_M]
    return found_BNP


def measure_clips(
    objective: Reconstruct, config: PretrainConfig, dataset: PretrainDataset, count: int
) -> Iterator[MeasuredClip]:
    """The errors of one clip of each of `count` videos spread over the data set, several clips predicted at once.

    `config` and `dataset` have one view of a video and the target `pixels`: no other prediction carries colours.
    """
    import torch

    geometry = config.geometry
    assert config.objective.target == "pixels", "a normalised prediction has no colours to compare"
    at_once = max(1, VALUES_AT_ONCE // (geometry.num_cubes * geometry.cube_values))
    places = spread_places(dataset, count)
    for first in range(0, len(places), at_once):
        clips = [chosen_clip(config, dataset, place) for place in places[first : first + at_once]]
        passes = [clip.passes for clip in clips]
        predicted_BNP = predict_hidden(objective, torch.stack([clip.clip_THWC for clip in clips]), passes)
        for clip, predicted_NP in zip(clips, predicted_BNP, strict=True):
            visible_V = clip.passes[0].visible_V
            error = hidden_error(clip.clip_THWC.numpy(), predicted_NP, visible_V, geometry)
            yield MeasuredClip(clip.entry, error)


def spread_places(dataset: PretrainDataset, count: int) -> list[int]:
    """Places of `count` videos, or of all where there are fewer, at even distances over the data set."""
    videos = dataset.mixture.num_videos
    count = min(count, videos)
    return [videos * number // count for number in range(count)]


def chosen_clip(config: PretrainConfig, dataset: PretrainDataset, place: int) -> ChosenClip:
    """The first view of a video of the data set, and masks that between them cover all of it."""
    key = dataset.mixture.key_of(place)
    sample = dataset[key]
    masks = Masks(*(tensor[0].numpy() for tensor in sample[1:4]))
    passes = passes_over_hidden(config.mask, config.geometry, masks, np.random.default_rng((config.train.seed, place)))
    entry = dataset.entry_of(key, attempt=len(sample.failures))
    return ChosenClip(entry, sample.clip_KTHWC[0], passes, sample.failures)


def on_list(config: PretrainConfig, manifest: Path, root: Path | None = None) -> PretrainConfig:
    """The run with all videos of this list in place of its own."""
    other = {"manifest": manifest, "root": root, "mixture": None, "leave_out": (), "hold_back": 0.0}
    return config.changed(data=other)


def measure_run(run: Path, manifest: Path, clips: int = 64, seed: int = 0) -> list[MeasuredClip]:
    """The errors of a pre-training run's newest checkpoint on videos of a list, under the run's own masks.

    `run` as `vmae2 visualize` takes it; raises ConfigError where it is no run of a masked autoencoder with pixels as target.
    """
    from vmae2_ds.checkpoint.zero_weights import read_weights
    from vmae2_ds.config.pretrain import PretrainConfig
    from vmae2_ds.data.feed.pretrain import PretrainDataset
    from vmae2_ds.data.sources.mixture import open_mixture
    from vmae2_ds.dist import default_device
    from vmae2_ds.errors import ConfigError
    from vmae2_ds.runs.folder import find_checkpoint
    from vmae2_ds.runs.ready import autoencoder_of

    config, checkpoint = find_checkpoint(run)
    if not isinstance(config, PretrainConfig) or config.objective.target != "pixels":
        raise ConfigError(f"{run}: only a masked autoencoder that predicts pixels has an error in pixels")
    config = on_list(config, manifest).changed(data={"views": 1, "crop_on": "workers"}, train={"seed": seed})
    dataset = PretrainDataset(config, open_mixture(config.data).with_reader("pyav"))
    objective = autoencoder_of(config, read_weights(checkpoint)).to(default_device()).eval()
    return list(measure_clips(objective, config, dataset, clips))
