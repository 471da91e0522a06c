"""Ceilings of a device: the product that is timed for one, and what rows of the case `ceilings` beside those at hand say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from benchmarks.devices import Step, describe
from benchmarks.record import Row, cpu_name, current
from vmae2_ds.json_lines import rows_of

CASE_NAME, PRODUCTS, COPY = "ceilings", "products", "copy"
NumberFormat = Literal["bf16", "fp16", "tf32", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}


class Ceiling(NamedTuple):
    """The best that was measured."""

    rate: float
    """FLOP/s of products, bytes/s (read and written) of copies."""
    source: str
    """Which row it is."""


def product_step(number_format: NumberFormat, edge: int, products: int, device: torch.device) -> Step:
    """`products` products of edge x edge matrices, one after another."""
    dtype = DTYPES[number_format]
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)

    def step() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if number_format == "tf32" else "highest")
        try:
            for _ in range(products):
                torch.mm(left, right, out=out)
        finally:
            torch.set_float32_matmul_precision(before)

    return step


def product_ceiling(folder: Path | None, device: torch.device, number_format: NumberFormat) -> Ceiling | None:
    """The fastest matrix product of a number format that was measured on this device; None where none was."""
    return _best(folder, device, f"{PRODUCTS} {number_format}", "flops_per_s")


def copy_ceiling(folder: Path | None, device: torch.device) -> Ceiling | None:
    """The copy of the largest array, which no cache holds; None where none was measured on this device."""
    rows = list(_measured(folder, device, COPY))
    if not rows:
        return None
    row = max(rows, key=lambda row: row["config"]["copied_bytes"])
    return Ceiling(row["values"]["bytes_per_s"], _name(row))


def _best(folder: Path | None, device: torch.device, group: str, value: str) -> Ceiling | None:
    rows = list(_measured(folder, device, group))
    if not rows:
        return None
    row = max(rows, key=lambda row: row["values"][value])
    return Ceiling(row["values"][value], _name(row))


def _measured(folder: Path | None, device: torch.device, group: str) -> Iterator[Row]:
    """Rows of the group that count, of this device in this machine."""
    file = folder / f"{CASE_NAME}.jsonl" if folder else None
    if file is None or not file.exists():
        return
    here = [row for row in rows_of(file) if (row["device"], row["machine"]["cpu"]) == (describe(device), cpu_name())]
    for row in current(here):
        if row["group"] == group and not row["error"]:
            yield row


def _name(row: Row) -> str:
    return f"measured here: {CASE_NAME}, {row['group']}, {row['variant']}"
