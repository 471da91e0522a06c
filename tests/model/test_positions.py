"""`positions=published_resize` in float64: a table of the new clip, read as one of 16 frames.

What the published script does with it is told in docs/PAPER.md#what-we-do-otherwise.
"""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.model.test_classifier import linear_by_hand
from vmae2_ds.config.finetune import FinetuneConfig, LabelledDataConfig
from vmae2_ds.config.model import SIZES, ClassifierConfig, EncoderConfig, ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.model.embed import published_resize, sinusoid_table, table_of_picture
from vmae2_ds.runs.export import ExportArguments, ImportArguments, export_weights, import_weights
from vmae2_ds.runs.open import open_model
from vmae2_ds.train.distil.teacher import TeacherCard
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

WIDTH = 24


def sinusoid(rows: int) -> np.ndarray:
    """(rows, WIDTH) float64: sin(n / 10000^(2i / D)) in channel 2i, cos in 2i + 1 (arXiv 1706.03762, section 3.5)."""
    angle = np.arange(rows)[:, None] / 10000 ** (2 * np.arange(WIDTH // 2) / WIDTH)
    return np.stack([np.sin(angle), np.cos(angle)], axis=2).reshape(rows, WIDTH)


def cubic_by_hand(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Cubic convolution with a = -3/4 (Keys 1981), cells' middles aligned, the last value held beyond the ends."""
    old, a = values.shape[axis], -0.75

    def kernel(x: np.ndarray) -> np.ndarray:
        x = np.abs(x)
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    place = (np.arange(size) + 0.5) * old / size - 0.5
    weight = np.zeros((size, old))
    for tap in range(-1, 3):
        cell = np.floor(place) + tap
        np.add.at(weight, (np.arange(size), np.clip(cell, 0, old - 1).astype(int)), kernel(place - cell))
    return np.moveaxis(np.tensordot(weight, values, (1, axis)), 0, axis)


def by_hand(frames: int, cells: int, edge: int) -> np.ndarray:
    """The rows of a clip of `frames` and `cells` x `cells` cubes, read as 8 steps of `edge` x `edge`."""
    table = sinusoid(frames // 2 * cells**2).reshape(8, edge, edge, WIDTH)
    table = cubic_by_hand(cubic_by_hand(table, cells, 1), cells, 2)
    return linear_by_hand(table, frames // 2, 0).reshape(-1, WIDTH)


@pytest.mark.parametrize(
    ("geometry", "edge"),
    [
        (ClipGeometry(64, 266, 266, 2, 14), 38),  # the paper's: 32 x 19 x 19 rows read as 8 x 38 x 38
        (ClipGeometry(64, 48, 48, 2, 16), 6),
        (ClipGeometry(144, 32, 32, 2, 16), 6),  # 72 steps of 2 x 2
        (ClipGeometry(4, 28, 28, 2, 14), 1),  # 2 steps of 2 x 2: it does not fail, whatever that is good for
    ],
)
def test_other_clips_get_what_the_published_script_makes_of_their_table(geometry: ClipGeometry, edge: int) -> None:
    found_ND = published_resize(geometry, WIDTH)
    expected_ND = by_hand(geometry.num_frames, geometry.grid[1], edge)
    assert found_ND.dtype == torch.float32
    np.testing.assert_allclose(found_ND.numpy(), expected_ND, rtol=0, atol=2e-6)
    assert np.abs(expected_ND - sinusoid(geometry.num_cubes)).max() > 0.5  # and that is not the clip's own


@pytest.mark.parametrize("size", [224, 266, 112])
def test_at_16_frames_it_is_the_clip_s_own_table(size: int) -> None:
    geometry = ClipGeometry(16, size, size, 2, 14)
    torch.testing.assert_close(published_resize(geometry, WIDTH), sinusoid_table(geometry.num_cubes, WIDTH))


@pytest.mark.parametrize(("frames", "size"), [(32, 224), (32, 266), (64, 224), (8, 266), (4, 42)])
def test_a_clip_that_the_published_script_fails_on_is_refused(frames: int, size: int) -> None:
    """The first three are those that docs/PAPER.md names."""
    with pytest.raises(ConfigError, match=f"script fails on clips of {frames} frames of {size}x{size}"):
        published_resize(ClipGeometry(frames, size, size, 2, 14), WIDTH)


TINY = SIZES["tiny"][0].model_copy(update={"depth": 1})
RESIZED = ClassifierConfig(encoder=TINY, num_classes=3, positions="published_resize")


def test_a_classifier_has_it_by_name_and_a_file_keeps_the_name(tmp_path: Path) -> None:
    geometry = ClipGeometry(64, 32, 32, 2, 16)
    model = Classifier(RESIZED, geometry)
    assert torch.equal(model.encoder.embed.positions_ND, published_resize(geometry, TINY.width))
    own: EncoderConfig = RESIZED.model_copy(update={"positions": "own"})
    write_weights(to_layout(model.state_dict(), own), tmp_path / "published.pth", own)
    (tmp_path / "c.json").write_text(json.dumps({"positions": "published_resize"}))
    import_weights(
        ImportArguments(source=tmp_path / "published.pth", out=tmp_path / "w.safetensors", config=tmp_path / "c.json")
    )
    assert open_model(tmp_path / "w.safetensors").run.model == RESIZED


@pytest.mark.parametrize("change", [{"positions": "published_resize"}, {"positions_from": (16, 224)}, {}])
def test_an_export_to_transformers_says_where_its_positions_are_others(tmp_path: Path, change: dict[str, Any]) -> None:
    """transformers has no place for them: it builds the clip's own table."""
    own = ClassifierConfig(encoder=TINY, num_classes=3)
    weights = Classifier(own, ClipGeometry(4, 32, 32, 2, 16)).state_dict()
    write_weights(to_layout(weights, own), tmp_path / "w.safetensors", own.model_copy(update=change))
    said = export_weights(
        ExportArguments(source=tmp_path / "w.safetensors", out=tmp_path / "hf", layout="transformers")
    )
    for text in (said, (tmp_path / "hf" / "README.md").read_text()):
        assert ("which transformers builds: it computes something else" in text) == bool(change)


def test_it_goes_without_positions_from_and_is_no_choice_of_pre_training() -> None:
    with pytest.raises(ValueError, match="keep one of them"):
        ClassifierConfig(encoder=TINY, positions="published_resize", positions_from=(16, 224))
    with pytest.raises(ValueError, match="Extra inputs"):
        ModelConfig.of_size("tiny", positions="published_resize")


def test_a_teacher_of_other_positions_is_another_teacher() -> None:
    data = LabelledDataConfig(num_frames=64, size=32)
    cards = [
        TeacherCard(Path("t"), FinetuneConfig(model=RESIZED.model_copy(update={"positions": name}), data=data), 0, "x")
        for name in ("own", "published_resize")
    ]
    assert cards[0].identity() != cards[1].identity()
    assert "positions" not in cards[0].identity()  # as what was noted before there was a choice


@pytest.mark.parametrize(
    ("clip", "patch"),
    [((16, 256, 464), 16), ((16, 224, 224), 16), ((16, 252, 448), 14), ((16, 144, 96), 16), ((8, 64, 320), 16)],
)
def test_positions_of_a_wide_clip_are_cubic_in_each_picture_and_linear_in_time(
    clip: tuple[int, int, int], patch: int
) -> None:
    """VideoMAE-AD's interpolation (docs/PAPER.md#spatial-detection), for a table of 16 frames of 224."""
    trained, wide = ClipGeometry(16, 224, 224, 2, patch), ClipGeometry(*clip, 2, patch)
    steps, rows, columns = wide.grid
    edge = 224 // patch
    table = sinusoid(8 * edge**2).reshape(8, edge, edge, WIDTH)
    table = linear_by_hand(cubic_by_hand(cubic_by_hand(table, rows, 1), columns, 2), steps, 0).reshape(-1, WIDTH)
    found_ND = table_of_picture(trained, wide, WIDTH, like=torch.empty(0))
    np.testing.assert_allclose(found_ND.numpy(), table, atol=2e-5)


def test_clips_of_ever_other_widths_do_not_fill_the_device_with_their_positions() -> None:
    """A table for each width of a set, kept, would be gigabytes beside ViT-g."""
    trained = ClipGeometry(16, 64, 64, 2, 16)
    first_ND, *others = (
        table_of_picture(trained, ClipGeometry(16, 64, 16 * columns, 2, 16), WIDTH, like=torch.empty(0))
        for columns in range(5, 30)
    )
    held = weakref.ref(first_ND)
    del first_ND
    assert held() is None
    again_ND = table_of_picture(trained, ClipGeometry(16, 64, 16 * 29, 2, 16), WIDTH, like=torch.empty(0))
    assert again_ND is others[-1]
