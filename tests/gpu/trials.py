"""Several trials (vmae2_ds/tune/trial.py) in one process, whose imports and device come up once: python -m tests.gpu.trials.

`RUN.json OUT.json ...`: pairs of a config and the file for what it took, less what the trials before it have left.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.tune.trial import run_trial

STEPS = 3


def main(files: list[Path]) -> None:
    """Run them one after another."""
    for run, out in zip(files[::2], files[1::2], strict=True):
        gc.collect()
        left = 0
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            left = torch.cuda.memory_allocated()
        run_trial(PretrainConfig.model_validate_json(run.read_text()), STEPS, out)
        measured = json.loads(out.read_text())
        out.write_text(json.dumps({**measured, "allocated_bytes": measured["allocated_bytes"] - left}))


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
