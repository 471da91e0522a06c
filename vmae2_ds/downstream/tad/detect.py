"""`vmae2 tad detect`: a trained head finds actions in long videos, and writes them as the field's scorers read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import tyro

from vmae2_ds.config.stages import with_options
from vmae2_ds.config.strict import Count, Part, Size, StrictModel, Whole
from vmae2_ds.config.tad import Published, TadConfig
from vmae2_ds.config.tad_head import DetectConfig
from vmae2_ds.console.progress import counted
from vmae2_ds.disk import check_out_file, check_there
from vmae2_ds.dist import is_alone
from vmae2_ds.downstream.features.sidecar import INFO
from vmae2_ds.errors import ConfigError, TooManyBadFiles

if TYPE_CHECKING:
    from vmae2_ds.downstream.tad.annotations import Annotations
    from vmae2_ds.downstream.tad.detections import VideoScores

MADE_BY = "vmae2 tad detect"


class TadDetectArguments(StrictModel):
    """Find actions in the videos of a subset, with a trained head on their features; print mAP where their truth is known."""

    source: tyro.conf.Positional[Path]
    """The head: a run folder (its newest whole checkpoint is taken), a folder of runs (the newest), or a checkpoint
    runs/.../ckpt/stepN."""
    out: Path
    """JSON file to write: {"results": {video: [{"segment", "label", "score"}]}}. An earlier one is replaced, a file of
    something else is not."""
    features: Path | None = None
    """Folder of features of the same model, grid and stride as those that the head was trained on; default: the run's."""
    features_are: Published | None = None
    """What features without a features.json are; default: what those of the run were."""
    videos: Path | None = None
    """Folder of videos, for a head that was trained end to end; default: the run's."""
    annotations: Path | None = None
    """File that names the videos, and their segments where they are known; default: the run's."""
    subset: tuple[str, ...] | None = None
    """Subsets of the annotations whose videos are looked at; default: the run's --data.val-subset."""
    weights: Literal["ema", "last"] | None = None
    """Which weights: their running mean (ema), or those of the last step; default: the mean, where the run keeps one."""
    video_scores: Path | None = None
    """For a head of one class: JSON file of class scores for whole videos, by a classifier of somebody else. Each detection
    is given the likeliest classes of its video."""
    classes: Path | None = None
    """Text file with a class name per line, the order of scores in --video-scores; default: the names in that file, else the
    labels of the annotations."""
    precision: Literal["bf16", "fp32"] | None = None
    """Number format of weights and activations; default: the run's."""
    threshold: Part | None = None
    """Candidates with a lower score are left out at once; default for this and the following ones: as in the run."""
    top_k: Count | None = None
    """Candidates that are kept from each level, the best first."""
    suppression: Literal["soft", "hard", "none"] | None = None
    """What happens to candidates that overlap a better one: their scores are lowered, they are left out, or nothing."""
    sigma: Size | None = None
    """Width of soft suppression: a larger value lowers scores less."""
    max_overlap: Part | None = None
    """Hard suppression: overlap from which on the worse one is left out."""
    min_score: Part | None = None
    """Candidates whose score was lowered below this are left out."""
    most: Count | None = None
    """Detections that a video keeps, the best first."""
    by_class: bool | None = None
    """Whether only candidates of the same class suppress each other."""
    voting: Part | None = None
    """Without --by-class: overlap from which on candidates vote on each other's ends; 0: none do."""
    external_top_k: Whole | None = None
    """Classes that each detection is given out of --video-scores."""


class Detected(NamedTuple):
    """What came of it."""

    file: Path
    videos: int
    detections: int
    unreadable: list[str]
    """Videos without detections, as their features could not be read, and why."""
    average_map: float | None
    """None where the subset has no truth."""
    map_of: dict[float, float]

    def __str__(self) -> str:
        said = "".join(f"{line}\n" for line in self.unreadable)
        said += f"{counted(self.detections, 'detection')} in {counted(self.videos, 'video')}, {len(self.unreadable)} unreadable"
        if self.average_map is not None:
            by_tiou = ", ".join(f"{100 * value:.2f} at {tiou:g}" for tiou, value in self.map_of.items())
            said += f"; mAP {100 * self.average_map:.2f} % over tIoU ({by_tiou}), as ActivityNet counts it"
        return f"{said}; wrote {self.file}"


def tad_detect(asked: TadDetectArguments) -> Detected:
    """Write the detections on rank 0, and return what came of it on every rank.

    Raises ConfigError, DataError or CheckpointError where run, features, annotations or scores are of no use, or not of each
    other; TooManyBadFiles, after writing, where more of the videos than the run's max_bad_share could not be read.
    """
    check_there(asked.source)
    if is_alone():  # several ranks: below, for all of them together
        _check_out(asked)

    from vmae2_ds.downstream.tad.annotations import AMBIGUOUS
    from vmae2_ds.downstream.tad.detections import write_detections
    from vmae2_ds.downstream.tad.detector import detect_videos, files_of
    from vmae2_ds.downstream.tad.stage import of_one_class, scores_of
    from vmae2_ds.downstream.tad.trained import detector_of, open_head
    from vmae2_ds.downstream.tad.videos import annotations_of, list_of, name_of
    from vmae2_ds.engine.ranks import start_ranks, stop_ranks

    run = open_head(asked.source, None if asked.weights is None else asked.weights == "ema")
    config = _as_asked(run.config, asked)
    run.check_features(config)
    annotations = annotations_of(config.data)
    listed = annotations.of_subset(config.data.val_subset)
    names = [name_of(entry.path) for entry in list_of(config.data, annotations, listed)]
    scores = None if asked.video_scores is None else _scores(asked, config, annotations, names)
    is_agnostic = config.model.num_classes == 1 and scores is None
    truth = of_one_class(annotations) if is_agnostic else annotations
    labels = truth.class_names if scores is None or scores.classes is None else scores.classes
    ranks = start_ranks()
    ranks.from_first(lambda: _check_out(asked, config))
    of = None if scores is None else scores.score_of
    files = files_of(config, annotations.videos)
    objective, checkpoint = detector_of(config, run.weights), run.checkpoint
    del run  # in bf16 its float32 weights would stay beside the detector's
    found = detect_videos(objective, files, names, labels, config, ranks, of)

    def write() -> Detected:
        assert found is not None, "rank 0 has them"
        try:
            write_detections(found.detections, asked.out, made_by=MADE_BY, run=str(checkpoint))
        except OSError as error:
            raise ConfigError(f"--out {asked.out}: {error.strerror}; nothing was written") from None
        has_truth = any(
            annotations.labels[segment.label] != AMBIGUOUS for video in listed for segment in video.segments
        )
        said = scores_of(truth, found.detections, config.data) if has_truth else None
        return Detected(
            asked.out,
            len(names),
            len(found.detections),
            [f"{failure.path}: {failure.reason}" for failure in found.failures],
            None if said is None else said.average_map,
            said.map_of if said else {},
        )

    result = ranks.from_first(write)
    stop_ranks(ranks)
    if len(result.unreadable) > config.data.max_bad_share * result.videos:
        raise TooManyBadFiles(
            f"{len(result.unreadable)} of {counted(result.videos, 'video')} could not be used, more than the run's "
            f"data.max_bad_share {config.data.max_bad_share:g}; the first: {result.unreadable[0]}; {asked.out} has the others"
        )
    return result


def _as_asked(config: TadConfig, asked: TadDetectArguments) -> TadConfig:
    """The run's config with what the options name; raises ConfigError."""
    data = {
        "annotations": asked.annotations,
        "features": asked.features,
        "features_are": asked.features_are,
        "videos": asked.videos,
        "val_subset": asked.subset,
    }
    if asked.features is not None and asked.features_are is None and (asked.features / INFO).is_file():
        config = config.changed(data={"features_are": None})
    if asked.features is not None or asked.videos is not None:  # what the run was shown is not what is shown now
        config = config.changed(data={"features": None, "videos": None})
    config = with_options(
        config,
        data=data,
        train=asked.model_dump(include={"precision"}),
        detect=asked.model_dump(include=set(DetectConfig.model_fields)),
    )
    if not config.data.val_subset:
        raise ConfigError("no subset named: give --subset NAME, one of those in the annotations")
    return config


def _check_out(asked: TadDetectArguments, config: TadConfig | None = None) -> None:
    """Raises ConfigError where `out` cannot be written, is read, or would be lost."""
    read = [asked.annotations, asked.video_scores, asked.classes, None if config is None else config.data.annotations]
    check_out_file(asked.out, inputs=[path for path in read if path is not None], is_ours=_is_ours)


def _is_ours(out: Path) -> bool:
    try:
        return bool(json.loads(out.read_bytes()).get("made_by") == MADE_BY)
    except (OSError, ValueError, AttributeError):
        return False


def _scores(
    asked: TadDetectArguments, config: TadConfig, annotations: Annotations, names: Sequence[str]
) -> VideoScores:
    """Scores of whole videos with the names of their classes; raises ConfigError or DataError where they do not fit."""
    from vmae2_ds.downstream.tad.annotations import read_classes
    from vmae2_ds.downstream.tad.detections import read_video_scores

    assert asked.video_scores is not None, "asked for"
    file = asked.video_scores
    if config.model.num_classes > 1:
        raise ConfigError(
            f"--video-scores {file}: this head tells {config.model.num_classes} classes apart by itself; leave them out"
        )
    scores = read_video_scores(file)
    classes = annotations.class_names if scores.classes is None else scores.classes
    if asked.classes is not None:
        classes = read_classes(asked.classes)
    if lacking := [name for name in names if name not in scores.score_of]:
        raise ConfigError(
            f"--video-scores {file} has no scores for {len(lacking)} of {counted(len(names), 'video')}, {lacking[0]} for one"
        )
    if (width := len(next(iter(scores.score_of.values())))) != len(classes):
        raise ConfigError(
            f"--video-scores {file} has {width} scores a video, and there are {len(classes)} classes: name those of the "
            "scores in their order with --classes FILE"
        )
    return replace(scores, classes=classes)
