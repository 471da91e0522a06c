"""A loader worker is a fork: what of its parent it must leave alone."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from vmae2_ds.config.pretrain import PretrainDataConfig
from vmae2_ds.data.feed import loader


class Garbage:
    """What only a collection finds, as a decoder in a traceback; it says which process lets go of it."""

    def __init__(self, said: Path) -> None:
        self.said, self.me = said, self

    def __del__(self) -> None:
        with self.said.open("a") as file:
            file.write(f"{os.getpid()}\n")


class Collecting:
    """Each item is read with a collection."""

    def __getitem__(self, number: int) -> int:
        gc.collect()
        return number


def test_a_worker_lets_go_of_nothing_that_it_was_forked_with(tmp_path: Path) -> None:
    said = tmp_path / "said"
    gc.disable()
    try:
        Garbage(said)
        assert list(loader.load_items(PretrainDataConfig(workers=2), Collecting(), range(4))) == [0, 1, 2, 3]  # type: ignore[arg-type]
    finally:
        gc.enable()
    gc.collect()
    assert said.read_text().split() == [str(os.getpid())]
