"""What the reading benchmarks time: videos that are what their rows say, the same frames for every reader, real samples."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from benchmarks.case import Bench, Options
from benchmarks.cases import data
from benchmarks.record import Row
from benchmarks.scenes import draw_scene, width_of, write_scene
from tests.data.frames import read_frames
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.flops import mae_macs, recomputed_macs, training_flops
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.data.clips.crops import CropBox
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import PretrainDataset
from vmae2_ds.data.sources.mixture import open_mixture
from vmae2_ds.recipes import get_recipe

QUICK = Bench(Options(device="cpu", rounds=2, warmup=0, quick=True))
HEIGHT = 48  # small: what is read does not depend on it


def ran(rows: list[Row]) -> dict[str, Row]:
    assert all(row["error"] is None for row in rows), [row["error"] for row in rows]
    return {row["variant"]: row for row in rows}


@pytest.mark.parametrize("gop", [16, 250])
def test_videos_have_the_size_length_and_key_frames_asked_for(tmp_path: Path, gop: int) -> None:
    path = tmp_path / "scene.mp4"
    write_scene(path, HEIGHT, 64, gop)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (HEIGHT, width_of(HEIGHT))
        is_key = [packet.is_keyframe for packet in container.demux(stream) if packet.size]
    assert len(is_key) == 64
    assert np.flatnonzero(is_key).tolist() == list(range(0, 64, gop))


def test_scenes_move_and_look_like_what_was_stored(tmp_path: Path) -> None:
    drawn = np.stack(list(draw_scene(HEIGHT, width_of(HEIGHT), 32))).astype(float)
    change = abs(drawn[1:] - drawn[:-1]).mean(axis=(1, 2, 3))
    assert change.min() > 1
    assert (width_of(240), width_of(480), width_of(720)) == (426, 854, 1280)
    path = tmp_path / "scene.mp4"
    write_scene(path, HEIGHT, 32, 16)
    stored = read_frames(path, np.arange(32))
    # crf 20 and colours at half the resolution: nearer to its own frame than to the next
    assert abs(stored - drawn).mean() < abs(stored[1:] - drawn[:-1]).mean()


def test_readers_decode_the_same_frames_of_both_kinds_of_video(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[str, str], list[np.ndarray]] = {}
    inner = data.read_clip

    def noted(path: Path, choose: object, reader: str) -> np.ndarray:
        frames = inner(path, choose, reader)  # type: ignore[arg-type]
        seen.setdefault((path.name, reader), []).append(frames)
        return frames

    monkeypatch.setattr(data, "read_clip", noted)
    rows = ran(data.measure_decode(QUICK, HEIGHT))
    assert set(rows) == {f"{reader} gop {gop}" for reader in ("decord", "pyav") for gop in (16, 250)}
    for gop in (16, 250):
        decord, pyav = (seen[f"{HEIGHT}p_gop_{gop}.mp4", reader] for reader in ("decord", "pyav"))
        assert decord[0].shape == (16, HEIGHT, width_of(HEIGHT), 3)
        assert all(np.array_equal(one, other) for one, other in zip(decord, pyav, strict=True))
    for row in rows.values():
        assert row["config"]["file_bytes"] > 0
        assert row["values"]["clips_per_s"] * row["time_s"]["median"] == pytest.approx(1)
    assert rows["decord gop 16"]["config"]["file_bytes"] > rows["decord gop 250"]["config"]["file_bytes"]


def test_clips_are_spread_over_the_whole_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[np.ndarray] = []
    monkeypatch.setattr(data, "read_clip", lambda path, choose, reader: asked.append(choose(300, 30.0)))
    data.decode_step(tmp_path, "decord", starts=4)()
    assert [indices[0] for indices in asked] == [29, 88, 147, 206]  # of 0 to 236
    assert all(np.array_equal(np.diff(indices), np.full(15, 4)) for indices in asked)
    assert asked[-1].max() < 300


def test_crops_are_the_recipe_s_and_the_same_boxes_at_every_height(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: dict[int, list[np.ndarray]] = {}
    shapes = set()
    inner = data.crop_resize

    def noted(frames_THWC: np.ndarray, box: CropBox, size: int) -> torch.Tensor:
        height = frames_THWC.shape[1]
        boxes.setdefault(height, []).append(np.array(box) / height)
        clip_THWC = inner(frames_THWC, box, size)
        shapes.add((tuple(clip_THWC.shape), clip_THWC.dtype))
        return clip_THWC

    monkeypatch.setattr(data, "crop_resize", noted)
    rows = ran(data.measure_transform(QUICK))
    assert list(rows) == ["240p", "480p", "720p"]
    assert shapes == {((16, 224, 224, 3), torch.uint8)}
    assert len(boxes[240]) == 2 * 8
    for height in (480, 720):  # offsets and edges are whole pixels
        np.testing.assert_allclose(boxes[height], boxes[240], atol=5 / 240)


@pytest.mark.parametrize("views", [1, 4])
def test_the_loader_delivers_as_many_clips_whatever_the_views(tmp_path: Path, views: int) -> None:
    write_scene(tmp_path / "scene.mp4", HEIGHT, 64, 16)
    (tmp_path / "videos.csv").write_text("path\n" + "scene.mp4\n" * 4)
    config = data.loader_config(tmp_path / "videos.csv", views, clips=4)
    loaded = next(
        make_loader(
            config,
            PretrainDataset(config, open_mixture(config.data)),
            rank=0,
            world_size=1,
            accumulation=1,
            first_step=0,
            num_steps=1,
        )
    )
    assert loaded.batch.clip_BTHWC.shape == (4, 16, 224, 224, 3)
    assert loaded.batch.visible_BV.shape == (4, 160)
    assert sum(loaded.sources.values()) == 4 // views
    assert not loaded.failures


def test_loader_rows_carry_the_planner_s_prior_and_the_cores_that_follow() -> None:
    rows = ran(data.measure_loader(QUICK, HEIGHT, gop=16))
    measured = {name: row for name, row in rows.items() if row["kind"] == "measured"}
    assert list(measured) == [f"views {views}" for views in (1, 2, 4, 8)]
    for views, row in zip((1, 2, 4, 8), measured.values(), strict=True):
        assert row["config"]["videos"] * views == row["config"]["clips_in_a_call"]
        assert row["predicted"]["time_s"] == pytest.approx(0.055 / views + 0.0035)  # cost/assumptions.py
        assert row["residual"]["time"] == pytest.approx(row["predicted"]["time_s"] / row["time_s"]["median"] - 1)
    modelled = [row for row in rows.values() if row["kind"] == "modelled"]
    assert len(modelled) == 4
    for row in modelled:
        values = row["values"]
        assert row["samples_s"] == []
        assert values["clips_per_s_per_core"] == measured["views 4"]["values"]["clips_per_s"]
        assert values["cores"] * values["clips_per_s_per_core"] == pytest.approx(values["accelerator_clips_per_s"])
        assert values["cores_low"] < values["cores"] < values["cores_high"]


@pytest.mark.parametrize("key", data.ACCELERATORS)
@pytest.mark.parametrize("size", data.RECIPES)
def test_accelerators_are_as_fast_as_a_share_of_their_peak_allows(key: str, size: str) -> None:
    rates, assumed = data.accelerator_rates(key, data.RECIPES[size])
    model = get_recipe("pretrain", data.RECIPES[size]).model
    visible, decode = {"base": (160, 784), "giant": (208, 1024)}[size]  # docs/PAPER.md#sizes; half of 1568, or of 2048
    macs = mae_macs(model, ClipGeometry(16, 224, 224, 2, model.patch), visible, decode).total
    flops = training_flops(macs, recomputed_macs(model, visible, decode))
    peak = get_accelerator(key).peak_flops("bf16")
    assert peak is not None
    shares = {suffix: rate * flops / peak for suffix, rate in rates.items()}
    # Assumptions.matmul_efficiency is 0.35 to 0.65 of the peak; everything else a step does only takes from that
    assert 0.15 < shares["_low"] < shares[""] < shares["_high"] < 0.65
    assert assumed["batch_size"] == 128
    assert model == ModelConfig.of_size(size, checkpointing=assumed["checkpointing"])
