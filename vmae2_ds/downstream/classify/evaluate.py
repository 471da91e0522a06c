"""Multi-view classification accuracy of a run or of a checkpoint file, the same numbers on any number of ranks."""

from __future__ import annotations

import logging
import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro

from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import ConfigFile
from vmae2_ds.config.ranges import check_clip_options, check_ranges
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.data.sources.class_names import implied_names
from vmae2_ds.data.sources.list_formats import list_form
from vmae2_ds.data.sources.manifest import manifest_digest, read_manifest
from vmae2_ds.disk import check_out_folder, check_there
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.classify.scores import may_hold_evaluation
from vmae2_ds.errors import ConfigError, DataError

if TYPE_CHECKING:  # torch is imported where work begins: `--help` needs the signature below, and nothing else
    from torch import Tensor

    from vmae2_ds.data.feed.views import ViewsDataset
    from vmae2_ds.downstream.classify.scores import Scores
    from vmae2_ds.objectives import Classify

log = logging.getLogger(__name__)


def evaluate(
    source: tyro.conf.Positional[Path],
    /,
    manifest: Path,
    root: Path | None = None,
    out: Path | None = None,
    clips: int | None = None,
    crops: int | None = None,
    sampling: Literal["dense", "segments"] | None = None,
    max_bad_share: float = 0.0,
    precision: Literal["bf16", "fp32"] | None = None,
    num_frames: int | None = None,
    size: int | None = None,
    stride: int | None = None,
    workers: int | None = None,
    labels: Path | None = None,
    ignore_columns: tuple[str, ...] | None = None,
    model_config: ConfigFile = None,
) -> dict[str, Any]:
    """Test a classifier on every video of a list, several views each: top-1, top-5, per class, confusion matrix, scores.

    Every video is scored by one rank alone, its views in batches that do not depend on the number of ranks.

    Args:
        source: A run folder (its newest whole checkpoint), a folder of runs, runs/.../ckpt/stepN, or a checkpoint
            file or folder as import takes it.
        manifest: Labelled videos.
        root: Folder that relative paths start from; default: the list's.
        out: Folder for result.json, scores.npz, per_class.csv and confusion.png; default: eval/LIST_STEP_KxC in the run folder,
            with a number behind where that holds another evaluation.
        clips: Clips along time; default: the run's test.clips, 5 for a file.
        crops: Crops of each clip; default: the run's test.crops, 3 for a file.
        sampling: dense (Kinetics) or segments (SSv2); default: the run's.
        max_bad_share: Fail when more than this share of the videos cannot be read; each is named either way.
        precision: Default: the run's, bf16 for a file.
        num_frames: Frames of a clip; default: the run's, for a file what it says, or 16.
        size: Clip height and width in pixels; default: the run's, for a file what it says, or 224.
        stride: Step between frames for dense sampling; default: the run's, for a file what it says, or 4.
        workers: Loader processes per rank; default: the run's.
        labels: A file with a class name a line, for table, picture, and lists that name classes; default: the run's labels.txt,
            or what a file says.
        ignore_columns: Columns of the list to leave out; without a name all that are none of ours; default: the run's.
        model_config: For a file, JSON with what its weights do not show, such as {"encoder": {"heads": 8}}; as of import.
    """
    check_clip_options(clips=clips, crops=crops, num_frames=num_frames, size=size, stride=stride, workers=workers)
    check_ranges(max_bad_share=(max_bad_share, 0, 1))
    inputs = [manifest, *([] if labels is None else [labels])]
    if out is not None and os.environ.get("WORLD_SIZE", "1") == "1":  # several ranks: below, for all of them together
        check_out_folder(out, inputs=inputs, is_ours=may_hold_evaluation)
    check_there(source)
    check_there(manifest)

    from vmae2_ds.checkpoint.hashed_files import digest_of
    from vmae2_ds.config.stages import with_options
    from vmae2_ds.data.feed.views import ViewsDataset
    from vmae2_ds.downstream.classify.scores import folder_for, summary, write_scores
    from vmae2_ds.engine.ranks import start_ranks, stop_ranks
    from vmae2_ds.runs.open import class_names, classifier_of, clip_line, labels_of, open_classifier
    from vmae2_ds.weights.source import read_given

    config, weights, checkpoint = open_classifier(source, given=read_given(model_config))
    config = with_options(
        config,
        data={"num_frames": num_frames, "size": size, "stride": stride, "workers": workers},
        test={"clips": clips, "crops": crops, "sampling": sampling, "max_bad_share": max_bad_share},
        train={"precision": precision},
    )
    known = labels_of(source) if labels is None else None
    form = list_form(config.data.ignore_columns if ignore_columns is None else ignore_columns, labels)
    if labels is None:
        form = form._replace(names=implied_names(known, source))
    listed = read_manifest(manifest, root, form=form)
    dataset = ViewsDataset(config, listed, config.test)
    names = known or class_names(labels, config.model.num_classes)
    ranks = start_ranks()
    views = config.test
    run = checkpoint.parent.parent if checkpoint.is_dir() else checkpoint.parent
    about = {
        "checkpoint": str(checkpoint), "weights": ranks.from_first(partial(digest_of, weights)),
        "manifest": str(manifest), "list": manifest_digest(manifest), "root": root and str(root),
        "precision": config.train.precision, **views.model_dump(exclude={"views_at_once", "max_bad_share"}),
        **config.data.model_dump(include={"num_frames", "size", "stride"}),
    }  # fmt: skip
    if labels is not None and form.names is not None:
        about["labels"] = form.names.digest
    default = run / "eval" / f"{manifest.stem}_{checkpoint.stem}_{views.clips}x{views.crops}"
    folder = ranks.from_first(lambda: folder_for(out, default, about, inputs))
    objective = classifier_of(config, weights)
    del weights
    if ranks.rank == 0:
        clip = clip_line(source, config.data, num_frames=num_frames, size=size, stride=stride)
        log.info("%s: %s", checkpoint, scoring_line(len(listed), config, clip, ranks))
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
    return {**result, "folder": str(folder)}


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
    done: list[tuple[int, int, np.ndarray]] = []
    failures: list[tuple[int, str]] = []
    with heard(Ticker(log, "videos scored", len(dataset), speaks=ranks.rank == 0)) as ticker:
        for number, video in enumerate(dataset.iterate(rows), start=1):
            if video.clip_KTHWC is None:
                failures.append((video.row, video.reason or ""))
            else:
                done.append((video.row, video.label, _score(objective, video.clip_KTHWC, views_at_once, ticker)))
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


def _score(objective: Classify, clip_KTHWC: Tensor, views_at_once: int, ticker: Ticker) -> np.ndarray:
    """Mean softmax over a video's views: (C,) float32."""
    import torch

    device = next(objective.parameters()).device
    probs: list[Tensor] = []
    with torch.inference_mode():
        for chunk in clip_KTHWC.split(views_at_once):
            probs.append(objective.logits(chunk.to(device)).softmax(dim=-1))
            ticker.again(f"{sum(map(len, probs))} of {counted(len(clip_KTHWC), 'view')}")
        prob_KC = torch.cat(probs)
    return prob_KC.double().mean(dim=0).float().cpu().numpy()


def describe(result: dict[str, Any]) -> str:
    """The figures in a line, and where the rest lies."""
    return f"{_figures(result)}; {result['folder']}"


def _figures(result: dict[str, Any]) -> str:
    top = ", ".join(f"{name} {100 * result[key]:.2f} %" for key, name in (("top1", "top-1"), ("top5", "top-5")))
    assert math.isfinite(result["top1"]) or not result["videos"], "an accuracy of videos that were scored"
    return (
        f"{top}, mean over classes {100 * result['mean_class']:.2f} % ({counted(result['videos'], 'video')}, "
        f"{result['clips']}x{result['crops']} views, {result['unreadable']} unreadable)"
    )
