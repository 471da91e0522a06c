"""A teacher's answers on disk: what goes in comes out, and what was damaged, cut short or is of something else is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.errors import ConfigError, DataError
from vmae2_ds.train.distil.answers import (
    INDEX,
    AnswersIndex,
    CachedAnswers,
    different,
    read_index,
    why_unusable,
    write_shard,
)

VIDEOS, VIEWS, CLASSES, WIDTH = 8, 2, 5, 3


def index_of(**changes: Any) -> AnswersIndex:
    fields = {
        "teacher": {"weights": "abc"}, "clips": {"seed": 0, "data": {"size": 32}}, "videos": (VIDEOS, 4), "views": VIEWS,
        "classes": CLASSES, "feature_width": WIDTH, "dtype": "float32", "shard_videos": 3,
    }  # fmt: skip
    return AnswersIndex.model_validate(fields | changes)


def filled(
    folder: Path, index: AnswersIndex, epochs: tuple[int, int] = (2, 1)
) -> dict[SampleKey, tuple[Tensor, Tensor]]:
    """Write every shard; returns what was said of each video."""
    said = {}
    rng = torch.Generator().manual_seed(0)
    for shard in index.shards(epochs):
        logits_VKC = 10 * torch.randn(shard.videos, VIEWS, CLASSES, generator=rng)
        feature_VKE = torch.randn(shard.videos, VIEWS, WIDTH, generator=rng)
        attempt_V = torch.tensor([key.row % 2 for key in shard.samples()])
        write_shard(folder, index, shard, logits_VKC, feature_VKE, attempt_V)
        said.update(zip(shard.samples(), zip(logits_VKC, feature_VKE, strict=True), strict=True))
    (folder / INDEX).write_text(index.model_dump_json())
    return said


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_video_gets_its_own_answer_back(tmp_path: Path, dtype: str) -> None:
    """float32 to the bit; half precision to one part in 2048 (11 significant bits, rounded to nearest)."""
    said = filled(tmp_path, index_of(dtype=dtype))
    assert len(said) == 2 * VIDEOS + 4
    answers = CachedAnswers(tmp_path, read_index(tmp_path))
    answers.check_there([2, 1])
    for key, (logits_KC, feature_KE) in said.items():
        found = answers[key]
        assert found.attempt == key.row % 2
        assert found.logits_KC.dtype == torch.float32
        rtol = 0.0 if dtype == "float32" else 2**-11
        torch.testing.assert_close(found.logits_KC, logits_KC, rtol=rtol, atol=1e-7 * (rtol > 0))
        torch.testing.assert_close(found.feature_KE, feature_KE, rtol=rtol, atol=1e-7 * (rtol > 0))


def test_half_precision_keeps_every_bit_of_a_bf16_answer(tmp_path: Path) -> None:
    """8 significant bits fit into 11, as long as the exponent does: from 2**-14 to 65504."""
    index = index_of(dtype="float16", videos=(1, 1), shard_videos=1)
    (shard, *_) = index.shards((1, 1))
    logits_VKC = torch.randn(1, VIEWS, CLASSES).mul(20).bfloat16().float()
    write_shard(tmp_path, index, shard, logits_VKC, torch.zeros(1, VIEWS, WIDTH), torch.zeros(1))
    assert torch.equal(CachedAnswers(tmp_path, index)[SampleKey(0, 0)].logits_KC, logits_VKC[0])


def test_a_value_that_changed_is_noticed(tmp_path: Path) -> None:
    index = index_of()
    filled(tmp_path, index)
    file = tmp_path / "source00/epoch0001/000000003.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    answers = CachedAnswers(tmp_path, index)
    answers.check_there([2, 1])  # its values are not read yet
    assert answers[SampleKey(1, 2)].logits_KC.shape == (VIEWS, CLASSES)
    with pytest.raises(DataError, match=r"epoch0001/000000003\.safetensors: damaged, .* remove it and run the same"):
        answers[SampleKey(1, 3)]


@pytest.mark.parametrize("harm", ["missing", "truncated", "emptied"])
def test_a_shard_that_is_not_whole_is_named_before_anything_is_trained(tmp_path: Path, harm: str) -> None:
    index = index_of()
    filled(tmp_path, index)
    file = tmp_path / "source01/epoch0000/000000003.safetensors"
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: -10 if harm == "truncated" else 0])
    answers = CachedAnswers(tmp_path, index)
    with pytest.raises(DataError) as error:
        answers.check_there([2, 1])
    assert f"{file}: {'missing' if harm == 'missing' else 'damaged'}" in str(error.value)
    assert "vmae2 distil-cache" in str(error.value)
    assert "\n" not in str(error.value)
    answers.check_there([2, 0])  # the others are as they were
    with pytest.raises(DataError, match=r"000000003"):
        answers[SampleKey(0, 3, 1)]


def test_a_shard_of_another_teacher_does_not_count(tmp_path: Path) -> None:
    filled(tmp_path, index_of(teacher={"weights": "other"}))
    index = index_of()
    (shard, *_) = index.shards((2, 1))
    assert why_unusable(tmp_path, index, shard) == "of another teacher or of other clips"


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "holds no answers"), ("{", "damaged or of another version"), ('{"format": 2}', "another version")],
)
def test_a_folder_without_an_index_is_refused_in_a_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / INDEX).write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_index(tmp_path)
    assert "\n" not in str(error.value)


def test_differences_are_named_to_the_leaf() -> None:
    one, other = index_of().clips, index_of(clips={"seed": 1, "data": {"size": 32, "views": 2}}).clips
    assert different(one, other) == ["seed: was 0, now 1", "data.views: was None, now 2"]
    assert different(one, one) == []
