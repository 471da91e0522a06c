"""`python -m tests.distributed.recorded`: the command line, writing down which clips went into every update that was applied.

Each line of VMAE2_TEST_USED.rankR.jsonl is {"start", "step", "clips"}: a clip is the hash of its pixels and of its masks.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from vmae2_ds.cli.main import main
from vmae2_ds.engine.step import Engine


def record() -> None:
    """Wrap the engine's two calls."""
    path = Path(f"{os.environ['VMAE2_TEST_USED']}.rank{os.environ['RANK']}.jsonl")
    start = int(os.environ["VMAE2_TEST_START"])
    micro_step, update = Engine.micro_step, Engine.update
    used: list[str] = []

    def recorded_micro_step(engine: Engine, batch: Any) -> Any:
        for clip in zip(batch.clip_BTHWC, batch.visible_BV, batch.decode_BM, strict=True):
            used.append(hashlib.sha1(b"".join(part.numpy().tobytes() for part in clip)).hexdigest())
        return micro_step(engine, batch)

    def recorded_update(engine: Engine, *limits: float) -> Any:
        result = update(engine, *limits)
        line = {"start": start, "step": engine.deepspeed.global_steps, "clips": list(used)}
        used.clear()
        if result.applied:
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        return result

    Engine.micro_step, Engine.update = recorded_micro_step, recorded_update  # type: ignore[method-assign]


if __name__ == "__main__":
    record()
    main()
