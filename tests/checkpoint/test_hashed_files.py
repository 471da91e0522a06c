"""Files are hashed as they are written, and an error of the disk is kept for all ranks to agree on."""

from __future__ import annotations

import errno
import resource
import signal
import subprocess
from pathlib import Path

import torch

from vmae2_ds.checkpoint.hashed_files import HashedFiles


def test_the_hash_is_that_of_sha256sum(tmp_path: Path) -> None:
    files = HashedFiles(tmp_path)
    path = tmp_path / "zero" / "a.weight" / "fp32.pt"
    weight = torch.randn(700, 300)
    files.save({"param": weight}, path)
    assert files.error is None
    written = files.written["zero/a.weight/fp32.pt"]
    said = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (written.size, written.sha256) == (path.stat().st_size, said)
    assert torch.equal(torch.load(path, weights_only=True)["param"], weight)


def test_what_the_disk_refuses_is_kept_not_raised(tmp_path: Path) -> None:
    """RLIMIT_FSIZE is a real refusal in the middle of a real write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    files = HashedFiles(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        files.save({"w": torch.zeros(1_000_000)}, tmp_path / "large.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert files.error is not None
    assert files.error.errno == errno.EFBIG
    files.save({"w": torch.zeros(1)}, tmp_path / "small.pt")
    assert not files.written
    assert not (tmp_path / "small.pt").exists(), "nothing is written after an error"
