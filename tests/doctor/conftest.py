"""What the doctor's tests share: the needs of a small recipe."""

from __future__ import annotations

import pytest

from vmae2_ds.doctor.needs import Needs


@pytest.fixture
def needs() -> Needs:
    """One rank with 8 workers, which takes a GiB of /dev/shm."""
    shapes = {"encoder": (4, 160, 12, 64), "decoder": (4, 944, 6, 64)}
    readers = {"pyav": "av", "decord": "decord", "torchcodec": "torchcodec"}
    return Needs("r", 1, shapes, readers=readers, shm_bytes=2**30, memory_bytes=2**31, checkpoint_bytes=2**30)
