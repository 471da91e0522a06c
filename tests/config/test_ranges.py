"""Numbers outside of an option's range are one line that names the option as it is typed."""

from __future__ import annotations

import pytest

from vmae2_ds.config.ranges import check_ranges
from vmae2_ds.errors import ConfigError


@pytest.mark.parametrize("value", [0.05, -1, 60.1, float("inf"), float("-inf"), float("nan")])
def test_a_number_outside_is_named_with_its_option_and_the_range(value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^--timeout-s {value}: a number from 0.1 to 60$"):
        check_ranges(workers=(1, 1, 8), timeout_s=(value, 0.1, 60))


@pytest.mark.parametrize("value", [0.1, 60, 7.5, None])
def test_both_ends_are_inside_and_so_is_what_was_not_given(value: float | None) -> None:
    check_ranges(timeout_s=(value, 0.1, 60))
