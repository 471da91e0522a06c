"""Runs a function in a young process: one that ran tests holds a heap, which hides or adds to what a measurement takes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

T = TypeVar("T")


def in_fresh_process(function: Callable[[], T]) -> T:
    """What a function of some module returns, which has to be picklable. It may have children of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as young:
        return young.submit(function).result()
