"""Runs a function where no other test has been: free heap and imported libraries change what a step is seen to take."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """What a function of some module returns, both picklable."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
