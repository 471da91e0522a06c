"""The frozen teacher: it sees the student's own clip, learns nothing, and one that does not fit is refused in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from vmae2_ds.config.distil import DistilConfig, DistilSettings
from vmae2_ds.config.finetune import LabelledDataConfig
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry, LabelledBatch
from vmae2_ds.dist import Ranks
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import every_cube, normalise_pixels
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.train.distil.teacher import Teacher, digest_of, fit_clips, open_teacher
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

TOWER = TowerConfig(width=32, depth=2, heads=2, mlp=64)
TEACHER = ClassifierConfig(encoder=TOWER, patch=6, num_classes=5, head_init_scale=10, head_dropout=0.5, drop_path=0.5)
STUDENT = ClassifierConfig(encoder=TowerConfig(width=24, depth=1, heads=2, mlp=48), patch=8, num_classes=5)
GEOMETRY = ClipGeometry(4, 24, 24, 2, 6)
"""The teacher's clip: half the student's frames, resized."""
CLIPS = 4


def written(folder: Path, config: EncoderConfig = TEACHER, name: str = "teacher.safetensors") -> Path:
    make: Any = Classifier if isinstance(config, ClassifierConfig) else MaskedAutoencoder
    file = folder / name
    write_weights(to_layout(make(config, GEOMETRY, seed=3).state_dict(), config), file, config)
    return file


def config_of(teacher: Path | None, **settings: Any) -> DistilConfig:
    """A student of 8 frames of 32x32 in cubes of 8, and a teacher of 4 frames of 24x24 in cubes of 6."""
    chosen = {"teacher": teacher, "teacher_size": 24, "teacher_frames": 4, "teacher_precision": "fp32", **settings}
    return DistilConfig(
        model=STUDENT,
        data=LabelledDataConfig(num_frames=8, size=32),
        distil=DistilSettings.model_validate(chosen),
    )


def teacher_of(config: DistilConfig) -> Teacher:
    return Teacher.of(config, Ranks())


def noise(size: int = 32, keep: float = 0.7) -> LabelledBatch:
    clip_BTHWC = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (CLIPS, 8, size, size, 3), dtype=np.uint8))
    return LabelledBatch(clip_BTHWC, torch.arange(CLIPS), torch.tensor(keep), torch.tensor(keep))


def test_clips_are_fitted_as_torchvision_resizes_them() -> None:
    clip_BTHWC = noise().clip_BTHWC
    fitted = fit_clips(clip_BTHWC, 4, 24)
    frames_TCHW = clip_BTHWC[1, ::2].permute(0, 3, 1, 2).float() / 255
    expected = functional.resize(frames_TCHW, [24, 24], antialias=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(fitted[1], expected, rtol=0, atol=1e-6)
    assert fit_clips(clip_BTHWC, 8, 32).data_ptr() == clip_BTHWC.data_ptr()


def test_it_sees_the_mixed_crop_of_the_student_and_says_what_its_model_says(tmp_path: Path) -> None:
    """Resizing what is mixed and mixing what is resized are the same; the student's pixels are handed on untouched."""
    batch = noise()
    teacher = teacher_of(config_of(written(tmp_path), feature_weight=1.0))
    taught = teacher(batch)
    assert all(torch.equal(a, b) for a, b in zip(taught[:4], batch, strict=True))
    clip_BTHWC = batch.clip_BTHWC.double() / 255
    mixed_BTHWC = (0.7 * clip_BTHWC + 0.3 * clip_BTHWC.flip(0)).float()
    model = Classifier(TEACHER, GEOMETRY, seed=3).eval()
    with torch.no_grad():
        feature_BE = model.features(normalise_pixels(every_cube(fit_clips(mixed_BTHWC, 4, 24), GEOMETRY)))
        logits_BC = model.head(feature_BE)
    torch.testing.assert_close(taught.teacher_feature_BE, feature_BE, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(taught.teacher_logits_BC, logits_BC, rtol=1e-4, atol=1e-5)
    assert float(logits_BC.std(dim=0).min()) > 0.01, "a teacher that says the same of all clips proves nothing"


def test_it_is_frozen_deterministic_and_leaves_no_graph(tmp_path: Path) -> None:
    """Its head dropout and stochastic depth of one half are off."""
    teacher = teacher_of(config_of(written(tmp_path)))
    one, two = teacher(noise()), teacher(noise())
    assert torch.equal(one.teacher_logits_BC, two.teacher_logits_BC)
    assert one.teacher_feature_BE.shape == (CLIPS, 0)
    assert not one.teacher_logits_BC.requires_grad
    weight = torch.ones(5, requires_grad=True)
    (one.teacher_logits_BC * weight).sum().backward()  # an inference tensor could not be kept for this
    assert weight.grad is not None


def test_bf16_answers_are_near_and_float32(tmp_path: Path) -> None:
    file = written(tmp_path)
    exact, rounded = (
        teacher_of(config_of(file, teacher_precision=precision))(noise()).teacher_logits_BC
        for precision in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())
    difference = float((exact - rounded).abs().max())
    assert 0 < difference < 0.05 * float(exact.abs().max())


def test_its_name_is_its_weights_whatever_the_file(tmp_path: Path) -> None:
    file = written(tmp_path)
    card, weights = open_teacher(config_of(file))
    write_weights(to_layout(weights, TEACHER, "mmaction2"), tmp_path / "other.safetensors", TEACHER)
    identities = {
        json.dumps(open_teacher(config_of(tmp_path / name))[0].identity())
        for name in ("teacher.safetensors", "other.safetensors")
    }
    assert len(identities) == 1
    changed = {**weights, "head.bias": weights["head.bias"] + 1e-6}
    assert digest_of(changed) != card.digest == digest_of(weights)
    assert open_teacher(config_of(file, teacher_precision="bf16"))[0].identity() != card.identity()


def test_a_head_map_picks_the_student_s_classes(tmp_path: Path) -> None:
    ten = written(tmp_path, TEACHER.model_copy(update={"num_classes": 10}), "ten.safetensors")
    with pytest.raises(ConfigError, match=r"has 10 classes, and the student --model.num-classes 5; .*teacher-head-map"):
        open_teacher(config_of(ten))
    (tmp_path / "map.json").write_text("[9, 0, 4, 4, 7]")
    mapped = teacher_of(config_of(ten, teacher_head_map=tmp_path / "map.json"))(noise())
    (tmp_path / "all.json").write_text(json.dumps(list(range(10))))
    whole = config_of(ten, teacher_head_map=tmp_path / "all.json").changed(model={"num_classes": 10})
    every = teacher_of(whole)(noise())
    torch.testing.assert_close(mapped.teacher_logits_BC, every.teacher_logits_BC[:, [9, 0, 4, 4, 7]])
    (tmp_path / "map.json").write_text("[10, 0, 4, 4, 7]")
    with pytest.raises(
        ConfigError, match=r"--distil.teacher-head-map asks for class 10, and the head .* has 10 classes"
    ):
        open_teacher(config_of(ten, teacher_head_map=tmp_path / "map.json"))


def test_what_cannot_teach_is_refused_in_a_line(tmp_path: Path) -> None:
    file = written(tmp_path)
    autoencoder = written(tmp_path, ModelConfig(encoder=TOWER, decoder=TOWER, patch=6), "mae.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(file.read_bytes()[:-100])
    refused = [
        (config_of(None), ConfigError, "no teacher named: give --teacher RUN_OR_FILE"),
        (config_of(tmp_path / "nowhere.pth"), CheckpointError, "nowhere.pth cannot be read"),
        (config_of(tmp_path / "torn.safetensors"), CheckpointError, "torn.safetensors cannot be read"),
        (config_of(tmp_path), ConfigError, "is neither a run folder"),
        (config_of(autoencoder), ConfigError, "mae.safetensors is a masked autoencoder, which has no classes"),
        (
            config_of(file, teacher_frames=3),
            ConfigError,
            "sees 3 frames, and the student's clip of 8 does not hold them",
        ),
        (config_of(file, teacher_frames=16), ConfigError, "set --data.num-frames to a multiple of 16"),
        (
            config_of(file, teacher_size=32),
            ConfigError,
            "--distil.teacher-size 32 is not a positive multiple of the cube's 6",
        ),
        (config_of(file, teacher_size=None), ConfigError, "see --distil.teacher-size"),
    ]
    for config, kind, message in refused:
        with pytest.raises(kind) as error:
            open_teacher(config)
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_settings_that_leave_the_teacher_out_are_refused() -> None:
    with pytest.raises(ValueError, match="leave the teacher unused"):
        config_of(None, alpha=0.0)
