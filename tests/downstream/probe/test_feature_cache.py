"""Features kept on disk are the ones that would be made now, and are made anew where anything differs; the verb as a whole."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.downstream.probe.test_probe import run  # noqa: F401  # the fixture
from vmae2_ds import disk
from vmae2_ds.config.model import SIZES, ClassifierConfig, ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.console import progress
from vmae2_ds.data.tools.synthetic import SynthArguments, SyntheticSet, write_synthetic_set
from vmae2_ds.downstream.probe import feature_cache as kept
from vmae2_ds.downstream.probe import frozen
from vmae2_ds.downstream.probe.fit import PROBES
from vmae2_ds.downstream.probe.frozen import FrozenEncoder, features_of, pixel_features
from vmae2_ds.downstream.probe.probe import ProbeArguments, describe, probe
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import our_shapes, to_layout


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return write_synthetic_set(
        SynthArguments(folder=tmp_path_factory.mktemp("clips"), train_videos=24, val_videos=4, size=48, frames=12)
    )


def test_what_is_kept_is_what_would_be_made(
    run: PretrainConfig,  # noqa: F811
    clips: SyntheticSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Vectors and tokens; a video that cannot be read; another clip, list or encoder makes them anew, the same one does not."""
    listed = tmp_path / "list.csv"
    videos = [f"{clips.train.parent}/train/{number:05d}.mp4,{number}" for number in range(6)]
    listed.write_text("\n".join(["path,label", videos[0], "none.mp4,3", *videos[1:]]) + "\n")
    encoder = FrozenEncoder(run, None, seed=3)
    encoders = {"vectors": encoder, "tokens": encoder.tokens, "pixels": pixel_features}
    makers = {name: f"{name} {encoder.identity}" for name in encoders}
    calls: list[set[str]] = []

    def counted(run: Any, missing: Any, *more: Any) -> Any:
        calls.append(set(missing))
        return features_of(run, missing, *more)

    monkeypatch.setattr(kept, "features_of", counted)

    def kept_now(run: PretrainConfig, **changes: str) -> Any:
        return kept.kept_features(tmp_path / "kept", makers | changes, run, encoders, listed, None, 1)

    expected = features_of(run, encoders, listed, None, 1)
    for found in (kept_now(run), kept_now(run)):
        assert calls == [set(encoders)]
        for name in encoders:
            assert isinstance(found[name].feature_VF, np.memmap)
            for mine, theirs in zip(found[name], expected[name], strict=True):
                assert mine.dtype == theirs.dtype
                np.testing.assert_array_equal(mine, theirs)
    assert expected["tokens"].feature_VF.shape == (6, 64, 24)
    kept_now(run, tokens=f"tokens {FrozenEncoder(run, None, seed=4).identity}")
    assert calls[1:] == [{"tokens"}]
    kept_now(run.changed(data={"sampling": "segments"}))
    listed.write_text(listed.read_text() + videos[0] + "\n")
    assert len(kept_now(run)["tokens"].label_V) == 7
    assert calls[2:] == [set(encoders)] * 2
    assert len(list((tmp_path / "kept").iterdir())) == 2 * 10, "nothing half-made is left"


def test_an_encoder_s_identity_is_that_of_its_weights_and_its_positions(run: PretrainConfig) -> None:  # noqa: F811
    model = MaskedAutoencoder(run.model, run.geometry, seed=3)
    same = {FrozenEncoder(run, None, seed=3).identity, FrozenEncoder(run, dict(model.state_dict())).identity}
    assert len(same) == 1
    moved = run.changed(model={"positions_from": (4, 16)})
    others = [FrozenEncoder(run, None, seed=4), FrozenEncoder(moved, None, seed=3)]
    assert len(same | {other.identity for other in others}) == 3


@pytest.mark.parametrize(
    ("suffix", "kind"), [*((".pth", kind) for kind in sorted(PROBES)), (".safetensors", "attentive")]
)
def test_a_checkpoint_file_is_probed(clips: SyntheticSet, tmp_path: Path, kind: Any, suffix: str) -> None:
    """Of an autoencoder and, from .safetensors, of a classifier; predictions by video add up to the accuracy."""
    tower = SIZES["tiny"][0].model_copy(update={"depth": 1})
    makes: dict[str, Callable[[], Any]] = {
        ".pth": lambda: ModelConfig(encoder=tower, decoder=SIZES["tiny"][1].model_copy(update={"depth": 1})),
        ".safetensors": lambda: ClassifierConfig(encoder=tower, num_classes=3),
    }
    config = makes[suffix]()
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in our_shapes(config).items()}
    write_weights(to_layout(state, config), tmp_path / f"w{suffix}", config)
    options: dict[str, Any] = {
        "val_manifest": clips.val,
        "kind": kind,
        "epochs": 2,
        "num_frames": 4,
        "size": 32,
        "workers": 0,
    }
    result = probe(
        ProbeArguments(
            source=tmp_path / f"w{suffix}",
            manifest=clips.train,
            **options,
            out=tmp_path / "out" / "p.json",
            cache=tmp_path / "kept",
        )
    )
    assert set(result["accuracy"]) == {"run", "random", "pixels"}
    assert probe(ProbeArguments(source=tmp_path / f"w{suffix}", manifest=clips.train, **options)) == result
    assert f"{kind} on frozen features of {tmp_path}/w{suffix}, 4 test videos: run " in describe(result)
    written = json.loads((tmp_path / "out" / "p.json").read_text())
    assert {key: written[key] for key in result} == result
    assert [row["label"] for row in written["tested"]] == [0, 1, 2, 3]
    assert all(row["path"].endswith(f"{number:05d}.mp4") for number, row in enumerate(written["tested"]))
    for name, accuracy in result["accuracy"].items():
        assert np.mean([row[name] == row["label"] for row in written["tested"]]) == accuracy


@pytest.fixture
def asked(clips: SyntheticSet, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A probe of a small autoencoder's file by k-NN, which writes to OUT."""
    encoder, decoder = (tower.model_copy(update={"depth": 1}) for tower in SIZES["tiny"][:2])
    config = ModelConfig(encoder=encoder, decoder=decoder)
    state = {name: torch.ones(shape) for name, shape in our_shapes(config).items()}
    write_weights(to_layout(state, config), tmp_path / "w.safetensors", config)

    def probe_it(out: Path, **options: Any) -> dict[str, Any]:
        usual = {"val_manifest": clips.val, "kind": "knn", "num_frames": 4, "size": 32, "workers": 0}
        return probe(
            ProbeArguments(source=tmp_path / "w.safetensors", **{"manifest": clips.val, **usual, **options}, out=out)
        )

    return probe_it


def test_a_probe_s_file_is_tried_before_the_first_video_and_taken_from_no_other_results(
    asked: Callable[..., dict[str, Any]], clips: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, mine = tmp_path / "p.json", tmp_path / "mine.json"
    asked(out)
    asked(out)
    mine.write_text("[1]\n")
    monkeypatch.setattr(frozen, "features_of", lambda *_: pytest.fail("videos were read"))
    for place, options, why in (
        (tmp_path, {}, f"--out {tmp_path} is a folder; name a file in it"),
        (clips.val, {}, "which is read; name another file"),
        (Path("/proc/nowhere/p.json"), {}, "--out /proc/nowhere/p.json: .*; name a place that can be written"),
        (out, {"seed": 5}, r"p\.json holds other results \(of other seed\); name another file, or remove it"),
        (mine, {}, r"mine\.json holds a mine\.json of something else"),
        (tmp_path / "new.json", {"cache": mine}, r"--cache .*mine\.json is a file; name a folder"),
    ):
        with pytest.raises(ConfigError, match=why):
            asked(place, **options)
    assert mine.read_text() == "[1]\n"


def test_a_probe_shows_its_figures_before_a_full_disk_refuses_them_and_tells_how_far_it_is(
    asked: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "TELL_EVERY_S", 0.0)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "flush_to_disk", full)
    with pytest.raises(
        ConfigError, match=r"the figures above could not be written to .*p\.json: No space left on device"
    ):
        asked(tmp_path / "p.json")
    assert any("knn on frozen features" in message and "run " in message for message in caplog.messages)
    assert any(message.startswith("3 of 4 videos looked at, ") for message in caplog.messages)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_list_of_one_source_is_refused_before_anything_is_read(clips: SyntheticSet) -> None:
    with pytest.raises(ConfigError, match="has one source, 'synthetic'"):
        probe(ProbeArguments(source=Path("nowhere.pth"), manifest=clips.train))
    with pytest.raises(ConfigError, match="--pool motion: --kind attentive looks at all tokens"):
        probe(ProbeArguments(source=Path("nowhere.pth"), manifest=clips.train, kind="attentive", pool="motion"))
