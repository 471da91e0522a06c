"""The loss on held-back videos, against a sum in float64 over the model's plain forward pass, clip by clip; and its warning."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.stand_in import StandInReader, listed
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.contracts import PretrainBatch
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.sources.inputs import Inputs
from vmae2_ds.data.sources.manifest import Manifest, read_manifest
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.dist import Ranks
from vmae2_ds.masking import make_masks
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct
from vmae2_ds.train.held_back import HeldBackLoss, held_back_loss
from vmae2_ds.train.metrics import MetricsWriter
from vmae2_ds.train.validate import ScheduledValidation

EDGE, FRAMES, HELD, TRAINED = 32, 8, 7, 17
MASKS = {"published": {"encoder_ratio": 0.75}, "varying": {"encoder": "random", "decoder": "random"}}


def config_of(masks: str, context_weight: float = 0.0, **train: Any) -> PretrainConfig:
    small = {"width": 32, "depth": 2, "heads": 2, "mlp": 64}
    return PretrainConfig(
        model=ModelConfig.of_size("tiny", drop_path=0.5, encoder=small, decoder={**small, "depth": 1}),
        mask=MASKS[masks],
        objective={"context_weight": context_weight},
        data={"num_frames": FRAMES, "size": EDGE, "stride": 2, "views": 3, "workers": 0, "flip": 1.0},
        train=train,
    )


def frames_of(entry: VideoEntry, index_T: np.ndarray) -> np.ndarray:
    name = np.frombuffer(blake2b(Path(entry.path).name.encode(), digest_size=4).digest(), np.uint32)
    film = np.random.default_rng(int(name[0])).integers(0, 256, (40, EDGE, EDGE, 3), dtype=np.uint8)
    return film[index_T]


@pytest.fixture(params=sorted(MASKS))
def masks(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def videos(tmp_path: Path) -> tuple[Manifest, Manifest]:
    """Held back and trained on; one of each cannot be read."""
    lists = []
    for kind, count, bad in (("held", HELD, 3), ("trained", TRAINED, 8)):
        (tmp_path / kind).mkdir()
        rows = [f"{'bad' if row == bad else kind}{row}.mp4" for row in range(count)]
        lists.append(read_manifest(listed(tmp_path / kind, rows, "path")))
    return lists[0], lists[1]


@pytest.fixture
def objective(masks: str) -> Reconstruct:
    """The loss of validation is that of hidden cubes, whatever weight others have."""
    config = config_of(masks, context_weight=0.5)
    return Reconstruct(MaskedAutoencoder(config.model, config.geometry), config.objective, config.geometry)


@dataclass(frozen=True)
class Together(Ranks):
    """Ranks that run one after another, the first one last: sums by how often they were asked for."""

    given: dict[int, list[tuple[float, ...]]] = field(default_factory=dict)

    def sum(self, *values: float) -> list[float]:
        mine = self.given.setdefault(self.rank, [])
        mine.append(values)
        return [math.fsum(column) for column in zip(*(of[len(mine) - 1] for of in self.given.values()), strict=True)]


def by_hand(objective: Reconstruct, config: PretrainConfig, manifest: Manifest, rows: list[int]) -> float:
    """Squared error of every hidden decoded cube, its target made of pixels cut here, in float64; their mean."""
    errors = []
    middle = 12 + np.array([0, 2, 4, 6, 9, 11, 13, 15])  # the middle 16 of 40 frames, 8 of them
    for row in rows:
        video = manifest.listed(row)
        number = int.from_bytes(blake2b(f"{video.path} 0".encode(), digest_size=8).digest(), "big")
        mask = make_masks(config.mask, config.geometry, np.random.default_rng((11, 0, 0, number, 0, 0, 0)))
        clip_THWC = frames_of(manifest[row], middle)
        batch = PretrainBatch.of_clips(torch.from_numpy(clip_THWC)[None], [mask])
        with torch.no_grad():
            visible = objective.visible_cubes(batch)
            pred_MP = objective.model(visible, batch.visible_BV, batch.decode_BM)[0].double().numpy()
        patch = config.model.patch
        grid = (FRAMES // 2, 2, EDGE // patch, patch, EDGE // patch, patch, 3)
        cubes_NKC = clip_THWC.reshape(grid).transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, 2 * patch**2, 3) / 255.0
        target_NKC = (cubes_NKC - cubes_NKC.mean(1, keepdims=True)) / (cubes_NKC.std(1, ddof=1, keepdims=True) + 1e-6)
        for pred_P, cube, is_hidden in zip(pred_MP, mask.decode_M, mask.is_supervised_M, strict=True):
            if is_hidden:
                errors.append(float(((pred_P - target_NKC[cube].ravel()) ** 2).mean()))
    return math.fsum(errors) / len(errors)


@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 1), (1, 4), (2, 1), (3, 1), (3, 2)])
def test_losses_are_the_mean_over_hidden_cubes_on_any_ranks_and_at_any_batch(
    objective: Reconstruct,
    masks: str,
    videos: tuple[Manifest, Manifest],
    ranks: int,
    micro_batch: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Seven videos of which one is bad, three to twelve clips at once: shards are short, batches are not full."""
    config = config_of(masks, micro_batch=micro_batch, seed=ranks)
    held, trained = (Mixture.of_manifest(manifest, "pyav") for manifest in videos)
    given: dict[int, list[tuple[float, ...]]] = {}
    found: dict[str, Any] = {}
    batches = []
    for rank in reversed(range(ranks)):
        looked = HeldBackLoss(config, held, trained, Together(rank, size=ranks, given=given))
        for clips in (looked._held, looked._seen):
            clips._reader = StandInReader(frames_of, 40)  # type: ignore[assignment]
        engine: Any = SimpleNamespace(objective=objective, device=torch.device("cpu"))
        counted: list[int] = []
        hook = objective.model.register_forward_hook(lambda _module, _inputs, out, to=counted: to.append(len(out)))
        objective.train()  # as a step leaves it: stochastic depth would draw
        found = looked.run(engine)
        hook.remove()
        assert objective.training, "handed back for the next step"
        batches.append(counted)
    at_once = 3 * micro_batch
    passes = math.ceil(math.ceil(HELD / ranks) / at_once)
    assert batches == [[at_once] * 2 * passes] * ranks, "as many passes on every rank"
    assert (found["val_videos"], found["val_unreadable"]) == (6, 1)
    told = f"1 of 7 videos for validation, of {videos[0].file}, cannot be read and count in no loss: vmae2 data check"
    assert sum(told in line for line in caplog.messages) == 1
    objective.eval()
    held_rows = [row for row in range(HELD) if row != 3]
    seen_rows = [row for place in range(HELD) if (row := int((place + 0.5) * TRAINED / HELD)) != 8]
    assert found["val_loss"] == pytest.approx(by_hand(objective, config, videos[0], held_rows), rel=1e-6)
    assert found["seen_loss"] == pytest.approx(by_hand(objective, config, videos[1], seen_rows), rel=1e-6)
    assert len(seen_rows) == 6


def waves_of(entry: VideoEntry, index_T: np.ndarray) -> np.ndarray:
    """A wave, somewhat brighter in one film than in the other: what is learnt of some holds for all."""
    bright = sum(Path(entry.path).name.encode()) % 40
    frame, line, column = np.meshgrid(index_T / 16, np.arange(EDGE) / 8, np.arange(EDGE) / 8, indexing="ij")
    wave = np.sin(line + column + frame)
    return (107 + bright + 100 * np.repeat(wave[..., None], 3, axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("pictures", [frames_of, waves_of])
def test_noise_is_learned_by_heart_and_said_so_once_and_waves_are_not(
    tmp_path: Path, videos: tuple[Manifest, Manifest], caplog: pytest.LogCaptureFixture, pictures: Any
) -> None:
    """Noise has nothing to learn but itself. A plain loop of AdamW on the clips; a resumed run has said it already."""
    config = config_of("published", keep_best="val_loss", epochs=30, validate_every=3)
    mixtures = [Mixture.of_manifest(manifest, "pyav") for manifest in videos]
    looked = HeldBackLoss(config, mixtures[0], mixtures[1], Ranks())
    for clips in (looked._held, looked._seen):
        clips._reader = StandInReader(pictures, 40)  # type: ignore[assignment]
    torch.manual_seed(0)
    objective = Reconstruct(MaskedAutoencoder(config.model, config.geometry), config.objective, config.geometry)
    engine: Any = SimpleNamespace(objective=objective, device=torch.device("cpu"))
    found = [clip for row in range(TRAINED) if (clip := looked._seen[SampleKey(0, row)]) is not None]
    clips_BTHWC = torch.cat([clip.clip_BTHWC for clip in found])
    optimizer = torch.optim.AdamW(objective.parameters(), lr=6e-3)
    plan = plan_run(config.changed(train={"global_batch": 48, "micro_batch": 16}), 16, 1)  # a step is a pass
    file = tmp_path / "validation.jsonl"

    def scheduled(first_step: int = 0) -> ScheduledValidation:
        return ScheduledValidation(looked.run, config, plan, MetricsWriter(file, None, first_step), first=True)

    validation = scheduled()
    assert validation.are_first(0, Ranks())
    validation.run(0, engine)
    assert not validation.are_first(0, Ranks())
    for step in range(1, 31):
        optimizer.zero_grad()
        masks = [
            make_masks(config.mask, config.geometry, np.random.default_rng((step % 3, row)))
            for row in range(len(found))
        ]
        objective(PretrainBatch.of_clips(clips_BTHWC, masks)).loss.backward()
        optimizer.step()
        if validation.are_due(step):
            validation.run(step, engine)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(0, 31, 3))
    assert rows[-1]["seen_loss"] < rows[0]["seen_loss"]
    said = [line for line in caplog.messages if "by heart" in line]
    if pictures is waves_of:
        assert rows[-1]["val_loss"] < rows[0]["val_loss"]
        assert not said
        return
    best = min(rows, key=lambda row: row["val_loss"])
    over = [row for row in rows if row["step"] > best["step"] and row["val_loss"] >= 1.01 * best["val_loss"]]
    (warning,) = said
    told = f"at step {over[1]['step']} val_loss is {over[1]['val_loss']:.4g}"
    told += f", {over[1]['val_loss'] / best['val_loss'] - 1:.1%} above its best, {best['val_loss']:.4g} at step {best['step']} "
    told += f"({best['step']} passes over the data), while seen_loss fell from {best['seen_loss']:.4g} to "
    assert warning.startswith(f"the videos are learned by heart: {told}")
    assert warning.endswith(
        f"the best checkpoint is kept; next time fewer passes (--train.epochs {best['step']}), more varied crops "
        "(--data.crop-scales 1 0.875 0.75 0.66 0.5), or more videos"
    )
    caplog.clear()
    scheduled(30).run(31, engine)
    assert "by heart" not in caplog.text, "a resumed run has said it already"
    cut = scheduled(over[0]["step"])
    cut.run(32, engine)
    assert "learned by heart: at step 32" in caplog.text, "the row before the cut counts"
    cut.go_back(over[0]["step"])
    cut.run(33, engine)
    assert "learned by heart: at step 33" in caplog.text, "a rollback takes back what was found"


def test_a_run_without_validation_or_with_one_of_trained_videos_is_told_and_a_plain_one_is_not(
    videos: tuple[Manifest, Manifest], caplog: pytest.LogCaptureFixture
) -> None:
    config, trained = config_of("published"), Mixture.of_manifest(videos[1], "pyav")

    def said(config: PretrainConfig, validation: Manifest | None) -> list[str]:
        caplog.clear()
        looked = held_back_loss(config, Inputs({}, trained, validation), Ranks())
        assert (looked is None) == (validation is None)
        return [record.getMessage() for record in caplog.records]

    assert said(config, None) == []
    assert said(config, videos[0]) == []
    (line,) = said(config.changed(data={"hold_back": 0.01}), None)
    assert line.startswith(
        "no validation: --data.hold-back 0.01 holds back none of 17 videos, which their paths decide; raise"
    )
    (line,) = said(config, videos[1])
    assert line.startswith("--data.val-manifest: 17 videos of it are trained on too, such as ")
