"""`python -m tests.distributed.hung FOLDER`: rank 1 of a launcher hangs in C with the interpreter's lock held, the others wait.

Nothing but the switch that ends a run which hangs: test_resume.py has whole runs that hang, without a launcher.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

from vmae2_ds.dist import Ranks
from vmae2_ds.guard.hang import HangSwitch

if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    switch = HangSwitch(Path(sys.argv[-1]), Ranks(rank, rank, int(os.environ["WORLD_SIZE"])), 3, 100)
    switch.step(1)
    if rank == 1:
        mutex, libc = ctypes.create_string_buffer(64), ctypes.PyDLL(None)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)  # waits for itself, and no signal ends that
    time.sleep(100)
