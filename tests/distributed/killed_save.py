"""`python -m tests.distributed.killed_save`: the command line, but rank 1 dies half-way through one of its shards.

VMAE2_TEST_KILL_AT names the checkpoint folder in which that happens.
"""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any

import torch

from vmae2_ds.cli.main import main


def write_half_and_die(save: Any) -> Any:
    """torch.save, until rank 1 writes its optimizer shard into the named folder."""
    tag = os.environ["VMAE2_TEST_KILL_AT"]

    def killed(state: Any, path: Any, *args: Any, **options: Any) -> Any:
        if os.environ["RANK"] == "1" and tag in path.name and "optim_states" in path.name:
            whole = io.BytesIO()
            save(state, whole, *args, **options)
            Path(path.name).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return save(state, path, *args, **options)

    return killed


if __name__ == "__main__":
    torch.save = write_half_and_die(torch.save)
    main()
