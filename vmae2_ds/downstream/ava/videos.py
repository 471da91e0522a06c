"""The key frames of a run, as its files name them: those to train on, and those to validate on with their truth."""

from __future__ import annotations

import json
import logging
from itertools import zip_longest
from pathlib import Path

import numpy as np

from vmae2_ds.config.ava import AvaConfig, AvaDataConfig
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.downstream.ava.clip_files import ClipFiles, KeyFrameList, list_of
from vmae2_ds.downstream.ava.key_frames import KeyFrames, read_key_frames, strided
from vmae2_ds.downstream.ava.label_map import LabelMap, read_label_map
from vmae2_ds.downstream.ava.protocols import FRAME_PROTOCOLS
from vmae2_ds.downstream.ava.rows import BoxRows, Key, make_rows, read_excluded, read_truth
from vmae2_ds.errors import ConfigError

log = logging.getLogger(__name__)


def open_videos(config: AvaConfig) -> tuple[Mixture, KeyFrameList | None]:
    """The key frames to train on and those to validate on, an entry each.

    Raises ConfigError or DataError: files that cannot be used, another number of actions than the model's, no video of them.
    """
    data = config.data
    assert data.videos is not None, "checked by check_is_named"
    train = list_of(training_frames(config), ClipFiles.of(data, data.videos))
    validation = validation_list(config) if data.val_truth else None
    return Mixture.of_manifest(train, data.reader), validation


def training_frames(config: AvaConfig) -> KeyFrames:
    """The key frames that a run learns from. Raises ConfigError or DataError."""
    data = config.data
    frames = read_key_frames(
        data.truth,
        label_map_of(config),
        excluded=data.excluded,
        boxes=data.boxes,
        box_threshold=data.box_threshold,
        use=data.train_on,
        overlap=data.proposal_overlap,
        keeps_unmatched=data.keep_unmatched,
        keeps_best=data.always_a_box,
        every_s=data.every_s,
        every=data.every,
    )
    for line in frames.left_out.lines():
        log.info("not learnt from: %s", line)
    return frames


def validation_list(config: AvaConfig) -> KeyFrameList:
    """The key frames that people's actions are asked for, and where their videos are. Raises ConfigError or DataError."""
    data = config.data
    assert data.folder_of_validation is not None, "checked by check_is_named"
    frames = read_key_frames(
        data.val_truth,
        label_map_of(config),
        excluded=data.val_excluded,
        boxes=data.val_boxes,
        box_threshold=data.box_threshold,
        use="boxes" if data.val_boxes else "truth",
        keeps_best=data.always_a_box,
        every_s=data.val_every_s,
        every=data.val_every,
    )
    for line in frames.left_out.lines():
        log.info("not asked about: %s", line)
    return list_of(frames, ClipFiles.of(data, data.folder_of_validation))


def validation_truth(data: AvaDataConfig, frames: KeyFrames) -> BoxRows:
    """The truth of the key frames that validation asks about, those without a detected person among them.

    What is excluded, or between those of the stride, counts neither as missed nor as wrong; but what is excluded as missed by
    the protocol that counts it so.

    `frames`: those of `validation_list`. Raises DataError.
    """
    found = [read_truth(file) for file in data.val_truth]
    rows = found[0] if len(found) == 1 else _joined(found)
    excluded = frozenset[Key]().union(*map(read_excluded, data.val_excluded))
    named = set(rows.keys)
    asked = set(map(frames.key, range(len(frames))))
    if data.val_boxes:  # also where nobody was detected
        asked = set(strided(sorted(named - excluded), data.val_every_s, data.val_every))
    if FRAME_PROTOCOLS[data.val_protocol].keeps_excluded_truth:
        asked |= set(strided(sorted(named & excluded), data.val_every_s, data.val_every))
    if named <= asked:
        return rows
    is_asked_F = np.array([key in asked for key in rows.keys])
    some = rows.of(is_asked_F[rows.frame_N])
    return make_rows(
        _keys_of(some),
        some.box_N4,
        some.label_N,
        some.score_N,
        some.person_N,
        frames=sorted(asked & named),
        source=rows.source,
    )


def label_map_of(config: AvaConfig) -> LabelMap:
    """The actions of a run. Raises DataError; ConfigError where they are not as many as the model's."""
    assert config.data.label_map is not None, "checked by check_is_named"
    label_map, wanted = read_label_map(config.data.label_map), config.model.num_classes
    if len(label_map) != wanted:
        raise ConfigError(
            f"--model.num-classes {wanted}, and {label_map.file} names {len(label_map)} actions "
            f"({', '.join(label_map.names[:3])}, ...): set --model.num-classes {len(label_map)}"
        )
    return label_map


def actions_of(label_map: LabelMap) -> list[str]:
    """What a run's columns mean, as its identity has it."""
    return [f"{number}: {name}" for number, name in zip(label_map.ids, label_map.names, strict=True)]


def check_actions(run: Path, label_map: LabelMap) -> None:
    """Raises ConfigError where the actions are not those that the run in folder `run` was trained on, in their order."""
    try:
        before = json.loads((run / "identity.json").read_text())["actions"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{run}/identity.json does not say which actions it was trained on ({error})") from None
    now = actions_of(label_map)
    for column, (was, is_now) in enumerate(zip_longest(before, now, fillvalue="nothing")):
        if was != is_now:
            raise ConfigError(
                f"--label-map {label_map.file}: action {column + 1} is {is_now!r}, and the run was trained on {was!r} there; "
                "give the file that it was trained with"
            )


def _joined(found: list[BoxRows]) -> BoxRows:
    """The rows of several files as those of one."""
    names = ("box_N4", "label_N", "score_N", "person_N")
    columns = (np.concatenate([getattr(rows, name) for rows in found]) for name in names)
    keys, frames = [key for rows in found for key in _keys_of(rows)], [key for rows in found for key in rows.keys]
    return make_rows(keys, *columns, frames=frames, source=" and ".join(rows.source for rows in found))


def _keys_of(rows: BoxRows) -> list[Key]:
    """The key frame of each row."""
    keys = rows.keys
    return [keys[frame] for frame in rows.frame_N.tolist()]
