"""A small set learned by heart: videos that are held back get worse while those that are trained on get better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.console.progress import counted

WORSE, TIMES = 0.01, 2
"""Share by which the loss of held-back videos has to be above its best, and validations in a row for which it is."""


class ByHeartWatch:
    """Says once, after the rows of validations in their order, that the run learns its videos by heart, and what to do."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._best: Mapping[str, Any] | None = None
        self._worse = 0
        self._has_said = False

    def row(self, row: Mapping[str, Any]) -> str | None:
        """Take the row of a validation; returns the warning after the one that makes it due."""
        losses = [row.get("val_loss"), row.get("seen_loss")]
        if not all(isinstance(loss, float) and math.isfinite(loss) for loss in losses):
            return None
        best = self._best
        if best is None or row["val_loss"] < best["val_loss"]:
            self._best, self._worse = row, 0
            return None
        is_worse = row["val_loss"] >= (1 + WORSE) * best["val_loss"] and row["seen_loss"] < best["seen_loss"]
        self._worse = self._worse + 1 if is_worse else 0
        if self._worse < TIMES or self._has_said:
            return None
        self._has_said = True
        return (
            f"the videos are learned by heart: at step {row['step']} val_loss is {row['val_loss']:.4g}, "
            f"{row['val_loss'] / best['val_loss'] - 1:.1%} above its best, {best['val_loss']:.4g} at step {best['step']} "
            f"({counted(float(format(best['epoch'], '.3g')), 'pass', 'passes')} over the data), while seen_loss fell from "
            f"{best['seen_loss']:.4g} to {row['seen_loss']:.4g}: {self._remedy(best['epoch'])}"
        )

    def _remedy(self, passes: float) -> str:
        config = self._config
        keeps = config.train.keep_best == "val_loss"
        ways = [f"fewer passes (--train.epochs {math.ceil(passes)})"] if passes else []
        if isinstance(config, PretrainConfig):
            ways += ["clips that are mirrored (--data.flip 0.5)"] * (config.data.flip == 0)
            ways += ["more varied crops (--data.crop-scales 1 0.875 0.75 0.66 0.5)"] * (
                min(config.data.crop_scales) > 0.5
            )
        first = (
            "the best checkpoint is kept; next time"
            if keeps
            else "keep the best (--train.keep-best val_loss), and take"
        )
        return f"{first} {', '.join([*ways, 'or more videos'])}"
