"""Evaluation and validation against means of softmaxes by hand: eleven videos, nine views each, on one rank and on three."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests import by_hand
from tests.data.stand_in import StandInReader, listed
from vmae2_ds.config.finetune import FinetuneConfig, FinetuneTrainConfig, LabelledDataConfig, ViewsConfig
from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.feed.views import ViewsDataset
from vmae2_ds.data.sources.manifest import read_manifest
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.classify.evaluate import score_videos
from vmae2_ds.downstream.classify.scores import Scores
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.objectives import Classify
from vmae2_ds.runs.open import classifier_of
from vmae2_ds.train.validate import Validation

ROWS, BAD, CLASSES, LENGTH, HEIGHT, WIDTH = 11, (4, 6), 8, 30, 32, 43
SHAPE = by_hand.Shape(depth=2, heads=2, patch=8)

# Every second frame of 30 is 15 frames, of which a clip has 4: starts 0, 5.5 and 11, rounded down.
CLIPS = [[0, 2, 4, 6], [10, 12, 14, 16], [22, 24, 26, 28]]
MIDDLE_CLIP = [10, 12, 14, 16]  # (15 - 4) / 2 = 5.5, rounded down
# 11 columns are left beside a square.
LEFTS = [0, 5, 11]
MIDDLE_LEFT = 5
# While training: 8 frames around the middle, 11 to 19, in three steps of 8/3; the last is the one before their end.
VALIDATED_CLIP = [11, 13, 16, 18]


def frames_of(entry: VideoEntry, index_T: np.ndarray) -> np.ndarray:
    """Noise around a colour of each frame's own."""
    row = int(Path(entry.path).stem.removeprefix("v"))
    frames = []
    for index in index_T:
        rng = np.random.default_rng((row, index))
        noise = rng.integers(-60, 61, (HEIGHT, WIDTH, 3)) + rng.integers(60, 196, 3)
        frames.append(noise.astype(np.uint8))
    return np.stack(frames)


def name_of(row: int) -> str:
    return f"bad{row}" if row in BAD else f"v{row}"


def label_of(row: int) -> int:
    return row * 3 % CLASSES


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> FinetuneConfig:
    """Of a list whose rows 4 and 6 cannot be read: of three ranks, one of the first's and one of the second's."""
    rows = [f"{name_of(row)}.mp4,{label_of(row)}" for row in range(ROWS)]
    path = listed(tmp_path_factory.mktemp("list"), rows)
    tower = TowerConfig(width=24, depth=2, heads=2, mlp=48)
    return FinetuneConfig(
        model=ClassifierConfig(encoder=tower, patch=8, num_classes=CLASSES, drop_path=0.5, head_dropout=0.5),
        data=LabelledDataConfig(val_manifest=path, num_frames=4, size=HEIGHT, stride=2, views=2, workers=0),
        train=FinetuneTrainConfig(micro_batch=2, precision="fp32"),
        test=ViewsConfig(clips=3, crops=3, views_at_once=4),
    )


@pytest.fixture(scope="module")
def objective(config: FinetuneConfig) -> Classify:
    """For inference, with random weights, so that views are told apart."""
    model = Classifier(config.model, config.geometry)
    rng = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=rng)
    return classifier_of(config, model.state_dict())


def dataset_of(config: FinetuneConfig, views: ViewsConfig | None) -> tuple[ViewsDataset, StandInReader]:
    assert config.data.val_manifest is not None
    dataset = ViewsDataset(config, read_manifest(config.data.val_manifest), views)
    dataset._reader = StandInReader(frames_of, LENGTH)  # type: ignore[assignment]
    return dataset, dataset._reader  # type: ignore[return-value]


def logits_by_hand(objective: Classify, row: int, clip: list[int], left: int) -> np.ndarray:
    weights = {name.removeprefix("model."): p.detach().double() for name, p in objective.named_parameters()}
    frames = frames_of(VideoEntry(f"v{row}.mp4", None, "", 0, None), np.array(clip))[:, :, left : left + HEIGHT]
    return by_hand.logits(by_hand.normalised(torch.from_numpy(frames)[None]), weights, SHAPE)[0].numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


@pytest.fixture(scope="module")
def expected(objective: Classify) -> dict[int, np.ndarray]:
    """Row -> the mean over nine views, in float64."""
    found = {}
    for row in (row for row in range(ROWS) if row not in BAD):
        views = [softmax(logits_by_hand(objective, row, clip, left)) for clip in CLIPS for left in LEFTS]
        assert np.abs(np.diff(views, axis=0)).max(axis=1).min() > 1e-3, "views that say the same prove nothing"
        found[row] = np.mean(views, axis=0)
    return found


@dataclass(frozen=True)
class Together(Ranks):
    """Ranks that run one after another, the first one last: what the others gave waits for it."""

    given: dict[int, Any] = field(default_factory=dict)

    def gather(self, value: Any) -> Any:
        self.given[self.rank] = value
        return None if self.rank else [self.given[rank] for rank in sorted(self.given)]

    def sum(self, *values: float) -> list[float]:
        self.given[self.rank] = values
        return [math.fsum(column) for column in zip(*self.given.values(), strict=True)]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("views_at_once", [4, 9, 1])
def test_a_video_s_scores_are_the_mean_softmax_of_all_its_views(
    config: FinetuneConfig,
    objective: Classify,
    expected: dict[int, np.ndarray],
    ranks: int,
    views_at_once: int,
) -> None:
    """Eleven rows, not a multiple of three ranks, and nine views, not a multiple of four; float32 against float64."""
    scores: Scores | None = None
    given: dict[int, Any] = {}
    for rank in reversed(range(ranks)):
        dataset, reader = dataset_of(config, config.test)
        scores = score_videos(objective, dataset, views_at_once, Together(rank, size=ranks, given=given))
        assert (scores is None) == (rank > 0)
        assert reader.read_names == [name_of(row) for row in range(rank, ROWS, ranks)]
    assert scores is not None
    assert scores.row_N.tolist() == sorted(expected) == [0, 1, 2, 3, 5, 7, 8, 9, 10]
    assert scores.label_N.tolist() == [label_of(row) for row in sorted(expected)]
    assert [Path(failure.partition(":")[0]).name for failure in scores.failures] == ["bad4.mp4", "bad6.mp4"]
    np.testing.assert_allclose(scores.score_NC, [expected[row] for row in sorted(expected)], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", ["videos scored", "videos validated"])
def test_one_long_forward_pass_does_not_keep_it_silent(
    what: str, config: FinetuneConfig, objective: Classify, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pass does not end before a line has come; a video's second chunk of views says how far the first came."""
    for name in ("TELL_EVERY_S", "REDRAW_EVERY_S"):
        monkeypatch.setattr(f"vmae2_ds.console.progress.{name}", 0.001)
    awaited = [f"0 of 11 {what}"] + [f"0 of 11 {what}; of the next 4 of 9 views"] * (what == "videos scored")
    said = {line: threading.Event() for line in awaited}

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (event := said.get(record.getMessage())) is not None:
                event.set()

    def wait(*_: Any) -> None:
        if awaited:
            assert said[awaited.pop(0)].wait(60)

    log, handler = logging.getLogger("vmae2_ds"), Heard()
    before = log.level
    log.setLevel(logging.INFO)  # an assignment would leave what the loggers below it have cached
    log.addHandler(handler)
    hook = objective.model.register_forward_pre_hook(wait)
    try:
        if what == "videos scored":
            score_videos(objective, dataset_of(config, config.test)[0], 4, Ranks())
        else:
            validation = Validation(config, dataset_of(config, None)[0].manifest, Ranks())
            validation.dataset, _ = dataset_of(config, None)
            engine: Any = SimpleNamespace(objective=objective, device=torch.device("cpu"))
            validation.run(engine)
    finally:
        hook.remove()
        log.removeHandler(handler)
        log.setLevel(before)
        objective.eval()
    assert not awaited


def test_one_view_is_the_middle_clip_s_middle_crop(config: FinetuneConfig, objective: Classify) -> None:
    dataset, reader = dataset_of(config, ViewsConfig(clips=1, crops=1))
    scores = score_videos(objective, dataset, 8, Ranks())
    assert scores is not None
    assert reader.chosen[0] == MIDDLE_CLIP
    found = [softmax(logits_by_hand(objective, row, MIDDLE_CLIP, MIDDLE_LEFT)) for row in scores.row_N.tolist()]
    np.testing.assert_allclose(scores.score_NC, found, rtol=1e-4, atol=1e-6)


def test_views_of_a_part_at_its_source_s_stride_lie_in_it(config: FinetuneConfig, tmp_path: Path) -> None:
    """Frames 10 to 24: every third is 10, 13, 16, 19, 22, of which two clips of four start at the first and the second."""
    path = listed(tmp_path, ["v0.mp4,0,10,15,far", "v1.mp4,0,10,,far"], "path,label,start,frames,source")
    config = config.changed(data={"source_strides": {"far": 3}})
    dataset = ViewsDataset(config, read_manifest(path), ViewsConfig(clips=2, crops=2))
    dataset._reader = reader = StandInReader(frames_of, LENGTH)  # type: ignore[assignment]
    clips = dataset[0].clip_KTHWC
    assert clips is not None
    assert reader.chosen[0] == [10, 13, 16, 19, 22]
    entry, _ = dataset.manifest
    for view, (clip, left) in enumerate([(c, x) for c in ([10, 13, 16, 19], [13, 16, 19, 22]) for x in (0, 11)]):
        assert np.array_equal(clips[view], frames_of(entry, np.array(clip))[:, :, left : left + HEIGHT])
    dataset[1]
    # to the video's end: 10, 13 .. 28 are seven, the second clip starts at the fourth
    assert reader.chosen[1] == [10, 13, 16, 19, 22, 25, 28]


@pytest.mark.parametrize("ranks", [1, 3])
def test_validation_is_accuracy_and_mean_loss_of_the_middle_clips(
    config: FinetuneConfig, objective: Classify, ranks: int
) -> None:
    """Eleven rows in batches of four clips: three on one rank; one on each of three, though the last has three rows."""
    given: dict[int, Any] = {}
    found, passes = {}, []
    for rank in reversed(range(ranks)):
        validation = Validation(config, dataset_of(config, None)[0].manifest, Together(rank, size=ranks, given=given))
        validation.dataset, reader = dataset_of(config, None)
        engine: Any = SimpleNamespace(objective=objective, device=torch.device("cpu"))
        counted: list[int] = []
        hook = objective.model.register_forward_hook(lambda _module, _inputs, out, to=counted: to.append(len(out)))
        objective.train()  # as a step leaves it: dropout and stochastic depth would draw
        found = validation.run(engine)
        hook.remove()
        assert objective.training, "handed back for the next step"
        objective.eval()
        assert set(map(tuple, reader.chosen)) == {tuple(VALIDATED_CLIP)}
        passes.append(counted)
    assert passes == ([[4, 4, 3]] if ranks == 1 else [[4]] * 3)
    rows = [row for row in range(ROWS) if row not in BAD]
    losses, right, of_five = [], [], []
    for row in rows:
        logits, label = logits_by_hand(objective, row, VALIDATED_CLIP, MIDDLE_LEFT), label_of(row)
        losses.append(-math.log(softmax(logits)[label]))
        ahead = int((logits > logits[label]).sum())
        right.append(ahead == 0)
        of_five.append(ahead < 5)
    assert 0 < sum(of_five) < 9
    assert (found["val_videos"], found["val_unreadable"]) == (9, 2)
    assert found["val_top1"] == pytest.approx(np.mean(right))
    assert found["val_top5"] == pytest.approx(np.mean(of_five))
    assert found["val_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
