"""`vmae2 doctor`: what it is asked, and the whole look at this host."""

from __future__ import annotations

import logging
import platform
import time
from typing import Annotated

import tyro
from pydantic import Field

from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.config.run import RunConfig
from vmae2_ds.doctor.driver import count_gpus
from vmae2_ds.doctor.examine import LIMIT_S, examine
from vmae2_ds.doctor.needs import Needs
from vmae2_ds.doctor.page import Examination

log = logging.getLogger(__name__)


class DoctorArguments(StrictModel):
    """See what this host has and lacks for a recipe: one page, a remedy beside each red or yellow line.

    Options of the recipe may follow. Exit code 0 without a red line, 2 with one.

    Example: vmae2 doctor --recipe vit_g_pretrain_hybrid --data.workers 4
    """

    recipe: str = "vit_b_pretrain_hybrid"
    """Recipe whose shapes, loaders and checkpoints the host is compared with."""
    ranks: int | None = Field(None, ge=1, le=1024)
    """Number of ranks on this host; default: its GPUs, or 1 where there is none."""
    limit_s: float = Field(LIMIT_S, ge=1, le=3600)
    """Seconds that a look may take; one that takes longer becomes a line of its own."""
    json_: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print one JSON object instead of the page."""


def doctor(arguments: DoctorArguments, config: RunConfig, words: tuple[str, ...] = ()) -> Examination:
    """Look at everything; `words` are the recipe's options as they were typed. Raises ConfigError for shapes that cannot be."""
    now, began = time.time(), time.monotonic()
    needs = _needs(config, arguments.ranks or max(1, count_gpus()))
    findings = examine(needs, arguments.limit_s)
    return Examination(
        host=platform.node(),
        utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        unix_s=now,
        seconds=round(time.monotonic() - began, 2),
        recipe=config.recipe,
        words=words,
        ranks=needs.ranks,
        findings=findings,
    )


def _needs(config: RunConfig, ranks: int) -> Needs:
    """What the recipe needs; of a host whose numpy is broken, which the page then says, no more than its name."""
    try:
        from vmae2_ds.doctor.recipe_needs import needs_of
    except Exception as error:  # whatever runs at numpy's import
        log.warning("what the recipe needs is not known: %s", error)
        return Needs(config.recipe, ranks, shapes={})
    return needs_of(config, ranks)
