"""Probes: how much a frozen encoder's features tell about the labels, with pixels and a random encoder beside them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import tyro

from vmae2_ds.config.model import ConfigFile
from vmae2_ds.config.ranges import check_clip_options, check_ranges
from vmae2_ds.data.sources.list_formats import list_form
from vmae2_ds.data.sources.manifest import manifest_digest, read_manifest
from vmae2_ds.disk import check_out_file, check_out_folder, check_there, write_whole
from vmae2_ds.downstream.probe.folds import check_sources
from vmae2_ds.errors import ConfigError

log = logging.getLogger(__name__)


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
    labels: Path | None = None,
    ignore_columns: tuple[str, ...] | None = None,
    model_config: ConfigFile = None,
) -> dict[str, Any]:
    """Accuracy of a probe on frozen features of a trained encoder, of a random one of its shape, and of pixels.

    Args:
        source: A run folder (its newest whole checkpoint), a folder of runs (the newest), runs/.../ckpt/stepN, or a checkpoint
            file or folder as import takes it.
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
        num_frames: Frames of a clip; default: the run's, for a file what it says, or 16.
        size: Clip height and width in pixels; default: the run's, for a file what it says, or 224.
        stride: Step between frames for stride and dense; default: the run's, for a file what it says, or 4.
        sampling: How frames are taken; default: the run's, for a file that of its kind of model.
        workers: Loader processes; default: the run's.
        cache: Folder that keeps the features, for this and other probes of the same encoders and videos.
        out: A JSON file for the figures and every test video's label and predictions.
        labels: A file with a class name a line: lists may name classes instead of numbers.
        ignore_columns: Columns of the lists to leave out; without a name all that are none of ours.
        model_config: For a file, JSON with what its weights do not show, such as {"encoder": {"heads": 8}}; as of import.
    """
    check_clip_options(clips=clips, seed=seed, num_frames=num_frames, size=size, stride=stride, workers=workers)
    check_ranges(epochs=(epochs, 1, 10**6))
    if kind == "attentive" and pool != "mean":
        raise ConfigError(f"--pool {pool}: --kind attentive looks at all tokens, none are pooled; leave it out")
    inputs = [manifest, *([] if val_manifest is None else [val_manifest])]
    if out is not None:
        check_out_file(out, inputs=inputs)
    if cache is not None:
        check_out_folder(cache, "--cache")
    form = list_form(ignore_columns, labels)
    listed = read_manifest(manifest, root, form=form)
    if val_manifest is None:
        check_sources(listed.sources)  # before hours of decoding, not after
    else:
        read_manifest(val_manifest, root, form=form)
    check_there(source)

    from vmae2_ds.config.stages import with_options
    from vmae2_ds.downstream.classify.scores import other_result
    from vmae2_ds.downstream.probe.feature_cache import kept_features
    from vmae2_ds.downstream.probe.fit import PROBES
    from vmae2_ds.downstream.probe.folds import Features, accuracy, probe_predictions
    from vmae2_ds.downstream.probe.frozen import FrozenEncoder, clip_settings, features_of, views_of
    from vmae2_ds.downstream.probe.trained import TrainedProbe
    from vmae2_ds.runs.open import clip_line, open_model
    from vmae2_ds.weights.source import read_given

    opened = open_model(source, given=read_given(model_config))
    asked = {"num_frames": num_frames, "size": size, "stride": stride, "sampling": sampling, "workers": workers}
    run = with_options(opened.run, data=asked)
    log.info(
        "%s: clips of %s",
        opened.checkpoint,
        clip_line(source, run.data, num_frames=num_frames, size=size, stride=stride),
    )
    trained, random = FrozenEncoder(run, opened.weights), FrozenEncoder(run, None, seed)
    about = {
        "checkpoint": str(opened.checkpoint), "kind": kind, "pool": pool, "weights": trained.identity,
        "manifest": str(manifest), "val_manifest": val_manifest and str(val_manifest),
        "lists": [manifest_digest(path) for path in inputs], "root": root and str(root),
        **clip_settings(run), "clips": clips, "epochs": epochs, "seed": seed,
    }  # fmt: skip
    if form.names is not None:
        about["labels"] = form.names.digest
    if out is not None and out.exists() and (other := other_result(about, out)) is not None:
        raise ConfigError(f"--out {out} holds {other}; name another file, or remove it")
    view = "tokens" if kind == "attentive" else pool
    encoders = views_of(trained, random, view)
    fit = PROBES[kind]
    if isinstance(fit, TrainedProbe):
        fit = replace(fit, epochs=epochs, seed=seed)

    def features(listed: Path) -> dict[str, Features]:
        if cache is None:
            return features_of(run, encoders, listed, root, clips, form=form)
        what = "vectors" if view == "mean" else view
        names = {"run": trained.identity, "random": random.identity, "pixels": repr(run.geometry)}
        makers = {name: f"{what} of {'pixels ' if name == 'pixels' else ''}{maker}" for name, maker in names.items()}
        return kept_features(cache, makers, run, encoders, listed, root, clips, form)

    train = features(manifest)
    test = {} if val_manifest is None else features(val_manifest)
    tested = {name: probe_predictions(train[name], test.get(name), fit) for name in encoders}
    result = {
        "checkpoint": str(opened.checkpoint),
        "kind": kind,
        "pool": pool,
        "videos": len(tested["run"].label_V),
        "accuracy": {name: accuracy(found) for name, found in tested.items()},
    }
    if out is not None:
        log.info("%s", describe(result))  # before anything can go wrong with writing it
        rows = zip(*(found.predicted_V.tolist() for found in tested.values()), strict=True)
        videos = [
            {"path": path, "label": label, **dict(zip(tested, row, strict=True))}
            for path, label, row in zip(
                tested["run"].path_V.tolist(), tested["run"].label_V.tolist(), rows, strict=True
            )
        ]
        try:
            write_whole(out, json.dumps({**result, **about, "tested": videos}, indent=1))
        except OSError as error:
            raise ConfigError(f"the figures above could not be written to {out}: {error.strerror}") from None
    return result


def describe(result: dict[str, Any]) -> str:
    """The accuracies in a line."""
    figures = ", ".join(f"{name} {100 * value:.1f} %" for name, value in result["accuracy"].items())
    pooled = " (motion)" if result["pool"] == "motion" else ""
    return f"{result['kind']} on frozen features{pooled} of {result['checkpoint']}, {result['videos']} test videos: {figures}"
