"""Names of the published head's weights, taken over one for one, and what is wrong with others in one line."""

from __future__ import annotations

import pytest
import torch

from tests.golden_head import TINY_CLASSES, TINY_HEAD, TINY_INPUT, TINY_LENGTH, golden_head, published_weights
from vmae2_ds.downstream.tad.published import from_actionformer
from vmae2_ds.downstream.tad.pyramid import ActionPyramid
from vmae2_ds.errors import CheckpointError

STATE = published_weights(golden_head()[0]["state_shapes"])


def pyramid(**changes: object) -> ActionPyramid:
    return ActionPyramid(TINY_INPUT, TINY_CLASSES, TINY_HEAD.model_copy(update=changes), TINY_LENGTH)


def test_every_number_is_kept_under_any_wrapper() -> None:
    model = pyramid()
    for state in (STATE, {f"module.{name}": tensor for name, tensor in STATE.items()}):
        ours = from_actionformer(state, model)
        assert {name: tensor.shape for name, tensor in ours.items()} == {
            name: parameter.shape for name, parameter in model.named_parameters()
        }
        numbers = [torch.cat([tensor.flatten() for tensor in one.values()]).sort().values for one in (ours, STATE)]
        assert torch.equal(*numbers)


def test_numbers_of_levels_are_in_their_order() -> None:
    scales = {f"reg_head.scale.{level}.scale": torch.tensor(float(level)) for level in (3, 0, 2, 1)}
    others = {name: tensor for name, tensor in STATE.items() if name not in scales}
    assert from_actionformer({**scales, **others}, pyramid())["offset_scale_L"].tolist() == [0, 1, 2, 3]


def test_gains_have_a_place_where_there_are_some() -> None:
    model = pyramid(layer_scale=1e-4)
    gains = {
        f"backbone.{row}.{i}.drop_path_{branch}.scale": torch.full((1, 32, 1), float(i))
        for row, number in (("stem", 2), ("branch", 3))
        for i in range(number)
        for branch in ("attn", "mlp")
    }
    ours = from_actionformer({**STATE, **gains}, model)
    assert ours["branch.2.gain1_D"].tolist() == ours["branch.2.gain2_D"].tolist() == [2.0] * 32
    with pytest.raises(CheckpointError, match=r"missing: stem\.0\.gain1_D, stem\.0\.gain2_D"):
        from_actionformer(STATE, model)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 4, "stem": 3}, "missing: stem.2.norm1.weight"),
        ({"stem": 1}, "without a place: stem.1"),
        ({"ranges": (4.0, 8.0)}, r"offset_scale_L \(4,\), expected \(3,\)"),
        ({"width": 16}, r"of another shape: embed.0.conv.weight \(32, 24, 3\), expected \(16, 24, 3\)"),
    ],
)
def test_a_head_of_other_settings_is_refused_in_one_line(changes: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as error:
        from_actionformer(STATE, pyramid(**changes))
    assert "\n" not in str(error.value)
