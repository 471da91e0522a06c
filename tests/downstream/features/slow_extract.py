"""vmae2 whose extract stops in the middle of a rank's third video: `python -m tests.downstream.features.slow_extract WORDS`."""

from __future__ import annotations

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
        plain(self, rows)
        if len(made) == 3:
            self._file.flush()
            time.sleep(600)

    FeatureFile.add = add  # type: ignore[method-assign]
    main(sys.argv[1:])
