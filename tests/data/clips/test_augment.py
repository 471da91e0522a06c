"""Augmentation against timm, where the published code has it from: same policy, same targets, the same draw for all frames."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target

from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry, LabelledBatch
from vmae2_ds.data.clips.augment import Mixing, check_policy, draw_mixing, erase, paste_boxes, rand_augment
from vmae2_ds.data.clips.crops import draw_resized_crop, view_crops
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.objectives import Classify

POLICY = "rand-m7-n4-mstd0.5-inc1"


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def test_every_frame_gets_the_same_operations_and_they_are_timm_s() -> None:
    frames_THWC = np.stack([picture()] * 3)
    drawn = set()
    for number in range(20):
        augmented_THWC = rand_augment(frames_THWC, POLICY, 32, np.random.default_rng(number))
        assert (augmented_THWC == augmented_THWC[0]).all()
        drawn.add(augmented_THWC[0].tobytes())
        seed = int(np.random.default_rng(number).integers(2**32))
        random.seed(seed)
        np.random.seed(seed)
        policy = rand_augment_transform(POLICY, {"translate_const": int(32 * 0.45), "img_mean": (124, 116, 104)})
        assert np.array_equal(augmented_THWC[0], np.asarray(policy(Image.fromarray(picture()))))
    assert len(drawn) > 15


def test_the_global_generators_are_put_back() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    rand_augment(picture()[None], POLICY, 32, np.random.default_rng(0))
    assert (random.random(), np.random.random()) == expected


@pytest.mark.parametrize("name", ["augmix", "rand-z9", ""])
def test_an_unknown_policy_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--augment\.rand-augment"):
        check_policy(name, 224)


def test_a_box_is_erased_in_all_frames_at_once() -> None:
    shares = []
    for number in range(200):
        clip_TSSC = torch.full((3, 40, 40, 3), 7, dtype=torch.uint8)
        erase(clip_TSSC, 1.0, np.random.default_rng(number))
        changed_TSS = (clip_TSSC != 7).any(dim=-1)
        rows, columns = changed_TSS.any(0).any(1).nonzero(), changed_TSS.any(0).any(0).nonzero()
        box_TSS = changed_TSS[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box_TSS.float().mean() > 0.98  # noise may hit 7 by chance
        shares.append(float(changed_TSS[0].float().mean()))
    assert 0.01 < min(shares) < 0.05
    assert 0.25 < max(shares) < 0.36
    untouched = torch.full((1, 40, 40, 3), 7, dtype=torch.uint8)
    erase(untouched, 0.0, np.random.default_rng(0))
    assert (untouched == 7).all()


def test_erased_pixels_have_imagenet_s_statistics() -> None:
    clip_TSSC = torch.zeros((8, 200, 200, 3), dtype=torch.uint8)
    erase(clip_TSSC, 1.0, np.random.default_rng(4))
    inside = clip_TSSC[(clip_TSSC != 0).any(dim=-1)].float() / 255
    torch.testing.assert_close(inside.mean(0), torch.tensor([0.485, 0.456, 0.406]), rtol=0, atol=0.01)
    torch.testing.assert_close(inside.std(0), torch.tensor([0.229, 0.224, 0.225]), rtol=0, atol=0.015)


def test_mixing_is_drawn_as_asked() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_mixing(32, 0.8, 1.0, 1.0, 0.5, rng) for _ in range(2000)]
    boxes = [draw for draw in draws if draw.box is not None]
    assert 0.45 < len(boxes) / len(draws) < 0.55
    for draw in boxes:
        top, bottom, left, right = draw.box or (0, 0, 0, 0)
        assert draw.keep_pixels == 1
        assert draw.keep_label == 1 - (bottom - top) * (right - left) / 32**2
    mixups = [draw.keep_pixels for draw in draws if draw.box is None]
    assert np.mean(mixups) == pytest.approx(0.5, abs=0.03)
    assert np.var(mixups) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.02)  # of Beta(a, a)
    assert draw_mixing(32, 0, 0, 1, 0.5, rng) == draw_mixing(32, 0.8, 1, 0, 0.5, rng) == Mixing(1.0, 1.0)
    assert all(draw_mixing(32, 0, 1.0, 1, 0.5, rng).box for _ in range(20))
    assert not any(draw_mixing(32, 0.8, 0, 1, 0.5, rng).box for _ in range(20))


def objective(num_classes: int = 7, smoothing: float = 0.1) -> Classify:
    config = ClassifierConfig(encoder=TowerConfig(width=24, depth=1, heads=2, mlp=24), patch=8, num_classes=num_classes)
    geometry = ClipGeometry(2, 16, 16, 2, 8)
    return Classify(Classifier(config, geometry), smoothing, geometry)


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_are_timm_s(keep: float, smoothing: float) -> None:
    label_B = torch.tensor([0, 6, 3, 3, 1])
    clip = torch.zeros(5, 2, 16, 16, 3, dtype=torch.uint8)
    batch = LabelledBatch(clip, label_B, torch.tensor(1.0), torch.tensor(keep))
    expected_BC = mixup_target(label_B, 7, keep, smoothing)
    torch.testing.assert_close(objective(smoothing=smoothing).target(batch), expected_BC, rtol=0, atol=1e-7)


def test_mixed_clips_are_timm_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixup on our cubes against timm's on pixels, cutmix's box on our clips against timm's on one frame each."""
    clip_BTHWC = torch.randint(0, 256, (4, 2, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classify = objective()
    frames = clip_BTHWC.float().permute(0, 1, 4, 2, 3).flatten(1, 2)  # timm takes pictures: time counts as colour
    mixup = Mixup(mixup_alpha=1.0, cutmix_alpha=0.0, num_classes=7)
    monkeypatch.setattr(mixup, "_params_per_batch", lambda: (0.3, False))
    expected, _ = mixup(frames.clone(), torch.zeros(4, dtype=torch.long))
    seen = []
    classify.model.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    classify(LabelledBatch(clip_BTHWC, torch.zeros(4, dtype=torch.long), torch.tensor(0.3), torch.tensor(0.3)))
    expected_BTHWC = expected.view(4, 2, 3, 16, 16).permute(0, 1, 3, 4, 2) / 255
    torch.testing.assert_close(seen[0], classify.cubes(expected_BTHWC), rtol=1e-5, atol=1e-5)

    cutmix = Mixup(mixup_alpha=0.0, cutmix_alpha=1.0, num_classes=7)
    monkeypatch.setattr(cutmix, "_params_per_batch", lambda: (0.5, True))
    monkeypatch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *_, **__: ((2, 11, 3, 9), 0.5))
    expected, _ = cutmix(frames.clone(), torch.zeros(4, dtype=torch.long))
    pasted = paste_boxes(clip_BTHWC, (2, 11, 3, 9)).permute(0, 1, 4, 2, 3).flatten(1, 2).float()
    assert torch.equal(pasted, expected)


def test_loss_of_plain_labels_is_torch_s_cross_entropy() -> None:
    classify = objective(smoothing=0.1)
    for parameter in classify.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    clip_BTHWC = torch.randint(0, 256, (4, 2, 16, 16, 3), dtype=torch.uint8)
    label_B = torch.tensor([0, 1, 6, 2])
    out = classify(LabelledBatch(clip_BTHWC, label_B, torch.tensor(1.0), torch.tensor(1.0)))
    expected = torch.nn.functional.cross_entropy(classify.logits(clip_BTHWC), label_B, label_smoothing=0.1)
    torch.testing.assert_close(out.loss, expected)
    assert float(out.flat_loss) == pytest.approx(np.log(7))


@given(st.integers(4, 300), st.integers(4, 300), st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_random_crops_lie_in_the_picture_and_keep_their_shape(height: int, width: int, seed: int) -> None:
    box = draw_resized_crop(height, width, (0.08, 1.0), (0.75, 4 / 3), 0.5, np.random.default_rng(seed))
    assert 0 <= box.top <= box.top + box.height <= height
    assert 0 <= box.left <= box.left + box.width <= width
    assert 0.6 <= box.width / box.height <= 1.7 or min(box.width, box.height) < 12


@pytest.mark.parametrize(("height", "width"), [(240, 320), (320, 240), (224, 224)])
def test_three_crops_reach_from_edge_to_edge(height: int, width: int) -> None:
    boxes = view_crops(height, width, 3)
    assert {(box.height, box.width) for box in boxes} == {(min(height, width),) * 2}
    assert (boxes[0].top, boxes[0].left) == (0, 0)
    assert (boxes[2].top, boxes[2].left) == (height - boxes[2].height, width - boxes[2].width)
    assert view_crops(height, width, 1)[0] == boxes[1]
