"""python -m benchmarks.desk.spatial --data ../shared/data --encoder RUN --detector FILE --out runs/desk_spatial: spatial action
detection from a pre-trained encoder, from a random one and by chance, on true boxes and on detected ones."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torchvision.transforms.v2 import functional as pictures

from benchmarks.desk.encoders import random_encoder
from benchmarks.desk.person_detector import NAME as DETECTOR
from benchmarks.desk.stages import run_vmae2
from benchmarks.record import Row, append_rows, provenance
from vmae2_ds.data.readers.table import read_clip
from vmae2_ds.data.tools.synthetic import write_video
from vmae2_ds.disk import whole_file
from vmae2_ds.downstream.ava.label_map import read_label_map
from vmae2_ds.downstream.ava.rows import BoxRows, read_detections, read_truth
from vmae2_ds.downstream.ava.score import score_frames
from vmae2_ds.errors import DataError, Vmae2Error
from vmae2_ds.json_lines import rows_of

HEAD = (
    "ava ava_desk --model.num-classes 15 --model.head.exclusive all --model.patch 8 --model.encoder.depth 4 "
    "--model.encoder.heads 6 --model.positions-from 8 48 --model.drop-path 0 --data.num-frames 8 --data.size 64 "
    "--data.stride 3 --data.short-side 64 96 --data.test-short-side 80 --data.flip 0 --data.hue-turn 0 "
    "--optim.lr-batch 8 --optim.layer-decay 0.9 --train.global-batch 8 --train.micro-batch 8 "
    "--train.validate-every 1000 --train.no-tensorboard"
)
"""Clips of 8 frames, 3 apart: one and a half seconds at 15 frames a second. Mirroring would turn `left` into `right`."""
SIDE, FPS, GOP = 120, 15, 5
LEAST_SCORE = 0.05
"""Of a detected person: an action's score is its probability times the person's, so that doubtful people come last."""
MODELS = ("pre-trained", "random encoder", "chance")


@dataclass(frozen=True)
class SpatialDesk:
    """A head on each kind of encoder, all of it trained, for some seeds. The same command goes on where it stopped."""

    data: Path
    """The folder that holds detection/ with videos, ava_like_train.csv, ava_like_val.csv and action_list.pbtxt."""
    encoder: Path
    """A pre-training run of the desk (python -m benchmarks.desk)."""
    detector: Path | None = None
    """Weights of a person detector (python -m benchmarks.desk.person_detector); default: true boxes alone."""
    out: Path = Path("runs/desk_spatial")
    """Boxes, run folders and rows.jsonl."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training; a random encoder is drawn anew for each."""
    models: tuple[str, ...] = MODELS
    """What to measure."""
    epochs: int = 25
    """Passes over the 162 key frames of the training videos."""


def main(argv: list[str] | None = None) -> int:
    """Run what is asked; exit code 2 for what a user can fix."""
    asked = tyro.cli(SpatialDesk, args=argv, prog="python -m benchmarks.desk.spatial")
    rows = asked.out / "rows.jsonl"
    command = shlex.join(["python", "-m", "benchmarks.desk.spatial", *(sys.argv[1:] if argv is None else argv)])
    try:
        known = {(row["model"], row["seed"], row["boxes"]) for row in rows_of(rows)}
        for row in _measure(asked, known):
            append_rows(rows, [{**provenance(), "command": command, **row}])
            print(row, flush=True)
    except Vmae2Error as error:
        print(f"benchmarks.desk.spatial: {error}", file=sys.stderr)
        return error.exit_code
    print(markdown(list(rows_of(rows))))
    return 0


def markdown(rows: list[Row]) -> str:
    """A line per model: frame mAP at IoU 0.5 in percent, mean and range over seeds."""
    kinds = list(dict.fromkeys(row["boxes"] for row in rows))
    lines = [f"| | {' | '.join(f'{kind} boxes' for kind in kinds)} |", "|---" * (1 + len(kinds)) + "|"]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = []
        for kind in kinds:
            found = [100 * row["frame_map"] for row in rows if (row["model"], row["boxes"]) == (model, kind)]
            cells.append(f"{np.mean(found):.1f} ({min(found):.1f} to {max(found):.1f}; {len(found)})" if found else "")
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _measure(asked: SpatialDesk, known: set[tuple[str, int, str]]) -> Iterator[Row]:
    """One row per model, seed and kind of boxes that is not known yet."""
    folder = asked.data.resolve() / "detection"
    truth, trained_on, labels = (
        folder / name for name in ("ava_like_val.csv", "ava_like_train.csv", "action_list.pbtxt")
    )
    if not truth.is_file():
        raise DataError(f"{truth} is not there; give the folder that holds detection/ with --data")
    asked.out.mkdir(parents=True, exist_ok=True)
    boxes: dict[str, list[Any]] = {"true": []}
    if asked.detector is not None:
        boxes["detected"] = ["--boxes", _detected(asked, folder), "--box-threshold", LEAST_SCORE]
    true_rows, train_rows, label_map = read_truth(truth), read_truth(trained_on), read_label_map(labels)
    for seed in asked.seeds:
        for model in asked.models:
            missing = [kind for kind in boxes if (model, seed, kind) not in known]
            if not missing:
                continue
            run = _trained(asked, folder, "pre-trained" if model == "chance" else model, seed)
            for kind in missing:
                found = _found(run, kind, boxes[kind])
                if model == "chance":
                    found = by_chance(found, len(label_map.ids), seed)
                row = {"model": model, "seed": seed, "boxes": kind, "run": run.name}
                row["frame_map"] = score_frames(true_rows, found, label_map).frame_map
                if kind == "true" and model != "chance":  # how well it was fitted
                    seen = _found(run, "train", ["--truth", trained_on])
                    row["train_frame_map"] = score_frames(train_rows, seen, label_map).frame_map
                yield row


def small_copies(videos: Path, out: Path) -> Path:
    """Copies of the videos whose smaller side is SIDE pixels, with a key frame every few: large ones take longer to decode than
    the model to run."""
    out.mkdir(exist_ok=True)
    for source in sorted(videos.glob("*.mp4")):
        target = out / source.name
        if not target.is_file():
            frames_THWC = torch.from_numpy(read_clip(source, lambda length, fps: np.arange(length)))
            resized_TCHW = pictures.resize(frames_THWC.permute(0, 3, 1, 2), [SIDE], antialias=True)
            with whole_file(target) as part:
                write_video(part, resized_TCHW.permute(0, 2, 3, 1).numpy(), FPS, GOP, kind="mp4")
    return out


def _trained(asked: SpatialDesk, folder: Path, model: str, seed: int) -> Path:
    """The run of a model and a seed, trained where it is not finished."""
    run = asked.out / "runs" / f"{model.replace(' ', '_')}_seed{seed}"
    if not (run / "finished.json").is_file():
        run.parent.mkdir(parents=True, exist_ok=True)
        first = asked.encoder if model == "pre-trained" else random_encoder(asked.encoder, asked.out, seed)
        words: list[Any] = [*HEAD.split(), "--train.init", first, "--train.seed", seed, "--train.epochs", asked.epochs]
        words += [
            "--data.videos",
            small_copies(folder / "videos", asked.out / "videos"),
            "--data.label-map",
            folder / "action_list.pbtxt",
        ]
        words += ["--data.truth", folder / "ava_like_train.csv", "--data.val-truth", folder / "ava_like_val.csv"]
        run_vmae2([*words, "--train.run", run], run.with_suffix(".log"))
    return run


def _detected(asked: SpatialDesk, folder: Path) -> Path:
    """People at the key frames of the validation videos, as the detector sees them."""
    file = asked.out / "boxes_val.json"
    if not file.is_file():
        words = ["ava", "boxes", "--videos", folder / "videos", "--truth", folder / "ava_like_val.csv"]
        words += ["--detector", DETECTOR, "--weights", asked.detector, "--out", file]
        run_vmae2(words, file.with_suffix(".log"))
    return file


def _found(run: Path, name: str, words: list[Any]) -> BoxRows:
    """What a run says of the validation videos' people, or of whom else the options name."""
    file = run / f"found_{name}.csv"
    if not file.is_file():
        run_vmae2(["ava", "detect", run, "--out", file, *words], run.with_suffix(".log"))
    return read_detections(file)


def by_chance(found: BoxRows, num_actions: int, seed: int) -> BoxRows:
    """The same boxes, what is done in them drawn at random: what knowing where people are is worth by itself.

    A box has a row for each action, one after the other, and their scores sum up to the person's.
    """
    score_GC = found.score_N.reshape(-1, num_actions)
    drawn_GC = np.random.default_rng(seed).uniform(size=score_GC.shape)
    return replace(found, score_N=(score_GC.sum(axis=1, keepdims=True) * drawn_GC).ravel())


if __name__ == "__main__":
    sys.exit(main())
