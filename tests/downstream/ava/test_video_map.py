"""Video mAP against the published scorers' numbers and against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.downstream.ava.made_tubes import (
    Tube,
    as_list,
    found_boxes,
    golden_set,
    random_tubes,
    tubes_of,
    video_ap_by_hand,
)
from vmae2_ds.downstream.ava.linking import LinkConfig, link
from vmae2_ds.downstream.ava.video_map import HIGH, TUBE_PROTOCOLS, TubeProtocolName, score_tubes
from vmae2_ds.errors import ConfigError

STRETCH = np.array([[0.0, 0, 10, 10]]).repeat(10, 0)
PIXEL = np.array([0.0, 0, 1, 1])
PROTOCOLS = pytest.mark.parametrize("protocol", sorted(TUBE_PROTOCOLS))


@pytest.mark.parametrize("protocol", ["act", "multisports"])
def test_published_scorers_find_the_same(protocol: TubeProtocolName) -> None:
    annotations, boxes, expected = golden_set()
    videos, how = annotations["test_videos"][0], TUBE_PROTOCOLS[protocol]
    widened = boxes + np.r_[np.zeros(4), PIXEL]
    linked = [
        (v, k, s, f, b - PIXEL) for v, k, s, f, b in as_list(link(found_boxes(widened, videos), LinkConfig()).tubes)
    ]
    truth = [
        (place, klass, 1.0, int(tube[0, 0]), tube[:, 1:])
        for place, video in enumerate(videos)
        for klass, some in annotations["gttubes"][video].items()
        for tube in some
        if annotations["labels"][klass] not in how.without
    ]
    ends = PIXEL if how.pixel_ends else np.zeros(4)
    true, found = (tubes_of([(*tube[:4], tube[4] + ends) for tube in listed], videos) for listed in (truth, linked))
    scores = score_tubes(true, found, 4, how, (0.2, *HIGH))
    for threshold, ap_of in expected[protocol]["video"].items():
        column = scores.thresholds.index(float(threshold))
        for label, ap in zip(annotations["labels"], scores.ap_CT[:, column], strict=True):
            assert ap == pytest.approx(ap_of.get(label, np.nan), abs=1e-12, nan_ok=True), (threshold, label)
    high = np.mean([value for threshold, value in scores.map_of().items() if threshold in HIGH])
    assert high == pytest.approx(expected[protocol]["high"], abs=1e-12)


@PROTOCOLS
@pytest.mark.parametrize("seed", range(4))
def test_random_sets_score_as_by_plain_loops(protocol: TubeProtocolName, seed: int) -> None:
    rng = np.random.default_rng(seed)
    how, videos = TUBE_PROTOCOLS[protocol], ["b", "a", "c"]
    truth = random_tubes(rng, 15, 3, 3, is_truth=True)
    found = random_tubes(rng, 60, 3, 3, is_truth=False)
    found += [(*tube[:2], float(rng.integers(1, 12)) / 12, *tube[3:]) for tube in truth if rng.random() < 0.6]
    scores = score_tubes(tubes_of(truth, videos), tubes_of(found, videos), 4, how, (0.2, 0.5))

    def chooses_before(tube: Tube) -> tuple[float, str, int, list[float]]:
        return -tube[2], videos[tube[0]], tube[3], tube[4][0].tolist()

    for klass in range(4):
        true_of = [tube for tube in truth if tube[1] == klass]
        found_of = sorted((tube for tube in found if tube[1] == klass), key=chooses_before)
        for column, threshold in enumerate((0.2, 0.5)):
            by_hand = np.nan
            if true_of:
                by_hand = video_ap_by_hand(
                    true_of,
                    found_of,
                    threshold,
                    last_counts=how.last_counts,
                    tries_next=how.tries_next,
                    average=how.average,
                    suppress=how.suppress,
                )
            assert scores.ap_CT[klass, column] == pytest.approx(by_hand, abs=1e-12, nan_ok=True)


@PROTOCOLS
def test_truth_as_detections_is_perfect(protocol: TubeProtocolName) -> None:
    """At every threshold and in every class that has truth; those without are left out."""
    boxes = [STRETCH + 12.0 * place * np.array([1, 0, 1, 0]) for place in range(5)]
    truth = tubes_of([(place % 2, place % 3, 1.0, 1 + place, box) for place, box in enumerate(boxes)], "ab")
    scores = score_tubes(truth, truth, 5, TUBE_PROTOCOLS[protocol], (0.2, 0.5, 1.0))
    assert scores.map_of() == {0.2: 1.0, 0.5: 1.0, 1.0: 1.0}
    assert np.isnan(scores.ap_CT[3:]).all()
    assert (scores.truth_TN >= 0).all()


@PROTOCOLS
def test_nothing_found_is_zero_and_no_error(protocol: TubeProtocolName) -> None:
    truth = tubes_of([(0, 1, 1.0, 1, STRETCH)], "a")
    scores = score_tubes(truth, tubes_of([], "a"), 2, TUBE_PROTOCOLS[protocol])
    assert set(scores.map_of().values()) == {0.0}


@PROTOCOLS
def test_a_shuffled_file_scores_the_same(protocol: TubeProtocolName) -> None:
    rng = np.random.default_rng(7)
    truth, found = (random_tubes(rng, number, 2, 2, is_truth=number < 20) for number in (12, 80))
    scores = [
        score_tubes(tubes_of(truth, "ab"), tubes_of([found[at] for at in order], "ab"), 2, TUBE_PROTOCOLS[protocol])
        for order in (range(80), rng.permutation(80))
    ]
    np.testing.assert_array_equal(scores[0].ap_CT, scores[1].ap_CT)
    np.testing.assert_array_equal(scores[0].truth_TN, scores[1].truth_TN)


def test_a_tube_whose_best_truth_is_taken_has_the_next_in_act_alone() -> None:
    """Two truths of one place, 10 and 9 frames of it; two tubes of 10 frames reach both, the first takes the first."""
    truth = tubes_of([(0, 0, 1.0, 1, STRETCH), (0, 0, 1.0, 1, STRETCH[:9])], "a")
    found = tubes_of([(0, 0, score, 1, STRETCH) for score in (0.9, 0.8)], "a")
    act = TUBE_PROTOCOLS["act"]
    assert score_tubes(truth, found, 1, replace(act, suppress=None), (0.5,)).truth_TN.tolist() == [[0, 1]]
    assert score_tubes(truth, found, 1, TUBE_PROTOCOLS["multisports"], (0.5,)).truth_TN.tolist() == [[0, -1]]
    assert score_tubes(truth, found, 1, TUBE_PROTOCOLS["plain"], (0.5,)).truth_TN.tolist() == [[0, -1]]
    assert score_tubes(truth, found, 1, act, (0.5,)).truth_TN.tolist() == [[0]]  # the second is suppressed


def test_of_truths_that_overlap_alike_the_first_is_taken() -> None:
    truth = tubes_of([(0, 0, 1.0, 1, STRETCH)] * 3, "a")
    scores = score_tubes(truth, tubes_of([(0, 0, 1.0, 1, STRETCH)], "a"), 1, TUBE_PROTOCOLS["act"], (0.5,))
    assert scores.truth_TN.tolist() == [[0]]


@pytest.mark.parametrize(("common", "left"), [(3, 2), (4, 1)])  # of 10 frames: exactly 0.3 stays
def test_act_leaves_out_tubes_that_overlap_a_better_one_by_more_than_0_3(common: int, left: int) -> None:
    found = [
        (0, 0, 0.9, 1, STRETCH[:common]),
        (0, 0, 0.8, 1, STRETCH),
        (0, 1, 0.7, 1, STRETCH),
        (1, 0, 0.7, 1, STRETCH),
    ]
    truth = tubes_of([(0, 0, 1.0, 1, STRETCH)], "ab")
    scores = score_tubes(truth, tubes_of(found, "ab"), 2, TUBE_PROTOCOLS["act"], (0.5,))
    assert scores.num_found_C.tolist() == [left + 1, 1]
    assert scores.num_suppressed == 2 - left


def test_thresholds_that_cannot_be_are_refused() -> None:
    nothing = tubes_of([], "a")
    thresholds: tuple[float, ...]
    for thresholds in ((), (0.0,), (0.5, 1.1)):
        with pytest.raises(ConfigError, match=r"^thresholds of tube overlap must lie above 0 and at most at 1, not"):
            score_tubes(nothing, nothing, 1, TUBE_PROTOCOLS["act"], thresholds)
