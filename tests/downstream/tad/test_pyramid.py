"""The pyramid: attention against a dense reference, padding that changes nothing, how far a feature reaches, first weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vmae2_ds.config.tad_head import SHORTEST_CHUNK, HeadConfig, HeadLossConfig
from vmae2_ds.downstream.tad.losses import loss_sums
from vmae2_ds.downstream.tad.pyramid import ActionPyramid, PyramidOutput
from vmae2_ds.downstream.tad.window_attention import attend_along_time

SMALL = HeadConfig(width=16, heads=2, ranges=(4, 8), windows=(5, 7, -1), drop_path=0)


def some_pyramid(config: HeadConfig = SMALL, max_length: int = 96) -> ActionPyramid:
    """Three features in, two classes out; every weight is drawn at random, biases and norms as well."""
    pyramid = ActionPyramid(3, 2, config, max_length)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in pyramid.parameters():
            parameter.normal_(0.1, 0.3, generator=rng)
    return pyramid


def some_features(length: int, seed: int = 1) -> Tensor:
    return torch.randn(1, length, 3, generator=torch.Generator().manual_seed(seed))


def real(*lengths: int, of: int) -> Tensor:
    return torch.arange(of) < torch.tensor(lengths)[:, None]


def dense(q: Tensor, k: Tensor, v: Tensor, is_real_BT: Tensor, window: int) -> Tensor:
    """Every score of every pair, in float64."""
    scores = torch.einsum("bqhk,bshk->bhqs", q, k) / math.sqrt(q.shape[-1])
    place = torch.arange(q.shape[1])
    near = (place[:, None] - place).abs() <= (window // 2 if window > 0 else len(place))
    scores = scores.masked_fill(~(near & is_real_BT[:, None, None]), -1e30)
    return torch.einsum("bhqs,bshk->bqhk", scores.softmax(-1), v)


@pytest.mark.parametrize("window", [3, 19, 63, -1])
@pytest.mark.parametrize("length", [1, SHORTEST_CHUNK, 131])
def test_attention_along_time_is_dense_attention_under_a_mask(window: int, length: int) -> None:
    rng = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, length, 2, 4, generator=rng, dtype=torch.float64, requires_grad=True) for _ in range(3))
    is_real_BT = real(length, max(1, length * 2 // 3), of=length)
    found, expected = (attend(q, k, v, is_real_BT, window)[is_real_BT] for attend in (attend_along_time, dense))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn(found.shape, generator=rng, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("window", "grows"), [(19, 2), (-1, 4)])
def test_local_attention_keeps_memory_in_proportion_to_the_length(window: int, grows: int) -> None:
    def kept(length: int) -> int:
        """Numbers that the backward pass keeps, of scores and masks, with one channel."""
        sizes: list[int] = []
        q = torch.ones(1, length, 1, 1, requires_grad=True)
        keep = torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x)
        with sdpa_kernel(SDPBackend.MATH), keep:
            attend_along_time(q, q, q, torch.ones(1, length, dtype=torch.bool), window)
        return sum(sizes)

    assert kept(1024) / kept(512) == pytest.approx(grows, rel=0.02)


@pytest.mark.parametrize("length", [1, 37, 64, 95])
def test_padding_a_batch_changes_nothing_whatever_is_in_it(length: int) -> None:
    pyramid = some_pyramid()
    alone = pyramid(some_features(length), real(length, of=length))
    for total in (length, 95, 96):
        padded = torch.full((2, max(total, length), 3), torch.nan)
        padded[0, :length] = some_features(length)
        padded[1, : padded.shape[1] - 1] = some_features(padded.shape[1] - 1, seed=2)
        together = pyramid(padded, real(length, padded.shape[1] - 1, of=padded.shape[1]))
        for level in range(3):
            points = -(-length // 2**level)
            for one, both in zip(alone[:2], together[:2], strict=True):
                torch.testing.assert_close(one[level][0], both[level][0, :points], rtol=1e-5, atol=1e-5)
                assert not both[level][0, points:].any()
            assert together.is_real_LBT[level][0].tolist() == [
                i < points for i in range(together.is_real_LBT[level].shape[1])
            ]


def test_a_feature_reaches_as_far_as_convolutions_and_windows_do() -> None:
    config = HeadConfig(width=16, heads=2, ranges=(4,), windows=(19, 5), stem=2, drop_path=0)
    pyramid = some_pyramid(config).double()
    feature_BTD = some_features(96).double()
    changed = feature_BTD.clone()
    changed[0, 48] += 1
    before, after = (pyramid(x, real(96, of=96)) for x in (feature_BTD, changed))
    moved = [
        ((a - b).abs().amax((0, 2)) > 1e-13).nonzero().flatten().tolist()
        for a, b in zip(before.logits_LBTC, after.logits_LBTC, strict=True)
    ]
    # two convolutions, two blocks of a convolution and 9 positions, a head of three convolutions
    assert moved[0] == list(range(48 - 25, 48 + 25 + 1))
    # into the finest level's last block 22 positions, a convolution more, at every other place; 2 points, and 3 of the head
    assert (min(moved[1]), max(moved[1])) == (math.ceil((48 - 23) / 2) - 5, (48 + 23) // 2 + 5)


def test_positions_are_interpolated_beyond_the_length_and_taken_from_its_start_below() -> None:
    config = SMALL.model_copy(update={"absolute_positions": True})
    longer, shorter = (some_pyramid(config, max_length=length) for length in (64, 40))
    table_TD = longer.positions_TD
    assert table_TD is not None
    rate = 10000 ** (-2 * (torch.arange(16) // 2) / 16)
    angle = torch.arange(64)[:, None] * rate
    expected = torch.where(torch.arange(16) % 2 == 0, angle.sin(), angle.cos()) / 4
    torch.testing.assert_close(table_TD, expected)
    x = torch.zeros(1, 64, 16)
    # position 32 of 64 is at (32 + 1/2) x 40 / 64 - 1/2 = 19.8125 of 40
    between = 0.1875 * expected[19] + 0.8125 * expected[20]
    torch.testing.assert_close(shorter._positions(64, x)[32], between)
    same = [some_pyramid(config, length)(some_features(30), real(30, of=30)) for length in (64, 40)]
    torch.testing.assert_close(same[0].logits_LBTC, same[1].logits_LBTC)


def test_in_bfloat16_it_answers_in_bfloat16_and_loses_in_float32() -> None:
    exact = some_pyramid()
    rough = some_pyramid().to(torch.bfloat16)
    feature_BTD, is_real_BT = some_features(50), real(50, of=50)
    output = rough(feature_BTD, is_real_BT)
    assert {x.dtype for x in (*output.logits_LBTC, *output.offsets_LBT2)} == {torch.bfloat16}
    segments, labels = torch.tensor([[[10.0, 20.0], [30.0, 33.0]]]), torch.tensor([[0, 1]])
    sums, expected = (
        loss_sums(x, segments, labels, SMALL, HeadLossConfig()) for x in (output, exact(feature_BTD, is_real_BT))
    )
    assert {sums.classes.dtype, sums.ends.dtype} == {torch.float32}
    assert sums.num_positive == expected.num_positive
    # eight bits of mantissa through a dozen layers
    torch.testing.assert_close(sums.classes, expected.classes, rtol=0.1, atol=0)


def test_noise_is_added_in_training_alone() -> None:
    pyramid = some_pyramid(SMALL.model_copy(update={"input_noise": 0.1}))
    feature_BTD, is_real_BT = some_features(20), real(20, of=20)

    def answer() -> PyramidOutput:
        return pyramid(feature_BTD, is_real_BT)

    assert not torch.equal(answer().logits_LBTC[0], answer().logits_LBTC[0])
    pyramid.eval()
    assert torch.equal(answer().logits_LBTC[0], answer().logits_LBTC[0])


def test_first_weights_are_as_pytorch_draws_them_but_for_biases_and_gains() -> None:
    pyramid = ActionPyramid(1408, 20, HeadConfig(width=64), 128)
    rng = torch.Generator().manual_seed(0)
    for name, parameter in pyramid.named_parameters():
        values = torch.zeros(parameter.shape)
        pyramid.draw(name, values, rng)
        if parameter.ndim > 1:
            # kaiming_uniform with a = sqrt(5), torch's default of linear layers and convolutions
            gain = torch.nn.init.calculate_gain("leaky_relu", math.sqrt(5))
            bound = gain * math.sqrt(3 / values[0].numel())
            assert values.abs().max() <= bound, name
            assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name
        elif name == "classify.last.bias":
            torch.testing.assert_close(values.sigmoid(), torch.full((20,), 0.01))
        elif "gain" in name:
            torch.testing.assert_close(values, torch.full((64,), 1e-4))
        else:
            expected = 0.0 if name.endswith("bias") else 1.0
            assert values.tolist() == [expected] * len(values), name
