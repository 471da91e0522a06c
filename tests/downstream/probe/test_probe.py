"""Probes against leave-one-out by hand, and what they say of features that are known to be good or worthless."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.downstream.probe import fit as probes
from vmae2_ds.downstream.probe.fit import PROBES, knn, ridge
from vmae2_ds.downstream.probe.folds import Features, probe_accuracy
from vmae2_ds.downstream.probe.frozen import FrozenEncoder, features_of, pixel_features, pixel_motion, pixel_tokens
from vmae2_ds.downstream.probe.trained import TrainedProbe
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.mae import MaskedAutoencoder


def clusters(videos: int, spread: float, seed: int = 0) -> Features:
    """Four classes around four points, from three sources."""
    rng = np.random.default_rng(seed)
    label_V = np.arange(videos) % 4
    centres = np.random.default_rng(7).standard_normal((4, 10))
    features = centres[label_V] + spread * rng.standard_normal((videos, 10))
    names = np.array([f"{number}.mp4" for number in range(videos)])
    return Features(features, label_V, np.array([f"s{number % 3}" for number in range(videos)]), names)


@pytest.mark.parametrize("name", sorted(set(PROBES) - {"attentive"}))
def test_clear_clusters_are_told_apart_and_noise_is_not(name: str) -> None:
    train, test = clusters(80, 0.3), clusters(40, 0.3, seed=1)
    assert probe_accuracy(train, test, PROBES[name]) == (1.0, 40)
    noise = train._replace(feature_VF=np.random.default_rng(3).standard_normal((80, 10)))
    accuracy, _ = probe_accuracy(noise, clusters(400, 0.3, seed=1), PROBES[name])
    assert accuracy < 0.45


def test_the_closed_leave_one_out_is_leave_one_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The penalty chosen is the one that fitting V times without one video chooses (with the offset fitted each time)."""
    left_out = []
    train = clusters(24, 1.5)
    features = (train.feature_VF - train.feature_VF.mean(0)) / train.feature_VF.std(0)
    targets = np.eye(4)[train.label_V]
    for alpha in probes.ALPHAS:
        wrong, error = 0, 0.0
        for left in range(24):
            kept = np.arange(24) != left
            x, y = features[kept], targets[kept]
            centred = x - x.mean(0)
            weight = np.linalg.solve(centred.T @ centred + alpha * np.eye(10), centred.T @ (y - y.mean(0)))
            predicted = (features[left] - x.mean(0)) @ weight + y.mean(0)
            wrong += int(predicted.argmax() != train.label_V[left])
            error += float(((predicted - targets[left]) ** 2).sum())
        left_out.append((wrong, error))
    assert len({wrong for wrong, _ in left_out}) > 1, "penalties that all name the same videos right choose nothing"
    expected = probes.ALPHAS[left_out.index(min(left_out))]
    tried: list[float] = []
    monkeypatch.setattr(
        probes, "min", lambda alphas, key: tried.append(min(alphas, key=key)) or tried[-1], raising=False
    )
    ridge(train, train.feature_VF, 4)
    assert tried == [expected]


def test_the_penalty_is_chosen_by_what_it_names_right_not_by_its_squared_error() -> None:
    """Much noise: the least squared error flattens everything and names one video in seven right, below chance."""
    label_V = np.repeat(np.arange(6), 14)
    right = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        weak = np.eye(6)[label_V] @ rng.standard_normal((6, 60)) + 6 * rng.standard_normal((84, 60))
        loud = 100 * rng.standard_normal((84, 3)) @ rng.standard_normal((3, 60))  # as the brightness of random encoders
        train = Features(weak + loud, label_V, np.array([f"s{number % 14}" for number in range(84)]), np.arange(84))
        right.append(probe_accuracy(train, None, ridge)[0])
    assert np.mean(right) > 0.2


def test_one_neighbour_is_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "NEIGHBOURS", 1)
    train = clusters(30, 1.0)
    assert (knn(train, train.feature_VF, 4) == train.label_V).all()


@pytest.mark.parametrize("shape", [(40, 10), (20, 60)])
def test_ridge_is_least_squares_on_what_the_training_set_alone_is_scaled_by(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Normal equations in the test, for two penalties; classes of unequal size, a channel that says nothing, and a test set
    that lies elsewhere."""
    videos, width = shape
    rng = np.random.default_rng(4)
    label_V = np.array([0, 0, 0, 0, 1, 2, 2, 3, 3, 3])[np.arange(videos) % 10]
    centres = 2 * rng.standard_normal((4, width)) + 100
    train_VF = (centres[label_V] + 4 * rng.standard_normal(shape)) * np.geomspace(0.01, 100, width)
    train_VF[:, 3] = 7.0
    deviation, mean = np.sqrt(((train_VF - train_VF.mean(axis=0)) ** 2).mean(axis=0)), train_VF.mean(axis=0)
    test_VF = mean + deviation * (0.5 + rng.standard_normal((200, width)))
    train = Features(train_VF, label_V, np.array(["all"] * videos), np.arange(videos).astype(str))
    deviation[3] = 1
    x, y = (train_VF - mean) / deviation, (label_V[:, None] == np.arange(4)).astype(float)
    found = []
    for alpha in (0.5, 30.0):
        monkeypatch.setattr(probes, "ALPHAS", (alpha,))
        weight = np.linalg.solve(x.T @ x + alpha * np.eye(width), x.T @ (y - y.mean(axis=0)))
        expected = ((test_VF - mean) / deviation @ weight + y.mean(axis=0)).argmax(axis=1)
        assert ridge(train, test_VF, 4).tolist() == expected.tolist()
        found.append(expected.tolist())
    assert len(set(found[0])) == 4
    assert found[0] != found[1]


def test_neighbours_vote_by_their_cosine() -> None:
    """DINO's rule in loops: of centred features the 20 nearest, each with the weight exp(cosine / 0.07)."""
    train = clusters(80, 3.0)
    train = train._replace(feature_VF=train.feature_VF + 3)
    test_VF = clusters(150, 3.0, seed=1).feature_VF + 3
    mean, expected, counted = train.feature_VF.mean(axis=0), [], []
    for video in test_VF - mean:
        cosines = []
        for other, label in zip(train.feature_VF - mean, train.label_V.tolist(), strict=True):
            cosines.append((float(video @ other / np.linalg.norm(video) / np.linalg.norm(other)), label))
        votes, heads = np.zeros(4), np.zeros(4)
        for cosine, label in sorted(cosines, reverse=True)[:20]:
            votes[label] += np.exp(cosine / 0.07)
            heads[label] += 1
        expected.append(int(votes.argmax()))
        counted.append(int(heads.argmax()))
    assert knn(train, test_VF, 4).tolist() == expected
    assert expected != counted, "weights that change no vote prove nothing"


@pytest.mark.parametrize("name", sorted(PROBES))
def test_what_a_probe_calls_a_video_does_not_depend_on_the_other_test_videos(name: str) -> None:
    """Alone, and among videos a thousand times as far away: nothing is standardised or chosen by the test set."""
    train, test = clusters(48, 1.0), clusters(12, 1.0, seed=1)
    fit = PROBES[name]
    if isinstance(fit, TrainedProbe):
        fit = replace(fit, epochs=2)
    if name == "attentive":
        train, test = (
            part._replace(feature_VF=np.repeat(part.feature_VF[:, None], 3, axis=1).astype(np.float16))
            for part in (train, test)
        )
    found = fit(train, test.feature_VF, 4)
    assert len(set(found.tolist())) > 1
    among = np.concatenate([test.feature_VF, 1000 + 50 * test.feature_VF])
    assert fit(train, among, 4)[:12].tolist() == found.tolist()
    assert [int(fit(train, test.feature_VF[[row]], 4)[0]) for row in (0, 1, 2)] == found[:3].tolist()


def test_every_source_is_left_out_once() -> None:
    train = clusters(30, 0.3)
    seen = []

    def fit(part: Features, test_VF: np.ndarray, num_classes: int) -> np.ndarray:
        seen.append((len(part.label_V), len(test_VF)))
        return np.zeros(len(test_VF), int)

    assert probe_accuracy(train, None, fit)[1] == 30
    assert seen == [(20, 10)] * 3
    alone = train._replace(source_V=np.array(["all"] * 30))
    with pytest.raises(ConfigError, match="has one source, 'all'"):
        probe_accuracy(alone, None, fit)


@pytest.fixture
def run() -> PretrainConfig:
    towers = {
        "encoder": TowerConfig(width=24, depth=2, heads=2, mlp=48),
        "decoder": TowerConfig(width=12, depth=1, heads=2, mlp=24),
    }
    return PretrainConfig(
        model=ModelConfig(**towers, patch=8),
        data=PretrainDataConfig(num_frames=8, size=32, sampling="spread", workers=0),
    )


def test_features_of_a_run_are_the_encoder_s_mean_tokens(run: PretrainConfig, tmp_path: Path) -> None:
    listed = write_synthetic_set(
        SynthArguments(folder=tmp_path, train_videos=6, val_videos=1, size=48, frames=12)
    ).train
    model = MaskedAutoencoder(run.model, run.geometry, seed=3)
    encoders = {
        "found": FrozenEncoder(run, dict(model.state_dict())),
        "random": FrozenEncoder(run, None, seed=3),
        "other": FrozenEncoder(run, None, seed=4),
    }
    features = features_of(run, encoders, listed, None, clips=1)
    found, random, other = (features[name] for name in encoders)
    assert found.feature_VF.shape == (6, 24)
    assert found.label_V.tolist() == list(range(6))
    np.testing.assert_array_equal(found.feature_VF, random.feature_VF)  # the same seed draws the same encoder
    assert not np.allclose(found.feature_VF, other.feature_VF)
    pixels = features_of(run, {"pixels": pixel_features}, listed, None, clips=2)["pixels"]
    assert pixels.feature_VF.shape == (6, 8 * 16 * 16)


def test_features_belong_to_their_videos_where_one_cannot_be_read(run: PretrainConfig, tmp_path: Path) -> None:
    """Row 1 of four is no video; the others' features are the means of their two clips, their tokens one clip after another."""
    made = write_synthetic_set(SynthArguments(folder=tmp_path, train_videos=4, val_videos=1, size=48, frames=12)).train
    (tmp_path / "text.mp4").write_text("no video\n")
    videos = [str(made.parent / "train" / f"{number:05d}.mp4") for number in (0, 2, 3)]
    run = run.model_copy(
        update={"data": run.data.model_copy(update={"stride": 1})}
    )  # clips of frames 0 to 7 and 4 to 11
    rows = [f"{videos[0]},5,a", f"{tmp_path / 'text.mp4'},6,b", f"{videos[1]},7,c", f"{videos[2]},8,d"]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["path,label,source", *rows]) + "\n")
    seen: list[torch.Tensor] = []

    def colours(clip_BTHWC: torch.Tensor) -> torch.Tensor:
        seen.append(clip_BTHWC)
        return clip_BTHWC.double().mean(dim=(1, 2, 3))

    def frames(clip_BTHWC: torch.Tensor) -> torch.Tensor:
        return clip_BTHWC.float().mean(dim=(2, 3))

    found = features_of(run, {"colours": colours, "frames": frames}, listed, None, clips=2)
    for features in found.values():
        assert features.label_V.tolist() == [5, 7, 8]
        assert features.source_V.tolist() == ["a", "c", "d"]
        assert features.path_V.tolist() == videos
    assert [len(clips) for clips in seen] == [2, 2, 2]
    for video, clips in enumerate(seen):
        one, other = (clip.double().mean(dim=(0, 1, 2)).numpy() for clip in clips)
        assert not np.allclose(one, other, rtol=1e-6)
        np.testing.assert_allclose(found["colours"].feature_VF[video], (one + other) / 2, rtol=1e-9)
        tokens = np.concatenate([clip.float().mean(dim=(1, 2)).numpy() for clip in clips])
        np.testing.assert_allclose(found["frames"].feature_VF[video], tokens, rtol=1e-3)


def test_a_single_frame_s_pixels_are_the_resized_grey_picture() -> None:
    clip_BTHWC = torch.full((1, 8, 32, 32, 3), 30, dtype=torch.uint8)
    clip_BTHWC[..., 1] = 60
    clip_BTHWC[..., 2] = 90
    torch.testing.assert_close(pixel_features(clip_BTHWC), torch.full((1, 2048), 60.0))


def test_motion_is_the_mean_change_of_tokens_in_each_cell(run: PretrainConfig) -> None:
    """By loops over places and steps; a clip that stands still has none but what the position table adds, the same anywhere."""
    encoder = FrozenEncoder(run, None, seed=3)
    clip_BTHWC = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = encoder._encode(clip_BTHWC).reshape(2, 4, 4, 4, 24)
    rows = {0: (0, 1), 1: (1, 2), 2: (2, 3)}  # of 4 places in 3 cells, as adaptive pooling shares them out
    for row, column, width in ((0, 0, 5), (2, 1, 23)):
        changes = [
            (tokens[1, step, y, x, width] - tokens[1, step - 1, y, x, width]).abs().item()
            for step in (1, 2, 3)
            for y in rows[row]
            for x in rows[column]
        ]
        found = encoder.motion(clip_BTHWC).reshape(2, 24, 3, 3)[1, width, row, column]
        assert found.item() == pytest.approx(np.mean(changes), rel=1e-5)
    still = pixel_motion(clip_BTHWC[:, :1].expand(-1, 8, -1, -1, -1))
    assert still.shape == (2, 9)
    assert not still.any()
    half = clip_BTHWC[:1].clone()
    half[:, ::2, 16:] = 0
    half[:, 1::2, 16:] = 90
    half[:, :, :16] = 30
    assert pixel_motion(half).reshape(3, 3)[:, 1].tolist() == pytest.approx([0, 45, 90], abs=2)


def test_motion_needs_two_steps(run: PretrainConfig) -> None:
    short = run.model_copy(update={"data": run.data.model_copy(update={"num_frames": 2, "min_frames": 2})})
    with pytest.raises(ConfigError, match="2 frames are one step of tokens: nothing moves; pool mean"):
        FrozenEncoder(short, None).motion(torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8))


def test_tokens_of_a_run_are_the_encoder_s_scaled(run: PretrainConfig, tmp_path: Path) -> None:
    """Two clips give their tokens one after another; each has mean 0 and deviation 1, as half precision holds any encoder's."""
    listed = write_synthetic_set(
        SynthArguments(folder=tmp_path, train_videos=2, val_videos=1, size=48, frames=12)
    ).train
    encoder = FrozenEncoder(run, None, seed=3)
    tokens = features_of(run, {"tokens": encoder.tokens}, listed, None, clips=2)["tokens"].feature_VF
    assert (tokens.dtype, tokens.shape) == (np.float16, (2, 2 * 64, 24))
    np.testing.assert_allclose(tokens.astype(float).mean(axis=2), 0, atol=1e-3)
    np.testing.assert_allclose(tokens.astype(float).std(axis=2), 1, atol=2e-3)
    clip_BTHWC = torch.randint(0, 256, (1, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = encoder.tokens(clip_BTHWC)
    assert found.shape == (1, 64, 24)
    # a drawn encoder's final norm has no weights of its own yet
    torch.testing.assert_close(found.mean(dim=1), encoder(clip_BTHWC), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patch", [4, 16])
def test_a_token_of_pixels_is_its_cube_and_its_place(patch: int) -> None:
    """Where only one cube is not flat, only its token depends on what is in it, averaged to 8 pixels; places differ."""
    geometry = ClipGeometry(4, 32, 32, 2, patch)
    tokens = pixel_tokens(geometry)
    flat_BTHWC = torch.full((1, 4, 32, 32, 3), 90, dtype=torch.uint8)
    changed_BTHWC = flat_BTHWC.clone()
    changed_BTHWC[:, 2:, 16:, :16][:, :, :patch, :patch] = 200
    changed_BTHWC[:, 2:, 16 : 16 + patch // 2, : patch // 2] = 10
    before, after = tokens(flat_BTHWC), tokens(changed_BTHWC)
    per_row = 32 // patch
    place = per_row**2 + (16 // patch) * per_row
    assert before.shape == (1, geometry.num_cubes, 2 * min(patch, 8) ** 2)
    moved = (before != after).any(dim=-1)[0].nonzero().flatten().tolist()
    assert moved == [place]
    assert len({tuple(token.tolist()) for token in before[0]}) == geometry.num_cubes
