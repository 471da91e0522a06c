"""The cases by name: what is compared with what."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.cases import dual_masking

CASES: dict[str, Case] = {
    "dual_masking": dual_masking.CASE,
}
"""In the order of a full run."""
