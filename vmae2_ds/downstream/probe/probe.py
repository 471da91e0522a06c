"""Probes: how much a frozen encoder's features tell about the labels, with pixels and a random encoder beside them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import tyro
from pydantic import Field

from vmae2_ds.config.run import Sampling
from vmae2_ds.config.strict import ClipLength, Edge, Seed, StrictModel, Views, Workers
from vmae2_ds.data.sources.list_formats import list_form
from vmae2_ds.data.sources.manifest import manifest_digest, read_manifest
from vmae2_ds.disk import check_out_file, check_out_folder, check_there, write_whole
from vmae2_ds.downstream.probe.folds import check_sources
from vmae2_ds.errors import ConfigError

log = logging.getLogger(__name__)


class ProbeArguments(StrictModel):
    """Accuracy of a probe on frozen features of a trained encoder, of a random one of its shape, and of pixels."""

    source: tyro.conf.Positional[Path]
    """Encoder to probe: a run folder (its newest whole checkpoint is taken), a folder of runs (the newest), a
    checkpoint runs/.../ckpt/stepN, or a checkpoint file or folder that vmae2 import can read."""
    manifest: Path
    """List of labelled videos to fit on. Without --val-manifest each source in the list is left out once and tested."""
    val_manifest: Path | None = None
    """List of labelled videos to test on; default: none, see --manifest."""
    root: Path | None = None
    """Folder that relative paths in the lists start from; default: each list's own folder."""
    kind: Literal["ridge", "knn", "linear", "attentive"] = "ridge"
    """Kind of probe. ridge: least squares on one-hot labels, its penalty by leave-one-out; knn: 20 neighbours by cosine;
    linear: a layer trained by AdamW; attentive: a query trained to attend to all tokens (V-JEPA). The last two try nine
    settings side by side and choose by a held-out part of the training videos."""
    pool: Literal["mean", "motion"] = "mean"
    """What ridge, knn and linear are given. mean: the mean of all tokens; motion: how much tokens change from step to
    step in each of 3 x 3 cells of the frame."""
    clips: Views = 1
    """Number of clips of each video. Their features are averaged; the attentive probe looks at all of them together."""
    epochs: Annotated[int, Field(ge=1, le=10**6)] = 50
    """Number of passes of the linear and the attentive probe over the training videos."""
    seed: Seed = 0
    """Seed of the random encoder, and of the linear and the attentive probe."""
    num_frames: ClipLength | None = None
    """Number of frames in a clip; default: the run's. Of a checkpoint file: what the file says, else 16."""
    size: Edge | None = None
    """Height and width of a clip in pixels; default: the run's. Of a checkpoint file: what the file says, else 224."""
    stride: ClipLength | None = None
    """Step between two frames of a clip, for --sampling stride and dense; default: the run's. Of a checkpoint file:
    what the file says, else 4."""
    sampling: Sampling | None = None
    """Which frames make a clip. stride: frames a fixed step apart; dense: frames spread evenly over num_frames x stride
    frames; segments: one frame from each of num_frames equal parts; spread: frames spread evenly over most of the
    video. Default: the run's, for a checkpoint file the usual one of its kind."""
    workers: Workers | None = None
    """Number of data loader processes; default: the run's, for a checkpoint file 8."""
    cache: Path | None = None
    """Folder that keeps the features, so that other probes of the same encoder and videos need not compute them;
    default: they are not kept."""
    out: Path | None = None
    """JSON file to write: the accuracies, and label and predictions of every test video; default: nothing is written."""
    labels: Path | None = None
    """Text file with one class name per line, in the order of the label numbers: the lists may then give class names
    instead of numbers."""
    ignore_columns: tuple[str, ...] | None = None
    """Names of extra columns to ignore in the lists; the option without a name ignores every column that is not used
    here. Default: a list with an unknown column is refused."""
    config: Path | None = None
    """JSON file with fields of the model config that the weights of a checkpoint file do not show, such as {"encoder":
    {"heads": 8}}. A run says them itself."""


class Probed(TypedDict):
    """The figures of one probe."""

    checkpoint: str
    kind: str
    pool: str
    videos: int
    """Videos tested."""
    accuracy: dict[str, float]
    """Accuracy by whose features were used: run, random and pixels."""


def probe(asked: ProbeArguments) -> Probed:
    """Fit the probe on each kind of features, and return its accuracies.

    Raises ConfigError, DataError or CheckpointError where places, lists or weights are of no use.
    """
    if asked.kind == "attentive" and asked.pool != "mean":
        raise ConfigError(f"--pool {asked.pool}: --kind attentive looks at all tokens, none are pooled; leave it out")
    inputs = [asked.manifest, *([] if asked.val_manifest is None else [asked.val_manifest])]
    if asked.out is not None:
        check_out_file(asked.out, inputs=inputs)
    if asked.cache is not None:
        check_out_folder(asked.cache, "--cache")
    form = list_form(asked.ignore_columns, asked.labels)
    listed = read_manifest(asked.manifest, asked.root, form=form)
    if asked.val_manifest is None:
        check_sources(listed.sources)  # before hours of decoding, not after
    else:
        read_manifest(asked.val_manifest, asked.root, form=form)
    check_there(asked.source)

    from vmae2_ds.config.stages import CLIP_OPTIONS, with_options
    from vmae2_ds.downstream.classify.scores import other_result
    from vmae2_ds.downstream.probe.feature_cache import kept_features
    from vmae2_ds.downstream.probe.fit import PROBES
    from vmae2_ds.downstream.probe.folds import Features, accuracy, probe_predictions
    from vmae2_ds.downstream.probe.frozen import FrozenEncoder, clip_settings, features_of, views_of
    from vmae2_ds.downstream.probe.trained import TrainedProbe
    from vmae2_ds.runs.open import clip_line, open_model
    from vmae2_ds.weights.source import read_given

    opened = open_model(asked.source, given=read_given(asked.config))
    clip = asked.model_dump(include=CLIP_OPTIONS)
    run = with_options(opened.run, data={**clip, "sampling": asked.sampling, "workers": asked.workers})
    log.info("%s: clips of %s", opened.checkpoint, clip_line(asked.source, run.data, **clip))
    trained, random = FrozenEncoder(run, opened.weights), FrozenEncoder(run, None, asked.seed)
    about = {
        "checkpoint": str(opened.checkpoint), "kind": asked.kind, "pool": asked.pool, "weights": trained.identity,
        "manifest": str(asked.manifest), "val_manifest": asked.val_manifest and str(asked.val_manifest),
        "lists": [manifest_digest(path) for path in inputs], "root": asked.root and str(asked.root),
        **clip_settings(run), "clips": asked.clips, "epochs": asked.epochs, "seed": asked.seed,
    }  # fmt: skip
    if form.names is not None:
        about["labels"] = form.names.digest
    if asked.out is not None and asked.out.exists() and (other := other_result(about, asked.out)) is not None:
        raise ConfigError(f"--out {asked.out} holds {other}; name another file, or remove it")
    view = "tokens" if asked.kind == "attentive" else asked.pool
    encoders = views_of(trained, random, view)
    fit = PROBES[asked.kind]
    if isinstance(fit, TrainedProbe):
        fit = replace(fit, epochs=asked.epochs, seed=asked.seed)

    def features(listed: Path) -> dict[str, Features]:
        if asked.cache is None:
            return features_of(run, encoders, listed, asked.root, asked.clips, form=form)
        what = "vectors" if view == "mean" else view
        names = {"run": trained.identity, "random": random.identity, "pixels": repr(run.geometry)}
        makers = {name: f"{what} of {'pixels ' if name == 'pixels' else ''}{maker}" for name, maker in names.items()}
        return kept_features(asked.cache, makers, run, encoders, listed, asked.root, asked.clips, form)

    train = features(asked.manifest)
    test = {} if asked.val_manifest is None else features(asked.val_manifest)
    tested = {name: probe_predictions(train[name], test.get(name), fit) for name in encoders}
    result: Probed = {
        "checkpoint": str(opened.checkpoint),
        "kind": asked.kind,
        "pool": asked.pool,
        "videos": len(tested["run"].label_V),
        "accuracy": {name: accuracy(found) for name, found in tested.items()},
    }
    if asked.out is not None:
        log.info("%s", describe(result))  # before anything can go wrong with writing it
        rows = zip(*(found.predicted_V.tolist() for found in tested.values()), strict=True)
        videos = [
            {"path": path, "label": label, **dict(zip(tested, row, strict=True))}
            for path, label, row in zip(
                tested["run"].path_V.tolist(), tested["run"].label_V.tolist(), rows, strict=True
            )
        ]
        try:
            write_whole(asked.out, json.dumps({**result, **about, "tested": videos}, indent=1))
        except OSError as error:
            raise ConfigError(f"the figures above could not be written to {asked.out}: {error.strerror}") from None
    return result


def describe(result: Probed) -> str:
    """The accuracies in a line."""
    figures = ", ".join(f"{name} {100 * value:.1f} %" for name, value in result["accuracy"].items())
    pooled = " (motion)" if result["pool"] == "motion" else ""
    return f"{result['kind']} on frozen features{pooled} of {result['checkpoint']}, {result['videos']} test videos: {figures}"
