"""One rank: runs the cases that are asked for, one after another, in one process group, and tells rows.

python -m benchmarks.deepspeed.worker ASKED.json OUT.jsonl   (with the launcher's variables)
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.deepspeed.case import SUITE, TOLERANCE, Case
from benchmarks.deepspeed.setting import Setting
from vmae2_ds.json_lines import adding_rows


def run_cases(
    asked: dict[str, Any], ranks: Any, tell: Callable[[dict[str, Any]], None] = lambda row: None
) -> list[dict]:
    """Each case at each of its settings by each way, on these ranks; `tell` is given a row as soon as it is known."""
    import deepspeed

    import benchmarks.deepspeed.cases  # noqa: F401  they register themselves

    rows = []
    for case in SUITE.cases.values():
        if case.ranks != ranks.size or (asked.get("cases") and case.name not in asked["cases"]):
            continue
        for setting, way in product(case.settings, case.ways):
            wanted = not asked.get("settings") or str(setting) in asked["settings"]
            if wanted and (not asked.get("ways") or way in asked["ways"]):
                row = _run(case, setting, way, ranks, Path(asked["folder"]))
                rows.append({"deepspeed": deepspeed.__version__, **row})
                tell(rows[-1])
    return rows


def main(asked: dict[str, Any], out: Path) -> None:
    """This process as one rank; rank 0 writes the rows."""
    import torch

    from vmae2_ds.engine.ranks import start_ranks, stop_ranks

    torch.set_num_threads(1)
    ranks = start_ranks()
    with adding_rows(out) as add:
        run_cases(asked, ranks, add if ranks.rank == 0 else lambda row: None)
    stop_ranks(ranks)


def _run(case: Case, setting: Setting, way: str, ranks: Any, root: Path) -> dict[str, Any]:
    import torch

    from benchmarks.deepspeed.bench import Bench

    began = time.monotonic()
    bench = Bench(setting, way, ranks, root)
    try:
        found = case.run(bench)
        limit = 0.0 if found.exact else TOLERANCE[setting.precision]
        verdict = "right" if found.error <= limit else "wrong"  # a NaN is not right
        mine = {
            "verdict": verdict,
            "error": found.error if math.isfinite(found.error) else None,
            "expected": found.expected,
            "got": found.got,
        }
    except Exception as error:  # whatever DeepSpeed raises is what is told here
        words = re.sub(r"/\S*/", "", " ".join(str(error).split()))[:300]  # paths of this machine stay here
        mine = {"verdict": _kind(error), "words": f"{type(error).__name__}: {words}"}
        if os.environ.get("DEEPSPEED_CASES_TRACE"):
            traceback.print_exc()
    bench.close()
    everyone: list[Any] = [None] * ranks.size
    torch.distributed.all_gather_object(everyone, mine)
    worst = max(everyone, key=lambda one: ("right", "not on CPU", "refused", "wrong").index(one["verdict"]))
    row = {"case": case.name, "setting": str(setting), "by": way, "ranks": ranks.size, **worst}
    print(json.dumps(row), f"{time.monotonic() - began:.1f} s", flush=True)
    return row


def _kind(error: Exception) -> str:
    words = str(error).lower()
    lacks = (
        "implemented on cpu",
        "not supported on cpu",
        "cpu accelerator",
        "unable to jit load",
        "cuda",
        "no accelerator",
    )
    return "not on CPU" if any(lack in words for lack in lacks) else "refused"


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
