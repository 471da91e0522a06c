"""Probes: how much a frozen encoder's features tell about the labels, with pixels and a random encoder beside them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from vmae2_ds.data.manifest import read_manifest
from vmae2_ds.disk import write_whole
from vmae2_ds.downstream.frozen import (
    Encode,
    Features,
    FrozenEncoder,
    clip_settings,
    features_of,
    pixel_features,
    pixel_motion,
    pixel_tokens,
)
from vmae2_ds.downstream.kept import kept_features
from vmae2_ds.downstream.trained import TrainedProbe
from vmae2_ds.errors import ConfigError
from vmae2_ds.train.initial import open_model
from vmae2_ds.train.runs import with_options

log = logging.getLogger(__name__)

# V videos, F features, C classes.

ALPHAS = tuple(float(alpha) for alpha in 10.0 ** np.arange(-3, 6))
"""Ridge penalties that leave-one-out chooses from, on standardised features."""
NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Of k-NN, as DINO has them (arXiv 2104.14294)."""

ProbeFn = Callable[[Features, np.ndarray, int], np.ndarray]
"""(training set, test features, classes) -> predicted labels."""


def probe(
    source: tyro.conf.Positional[Path],
    /,
    manifest: Path,
    val_manifest: Path | None = None,
    root: Path | None = None,
    kind: Literal["ridge", "knn", "linear", "attentive"] = "ridge",
    pool: Literal["mean", "motion"] = "mean",
    clips: int = 1,
    epochs: int = 50,
    seed: int = 0,
    num_frames: int | None = None,
    size: int | None = None,
    stride: int | None = None,
    sampling: Literal["stride", "dense", "segments", "spread"] | None = None,
    workers: int | None = None,
    cache: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Accuracy of a probe on frozen features of a trained encoder, of a random one of its shape, and of pixels.

    Args:
        source: A run folder (its newest whole checkpoint), a folder of runs (the newest), runs/.../ckpt/stepN, or a checkpoint
            file of any known key layout.
        manifest: Labelled videos to fit on. Without val_manifest each source of the list is left out once and tested.
        val_manifest: Labelled videos to test on.
        root: Folder that relative paths start from; default: each list's.
        kind: ridge: least squares on one-hot labels, its penalty by leave-one-out; knn: 20 neighbours by cosine; linear: a
            layer trained by AdamW; attentive: a query trained to attend to all tokens (V-JEPA). The last two try nine
            settings side by side and choose by a held-out part of the training videos.
        pool: What ridge, knn and linear look at: the mean token; or motion, how much tokens change from step to step in each of
            3 x 3 cells of the frame.
        clips: Clips of each video, whose features are averaged, or for attentive looked at together.
        epochs: Passes over the training videos of the linear and the attentive probe.
        seed: Of the random encoder, and of what the linear and the attentive probe draw.
        num_frames: Frames of a clip; default: the run's, 16 for a file.
        size: Clip height and width in pixels; default: the run's, 224 for a file.
        stride: Step between frames for stride and dense; default: the run's, 4 for a file.
        sampling: How frames are taken; default: the run's, for a file that of its kind of model.
        workers: Loader processes; default: the run's.
        cache: Folder that keeps the features, for this and other probes of the same encoders and videos.
        out: A JSON file for the figures and every test video's label and predictions.
    """
    for option, value in (("clips", clips), ("epochs", epochs)):
        if value < 1:
            raise ConfigError(f"--{option} {value}: at least 1")
    if kind == "attentive" and pool != "mean":
        raise ConfigError(f"--pool {pool}: --kind attentive looks at all tokens, none are pooled; leave it out")
    if val_manifest is None:
        _check_sources(read_manifest(manifest, root).sources)  # before hours of decoding, not after
    opened = open_model(source)
    asked = {"num_frames": num_frames, "size": size, "stride": stride, "sampling": sampling, "workers": workers}
    run = with_options(opened.run, data=asked)
    trained, random = FrozenEncoder(run, opened.weights), FrozenEncoder(run, None, seed)
    view = "tokens" if kind == "attentive" else pool
    encoders = views_of(trained, random, view)
    fit = PROBES[kind]
    if isinstance(fit, TrainedProbe):
        fit = replace(fit, epochs=epochs, seed=seed)

    def features(listed: Path) -> dict[str, Features]:
        if cache is None:
            return features_of(run, encoders, listed, root, clips)
        what = "vectors" if view == "mean" else view
        names = {"run": trained.identity, "random": random.identity, "pixels": repr(run.geometry)}
        makers = {name: f"{what} of {'pixels ' if name == 'pixels' else ''}{maker}" for name, maker in names.items()}
        return kept_features(cache, makers, run, encoders, listed, root, clips)

    train = features(manifest)
    test = {} if val_manifest is None else features(val_manifest)
    tested = {name: probe_predictions(train[name], test.get(name), fit) for name in encoders}
    result = {
        "checkpoint": str(opened.checkpoint),
        "kind": kind,
        "pool": pool,
        "videos": len(tested["run"].label_V),
        "accuracy": {name: _accuracy(found) for name, found in tested.items()},
    }
    if out is not None:
        about = {"manifest": str(manifest), "val_manifest": val_manifest and str(val_manifest), **clip_settings(run)}
        rows = zip(*(found.predicted_V.tolist() for found in tested.values()), strict=True)
        videos = [
            {"path": path, "label": label, **dict(zip(tested, row, strict=True))}
            for path, label, row in zip(
                tested["run"].path_V.tolist(), tested["run"].label_V.tolist(), rows, strict=True
            )
        ]
        written = {**result, **about, "clips": clips, "epochs": epochs, "seed": seed, "tested": videos}
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(written, indent=1))
    return result


def views_of(trained: FrozenEncoder, random: FrozenEncoder, view: str) -> dict[str, Encode]:
    """What a probe looks at, by who says it; `view` is mean, motion or tokens."""
    if view == "tokens":
        return {"run": trained.tokens, "random": random.tokens, "pixels": pixel_tokens(trained.geometry)}
    if view == "motion":
        return {"run": trained.motion, "random": random.motion, "pixels": pixel_motion}
    return {"run": trained, "random": random, "pixels": pixel_features}


class Tested(NamedTuple):
    """Test videos in the order in which they were tested."""

    predicted_V: np.ndarray
    label_V: np.ndarray
    path_V: np.ndarray


def probe_accuracy(train: Features, test: Features | None, fit: ProbeFn) -> tuple[float, int]:
    """Share of test videos that are named right, and their number; without a test set every source is left out once."""
    tested = probe_predictions(train, test, fit)
    return _accuracy(tested), len(tested.label_V)


def _accuracy(tested: Tested) -> float:
    return float((tested.predicted_V == tested.label_V).mean())


def probe_predictions(train: Features, test: Features | None, fit: ProbeFn) -> Tested:
    """What the probe calls each test video; without a test set each source is left out once and tested."""
    parts = []
    for part, held in _folds(train, test):
        num_classes = int(max(part.label_V.max(), held.label_V.max())) + 1
        parts.append(Tested(fit(part, held.feature_VF, num_classes), held.label_V, held.path_V))
    return Tested(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _folds(train: Features, test: Features | None) -> Iterator[tuple[Features, Features]]:
    if test is not None:
        yield train, test
        return
    sources = sorted({str(source) for source in train.source_V})
    _check_sources(sources)
    for source in sources:
        held = train.source_V == source
        yield _rows(train, ~held), _rows(train, held)


def _check_sources(sources: Sequence[str]) -> None:
    if len(sources) < 2:
        raise ConfigError(
            f"the list has one source, {sources[0]!r}: name groups (subjects, scenes) in its column `source`, each of which "
            "is left out once, or give --val-manifest"
        )


def _rows(features: Features, which: np.ndarray) -> Features:
    return Features(*(array[which] for array in features))


def ridge(train: Features, test_VF: np.ndarray, num_classes: int) -> np.ndarray:
    """Least squares on centred one-hot labels and standardised features; the penalty that names most videos right left out.

    Leave-one-out has a closed form (Golub, Heath and Wahba 1979): error_i / (1 - hat_ii). It is asked for its accuracy, the
    squared error breaking ties: by the error alone, few videos of many features get a penalty that flattens everything.
    """
    train_VF = train.feature_VF
    mean_F, std_F = train_VF.mean(axis=0), train_VF.std(axis=0)
    std_F = np.where(std_F > 0, std_F, 1.0)
    x_VF, test_VF = (train_VF - mean_F) / std_F, (test_VF - mean_F) / std_F
    target_VC = np.eye(num_classes)[train.label_V]
    offset_C = target_VC.mean(axis=0)
    u_VR, s_R, vt_RF = np.linalg.svd(x_VF, full_matrices=False)
    projected_RC = u_VR.T @ (target_VC - offset_C)

    def left_out(alpha: float) -> tuple[int, float]:
        shrink_R = s_R**2 / (s_R**2 + alpha)
        fitted_VC = u_VR @ (shrink_R[:, None] * projected_RC)
        hat_V = (u_VR**2) @ shrink_R + 1 / len(x_VF)  # 1 / V: the offset
        error_VC = (target_VC - offset_C - fitted_VC) / np.maximum(1e-12, 1 - hat_V)[:, None]
        wrong = int(((target_VC - error_VC).argmax(axis=1) != train.label_V).sum())
        return wrong, float((error_VC**2).sum())

    best = min(ALPHAS, key=left_out)
    weight_FC = vt_RF.T @ ((s_R / (s_R**2 + best))[:, None] * projected_RC)
    return (test_VF @ weight_FC + offset_C).argmax(axis=1)


def knn(train: Features, test_VF: np.ndarray, num_classes: int) -> np.ndarray:
    """The class with most weight among the nearest by cosine of centred features, weighted by exp(cosine / temperature)."""
    mean_F = train.feature_VF.mean(axis=0)
    train_VF, test_VF = (
        centred / np.maximum(1e-12, np.linalg.norm(centred, axis=1, keepdims=True))
        for centred in (train.feature_VF - mean_F, test_VF - mean_F)
    )
    cosine = test_VF @ train_VF.T
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :NEIGHBOURS]
    weight = np.exp((np.take_along_axis(cosine, nearest, axis=1) - 1) / TEMPERATURE)
    votes = np.zeros((len(test_VF), num_classes))
    np.add.at(votes, (np.arange(len(test_VF))[:, None], train.label_V[nearest]), weight)
    return votes.argmax(axis=1)


PROBES: dict[str, ProbeFn] = {
    "ridge": ridge,
    "knn": knn,
    "linear": TrainedProbe("linear"),
    "attentive": TrainedProbe("attentive"),
}
"""Probes by name; the attentive one takes tokens, the others a vector a video."""


def describe(result: dict[str, Any]) -> str:
    """The accuracies in a line."""
    figures = ", ".join(f"{name} {100 * value:.1f} %" for name, value in result["accuracy"].items())
    pooled = " (motion)" if result["pool"] == "motion" else ""
    return f"{result['kind']} on frozen features{pooled} of {result['checkpoint']}, {result['videos']} test videos: {figures}"
