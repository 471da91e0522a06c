"""python -m benchmarks.desk.temporal --data ../shared/data --encoder RUN --out runs/desk_temporal: temporal action detection on
untrimmed videos, from features of a pre-trained encoder, of a random one and of pixels, and end to end with adapters."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.desk.encoders import random_encoder
from benchmarks.desk.pixel_windows import write_pixel_windows
from benchmarks.desk.stages import run_vmae2
from benchmarks.record import Row, append_rows, provenance
from vmae2_ds.config.tad_head import DetectConfig
from vmae2_ds.downstream.features.sidecar import (
    claim_folder,
    feature_names,
    is_finished,
    read_feature_info,
    read_features,
    write_features,
)
from vmae2_ds.downstream.features.windows import WindowGrid
from vmae2_ds.downstream.tad.annotations import Annotations, read_annotations
from vmae2_ds.downstream.tad.decode import Candidates
from vmae2_ds.downstream.tad.detections import Detections, read_detections
from vmae2_ds.downstream.tad.score import score_detections
from vmae2_ds.downstream.tad.stage import ONE_CLASS, of_one_class
from vmae2_ds.downstream.tad.suppress import suppress
from vmae2_ds.errors import DataError, Vmae2Error
from vmae2_ds.json_lines import rows_of

WINDOWS = "--grid opentad --stride 4 --interval 4 --aspect squash"
"""A window is 8 frames, 4 apart: one and a half seconds at 20 frames a second. Whole frames, as the encoder saw in training."""
HEAD = "tad tad_desk --model.num-classes 13 --data.length 448 --train.validate-every 1000 --train.no-tensorboard"
ADAPTERS = (
    "tad tad_adapters_desk --model.num-classes 13 --model.encoder.depth 4 --model.encoder.heads 6 --model.adapters.blocks all "
    "--data.num-frames 8 --data.size 48 --data.stride 4 --data.length 192 --train.validate-every 1000 --train.no-tensorboard"
)
"""Windows of 192 frames, 4 apart, in clips of 8."""
KINDS = ("pre-trained", "random encoder", "pixels")
MODELS = (*KINDS, *(f"{kind}, standardised" for kind in KINDS), *(f"{kind}, adapters" for kind in KINDS[:2]))
"""Standardised: each value less its mean and by its deviation, over the windows of the training videos. What a pre-trained
encoder says of one window differs little from what it says of another, beside what all have in common."""


@dataclass(frozen=True)
class TemporalDesk:
    """A head on each kind of features, and adapters end to end, for some seeds. The same command goes on where it stopped."""

    data: Path
    """The folder that holds temporal/ with videos and annotations.json."""
    encoder: Path
    """A pre-training run of the desk (python -m benchmarks.desk)."""
    out: Path = Path("runs/desk_temporal")
    """Features, run folders and rows.jsonl."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of heads and adapters; a random encoder is drawn anew for each."""
    models: tuple[str, ...] = MODELS
    """What to train."""
    epochs: int = 120
    """Passes over the training videos."""
    adapter_epochs: int = 12
    """The same with adapters."""


def main(argv: list[str] | None = None) -> int:
    """Run what is asked; exit code 2 for what a user can fix."""
    asked = tyro.cli(TemporalDesk, args=argv, prog="python -m benchmarks.desk.temporal")
    rows = asked.out / "rows.jsonl"
    command = shlex.join(["python", "-m", "benchmarks.desk.temporal", *(sys.argv[1:] if argv is None else argv)])
    try:
        known = {(row["model"], row["seed"]) for row in rows_of(rows)}
        for row in _measure(asked, known):
            append_rows(rows, [{**provenance(), "command": command, **row}])
            print(row, flush=True)
    except Vmae2Error as error:
        print(f"benchmarks.desk.temporal: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown(list(rows_of(rows))))
    return 0


def markdown(rows: list[Row]) -> str:
    """A line per model: average mAP (tIoU 0.3 to 0.7) in percent, mean and range over seeds."""
    lines = ["| | 13 gestures | gesture or not |", "|---|---|---|"]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for figure in ("average_map", "average_map_one_class"):
            found = [100 * row[figure] for row in rows if row["model"] == model]
            cells.append(f"{np.mean(found):.1f} ({min(found):.1f} to {max(found):.1f}; {len(found)})")
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measure(asked: TemporalDesk, known: set[tuple[str, int]]) -> Iterator[Row]:
    """One row per model and seed that is not known yet."""
    temporal = asked.data.resolve() / "temporal"
    truth = temporal / "annotations.json"
    if not truth.is_file():
        raise DataError(f"{truth} is not there; give the folder that holds temporal/ with --data")
    asked.out.mkdir(parents=True, exist_ok=True)
    videos = sorted((temporal / "videos").glob("*.mp4"))
    listed = asked.out / "videos.csv"
    listed.write_text("\n".join(["path", *map(str, videos), ""]))
    for seed in asked.seeds:
        sources: dict[str, Callable[[], Path]] = {
            "pre-trained": lambda: asked.encoder,
            "random encoder": lambda seed=seed: random_encoder(asked.encoder, asked.out, seed),  # type: ignore[misc]
        }
        for model in asked.models:
            if (model, seed) in known:
                continue
            made_of, _, how = model.partition(", ")
            name = f"{model.replace(', ', '_').replace(' ', '_')}_seed{seed}"
            data = ["--data.annotations", truth, "--train.seed", seed]
            if how == "adapters":
                words = [
                    *ADAPTERS.split(),
                    *data,
                    "--data.videos",
                    temporal / "videos",
                    "--train.init",
                    sources[made_of](),
                ]
                run = _train(asked.out, name, [*words, "--train.epochs", asked.adapter_epochs])
            else:
                folder = _features(asked, made_of, seed, videos, listed, sources)
                if how == "standardised":
                    folder = _standardised(folder, truth)
                width = read_feature_info(folder).width
                shape = ["--model.encoder.width", width, "--model.encoder.heads", 6]
                words = [*HEAD.split(), *data, "--data.features", folder, *shape]
                run = _train(asked.out, name, [*words, "--train.epochs", asked.epochs])
            yield {"model": model, "seed": seed, "run": run.name, **_scores(run, truth)}


def _features(
    asked: TemporalDesk,
    made_of: str,
    seed: int,
    videos: list[Path],
    listed: Path,
    sources: dict[str, Callable[[], Path]],
) -> Path:
    """The folder of features of one kind, made where it is not there."""
    if made_of == "pixels":
        folder = asked.out / "features_pixels"
        write_pixel_windows(videos, folder, WindowGrid("opentad", window=8, stride=4, interval=4))
        return folder
    folder = asked.out / ("features_pretrained" if made_of == "pre-trained" else f"features_random{seed}")
    words = ["extract", sources[made_of](), "--manifest", listed, "--out", folder, *WINDOWS.split()]
    run_vmae2(words, folder.with_suffix(".log"))
    return folder


def _standardised(folder: Path, truth: Path) -> Path:
    """A folder of the same features, with mean 0 and deviation 1 over the windows of the training videos."""
    made, info = folder.with_name(f"{folder.name}_standardised"), read_feature_info(folder)
    made.mkdir(exist_ok=True)
    claim_folder(made, info.model_copy(update={"weights": f"{info.weights} standardised"}))
    names = [video.name for video in read_annotations(truth).of_subset("training")]
    rows_RD = np.concatenate([read_features(folder, name)[0] for name in names])
    mean_D, deviation_D = rows_RD.mean(axis=0), rows_RD.std(axis=0) + 1e-6
    for name in feature_names(folder):
        array, about = read_features(folder, name)
        if not is_finished(made, name):
            write_features(made, name, ((array - mean_D) / deviation_D).astype(np.float32), about)
    return made


def _train(out: Path, name: str, words: list[Any]) -> Path:
    run = out / "runs" / name
    if not (run / "finished.json").is_file():
        run.parent.mkdir(parents=True, exist_ok=True)
        run_vmae2([*words, "--train.run", run], run.with_suffix(".log"))
    return run


def _scores(run: Path, truth: Path) -> Row:
    """Average mAP on the validation videos, of the gestures by name and of "a gesture or none"."""
    found = run / "detections.json"
    run_vmae2(["tad", "detect", run, "--out", found], run.with_suffix(".log"))
    annotations, detections = read_annotations(truth), read_detections(found)
    scores = score_detections(annotations, detections, subset=("validation",))
    one = score_detections(*as_one_class(annotations, detections), subset=("validation",))
    return {"average_map": scores.average_map, "average_map_one_class": one.average_map}


def as_one_class(annotations: Annotations, detections: Detections) -> tuple[Annotations, Detections]:
    """Truth and detections with one label for all gestures; what then overlaps a better one is suppressed again."""
    parts = []
    for video in range(len(detections.videos)):
        rows = np.flatnonzero(detections.video_N == video)
        ends = np.stack([detections.start_N[rows], detections.end_N[rows]], axis=1)
        kept = suppress(Candidates(ends, detections.score_N[rows], np.zeros(len(rows), np.int64)), DetectConfig())
        parts.append((np.full(len(kept.score_N), video), *kept.segment_N2.T, kept.score_N))
    video_N, start_N, end_N, score_N = (np.concatenate(column) for column in zip(*parts, strict=True))
    one = Detections(detections.videos, (ONE_CLASS,), video_N, np.zeros_like(video_N), start_N, end_N, score_N)
    return of_one_class(annotations), one


if __name__ == "__main__":
    sys.exit(main())
