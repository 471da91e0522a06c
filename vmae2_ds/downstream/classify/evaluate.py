"""Multi-view classification accuracy of a run or of a checkpoint file, the same numbers on any number of ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from vmae2_ds.config.finetune import FinetuneConfig, ViewSampling
from vmae2_ds.config.stages import CLIP_OPTIONS, with_options
from vmae2_ds.config.strict import ClipLength, Edge, Part, StrictModel, Views, Workers
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.data.sources.class_names import implied_names
from vmae2_ds.data.sources.list_formats import list_form
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.disk import check_out_folder, check_there
from vmae2_ds.dist import Ranks, is_alone
from vmae2_ds.downstream.classify.scores import Evaluation, may_hold_evaluation
from vmae2_ds.errors import ConfigError, DataError

if TYPE_CHECKING:  # torch is imported where work begins: `--help` needs the signature below, and nothing else
    from torch import Tensor

    from vmae2_ds.data.feed.views import ViewsDataset
    from vmae2_ds.downstream.classify.scores import Scores
    from vmae2_ds.objectives import Classify

log = logging.getLogger(__name__)


class EvaluateArguments(StrictModel):
    """Test a classifier on every video of a list, several views each: top-1, top-5, per class, confusion matrix, scores.

    Every video is scored by one rank alone, its views in batches that do not depend on the number of ranks.
    """

    source: tyro.conf.Positional[Path]
    """Classifier to test: a run folder (its newest whole checkpoint is taken), a folder of runs (the newest), a
    checkpoint runs/.../ckpt/stepN, or a checkpoint file or folder that vmae2 import can read."""
    manifest: Path
    """List of labelled videos to test on."""
    root: Path | None = None
    """Folder that relative paths in the list start from; default: the list's own folder."""
    out: Path | None = None
    """Folder to write: result.json, scores.npz, per_class.csv and confusion.png; default: eval/LIST_STEP_KxC in the run
    folder, with a number appended where that holds another evaluation."""
    clips: Views | None = None
    """Number of clips of each video, at equal distances in time; default: the run's test.clips, for a checkpoint file
    5."""
    crops: Views | None = None
    """Number of square crops of each clip, along its longer side; default: the run's test.crops, for a checkpoint file
    3."""
    sampling: ViewSampling | None = None
    """Which frames make a clip. dense: every stride-th frame (Kinetics); segments: frames from the whole video (SSv2).
    Default: the run's, for a checkpoint file dense."""
    max_bad_share: Part = 0.0
    """Largest share of videos that may be unreadable; with more the evaluation fails after writing its results. Every
    unreadable video is named in any case."""
    precision: Literal["bf16", "fp32"] | None = None
    """Number format of the forward pass; default: the run's, for a checkpoint file bf16."""
    num_frames: ClipLength | None = None
    """Number of frames in a clip; default: the run's. Of a checkpoint file: what the file says, else 16."""
    size: Edge | None = None
    """Height and width of a clip in pixels; default: the run's. Of a checkpoint file: what the file says, else 224."""
    stride: ClipLength | None = None
    """Step between two frames of a clip, for --sampling dense; default: the run's. Of a checkpoint file: what the file
    says, else 4."""
    workers: Workers | None = None
    """Number of data loader processes per rank; default: the run's, for a checkpoint file 8."""
    labels: Path | None = None
    """Text file with one class name per line, in the order of the label numbers, for tables, picture, and lists that
    give names; default: the run's labels.txt, or the names in the checkpoint file."""
    ignore_columns: tuple[str, ...] | None = None
    """Names of extra columns to ignore in the list; the option without a name ignores every column that is not used
    here. Default: the run's."""
    config: Path | None = None
    """JSON file with fields of the model config that the weights of a checkpoint file do not show, such as {"encoder":
    {"heads": 8}}. A run says them itself."""


def evaluate(asked: EvaluateArguments) -> Evaluation:
    """Score every video, write the figures on rank 0, and return them with their folder on every rank.

    Raises ConfigError, DataError or CheckpointError where places, lists or weights are of no use, and DataError after writing
    where more videos than `max_bad_share` could not be read.
    """
    inputs = [asked.manifest, *([] if asked.labels is None else [asked.labels])]
    if asked.out is not None and is_alone():  # several ranks: below, for all of them together
        check_out_folder(asked.out, inputs=inputs, is_ours=may_hold_evaluation)
    check_there(asked.source)
    check_there(asked.manifest)

    from vmae2_ds.checkpoint.hashed_files import digest_of
    from vmae2_ds.data.feed.views import ViewsDataset
    from vmae2_ds.downstream.classify.scores import folder_for, summary, write_scores
    from vmae2_ds.engine.ranks import start_ranks, stop_ranks
    from vmae2_ds.runs.open import class_names, classifier_of, clip_line, labels_of, open_classifier
    from vmae2_ds.weights.source import read_given

    config, weights, checkpoint = open_classifier(asked.source, given=read_given(asked.config))
    clip = asked.model_dump(include=CLIP_OPTIONS)
    config = as_asked(config, asked)
    known = labels_of(asked.source) if asked.labels is None else None
    form = list_form(config.data.ignore_columns if asked.ignore_columns is None else asked.ignore_columns, asked.labels)
    if asked.labels is None:
        form = form._replace(names=implied_names(known, asked.source))
    listed = read_manifest(asked.manifest, asked.root, form=form)
    dataset = ViewsDataset(config, listed, config.test)
    names = known or class_names(asked.labels, config.model.num_classes)
    ranks = start_ranks()
    dataset.check_shared_memory(ranks)
    views = config.test
    run = checkpoint.parent.parent if checkpoint.is_dir() else checkpoint.parent
    about = {
        "checkpoint": str(checkpoint), "weights": ranks.from_first(partial(digest_of, weights)),
        "manifest": str(asked.manifest), "list": listed.rows.digest, "root": asked.root and str(asked.root),
        "precision": config.train.precision, **views.model_dump(exclude={"views_at_once", "max_bad_share"}),
        **config.data.model_dump(include=CLIP_OPTIONS),
    }  # fmt: skip
    if asked.labels is not None and form.names is not None:
        about["labels"] = form.names.digest
    default = run / "eval" / f"{asked.manifest.stem}_{checkpoint.stem}_{views.clips}x{views.crops}"
    folder = ranks.from_first(lambda: folder_for(asked.out, default, about, inputs))
    objective = classifier_of(config, weights)
    del weights
    if ranks.rank == 0:
        line = scoring_line(len(listed), config, clip_line(asked.source, config.data, **clip), ranks)
        log.info("%s: %s", checkpoint, line)
    scores = score_videos(objective, dataset, views.views_at_once, ranks)

    def write() -> dict[str, Any]:
        assert scores is not None, "rank 0 has them"
        log.info("%s", _figures({**about, **summary(scores)}))  # before anything can go wrong with writing them
        paths = [listed[int(row)].path for row in scores.row_N]
        try:
            return write_scores(scores, names, paths, folder, about)
        except OSError as error:
            raise ConfigError(f"the figures above could not be written to {folder}: {error.strerror}") from None

    result = ranks.from_first(write)
    stop_ranks(ranks)
    bad = result["unreadable"]
    if bad > views.max_bad_share * len(listed):
        raise DataError(
            f"{bad} of {len(listed)} videos could not be read, more than --max-bad-share {views.max_bad_share:g}; they are "
            f"named in {folder / 'unreadable.txt'}, and the result is of the others"
        )
    return {**result, "folder": str(folder)}  # type: ignore[typeddict-item]  # what `about` and `summary` hold


def as_asked(config: FinetuneConfig, asked: StrictModel) -> FinetuneConfig:
    """The run's config with the clips, views, precision and workers that a verb's arguments name, under these names."""
    return with_options(
        config,
        data=asked.model_dump(include={*CLIP_OPTIONS, "workers"}),
        test=asked.model_dump(include={"clips", "crops", "sampling", "max_bad_share"}),
        train=asked.model_dump(include={"precision"}),
    )


def scoring_line(videos: int, config: FinetuneConfig, clip: str, ranks: Ranks) -> str:
    """What is going to be scored: videos x clips x crops, their frames (`clip_line`), precision and ranks."""
    counts = counted(videos, "video"), counted(config.test.clips, "clip"), counted(config.test.crops, "crop")
    return f"{' x '.join(counts)}, {clip}, {config.train.precision}, on {counted(ranks.size, 'rank')}"


def score_videos(
    objective: Classify,
    dataset: ViewsDataset,
    views_at_once: int,
    ranks: Ranks,
) -> Scores | None:
    """Every video's scores on rank 0, in the order of the list; None elsewhere. Rank r scores rows r, r + ranks, ..."""
    from vmae2_ds.downstream.classify.scores import Scores

    rows = range(ranks.rank, len(dataset), ranks.size)
    device = next(objective.parameters()).device
    done: list[tuple[int, int, np.ndarray]] = []
    failures: list[tuple[int, str]] = []
    with heard(Ticker(log, "videos scored", len(dataset), speaks=ranks.rank == 0)) as ticker:

        def ask(clip_KTHWC: Tensor) -> list[Tensor]:
            return [_score(objective, clip_KTHWC, views_at_once, ticker)]

        for number, (video, answers) in enumerate(dataset.answers(rows, ask, device), start=1):
            if answers:
                done.append((video.row, video.label, answers[0].numpy().copy()))  # out of pinned memory
            else:
                failures.append((video.row, video.reason or ""))
            ticker.tell(min(number * ranks.size, len(dataset)))  # the other ranks are about as far
    parts = ranks.gather((done, failures))
    if parts is None:
        return None
    every = sorted((item for part, _ in parts for item in part), key=lambda item: item[0])
    bad = sorted(item for _, part in parts for item in part)
    num_classes = objective.model.config.num_classes
    score_NC = np.stack([score for _, _, score in every]) if every else np.zeros((0, num_classes), np.float32)
    return Scores(
        np.array([row for row, _, _ in every], np.int64),
        np.array([label for _, label, _ in every], np.int64),
        score_NC,
        [reason for _, reason in bad],
    )


def _score(objective: Classify, clip_KTHWC: Tensor, views_at_once: int, ticker: Ticker) -> Tensor:
    """Mean softmax over a video's views: (C,) float32, on the device."""
    import torch

    probs: list[Tensor] = []
    with torch.inference_mode():
        for chunk in clip_KTHWC.split(views_at_once):
            probs.append(objective.logits(chunk).softmax(dim=-1))
            ticker.again(f"{sum(map(len, probs))} of {counted(len(clip_KTHWC), 'view')}")
        return torch.cat(probs).double().mean(dim=0).float()


def describe(result: Evaluation) -> str:
    """The figures in a line, and where the rest lies."""
    return f"{_figures(result)}; {result['folder']}"


def _figures(result: Mapping[str, Any]) -> str:
    top = ", ".join(f"{name} {100 * result[key]:.2f} %" for key, name in (("top1", "top-1"), ("top5", "top-5")))
    assert math.isfinite(result["top1"]) or not result["videos"], "an accuracy of videos that were scored"
    return (
        f"{top}, mean over classes {100 * result['mean_class']:.2f} % ({counted(result['videos'], 'video')}, "
        f"{result['clips']}x{result['crops']} views, {result['unreadable']} unreadable)"
    )
