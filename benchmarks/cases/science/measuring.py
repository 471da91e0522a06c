"""What a trained run is worth: accuracies of frozen probes, and its error on hidden cubes of videos that nobody trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.cases.science.grid import GEOMETRY
from benchmarks.cases.science.sets import Probed, Sets
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.downstream.hidden_error import hidden_error, predict_hidden, summed
from vmae2_ds.downstream.probe.fit import PROBES
from vmae2_ds.downstream.probe.folds import Features, probe_accuracy
from vmae2_ds.downstream.probe.frozen import Encode, FrozenEncoder, pixel_features, pixel_motion
from vmae2_ds.masking import make_masks, passes_over_hidden
from vmae2_ds.runs.folder import find_checkpoint
from vmae2_ds.runs.ready import autoencoder_of

AT_ONCE = 64
"""Clips encoded together."""
HIDDEN_CLIPS = 256
"""Unseen clips whose hidden cubes are predicted."""
DRAWN_FROM = 1000
"""Random encoders have this seed and those after it: no run of the grid began with their weights."""


def measure_run(source: Path, sets: Sets) -> dict[str, float]:
    """Accuracies of the run's frozen encoder, and for a masked autoencoder its error on hidden cubes."""
    run, checkpoint = find_checkpoint(source)
    weights = read_weights(checkpoint)
    encoder = FrozenEncoder(run, weights)
    values = accuracies({"motion": encoder.motion, "mean": encoder, "one_frame": one_frame(encoder)}, sets)
    if isinstance(run, PretrainConfig):
        objective = autoencoder_of(run, weights).eval()
        values |= errors_on_hidden(objective, run, unseen(sets.probed[""])[:HIDDEN_CLIPS])
    return values


def measure_without_training(kind: str, seed: int, shape: RunConfig, sets: Sets) -> dict[str, float]:
    """The same accuracies of a random encoder, or of `pixels`, which no seed changes."""
    if kind == "pixels":
        views: dict[str, Encode] = {
            "motion": pixel_motion,
            "mean": pixel_features,
            "one_frame": one_frame(pixel_features),
        }
        return accuracies(views, sets)
    encoder = FrozenEncoder(shape, None, DRAWN_FROM + seed)
    return accuracies({"motion": encoder.motion, "mean": encoder, "one_frame": one_frame(encoder)}, sets)


def one_frame(encode: Encode) -> Encode:
    """A view of the clip's middle frame alone, shown for as long as the clip: what a single frame tells of the class."""

    def encode_still(clip_BTHWC: Tensor) -> Tensor:
        frames = clip_BTHWC.shape[1]
        return encode(clip_BTHWC[:, frames // 2, None].expand(-1, frames, -1, -1, -1))

    return encode_still


def accuracies(views: dict[str, Encode], sets: Sets) -> dict[str, float]:
    """Share of videos that ridge on each view names right, by set."""
    return {
        f"{prefix}{name}": _accuracy(encode, probed)
        for prefix, probed in sets.probed.items()
        for name, encode in views.items()
    }


def _accuracy(encode: Callable[[Tensor], Tensor], probed: Probed) -> float:
    clips = torch.from_numpy(probed.clip_VTHWC)
    feature_VF = torch.cat([encode(clips[at : at + AT_ONCE]).double() for at in range(0, len(clips), AT_ONCE)]).numpy()
    found = Features(feature_VF, probed.label_V, probed.source_V, probed.source_V)
    if probed.is_test_V is None:
        return probe_accuracy(found, None, PROBES["ridge"])[0]
    train, test = (Features(*(array[which] for array in found)) for which in (~probed.is_test_V, probed.is_test_V))
    return probe_accuracy(train, test, PROBES["ridge"])[0]


def unseen(probed: Probed) -> np.ndarray:
    """Clips of the main set that nothing was trained on: (V, T, H, W, 3)."""
    assert probed.is_test_V is not None, "the main set has a part for testing"
    return probed.clip_VTHWC[probed.is_test_V]


def errors_on_hidden(objective: torch.nn.Module, run: PretrainConfig, clip_VTHWC: np.ndarray) -> dict[str, float]:
    """Ratios of squared errors over hidden cubes: the model's to those of two guesses. Masks are of the run's kind."""
    errors = []
    for first in range(0, len(clip_VTHWC), AT_ONCE):
        clips = clip_VTHWC[first : first + AT_ONCE]
        rngs = [np.random.default_rng((first + number, 7)) for number in range(len(clips))]
        own = [make_masks(run.mask, GEOMETRY, rng) for rng in rngs]
        passes = [passes_over_hidden(run.mask, GEOMETRY, masks, rng) for masks, rng in zip(own, rngs, strict=True)]
        predicted_BNP = predict_hidden(objective, torch.from_numpy(clips), passes)  # type: ignore[arg-type]
        errors += [
            hidden_error(clip, predicted, masks.visible_V, GEOMETRY)
            for clip, predicted, masks in zip(clips, predicted_BNP, own, strict=True)
        ]
    found = summed(errors)
    ratios = {"error_to_mean_colour": found.error_to_mean_colour, "error_to_nearest_cube": found.error_to_nearest_cube}
    return {name: ratio for name, ratio in ratios.items() if ratio is not None}
