"""Which test files start first: the longest, so that no worker has a long one left when the others are done.

pytest-xdist would begin with the files of many tests; those that train for minutes have few, and would come last.
"""

from __future__ import annotations

import pytest

LONGEST = (
    *("distributed/test_two_hosts.py", "distributed/test_resume.py", "benchmarks/test_zero.py"),
    *("distributed/test_state_bytes.py", "distributed/test_finetune.py", "distributed/test_launchers.py"),
    *("benchmarks/test_pipeline_case.py", "cost/test_adapters.py", "data/readers/test_frame_index.py"),
    *(
        "distributed/test_elastic.py",
        "engine/test_compiled.py",
        "test_bare.py",
        "distributed/test_zero_equals_plain.py",
    ),
    *("benchmarks/test_desk.py", "pages/test_runs.py", "cost/test_activations.py", "tune/test_measure.py"),
    *("distributed/test_damaged.py", "benchmarks/test_micro_cases.py", "distributed/test_distil.py"),
    *(
        "benchmarks/test_real_run.py",
        "distributed/test_disk.py",
        "distributed/test_rollback.py",
        "distributed/test_chaos.py",
    ),
)
"""Forty seconds and more on two cores; of the others, files with a slow test come before files without."""


def longest_first(items: list[pytest.Item]) -> None:
    """Bring the tests of long files to the front; in a file, and among equals, all stay in their order."""
    place = {f"tests/{name}": number for number, name in enumerate(LONGEST)}
    slow = {file_of(item) for item in items if item.get_closest_marker("slow")}

    def key(item: pytest.Item) -> tuple[int, bool]:
        return place.get(file_of(item), len(place)), file_of(item) not in slow

    items.sort(key=key)


def file_of(item: pytest.Item) -> str:
    """As pytest names it, from the repository's root."""
    return item.nodeid.partition("::")[0]
