"""The detection head against the numbers of the published ActionFormer (tests/golden/README.md has the tolerances)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from tests.golden_head import TINY_CLASSES, TINY_HEAD, TINY_INPUT, TINY_LENGTH, batch_of, golden_head, published_weights
from vmae2_ds.config.tad_head import DetectConfig, HeadLossConfig
from vmae2_ds.downstream.tad.decode import TimeGrid, candidates_of, detections_of
from vmae2_ds.downstream.tad.losses import diou_loss, giou_loss, loss_sums, next_normaliser
from vmae2_ds.downstream.tad.points import assign, points_of
from vmae2_ds.downstream.tad.published import from_actionformer
from vmae2_ds.downstream.tad.pyramid import ActionPyramid
from vmae2_ds.downstream.tad.suppress import Candidates, suppress

FACTS, TENSORS = golden_head()
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def pyramid() -> ActionPyramid:
    """With the published weights, read by their published names."""
    model = ActionPyramid(TINY_INPUT, TINY_CLASSES, TINY_HEAD, TINY_LENGTH)
    model.load_state_dict(from_actionformer(published_weights(FACTS["state_shapes"]), model))
    return model


def test_points_and_what_they_learn() -> None:
    *_, segment_BG2, label_BG = batch_of(TENSORS)
    points = points_of([128, 64, 32, 16], TINY_HEAD, like=segment_BG2)
    expected = torch.cat([TENSORS[f"points/{level}"] for level in range(4)])
    found = torch.stack(points, dim=1)
    # the published last level ends at 10,000 positions, ours nowhere
    assert torch.equal(found.nan_to_num(posinf=1e4), expected)
    targets = assign(points, segment_BG2, label_BG, TINY_CLASSES, 1.5)
    for video in range(2):
        classes = TENSORS[f"label_points/cls/{video}"]
        assert torch.equal(targets.present_BPC[video], classes)
        positive = targets.is_positive_BP[video]
        assert torch.equal(positive, classes.any(-1))
        torch.testing.assert_close(
            targets.offset_BP2[video][positive], TENSORS[f"label_points/offsets/{video}"][positive], **CLOSE
        )


def test_outputs_of_every_level(pyramid: ActionPyramid) -> None:
    feature_BTD, is_real_BT, *_ = batch_of(TENSORS)
    output = pyramid(feature_BTD, is_real_BT)
    for level in range(4):
        torch.testing.assert_close(output.logits_LBTC[level].mT, TENSORS[f"cls_logits/{level}"], **CLOSE)
        torch.testing.assert_close(output.offsets_LBT2[level].mT, TENSORS[f"offsets/{level}"], **CLOSE)
        assert torch.equal(output.is_real_LBT[level], TENSORS[f"fpn_masks/{level}"][:, 0])


@pytest.mark.parametrize(("video", "length"), [(0, 80), (1, 57)])
def test_a_sequence_without_padding_gives_what_it_gives_with_the_published_padding(
    pyramid: ActionPyramid, video: int, length: int
) -> None:
    feature_BTD, is_real_BT, *_ = batch_of(TENSORS)
    output = pyramid(feature_BTD[[video], :length], is_real_BT[[video], :length])
    for level in range(4):
        points = -(-length // 2**level)
        assert output.is_real_LBT[level].tolist() == [[True] * points]
        expected = TENSORS[f"cls_logits/{level}"][video, :, :points].T
        torch.testing.assert_close(output.logits_LBTC[level][0], expected, **CLOSE)


def test_losses_and_gradient(pyramid: ActionPyramid) -> None:
    feature_BTD, is_real_BT, segment_BG2, label_BG = batch_of(TENSORS)
    config = HeadLossConfig()
    sums = loss_sums(pyramid(feature_BTD, is_real_BT), segment_BG2, label_BG, TINY_HEAD, config)
    normaliser = next_normaliser(config.normaliser_start, sums.num_positive, config)
    assert normaliser.item() == pytest.approx(FACTS["loss_normalizer_after"], rel=1e-6)
    losses = FACTS["train_losses"]
    assert (sums.classes / normaliser).item() == pytest.approx(losses["cls_loss"], rel=1e-5)
    assert (sums.ends / normaliser).item() == pytest.approx(losses["reg_loss"], rel=1e-5)
    loss = sums.loss(normaliser, config)
    assert loss.item() == pytest.approx(losses["final_loss"], rel=1e-5)
    norm = torch.linalg.vector_norm(
        torch.cat([x.flatten() for x in torch.autograd.grad(loss, [*pyramid.parameters()])])
    )
    assert norm.item() == pytest.approx(FACTS["grad_norm_total"], rel=1e-3)


def test_each_loss_by_itself() -> None:
    for name, loss in (("diou", diou_loss), ("giou", giou_loss)):
        torch.testing.assert_close(
            loss(TENSORS[f"{name}/pred"], TENSORS[f"{name}/gt"]), TENSORS[f"{name}/none"], **CLOSE
        )
    config = HeadLossConfig()
    focal = sigmoid_focal_loss(
        TENSORS["focal/inputs"], TENSORS["focal/targets"], alpha=config.focal_alpha, gamma=config.focal_gamma
    )
    torch.testing.assert_close(focal, TENSORS["focal/none"], **CLOSE)


SUPPRESSION = {
    "soft_multiclass": DetectConfig(most=60),
    "hard_multiclass": DetectConfig(most=60, suppression="hard"),
    "soft_agnostic_voting": DetectConfig(most=60, sigma=0.75, by_class=False, voting=0.9),
}


@pytest.mark.parametrize("name", sorted(SUPPRESSION))
def test_suppression(name: str) -> None:
    found = Candidates(
        TENSORS["nms/segs"].double().numpy(), TENSORS["nms/scores"].double().numpy(), TENSORS["nms/labels"].numpy()
    )
    same_as_golden(suppress(found, SUPPRESSION[name]), f"nms/results/{name}")


@pytest.mark.parametrize("video", range(2))
def test_inference(pyramid: ActionPyramid, video: int) -> None:
    feature_BTD, is_real_BT, *_ = batch_of(TENSORS)
    facts = FACTS["videos"][video]
    grid = TimeGrid(facts["feat_stride"], facts["feat_num_frames"] / 2, facts["fps"], facts["duration"])
    config = DetectConfig(most=50)
    found = candidates_of(pyramid(feature_BTD, is_real_BT), TINY_HEAD, config)[video]
    same_as_golden(detections_of(found, config, grid), f"inference/{video}")


def same_as_golden(found: Candidates, prefix: str) -> None:
    """Segments, scores and labels in the same order."""

    def golden(name: str) -> Tensor:
        return TENSORS[f"{prefix}/{name}"]

    np.testing.assert_allclose(found.segment_N2, golden("segments").numpy(), **CLOSE)
    np.testing.assert_allclose(found.score_N, golden("scores").numpy(), **CLOSE)
    np.testing.assert_array_equal(found.label_N, golden("labels").numpy())
