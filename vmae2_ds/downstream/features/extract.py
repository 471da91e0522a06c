"""`vmae2 extract`: from a source and a list to features in a folder (into_folder.py)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vmae2_ds.console.progress import counted
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.sources.list_formats import ListForm
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.disk import check_out_folder, check_there
from vmae2_ds.dist import is_alone
from vmae2_ds.downstream.features.arguments import LOCK, ExtractArguments, Extracted, Listed
from vmae2_ds.downstream.features.sidecar import INFO, FeatureInfo, Pooling
from vmae2_ds.downstream.features.windows import WindowGrid
from vmae2_ds.errors import ConfigError, DataError, TooManyBadFiles

if TYPE_CHECKING:  # torch is imported where work begins: `--help` needs the signature below, and nothing else
    from vmae2_ds.config.stages import RunConfig
    from vmae2_ds.model.encoder import ClipEncoder

log = logging.getLogger(__name__)

WHAT: dict[str, Pooling] = {"windows": "window", "video": "video", "tokens": "tokens"}


def extract(asked: ExtractArguments) -> Extracted:
    """Write the features of every video; the same figures on every rank.

    Raises ConfigError, DataError or CheckpointError where places, lists or weights are of no use or the folder holds other
    features, and TooManyBadFiles after writing where more videos than `max_bad_share` could not be read.
    """
    if is_alone():  # several ranks: below, for all of them together
        check_out_folder(asked.out, inputs=[asked.manifest], is_ours=_is_ours)
    check_there(asked.source)
    check_there(asked.manifest)
    if asked.frame_folders is not None:
        from vmae2_ds.data.readers.storage import check_template

        try:
            check_template(asked.frame_folders)
        except ConfigError as error:
            raise ConfigError(str(error).replace("template=", "--frame-folders ", 1)) from None
    form = ListForm(asked.frame_folders is not None, ignore_columns=(), label_is_read=False)
    listed = named(list(read_manifest(asked.manifest, asked.root, form=form)))

    from vmae2_ds.config.stages import with_options
    from vmae2_ds.downstream.features.into_folder import extract_into
    from vmae2_ds.engine.ranks import LONGEST_WAIT_S, meet_ranks, start_ranks, stop_ranks
    from vmae2_ds.runs.open import clip_line, open_model
    from vmae2_ds.runs.ready import encoder_of
    from vmae2_ds.weights.source import read_given

    run, weights, checkpoint = open_model(asked.source, given=read_given(asked.config))
    clip = {"num_frames": asked.window, "size": asked.size, "stride": asked.interval}
    try:
        run = with_options(run, data=clip, train={"precision": asked.precision})
        module = encoder_of(run, weights)
    except ConfigError as error:  # by the names that these options have elsewhere
        told = str(error).replace("--data.num-frames", "--window").replace("--data.size", "--size")
        raise ConfigError(told) from None
    del weights
    ranks = start_ranks(meet_ranks()._replace(timeout_s=LONGEST_WAIT_S))
    if ranks.size > 1:
        ranks.from_first(lambda: check_out_folder(asked.out, inputs=[asked.manifest], is_ours=_is_ours))
    info = ranks.from_first(lambda: info_of(asked, run, module))
    if ranks.rank == 0:
        windows = clip_line(asked.source, run.data, **clip)
        where = f"windows of {windows}, grid {info.grid}, every {counted(info.stride, 'frame')}"
        ranked = f"{info.precision}, on {counted(ranks.size, 'rank')}"
        log.info("%s: %s, %s, %s", checkpoint, counted(len(listed), "video"), where, ranked)
    result = extract_into(module, info, listed, asked, ranks)
    stop_ranks(ranks)
    bad = len(result.failures)
    if bad > asked.max_bad_share * len(listed):
        raise TooManyBadFiles(
            f"{bad} of {counted(len(listed), 'video')} could not be used, more than --max-bad-share {asked.max_bad_share:g}; "
            f"the first: {result.failures[0]}; all are in {asked.out / 'bad_files.jsonl'}, and the others are written"
        )
    return result


def info_of(asked: ExtractArguments, run: RunConfig, module: ClipEncoder) -> FeatureInfo:
    """What the features are going to be."""
    from vmae2_ds.checkpoint.hashed_files import digest_of

    tower = run.model.encoder
    window = run.data.num_frames
    positions = {"positions": module.encoder.embed.positions_ND}  # no weights, but they make a difference
    return FeatureInfo(
        model=f"{run.stage} encoder, width {tower.width}, depth {tower.depth}, patch {run.model.patch}",
        weights=digest_of({**module.state_dict(), **positions}),
        grid=asked.grid,
        window=window,
        stride=asked.stride,
        interval=asked.interval,
        offset_frames=WindowGrid(asked.grid, window, asked.stride, asked.interval).offset_frames,
        pixels="unit" if asked.published_pixels else "imagenet",
        resize="squash_no_antialias" if asked.published_pixels else asked.aspect,
        size=run.data.size,
        pooling=WHAT[asked.what],
        precision=run.train.precision,
        dtype=asked.dtype,
        width=tower.width,
    )


def named(entries: Sequence[VideoEntry]) -> list[Listed]:
    """What each video's files are called: its name without folder and suffix; parts of one video by their first frame too.

    Raises DataError where two would share a name, or one would have that of the folder's own file.
    """
    stems = [Path(entry.path).stem for entry in entries]
    twice = {stem for stem, number in Counter(stems).items() if number > 1}
    found: dict[str, VideoEntry] = {}
    for stem, entry in zip(stems, entries, strict=True):
        name = f"{stem}_{entry.start}" if stem in twice and (entry.start or entry.frames is not None) else stem
        if f"{name}.json" == INFO:
            raise DataError(
                f"{entry.name}: its {INFO} would be the one that says what all features are; rename the video"
            )
        if name in found:
            raise DataError(
                f"{found[name].name} and {entry.name} would both be written to {name}.npy; rename one, or extract them from "
                "two lists into two folders"
            )
        found[name] = entry
    return [Listed(name, entry) for name, entry in found.items()]


def _is_ours(folder: Path) -> bool:
    return (folder / INFO).is_file() or {path.name for path in folder.iterdir()} <= {LOCK}
