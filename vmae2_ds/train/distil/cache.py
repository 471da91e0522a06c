"""`vmae2 distil-cache`: ask the teacher about every clip of a run once, and keep what it says for runs to come."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae2_ds.config.distil import INDEX, DistilConfig, check_has_teacher
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.console.progress import Ticker, counted, heard
from vmae2_ds.contracts import AskedBatch, LabelledBatch, LoadedBatch
from vmae2_ds.data.bad_files import check_bad_share
from vmae2_ds.data.feed import shared_memory
from vmae2_ds.data.feed.ahead import ask_ahead
from vmae2_ds.data.feed.loader import load_samples
from vmae2_ds.data.sources.inputs import Inputs
from vmae2_ds.data.sources.mixture import Mixture, open_mixture
from vmae2_ds.disk import write_whole
from vmae2_ds.dist import default_device
from vmae2_ds.engine.ranks import start_ranks, stop_ranks
from vmae2_ds.errors import ConfigError
from vmae2_ds.runs.first_look import cache_of, check_cache
from vmae2_ds.runs.identity import MAY_CHANGE
from vmae2_ds.train.distil.answers import (
    SHARD_VIDEOS,
    AnswersIndex,
    AnswersShard,
    AskedDataset,
    CachedAnswers,
    different,
    read_index,
    why_unusable,
    write_shard,
)
from vmae2_ds.train.distil.teacher import Teacher, check_classes, open_teacher

log = logging.getLogger(__name__)

GIB = 2**30


def distil_cache(config: DistilConfig, inputs: Inputs | None = None) -> str:
    """Fill `distil.cache` with the teacher's answers for every epoch of the run, and say what it holds now.

    Shards are shared out over the ranks; those that are there already are left alone, so that a second start goes on, and
    more epochs can be added. Raises ConfigError where the folder holds answers of another teacher or about other clips;
    others as `open_teacher`, and as the loader. `inputs`: the run's files, where they have been read already.
    """
    folder = cache_of(config)
    check_has_teacher(config, must_ask=True)
    ranks = start_ranks()
    shared_memory.check_run(config.changed(data={"val_manifest": None}), ranks)
    mixture = open_mixture(config.data) if inputs is None else inputs.mixture
    epochs = epochs_of(config, mixture)
    ranks.from_first(lambda: check_cache(folder))
    teacher = Teacher.of(config, ranks)
    index, missing = ranks.from_first(lambda: _prepare(config, folder, mixture, teacher, epochs))
    mine = missing[ranks.rank :: ranks.size]
    asked_about = sum(shard.videos for shard in mine)
    ticker = Ticker(log, "videos of this rank asked about", asked_about, speaks=ranks.rank == 0)
    batches = (shard.samples()[at : at + config.train.micro_batch] for shard in mine for at in _starts(config, shard))
    with closing(load_samples(config.data, AskedDataset(config, mixture), batches)) as loaded, heard(ticker):
        videos = bad = 0

        def telling(batches: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
            for number, batch in enumerate(batches):
                ticker.tell(videos + number * config.train.micro_batch)
                yield batch

        for number, shard in enumerate(mine, start=1):
            asked = telling(islice(loaded, len(_starts(config, shard))))
            failed = _answer_shard(folder, index, shard, teacher, asked)
            videos, bad = videos + shard.videos, bad + failed
            check_bad_share(bad, videos + bad, config.data.max_bad_share)
            log.info("%s written, %d of this rank's %d; %d videos replaced so far", shard.name, number, len(mine), bad)
    ranks.sum(0)  # the shards of all ranks are there
    stop_ranks(ranks)
    passes = counted(epochs[0], "epoch") if len(epochs) == 1 else f"{' + '.join(map(str, epochs))} epochs"
    return f"{folder}: answers for {passes}, {counted(len(missing), 'shard')} written now"


def open_answers(config: DistilConfig, mixture: Mixture) -> AnswersIndex:
    """The index of `distil.cache`, with every shard that the run needs in its place.

    Raises:
        ConfigError: there is none, or it is about other clips or classes, without features that are learned, or of another
            teacher than --teacher.
        DataError: shards are missing or cut short.
    """
    folder = config.distil.cache
    assert folder is not None, "asked where a cache is set"
    index = read_index(folder)
    _refuse(folder, different(index.clips, clips_of(config, mixture)))
    if config.distil.teacher is not None:
        _refuse(folder, different(index.teacher, open_teacher(config)[0].identity(), "teacher."))
    check_classes(index.classes, config, f"behind {folder}")
    if config.distil.feature_weight and not index.feature_width:
        raise ConfigError(
            f"{folder} holds no features; cache again with --distil.feature-weight set, or set it to 0 here"
        )
    CachedAnswers(folder, index).check_there(epochs_of(config, mixture))
    return index


def epochs_of(config: DistilConfig, mixture: Mixture) -> list[int]:
    """Epochs of each source that the run begins; they do not depend on the number of ranks."""
    plan = plan_run(config, mixture.num_videos, world_size=1)
    used = mixture.order(config.train.seed).used_before(plan.num_steps * plan.videos_per_step)
    return [math.ceil(count / len(source.manifest)) for count, source in zip(used, mixture.sources, strict=True)]


def clips_of(config: DistilConfig, mixture: Mixture) -> dict[str, Any]:
    """Whatever decides the clips of a (source, epoch, row, view), as plain JSON."""
    elsewhere = {"manifest", "mixture", "leave_out", "root", "val_manifest", "val_root"}  # lists count by their content
    return {
        "seed": config.train.seed,
        "lists": mixture.identity(),
        "data": config.data.model_dump(mode="json", exclude=MAY_CHANGE["data"] | elsewhere),
        "augment": config.augment.model_dump(mode="json", include={"rand_augment", "erase"}),
    }


def _prepare(
    config: DistilConfig, folder: Path, mixture: Mixture, teacher: Teacher, epochs: list[int]
) -> tuple[AnswersIndex, list[AnswersShard]]:
    """Make or open the folder; its index, and the shards that it lacks."""
    settings, card = config.distil, teacher.card
    index = AnswersIndex(
        teacher=card.identity(),
        clips=clips_of(config, mixture),
        videos=tuple(len(source.manifest) for source in mixture.sources),
        views=config.data.views,
        classes=config.model.num_classes,
        feature_width=card.config.model.encoder.width if settings.feature_weight else 0,
        dtype=settings.cache_dtype,
        shard_videos=SHARD_VIDEOS,
    )
    if (folder / INDEX).is_file():
        there = read_index(folder)
        kept = there.model_dump(mode="json", exclude={"shard_videos"})
        _refuse(folder, different(kept, index.model_dump(mode="json", exclude={"shard_videos"})))
        index = there
    missing = [shard for shard in index.shards(epochs) if why_unusable(folder, index, shard) is not None]
    _check_space(folder, index, epochs, missing)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / INDEX).is_file():
        write_whole(folder / INDEX, index.model_dump_json(indent=1))
    return index, missing


def _refuse(folder: Path, differences: list[str]) -> None:
    if differences:
        raise ConfigError(
            f"{folder} holds answers about something else: {'; '.join(differences[:3])}; name another --distil.cache, or set "
            "the same"
        )


def _check_space(folder: Path, index: AnswersIndex, epochs: list[int], missing: list[AnswersShard]) -> None:
    """Log what the cache takes; raises ConfigError where the disk does not have it."""
    clips = index.views * sum(count * videos for count, videos in zip(epochs, index.videos, strict=True))
    need = index.clip_bytes * index.views * sum(shard.videos for shard in missing)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    log.info(
        "%s: %d bytes a clip (%s) x %d clips (%d views, %s epochs) = %.3g GiB; %.3g GiB still to be written, %.3g GiB free",
        folder, index.clip_bytes, index.dtype, clips, index.views, " + ".join(map(str, epochs)),
        index.clip_bytes * clips / GIB, need / GIB, free / GIB,
    )  # fmt: skip
    if need > free:
        raise ConfigError(
            f"{folder}: the answers still to be written take {need / GIB:.3g} GiB, and {free / GIB:.3g} GiB are free; lower "
            "--train.epochs or --data.views, or name a --distil.cache on another disk"
        )


def _starts(config: DistilConfig, shard: AnswersShard) -> range:
    """First rows of a shard's micro batches."""
    return range(0, shard.videos, config.train.micro_batch)


def _answer_shard(
    folder: Path, index: AnswersIndex, shard: AnswersShard, teacher: Teacher, loaded: Iterator[LoadedBatch]
) -> int:
    """Ask about a shard's videos and write it; returns how many could not be used."""
    logits, features, attempts = [], [], []
    device = default_device()

    def move(one: LoadedBatch) -> Tensor:
        assert isinstance(one.batch, AskedBatch), "what an AskedDataset collates"
        return one.batch.clip_BTHWC.to(device, non_blocking=True)

    def ask(clip_BTHWC: Tensor) -> tuple[Tensor, Tensor]:
        return teacher.answers(unmixed(clip_BTHWC))

    for one, (logits_BC, feature_BE) in ask_ahead(loaded, move, ask, device):
        assert isinstance(one.batch, AskedBatch), "what an AskedDataset collates"
        for failure in one.failures:
            log.warning("%s: %s; replaced by another video", failure.path, failure.reason)
        logits.append(logits_BC)
        features.append(feature_BE)
        attempts.append(one.batch.attempt_V)
    logits_VKC, feature_VKE = (
        torch.cat(parts).unflatten(0, (shard.videos, index.views)) for parts in (logits, features)
    )
    attempt_V = torch.cat(attempts)
    write_shard(folder, index, shard, logits_VKC, feature_VKE, attempt_V)
    return int(attempt_V.sum())


def unmixed(clip_BTHWC: Tensor) -> LabelledBatch:
    """Clips as they are, without labels."""
    one = torch.ones((), device=clip_BTHWC.device)
    return LabelledBatch(clip_BTHWC, torch.full((len(clip_BTHWC),), -1), one, one)
