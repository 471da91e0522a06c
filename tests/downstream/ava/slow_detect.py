"""vmae2 whose `ava detect` stands still in a second part: `python -m tests.downstream.ava.slow_detect WORDS`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np

from vmae2_ds.cli.main import main
from vmae2_ds.downstream.ava import part_files
from vmae2_ds.downstream.ava.detector import FoundInFrame
from vmae2_ds.downstream.ava.part_files import PartFolder

if __name__ == "__main__":
    plain, parts = PartFolder.write, list[int]()

    def write(self: PartFolder, part: int, found: Sequence[FoundInFrame]) -> None:
        parts.append(part)
        if len(parts) == 2:
            part_files.np = Slow  # type: ignore[attr-defined, assignment]
        plain(self, part, found)

    class Slow:
        """Writes half a file and no more."""

        array = np.array

        @staticmethod
        def savez(file: object, **arrays: object) -> None:
            """As numpy's, to the middle of the first array."""
            file.write(b"PK half of it")  # type: ignore[attr-defined]
            file.flush()  # type: ignore[attr-defined]
            time.sleep(600)

    PartFolder.write = write  # type: ignore[method-assign]
    main(sys.argv[1:])
