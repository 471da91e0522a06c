"""No code that a checkpoint names is run, and a damaged one is one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from vmae2_ds.checkpoint.safe_load import read_shard, read_state
from vmae2_ds.errors import CheckpointError


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.victim),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    victim, path = tmp_path / "pwned", tmp_path / "evil.pt"
    torch.save({"module": Evil(victim)}, path)
    for read in (read_state, read_shard):
        with pytest.raises(
            CheckpointError, match=r"evil\.pt cannot be read .* posix\.mkdir, .* no code in a file is run"
        ):
            read(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.exists(), "or the test would prove nothing"


@pytest.mark.parametrize("size", [0, 10, 500])
def test_a_torn_file_is_one_line(size: int, tmp_path: Path) -> None:
    path = tmp_path / "torn.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    os.truncate(path, size)
    with pytest.raises(CheckpointError, match=r"torn\.pt cannot be read .* it is (empty|cut or damaged)") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
