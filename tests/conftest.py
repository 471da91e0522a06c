"""For every test: it stays on the CPU unless `-m gpu` asks, and what it changes in the environment and in torch is undone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from _pytest.mark.expression import Expression

from tests.distributed.zygote import Zygote
from tests.longest_first import longest_first
from tests.strict_skips import ALLOWED, StrictSkips, read_allowed


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-skips",
        action="store_true",
        default=os.environ.get("CI", "").lower() in ("1", "true"),
        help=f"print every skip, and fail for one that {ALLOWED} does not allow (default under CI=true)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not asks_for_a_device(config.option.markexpr):
        # before torch looks: other kernels give other numbers, and two ranks would meet on one GPU
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    if config.getoption("--strict-skips") and not hasattr(config, "workerinput"):  # xdist's workers report to the first
        config.pluginmanager.register(StrictSkips(read_allowed(ALLOWED)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longest_first(items)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def asks_for_a_device(marks: str) -> bool:
    """Whether `-m MARKS` chooses tests marked gpu and no plain ones."""
    if not marks:
        return False
    expression = Expression.compile(marks)
    return expression.evaluate(lambda name, **_: name == "gpu") and not expression.evaluate(lambda name, **_: False)


@contextlib.contextmanager
def environment_put_back() -> Iterator[None]:
    """A run in this process sets rank variables and DS_ACCELERATOR; a later test would take itself for a rank."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def environment_put_back_after_a_test() -> Iterator[None]:
    with environment_put_back():
        yield


@pytest.fixture(autouse=True, scope="module")
def environment_put_back_after_a_file() -> Iterator[None]:
    """What a fixture of a whole file has run; it comes before the test's own, which would take it for what was there."""
    with environment_put_back():
        yield


@pytest.fixture(autouse=True)
def scheduling_is_kept() -> Iterator[None]:
    """A library that makes this process a real-time one would starve all that is started after it, on this whole machine."""
    before = os.sched_getscheduler(0)
    yield
    after = os.sched_getscheduler(0)
    if after != before:
        os.sched_setscheduler(0, before, os.sched_param(0))
    assert after == before, f"the test left the scheduling policy {after} behind; it was {before}"


@pytest.fixture(autouse=True, scope="module")
def linear_put_back() -> Iterator[None]:
    """DeepSpeed's stage 3 replaces it for good by one that keeps more: tests that count bytes would count those."""
    before = F.linear
    yield
    F.linear = before


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks processes that have their imports behind them."""
    started = Zygote()
    yield started
    started.close()
