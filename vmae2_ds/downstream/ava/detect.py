"""`vmae2 ava detect`: a trained model says what people in boxes do, and writes it as AVA's scorers read it."""

from __future__ import annotations

import contextlib
import logging
import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import tyro

from vmae2_ds.config.ava import AvaConfig, Files, Seconds, VideosAre
from vmae2_ds.config.ava_protocols import FrameProtocolName
from vmae2_ds.config.stages import with_options
from vmae2_ds.config.strict import Amount, Count, Edge, Part, StrictModel, Workers
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.disk import check_out_file, check_there
from vmae2_ds.dist import Ranks, is_alone
from vmae2_ds.errors import ConfigError, DataError, TooManyBadFiles, Vmae2Error

if TYPE_CHECKING:
    from vmae2_ds.downstream.ava.clip_files import KeyFrameList
    from vmae2_ds.downstream.ava.objective import NameActions
    from vmae2_ds.downstream.ava.part_files import PartFolder

log = logging.getLogger(__name__)

CHUNKS_A_PART, PARTS = 16, 64
"""Batches whose answers are written to disk together at most, which is what a job that is killed loses; fewer where there would
not be so many parts for ranks to share."""
WRITTEN = re.compile(r'("[^"]*"|[^,"]+),[\d.]+(,\d\.\d{6}){4},\d*,\d\.\d{6}\r?\n')
"""A row as it is written here; those of other people have other digits."""
LONGEST_LINE = 1 << 16


class AvaDetectArguments(StrictModel):
    """Say what people in boxes do at key frames, with a trained model; print frame mAP where the truth is known.

    The same command goes on where it was stopped: what was found is kept in parts beside the file until it is whole, also where
    the number of processes is another one. Options that are left out are as in the run's validation.
    """

    source: tyro.conf.Positional[Path]
    """The model: a run folder (its newest whole checkpoint is taken), a folder of runs (the newest), or a checkpoint
    runs/.../ckpt/stepN."""
    out: Path
    """File to write, rows of AVA's csv: video, second, x1, y1, x2, y2, action id, score. An earlier one is replaced."""
    best: bool = False
    """Take the checkpoint with the best figure of the run's --train.keep-best instead of the newest."""
    truth: Files | None = None
    """Files of boxes and actions that name the key frames and that detections are scored against; without a file: there is no
    truth, and key frames are those of --boxes."""
    boxes: Files | None = None
    """Files of detected people (vmae2 ava boxes), at whose boxes actions are asked for; without a file: the true boxes."""
    box_threshold: Part | None = None
    """Detected people whose score is lower are left out."""
    excluded: Files | None = None
    """Files of key frames to pass over; without a file: none."""
    label_map: Path | None = None
    """File that names the actions by their ids; they have to be those that the model was trained on, in the same order."""
    videos: Path | None = None
    """Folder of the videos."""
    kind: VideosAre | None = None
    """How videos are kept: movies, clips of one second, or folders of frames."""
    video_starts_s: Seconds | None = None
    """Time in seconds of the first frame of movies and of folders of frames."""
    short_side: Edge | None = None
    """Short side in pixels that pictures are brought to."""
    every_s: Amount | None = None
    """Ask only at key frames at whole multiples of so many seconds; 0: at all."""
    every: Count | None = None
    """Ask only at each so many-th key frame of a video, the first among them; 1: at all."""
    weights: Literal["ema", "last"] | None = None
    """Which weights: their running mean (ema), or those of the last step; default: the mean, where the run keeps one."""
    person_score: bool | None = None
    """Whether an action's score is its probability times the person's score, or its probability alone."""
    protocol: FrameProtocolName | None = None
    """Which published scorer frame mAP is counted as (vmae2 ava score has all of them)."""
    threshold: Part = 0.0
    """Rows with a lower score are not written."""
    precision: Literal["bf16", "fp32"] | None = None
    """Number format of weights and activations."""
    batch: Count | None = None
    """Clips of one size that the model sees at once; default: the run's micro batch."""
    workers: Workers | None = None
    """Processes of each rank that read videos."""


class AvaDetected(NamedTuple):
    """What came of it."""

    file: Path
    key_frames: int
    boxes: int
    rows: int
    unreadable: list[str]
    """Key frames without rows, as their videos could not be read, and why."""
    before: int
    """Key frames that an earlier start had asked at."""
    frame_map: float | None
    """None where there is no truth."""
    protocol: FrameProtocolName

    def __str__(self) -> str:
        said = "".join(f"{line}\n" for line in self.unreadable)
        said += (
            f"{counted(self.rows, 'row')} of {counted(self.boxes, 'box', 'boxes')} at {counted(self.key_frames, 'key frame')}, "
            f"{len(self.unreadable)} unreadable"
        )
        if self.before:
            said += f", {self.before} done before"
        if self.frame_map is not None:
            said += f"; frame mAP {100 * self.frame_map:.2f} % at IoU 0.5 by protocol {self.protocol}"
        return f"{said}; wrote {self.file}"


def ava_detect(asked: AvaDetectArguments) -> AvaDetected:
    """Write the rows on rank 0, and return what came of it on every rank.

    Raises ConfigError, DataError or CheckpointError where run, files or videos are of no use, or not of each other;
    TooManyBadFiles, after writing, where more of the key frames than the run's max_bad_share could not be read.
    """
    check_there(asked.source)
    if is_alone():  # several ranks: below, for all of them together
        _check_out(asked)

    from vmae2_ds.downstream.ava.label_map import read_label_map
    from vmae2_ds.downstream.ava.objective import ava_objective
    from vmae2_ds.downstream.ava.part_files import PartFolder
    from vmae2_ds.downstream.ava.videos import check_actions, validation_list
    from vmae2_ds.engine.ranks import LONGEST_WAIT_S, meet_ranks, start_ranks, stop_ranks
    from vmae2_ds.runs.trained import made_ready, open_trained

    otherwise = "says nothing of people in boxes; train a model that does: vmae2 ava RECIPE"
    mean = None if asked.weights is None else asked.weights == "ema"
    run = open_trained(asked.source, AvaConfig, otherwise, mean, best=asked.best)
    config, checkpoint = _as_asked(run.config, asked), run.checkpoint
    assert config.data.label_map is not None, "a run has one"
    check_actions(checkpoint.parent.parent, read_label_map(config.data.label_map))
    listed = validation_list(config)
    ranks = start_ranks(meet_ranks()._replace(timeout_s=LONGEST_WAIT_S))
    ranks.from_first(lambda: _check_out(asked, config))
    parts = PartFolder(asked.out)
    with contextlib.ExitStack() as held:
        ranks.from_first(lambda: held.enter_context(parts.held(_decides(config, asked, listed, checkpoint))))
        objective = made_ready(ava_objective(config), run.weights, config)
        del run  # in bf16 its float32 weights would stay beside the objective's
        before = _fill(parts, objective, config, listed, ranks)
        result = ranks.from_first(lambda: _finish(parts, asked, config, listed, before))
    stop_ranks(ranks)
    if len(result.unreadable) > config.data.max_bad_share * result.key_frames:
        raise TooManyBadFiles(
            f"{len(result.unreadable)} of {counted(result.key_frames, 'key frame')} could not be used, more than the run's "
            f"data.max_bad_share {config.data.max_bad_share:g}; the first: {result.unreadable[0]}; {asked.out} has the others"
        )
    return result


def _as_asked(config: AvaConfig, asked: AvaDetectArguments) -> AvaConfig:
    """The run's config with what the options name; raises ConfigError."""
    data = {
        "val_truth": asked.truth,
        "val_boxes": asked.boxes,
        "val_excluded": asked.excluded,
        "val_videos": asked.videos,
        "val_every_s": asked.every_s,
        "val_every": asked.every,
        "val_protocol": asked.protocol,
        "test_short_side": asked.short_side,
        **asked.model_dump(include={"box_threshold", "label_map", "kind", "video_starts_s", "person_score", "workers"}),
    }
    config = with_options(config, data=data, train={"precision": asked.precision, "micro_batch": asked.batch})
    if not (config.data.val_truth or config.data.val_boxes):
        raise ConfigError("no key frames named: give --truth FILE, or --boxes FILE where the truth is not known")
    return config


def _check_out(asked: AvaDetectArguments, config: AvaConfig | None = None) -> None:
    """Raises ConfigError where `out` cannot be written, is read, or would be lost."""
    read = [*(asked.truth or ()), *(asked.boxes or ()), *(asked.excluded or ())]
    if config is not None:
        read += [*config.data.val_truth, *config.data.val_boxes, *config.data.val_excluded]
    check_out_file(asked.out, inputs=read, is_ours=_is_ours)


def _is_ours(out: Path) -> bool:
    """Whether its first row has all the digits that this verb writes; or there is none."""
    try:
        with out.open("rb") as file:
            line = file.readline(LONGEST_LINE)
    except OSError:
        return False
    return not line or WRITTEN.match(line.decode("utf-8", "surrogateescape")) is not None


def _decides(config: AvaConfig, asked: AvaDetectArguments, listed: KeyFrameList, checkpoint: Path) -> dict[str, Any]:
    """What parts are of: all that an option may change in what is found."""
    data = config.data
    return {
        "checkpoint": str(checkpoint.resolve()),
        "--weights": asked.weights,
        "key frames, boxes and actions": listed.key_frames.digest,
        "--videos": str(listed.files.folder.resolve()),
        "--kind": data.kind,
        "--video-starts-s": data.video_starts_s,
        "--short-side": data.test_short_side,
        "--precision": config.train.precision,
        "--batch": config.train.micro_batch,
    }


def _fill(parts: PartFolder, objective: NameActions, config: AvaConfig, listed: KeyFrameList, ranks: Ranks) -> int:
    """Write every part that is not there; returns how many key frames were done before. All ranks together."""
    from vmae2_ds.downstream.ava.dataset import KeyFrameClips
    from vmae2_ds.downstream.ava.detector import chunks_of, name_actions

    frames, at_once = listed.key_frames, config.train.micro_batch
    chunks_a_part = max(1, min(CHUNKS_A_PART, len(frames) // (PARTS * at_once)))  # whatever the number of ranks
    rows_of = chunks_of(range(len(frames)), chunks_a_part * at_once)
    todo = ranks.from_first(lambda: [part for part in range(len(rows_of)) if not parts.is_done(part)])
    mine, total = todo[ranks.rank :: ranks.size], sum(len(rows_of[part]) for part in todo)
    before = len(frames) - total
    if before and ranks.rank == 0:
        log.info("%s: %d of %s are done", parts.folder, before, counted(len(frames), "key frame"))
    ticker, done = Ticker(log, "key frames looked at", total, speaks=ranks.rank == 0), 0
    error: OSError | Vmae2Error | None = None
    try:
        clips = KeyFrameClips(config, listed)
        chunks = [chunk for part in mine for chunk in chunks_of(rows_of[part], at_once)]
        with heard(ticker):
            found = name_actions(objective, clips, chunks, Ranks())  # a rank has all weights, and goes at its own pace
            for part in mine:
                some = []
                for one in islice(found, len(rows_of[part])):
                    some.append(one)
                    done += 1
                    ticker.tell(min(done * ranks.size, total))  # the other ranks are about as far
                parts.write(part, some)
    except (OSError, Vmae2Error) as failed:  # said to all: the others would wait for this rank
        error = failed
    said = ranks.first_said(None if error is None else f"rank {ranks.rank}: {error}")
    if said is not None:
        raise error or DataError(f"stopped with {said}")
    return before


def _finish(
    parts: PartFolder, asked: AvaDetectArguments, config: AvaConfig, listed: KeyFrameList, before: int
) -> AvaDetected:
    """The file of all parts, and its score; the parts are taken away."""
    from vmae2_ds.downstream.ava.found_rows import found_rows
    from vmae2_ds.downstream.ava.rows import seconds_of, write_detections
    from vmae2_ds.downstream.ava.score import score_frames
    from vmae2_ds.downstream.ava.videos import validation_truth

    frames, found = listed.key_frames, parts.read_all()
    answers = [one.probability_GC for one in found]
    rows = found_rows(frames, answers, person_score=config.data.person_score, threshold=asked.threshold)
    try:
        write_detections(rows, asked.out)
    except OSError as error:
        raise ConfigError(f"--out {asked.out}: {error.strerror}; {parts.folder} keeps what was found") from None
    truth, protocol = validation_truth(config.data, frames) if config.data.val_truth else None, config.data.val_protocol
    unreadable = [(frames.key(one.row), one.reason) for one in found if one.reason is not None]
    result = AvaDetected(
        asked.out,
        len(frames),
        len(frames.box_N4),
        len(rows),
        [f"{video} at {seconds_of(time_ms)} s: {reason}" for (video, time_ms), reason in unreadable],
        before,
        score_frames(truth, rows, frames.label_map, protocol=protocol).frame_map
        if truth is not None and len(truth)
        else None,
        protocol,
    )
    parts.remove()
    return result
