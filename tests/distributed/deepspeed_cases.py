"""One rank that runs some of benchmarks/deepspeed: as they are, and with half of a gradient thrown away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.deepspeed.bench import Bench
from benchmarks.deepspeed.case import SUITE, same
from benchmarks.deepspeed.cases.saved import _gone_on, _three_steps
from benchmarks.deepspeed.setting import Setting
from benchmarks.deepspeed.toy import flat
from benchmarks.deepspeed.worker import run_cases
from tests.distributed.ranks import answer
from vmae2_ds.dist import Ranks

ZERO1, HPZ = Setting("zero1", "fp32"), Setting("zero3", "fp32", "hpZ")


def halve(model: torch.nn.Module) -> None:
    """The gradient of the first parameter arrives as half of it, in the engine's model alone."""
    next(p for p in model.parameters() if p.requires_grad).register_hook(lambda gradient: gradient / 2)


def run(asked: dict[str, Any], ranks: Ranks) -> dict[str, list[dict]]:
    """Rows of the cells that are asked for, [case, setting] each, and of cases with the fault planted."""
    import benchmarks.deepspeed.cases  # noqa: F401  they register themselves

    assert all(name in SUITE.cases for name, _ in [*asked["cells"], *asked["planted"]])
    rows: dict[str, list[dict]] = {"cells": [], "planted": []}
    for kind, found in rows.items():
        Bench.plant = halve if kind == "planted" else None
        for name, setting in asked[kind]:
            chosen = {"cases": [name], "settings": [setting], "folder": str(Path(asked["folder"]) / kind)}
            found += run_cases(chosen, ranks)
    rows["converted"] = [_from_another_stage(ranks, Path(asked["folder"]) / "converted")]
    return rows


def _from_another_stage(ranks: Ranks, folder: Path) -> dict:
    """The step after stage 1's checkpoint is taken over at stage 3 with hpZ, beside stage 1's own step."""
    Bench.plant = None
    first, second = (Bench(setting, "ours", ranks, folder) for setting in (ZERO1, HPZ))
    expected, got = _three_steps(first, folder, "hidden").weights(), _gone_on(second, folder, "hidden")
    found = same(flat(expected), flat(got))
    first.close()
    second.close()
    return {"verdict": "right" if found.error < 1e-5 else "wrong", **found._asdict()}


if __name__ == "__main__":
    answer(run)
