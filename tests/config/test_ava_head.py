"""Which classes of a spatial detector share a softmax, and what is refused."""

from __future__ import annotations

import pytest

from vmae2_ds.config.ava_head import RoiHeadConfig


def test_classes_that_exclude_each_other_are_none_all_or_those_named() -> None:
    assert RoiHeadConfig().exclusive_columns(6) == ()
    assert RoiHeadConfig(exclusive="all").exclusive_columns(3) == (0, 1, 2)
    assert RoiHeadConfig(exclusive=(5, 0, 1)).exclusive_columns(6) == (0, 1, 5)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ((3,), "head.exclusive: one class by itself excludes none"),
        ((0, 2, 0), "head.exclusive names a class twice: 0 0 2"),
        ((9, 3), "head.exclusive names class 9, and there are classes 0 to 5"),
    ],
)
def test_classes_that_cannot_exclude_each_other_are_refused(columns: tuple[int, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RoiHeadConfig(exclusive=columns).exclusive_columns(6)


def test_a_single_class_shares_its_softmax_with_none() -> None:
    """It would be certain whatever the model says, and learn nothing."""
    with pytest.raises(ValueError, match="one class by itself excludes none"):
        RoiHeadConfig(exclusive="all").exclusive_columns(1)
