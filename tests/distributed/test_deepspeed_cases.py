"""Cases of benchmarks/deepspeed with the installed DeepSpeed: what its page calls red and mended is so; a fault is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.deepspeed.page import PAGE, ROWS, bounds, latest, page_of
from tests.distributed.zygote import Zygote, run_forked
from vmae2_ds.json_lines import rows_of

EXPECTED = {
    ("accumulated gradient", "zero2_offload bf16"): ("right", "right"),
    ("first update of adamw", "zero0 bf16"): ("wrong", "refused"),
    ("frozen layer after loading", "zero3 fp32, hpZ"): ("wrong", "right"),
    ("frozen layer after loading", "zero3 fp32"): ("right", "right"),
    ("gradient that is not finite", "zero0 fp32"): ("wrong", "right"),
    ("gradient that is not finite", "zero2_offload bf16, grad_accum_dtype fp32"): ("wrong", "refused"),
    ("first values under zero init", "zero3 fp32"): ("wrong", "right"),
}
"""Case and setting: DeepSpeed by itself, and through this package."""
PLANTED = [("accumulated gradient", "zero1 fp32"), ("norm of the gradient", "zero1 fp32")]


@pytest.fixture(scope="module")
def rows(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("cases")
    asked = {"cells": list(EXPECTED), "planted": PLANTED, "folder": str(folder)}
    return run_forked(zygote, "tests.distributed.deepspeed_cases", asked, folder / "rows.json", 2)


@pytest.mark.slow
def test_what_deepspeed_does_wrong_is_mended_or_refused(rows: dict[str, list[dict]]) -> None:
    found = {(row["case"], row["setting"], row["by"]): row["verdict"] for row in rows["cells"]}
    expected = {
        (*cell, way): verdict
        for cell, ways in EXPECTED.items()
        for way, verdict in zip(("bare", "ours"), ways, strict=True)
    }
    assert found == expected


@pytest.mark.slow
def test_a_gradient_that_is_half_lost_is_told(rows: dict[str, list[dict]]) -> None:
    assert len(rows["planted"]) == 4
    assert {row["verdict"] for row in rows["planted"]} == {"wrong"}


@pytest.mark.slow
def test_a_frozen_layer_that_comes_from_another_stage_is_what_the_next_step_works_with(rows: dict[str, list]) -> None:
    """With hpZ, where each node has a copy of its own, and DeepSpeed would go on with that."""
    assert [row["verdict"] for row in rows["converted"]] == ["right"], rows["converted"]


def test_the_page_is_that_of_its_rows() -> None:
    assert PAGE.read_text() == page_of(list(rows_of(ROWS))), "python -m benchmarks.deepspeed --page writes it anew"


def test_the_oldest_version_allowed_and_the_pinned_one_have_been_run() -> None:
    """And below the oldest there is red where it is not: the bound has a reason."""
    rows = latest(list(rows_of(ROWS)))
    assert {row["deepspeed"] for row in rows} >= set(bounds())
    nonfinite = {
        row["deepspeed"]: row["verdict"]
        for row in rows
        if (row["case"], row["setting"], row["by"]) == ("gradient that is not finite", "zero2_offload fp32", "bare")
    }
    assert {nonfinite[version] for version in bounds()} == {"right"}
    assert (nonfinite["0.19.2"], nonfinite["0.19.3"]) == ("wrong", "wrong")


def test_no_red_cell_of_ours_is_unsaid() -> None:
    """What this package gets wrong with a version that is allowed is of the two kinds that the page explains."""
    wrong = {row["case"] for row in latest(list(rows_of(ROWS))) if row["by"] == "ours" and row["verdict"] == "wrong"}
    assert wrong == {"layer used in one micro batch", "small gradients after a large one"}
    text = Path(PAGE).read_text().split("## What follows")[1]
    assert "each of its weights in each micro batch" in text
    assert "bf16 gradients add up in bf16" in text
