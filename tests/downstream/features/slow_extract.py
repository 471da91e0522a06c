"""vmae2 whose extract meets trouble in a rank's third video: `python -m tests.downstream.features.slow_extract WORDS`.

It stands still in the middle of the file; with FULL_DISK=R in the environment rank R finds its disk full instead.
"""

from __future__ import annotations

import errno
import os
import sys
import time

import numpy as np

from vmae2_ds.cli.main import main
from vmae2_ds.downstream.features.sidecar import FeatureFile

if __name__ == "__main__":
    plain, made = FeatureFile.add, []

    def add(self: FeatureFile, rows: np.ndarray) -> None:
        if self not in made:
            made.append(self)
        if len(made) == 3 and "FULL_DISK" not in os.environ:
            plain(self, rows)
            self._file.flush()
            time.sleep(600)
        if len(made) == 3 and os.environ["FULL_DISK"] == os.environ["RANK"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.npy")
        plain(self, rows)

    FeatureFile.add = add  # type: ignore[method-assign]
    main(sys.argv[1:])
