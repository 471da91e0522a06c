"""A rank that saves the same steps twice, while training waits and behind it, and goes on from what the second has left.

`python -m tests.distributed.saves_behind '"POLICY"' OUT`.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.distributed.elastic_steps import CUT, EMA_DECAY, NUM_STEPS
from tests.distributed.kill_points import Trial
from tests.distributed.ranks import answer
from vmae2_ds.checkpoint.hashed_files import HashedFiles
from vmae2_ds.checkpoint.whole import WHOLE, tag_of, why_torn
from vmae2_ds.dist import Ranks
from vmae2_ds.train.ema import WeightAverage


@contextmanager
def nothing_is_written() -> Iterator[None]:
    """A disk that does not answer until the block is over."""
    answers, write = threading.Event(), HashedFiles.write_copies

    def waiting(files: HashedFiles) -> None:
        assert answers.wait(200)
        write(files)

    HashedFiles.write_copies = waiting  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        answers.set()
        HashedFiles.write_copies = write  # type: ignore[method-assign]


def run(policy: str, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Losses of the steps after the first save and of the same steps after a resume from it; hashes of all files, by saver."""
    trial = Trial(policy, ranks)
    mean = WeightAverage(trial.engine, EMA_DECAY)
    waits = trial.saver(folder / "waits", behind=False, mean=mean)
    behind = trial.saver(folder / "behind", behind=True, mean=mean)
    losses, was_whole = list[float](), list[bool]()
    for first, last in ((0, CUT), (CUT, NUM_STEPS)):
        losses += trial.steps(first, last)
        mean.update()
        waits.save(last, {"step": last})
        with nothing_is_written():
            behind.save(last, {"step": last})
            losses += trial.steps(last, last + 1) if last == CUT else []
            mean.update()
            was_whole.append(why_torn(folder / "behind" / tag_of(last)) is None or behind.is_written())
        behind.finish()
        if last == CUT:
            assert trial.resume(folder / "behind") == CUT
            mean.load(folder / "behind" / tag_of(CUT), ranks)
    found = [
        {tag: json.loads((folder / saver / tag / WHOLE).read_text())["sha256"] for tag in map(tag_of, (CUT, NUM_STEPS))}
        for saver in ("waits", "behind")
    ]
    return {"losses": losses, "waits": found[0], "behind": found[1], "was_whole": was_whole}


if __name__ == "__main__":
    answer(lambda asked, ranks: run(asked, Path(sys.argv[2]).parent, ranks))
