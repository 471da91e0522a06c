"""A teacher's answers on disk: shards of rows by (source, epoch), checked, and tied to the teacher and to the clips.

FOLDER/index.json                                    who answered, about which clips, in what shape
FOLDER/source00/epoch0000/000000000.safetensors      logits (V, K, C), feature (V, K, E), attempt (V,) of V rows

A clip is a function of (seed, source, epoch, row, view), so a shard depends on nothing else: not on ranks, batch or order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vmae2_ds.config.distil import INDEX
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.contracts import AskedBatch, LabelledBatch, TaughtBatch
from vmae2_ds.data.feed.labelled import LabelledDataset, LabelledSample
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.disk import whole_file
from vmae2_ds.errors import ConfigError, DataError

# V videos, K views of a video, C classes, E the teacher's width (0 where its features are not kept).

SHARD_VIDEOS = 4096
"""Videos per shard of a new folder: 12 MB for two views of 710 classes in half precision."""
DTYPES = {"float16": torch.float16, "float32": torch.float32}
AGAIN = "run the same vmae2 distil-cache again: it writes what is missing"


class AnswersIndex(StrictModel):
    """What a folder of answers holds, written before its first shard."""

    format: Literal[1] = 1
    """Version of the folder's layout; a folder of another version is refused."""
    teacher: dict[str, Any]
    """Identity of the teacher, `TeacherCard.identity`."""
    clips: dict[str, Any]
    """Everything that decides the clips: seed, lists, sampling, crops, augmentation."""
    videos: tuple[int, ...]
    """Number of videos in each source."""
    views: int
    """Number of clips of each video in an epoch."""
    classes: int
    """Number of the student's classes."""
    feature_width: int
    """Width of the teacher's features; 0 where its features are not saved."""
    dtype: Literal["float16", "float32"]
    """Number format of logits and features."""
    shard_videos: int
    """Number of videos in a shard; the last shard of an epoch has fewer."""

    @property
    def clip_bytes(self) -> int:
        """Bytes of the answers for one clip."""
        return (self.classes + self.feature_width) * DTYPES[self.dtype].itemsize

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in hex: every shard carries it."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def shards(self, epochs: Sequence[int]) -> Iterator[AnswersShard]:
        """All shards of so many epochs of each source, epoch by epoch."""
        for epoch in range(max(epochs)):
            for source, videos in enumerate(self.videos):
                for first in range(0, videos if epoch < epochs[source] else 0, self.shard_videos):
                    yield AnswersShard(source, epoch, first, min(self.shard_videos, videos - first))


class AnswersShard(NamedTuple):
    """Neighbouring rows of a source in one epoch."""

    source: int
    epoch: int
    first: int
    videos: int

    @property
    def name(self) -> str:
        """Path of the shard's file inside the folder."""
        return f"source{self.source:02d}/epoch{self.epoch:04d}/{self.first:09d}.safetensors"

    def samples(self) -> list[SampleKey]:
        """Numbers of the shard's samples, in order."""
        return [SampleKey(self.epoch, self.first + at, self.source) for at in range(self.videos)]


def read_index(folder: Path) -> AnswersIndex:
    """Raises ConfigError where the folder has none that can be read."""
    file = folder / INDEX
    try:
        return AnswersIndex.model_validate_json(file.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"--distil.cache {folder} holds no answers (no {INDEX}); write them first: vmae2 distil-cache with the same options"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigError(f"{file} is damaged or of another version ({where}: {error.errors()[0]['msg']})") from None


def different(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Differences between two trees of plain values, as "a.b: was x, now y"."""
    found = []
    for name in {**one, **other}:
        a, b = one.get(name), other.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += different(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}: was {a}, now {b}")
    return found


def write_shard(
    folder: Path, index: AnswersIndex, shard: AnswersShard, logits_VKC: Tensor, feature_VKE: Tensor, attempt_V: Tensor
) -> None:
    """Write it so that a reader sees all of it or nothing."""
    file = folder / shard.name
    file.parent.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES[index.dtype]
    tensors = {"logits": logits_VKC.to(dtype), "feature": feature_VKE.to(dtype), "attempt": attempt_V.to(torch.uint8)}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with whole_file(file) as part:
        save_file(tensors, part, {"index": index.digest, "content": _content_digest(tensors)})


def why_unusable(folder: Path, index: AnswersIndex, shard: AnswersShard) -> str | None:
    """None where the shard is there, of its full length, and of this index; else what is wrong. Its values are not read."""
    try:
        with safe_open(folder / shard.name, "pt") as file:
            found = tuple(file.get_slice("logits").get_shape())
            if file.metadata().get("index") != index.digest:
                return "of another teacher or of other clips"
    except FileNotFoundError:
        return "missing"
    except (OSError, SafetensorError) as error:
        return f"damaged: {error}"
    expected = (shard.videos, index.views, index.classes)
    return None if found == expected else f"logits of shape {found}, not {expected}"


def _content_digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Answer(NamedTuple):
    """What a teacher said of the views of one video."""

    logits_KC: Tensor
    """float32."""
    feature_KE: Tensor
    attempt: int
    """Videos that could not be used before the one that it was asked about."""


class CachedAnswers:
    """`answers[key]`, from shards whose content each process checks when it first opens them."""

    def __init__(self, folder: Path, index: AnswersIndex) -> None:
        self.folder, self.index = folder, index
        self._checked: set[str] = set()

    def check_there(self, epochs: Sequence[int]) -> None:
        """Raises DataError where a shard of these epochs is missing, cut short, or of something else."""
        for shard in self.index.shards(epochs):
            if reason := why_unusable(self.folder, self.index, shard):
                raise DataError(f"{self.folder / shard.name}: {reason}; {AGAIN}")

    def __getitem__(self, key: SampleKey) -> Answer:
        """Raises DataError where its shard cannot be read or was changed."""
        at = key.row % self.index.shard_videos
        name = AnswersShard(key.source, key.epoch, key.row - at, self.index.shard_videos).name
        try:
            with safe_open(self.folder / name, "pt") as file:
                if name not in self._checked:
                    content = {part: file.get_tensor(part) for part in file.keys()}  # noqa: SIM118  # no mapping
                    if file.metadata().get("content") != _content_digest(content):
                        raise DataError(
                            f"{self.folder / name}: damaged, its values are not those written; remove it and {AGAIN}"
                        )
                    self._checked.add(name)
                logits_KC, feature_KE, attempt = (file.get_slice(part)[at : at + 1][0] for part in _PARTS)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.folder / name}: {error}; {AGAIN}") from None
        return Answer(logits_KC.float(), feature_KE.float(), int(attempt))


_PARTS = ("logits", "feature", "attempt")


class AskedDataset(LabelledDataset):
    """The clips of a run without their labels, not mixed: what the teacher is asked about."""

    def __init__(self, config: FinetuneConfig, mixture: Mixture) -> None:
        super().__init__(config, mixture, needs_labels=False)

    def collate(self, samples: list[LabelledSample]) -> AskedBatch:  # type: ignore[override]  # a batch of another kind
        """Clips video by video."""
        attempts = [len(sample.failures) for sample in samples]
        return AskedBatch(torch.cat([sample.clip_KTHWC for sample in samples]), torch.tensor(attempts))


class AnsweredDataset(LabelledDataset):
    """The clips of a run with the answers that were kept."""

    def __init__(self, config: FinetuneConfig, mixture: Mixture, answers: CachedAnswers, *, needs_labels: bool) -> None:
        super().__init__(config, mixture, needs_labels=needs_labels)
        self.answers = answers

    def collate(self, samples: list[LabelledSample]) -> TaughtBatch:  # type: ignore[override]  # a batch of another kind
        """Raises DataError where an answer is of another video than the clip: one of the two could not be read."""
        batch: LabelledBatch = super().collate(samples)
        found = [self.answers[sample.key] for sample in samples]
        for sample, answer in zip(samples, found, strict=True):
            if answer.attempt != len(sample.failures):
                named = f": {sample.failures[-1].path}: {sample.failures[-1].reason}" if sample.failures else ""
                raise DataError(
                    f"{self.answers.folder}: epoch {sample.key.epoch}, row {sample.key.row}: the teacher was asked about "
                    f"replacement {answer.attempt}, and now it is replacement {len(sample.failures)}{named}; make the same "
                    "videos readable as then, or cache again"
                )
        return TaughtBatch(
            *batch,
            torch.cat([answer.logits_KC for answer in found]),
            torch.cat([answer.feature_KE for answer in found]),
        )
