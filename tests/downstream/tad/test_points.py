"""Which action a point learns, by hand; losses by formula, by gradient check, and shared out over ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from vmae2_ds.config.tad_head import HeadConfig, HeadLossConfig
from vmae2_ds.downstream.tad.losses import REGRESSION, diou_loss, loss_sums, next_normaliser
from vmae2_ds.downstream.tad.points import Targets, assign, points_of
from vmae2_ds.downstream.tad.pyramid import ActionPyramid, PyramidOutput

HEAD = HeadConfig(width=16, heads=2, ranges=(4, 8))
LENGTHS = (64, 32, 16)
DIVING, CLIFF_DIVING = 1, 2


def learned(segments: list[list[float]], labels: list[int], classes: int = 3, radius: float = 1.5) -> list[Targets]:
    """What the points of each level learn of one video."""
    segment_BG2 = torch.tensor(segments).reshape(1, -1, 2)
    points = points_of(LENGTHS, HEAD, like=segment_BG2)
    found = assign(points, segment_BG2, torch.tensor([labels], dtype=torch.long), classes, radius)
    return [Targets(*columns) for columns in zip(*(x[0].split(LENGTHS) for x in found), strict=True)]


def places(found: Targets) -> list[int]:
    """Points of a level that learn an action."""
    return found.is_positive_BP.nonzero().flatten().tolist()


def test_an_action_is_learned_near_its_middle_on_the_level_of_its_farther_end() -> None:
    first, second, third = learned([[20.0, 25.0]], [1])
    # the middle is 22.5: 21 to 24 are no farther than 1.5, but 21 and 24 are as far; farther ends of 22 and 23 are 3 away
    assert places(first) == [22, 23]
    assert first.present_BPC[22].tolist() == [0, 1, 0]
    assert first.offset_BP2[22].tolist() == [2, 3]
    # of 20, 22 and 24, all within 3 of the middle, none has its farther end 4 to 8 away inside of the action, but 24: 4 and 1
    assert places(second) == [12]
    assert second.offset_BP2[12].tolist() == [2, 0.5]
    assert places(third) == []


def test_both_bounds_of_a_range_count() -> None:
    first, second, third = learned([[16.0, 24.0]], [0])
    # its middle is 4 from both ends: on the border of the first level and the second
    assert (places(first), places(second), places(third)) == ([20], [9, 10, 11], [])
    # here it is 8: on the border of the second and the third
    assert [places(level) for level in learned([[12.0, 28.0]], [0])] == [[], [10], [4, 5, 6]]


def test_without_a_radius_every_point_inside_learns() -> None:
    first, *_ = learned([[20.0, 25.0]], [1], radius=0)
    assert places(first) == [21, 22, 23, 24]


def test_cliff_diving_is_diving_too() -> None:
    # THUMOS14 has all 217 of its test set's twice
    for end in (25.0, 25.0005):
        first, *_ = learned([[20.0, 25.0], [20.0, end]], [DIVING, CLIFF_DIVING])
        assert first.present_BPC[22].tolist() == first.present_BPC[23].tolist() == [0, 1, 1]


def test_of_actions_around_one_point_the_shortest_is_learned_alone() -> None:
    first, *_ = learned([[20.0, 25.01], [20.0, 25.0]], [DIVING, CLIFF_DIVING])
    assert first.present_BPC[22].tolist() == [0, 0, 1]
    assert first.offset_BP2[22].tolist() == [2, 3]


def test_the_same_action_twice_is_one() -> None:
    first, *_ = learned([[20.0, 25.0], [20.0, 25.0]], [1, 1])
    assert first.present_BPC[22].tolist() == [0, 1, 0]


def test_a_longer_action_is_learned_where_the_shorter_does_not_reach() -> None:
    second = learned([[10.0, 22.0], [15.5, 16.5]], [0, 1])[1]
    assert places(second) == [7, 8, 9]
    assert second.present_BPC[8].tolist() == [1, 0, 0]


@pytest.mark.parametrize("segments", [[], [[20.0, 20.0]], [[70.0, 90.0]]])
def test_no_action_no_length_and_an_action_elsewhere_teach_nothing(segments: list[list[float]]) -> None:
    assert [places(level) for level in learned(segments, [1] * len(segments))] == [[], [], []]


def test_a_label_of_minus_one_is_no_action() -> None:
    assert places(learned([[20.0, 25.0]], [-1])[0]) == []


def test_with_one_class_every_label_is_that_class() -> None:
    first, *_ = learned([[20.0, 25.0], [40.0, 43.0]], [17, 5], classes=1)
    assert first.present_BPC.flatten().nonzero().flatten().tolist() == [22, 23, 41, 42]


# --- losses ----------------------------------------------------------------------------------------------------------


def some_output(*lengths: int, classes: int = 3) -> PyramidOutput:
    """Answers about two videos, of which so many positions are real."""
    rng = torch.Generator().manual_seed(0)
    is_real_BT = torch.arange(LENGTHS[0]) < torch.tensor(lengths)[:, None]
    return PyramidOutput(
        tuple(torch.randn(len(lengths), n, classes, generator=rng) for n in LENGTHS),
        tuple(torch.rand(len(lengths), n, 2, generator=rng) for n in LENGTHS),
        tuple(is_real_BT[:, :: 2**level] for level in range(3)),
    )


SEGMENTS = torch.tensor([[[20.0, 25.0], [30.0, 33.0]], [[5.0, 11.0], [0.0, 0.0]]])
LABELS = torch.tensor([[0, 2], [1, -1]])


def test_sums_of_a_batch_are_those_of_its_parts() -> None:
    config = HeadLossConfig(label_smoothing=0.1)
    output = some_output(64, 40)
    whole = loss_sums(output, SEGMENTS, LABELS, HEAD, config)
    parts = [
        loss_sums(
            PyramidOutput(*(tuple(level[[video]] for level in levels) for levels in output)),
            SEGMENTS[[video]],
            LABELS[[video]],
            HEAD,
            config,
        )
        for video in range(2)
    ]
    torch.testing.assert_close(tuple(whole), tuple(sum(columns) for columns in zip(*parts, strict=True)))
    assert next_normaliser(100.0, whole.num_positive, config).item() == pytest.approx(
        90 + 0.1 * int(whole.num_positive)
    )
    expected = (whole.classes + 2 * whole.ends) / 50
    torch.testing.assert_close(whole.loss(50.0, HeadLossConfig(regression_weight=2)), expected)


def test_padding_and_actions_in_it_do_not_count() -> None:
    output = some_output(64, 40)
    inside = loss_sums(output, SEGMENTS, LABELS, HEAD, HeadLossConfig())
    for level in range(3):
        output.logits_LBTC[level][1, 40 // 2**level :] = torch.nan_to_num(torch.tensor(torch.inf))
    beyond = torch.cat([SEGMENTS, torch.tensor([[[0.0, 0.0]], [[44.0, 49.0]]])], dim=1)
    labels = torch.cat([LABELS, torch.tensor([[-1], [1]])], dim=1)
    torch.testing.assert_close(tuple(loss_sums(output, beyond, labels, HEAD, HeadLossConfig())), tuple(inside))


def test_classes_by_the_formula_of_the_focal_loss() -> None:
    smoothing, alpha, gamma = 0.1, 0.3, 1.5
    config = HeadLossConfig(label_smoothing=smoothing, focal_alpha=alpha, focal_gamma=gamma)
    output = some_output(64)
    found = loss_sums(output, SEGMENTS[:1], LABELS[:1], HEAD, config).classes
    present = torch.cat([level.present_BPC for level in learned(SEGMENTS[0].tolist(), LABELS[0].tolist())]).double()
    target = present * (1 - smoothing) + smoothing / 4
    chance = torch.cat(output.logits_LBTC, dim=1)[0].double().sigmoid()
    right = chance * target + (1 - chance) * (1 - target)
    entropy = -(target * chance.log() + (1 - target) * (1 - chance).log())
    weight = alpha * target + (1 - alpha) * (1 - target)
    torch.testing.assert_close(found.double(), (weight * (1 - right) ** gamma * entropy).sum(), rtol=1e-5, atol=0)


def segments_iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    common = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return common / (a[1] - a[0] + b[1] - b[0] - common)


def test_diou_of_two_segments() -> None:
    point, found, wanted = 7.0, (4.0, 12.0), (6.0, 9.0)
    offsets = [torch.tensor([[point - start, end - point]]) for start, end in (found, wanted)]
    # middles 8 and 7.5, from 4 to 12 together
    assert diou_loss(*offsets).item() == pytest.approx(1 - segments_iou(found, wanted) + (0.5 / 8) ** 2)


@pytest.mark.parametrize("name", sorted(REGRESSION))
def test_gradients_of_the_ends(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    found, wanted = (4 * torch.rand(12, 2, generator=rng, dtype=torch.float64) + 0.1 for _ in range(2))
    assert torch.autograd.gradcheck(REGRESSION[name], (found.requires_grad_(), wanted))
    assert (REGRESSION[name](wanted, wanted).abs() < 1e-12).all()
    nothing = torch.zeros(1, 2)
    assert REGRESSION[name](nothing, nothing).tolist() == [1]


def test_a_step_of_training_asks_nothing_of_the_device() -> None:
    # a fake one has no values: a shape that depends on them, or a number read back, would raise
    with FakeTensorMode(), torch.device("cuda"):
        pyramid = ActionPyramid(8, 3, HEAD.model_copy(update={"windows": (5,)}), 64)
        output = pyramid(torch.empty(2, 64, 8), torch.empty(2, 64, dtype=torch.bool))
        segments, labels = torch.empty(2, 5, 2), torch.empty(2, 5, dtype=torch.long)
        sums = loss_sums(output, segments, labels, HEAD, HeadLossConfig())
        loss = sums.loss(next_normaliser(torch.empty(()), sums.num_positive, HeadLossConfig()), HeadLossConfig())
    assert loss.device.type == "cuda"
    assert loss.requires_grad


@pytest.mark.parametrize("name", sorted(REGRESSION))
def test_a_segment_without_length_has_a_finite_gradient(name: str) -> None:
    output = some_output(64, 40)
    offsets = tuple(torch.zeros_like(level).requires_grad_() for level in output.offsets_LBT2)
    sums = loss_sums(output._replace(offsets_LBT2=offsets), SEGMENTS, LABELS, HEAD, HeadLossConfig(regression=name))
    gradients: tuple[Tensor, ...] = torch.autograd.grad(sums.ends, offsets)
    assert sums.num_positive > 0
    assert all(gradient.isfinite().all() for gradient in gradients)
