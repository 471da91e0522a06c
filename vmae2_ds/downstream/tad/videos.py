"""The videos of a run, as the annotations' subsets name them, and what their features are."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

from vmae2_ds.config.tad import TadConfig, TadDataConfig
from vmae2_ds.data.sources.list_formats import ListedVideo
from vmae2_ds.data.sources.list_header import videos_below
from vmae2_ds.data.sources.manifest import Manifest, manifest_of
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.downstream.features.sidecar import INFO, MISSING, PUBLISHED, FeatureInfo, read_feature_info, read_missing
from vmae2_ds.downstream.tad.annotations import (
    AnnotatedVideo,
    Annotations,
    check_same_set,
    read_annotations,
    videos_to_train_on,
)
from vmae2_ds.errors import ConfigError, DataError, VideoError

log = logging.getLogger(__name__)

MAX_LENGTH_OFF = 0.1
"""Share by which a video's length may be another one than its annotations say: copies are cut and encoded anew a little."""


def open_videos(config: TadConfig) -> tuple[Mixture, Manifest | None]:
    """The videos to train on and those to validate on.

    Raises ConfigError or DataError: annotations that cannot be used, another number of classes than the model's, features that
    are not those of the model, or of other videos.
    """
    data = config.data
    annotations = annotations_of(data)
    check_classes(annotations, config.model.num_classes)
    if not config.model.is_end_to_end:
        feature_info(data, config.model.encoder.width)
    train, left_out = _learnable(data, annotations)
    for line in left_out:
        log.info("%s", line)
    validation = None
    if data.val_subset:
        validation = list_of(data, annotations, annotations.of_subset(data.val_subset))
    return Mixture.of_manifest(list_of(data, annotations, train), "pyav"), validation


def annotations_of(data: TadDataConfig) -> Annotations:
    """The annotations that a run names."""
    assert data.annotations is not None, "checked by check_is_named"
    return read_annotations(data.annotations, data.classes)


def training_videos(data: TadDataConfig) -> dict[str, AnnotatedVideo]:
    """The videos of `data.subset` that have a segment, by name, with those segments that can be learnt. Raises DataError."""
    return {video.name: video for video in _learnable(data, annotations_of(data))[0]}


def _learnable(data: TadDataConfig, annotations: Annotations) -> tuple[list[AnnotatedVideo], list[str]]:
    """These videos, and what was left out or cut, a line for each kind."""
    videos, left_out = videos_to_train_on(annotations, data.subset)
    return [video for video in videos if video.segments], left_out


def list_of(data: TadDataConfig, annotations: Annotations, videos: Sequence[AnnotatedVideo]) -> Manifest:
    """The list of these videos, without those that have no features by MISSING; its digest covers names, lengths and segments.

    A file that is not there is listed as well: it is named when it is to be read.

    Raises DataError where there is none of their files.
    """
    if data.videos is not None:
        folder, files = data.videos, video_files(data.videos)
        names = [video.name for video in videos]
        what, remedy = "none of", "name the folder that holds them"
    else:
        assert data.features is not None, "checked by check_is_named"
        folder, missing = data.features, set(read_missing(data.features))
        files = {path.name.removesuffix(".npy"): path.name for path in folder.glob("*.npy")}
        names = [video.name for video in videos if video.name not in missing]
        if len(names) < len(videos):
            log.info("%d of %d videos have no features by %s", len(videos) - len(names), len(videos), folder / MISSING)
        what, remedy = "features of none of", "extract them"
    if not any(name in files for name in names):
        check_same_set(annotations, sorted(files), f"--data.{'features' if data.videos is None else 'videos'} {folder}")
        raise DataError(
            f"{folder} has {what} the {len(videos)} videos of the subset, of {names[0] if names else 'any'!r} for "
            f"example; {remedy}, or name another --data.subset"
        )
    said = [[video.name, video.duration_s, video.fps, video.frames, *video.segments] for video in videos]
    content = json.dumps([annotations.class_names, said])
    listed = [ListedVideo(files.get(name, f"{name}.{'npy' if data.videos is None else 'mp4'}")) for name in names]
    return manifest_of(annotations.file, folder, listed, content)


def video_files(folder: Path) -> dict[str, str]:
    """The file of each video in a folder of videos, by its name without ending.

    Raises DataError where there is no such folder, or two files have the name of one video.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of videos")
    files: dict[str, str] = {}
    for path in videos_below(folder):
        file, name = os.path.relpath(path, folder), name_of(path)
        if (other := files.setdefault(name, file)) != file:
            raise DataError(f"{folder} has {other} and {file}, both of video {name!r}; move one of them away")
    return files


def name_of(file: str) -> str:
    """The video's name of a file of it, or of its features."""
    return Path(file).stem


def length_s(video: AnnotatedVideo | None, found_s: float | None) -> float:
    """Seconds of a video, as its annotations say, else as was found; infinite where nobody says.

    Raises VideoError where the two differ by more than MAX_LENGTH_OFF.
    """
    told_s = (video and video.duration_s) or None
    if told_s and found_s and abs(told_s - found_s) > MAX_LENGTH_OFF * max(told_s, found_s):
        raise VideoError(
            f"the annotations say that it has {told_s:g} s, and it has {found_s:g} s: they are of another video, or one of "
            "both has a wrong frame rate"
        )
    return told_s or found_s or math.inf


def check_classes(annotations: Annotations, num_classes: int) -> None:
    """Raises ConfigError where a model of so many classes cannot learn the labels; one class takes all of them."""
    labels = annotations.class_names
    if num_classes not in (1, len(labels)):
        raise ConfigError(
            f"--model.num-classes {num_classes}, and {annotations.file} has {len(labels)} labels "
            f"({', '.join(labels[:3])}, ...): set --model.num-classes {len(labels)}, or 1 to tell actions from background alone"
        )


def feature_info(data: TadDataConfig, width: int) -> FeatureInfo:
    """What the features of the run's folder are; raises ConfigError or DataError where nobody says, or they cannot be used."""
    folder = data.features
    assert folder is not None, "checked by check_is_named"
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder of features")
    said = None if data.features_are is None else PUBLISHED[data.features_are]
    if (folder / INFO).is_file():
        info = read_feature_info(folder)
        if said is not None and (differing := said.differing(info)):
            raise ConfigError(
                f"--data.features-are {data.features_are}: {folder / INFO} says {'; '.join(differing)}; leave the option out"
            )
    elif said is None:
        raise ConfigError(
            f"{folder} has no {INFO} to say when feature i is, and two kinds of the same name are about: --data.features-are "
            "opengvlab_thumos (window i begins at frame 4i, (frames - 16) // 4 + 1 rows) or opentad_thumos (frame 4i is in its "
            f"middle, frames / 4 rows); for others write {INFO}, or extract your own: vmae2 extract"
        )
    else:
        info = said
    if info.pooling != "window":
        raise ConfigError(f"{folder} holds features by {info.pooling}, and a head needs one vector for each window")
    if info.width != width:
        raise ConfigError(
            f"{folder} holds features of width {info.width}, and the recipe's encoder is {width} wide: set "
            f"--model.encoder.width {info.width}, or name features of its model"
        )
    return info
