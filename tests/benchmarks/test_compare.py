"""`compare` tells a change from scatter, says what is missing, and never compares what cannot be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.__main__ import main
from benchmarks.compare import COUNTED_TOLERANCE, OTHER_MACHINE, Change, compare, table
from benchmarks.record import WHOLE_GROUP, Row
from tests.benchmarks.made_rows import made_results, made_row, on_gpu, timed_row, write_rows

TOLERANCE = 0.03
KEY = ("peers", "small bf16", "ours")
STEADY = [1.0, 1.005, 1.01, 1.015, 1.02]


def row(samples_s: list[float] = STEADY, **fields: Any) -> Row:
    return timed_row(*KEY, samples_s, **fields)


def scaled(factor: float, samples_s: list[float] = STEADY) -> Row:
    return row([factor * each for each in samples_s])


def speedup(median: float, reach: float = 0.01, against: str = "theirs") -> Row:
    return row(speedup={"against": against, "median": median, "low": median - reach, "high": median + reach})


def memory(peak_bytes: int, source: str = "torch.cuda.max_memory_allocated") -> Row:
    return row(memory={"peak_bytes": peak_bytes, "source": source})


def verdicts(before: Row, after: Row) -> dict[str, str]:
    return {change.quantity: change.verdict for change in compare([before], [after], TOLERANCE)}


def printed(changes: list[Change]) -> str:
    console = Console(width=200, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(table(changes))
    return " ".join(capture.get().split())


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [
        (1.2, "regression"),
        (0.8, "improvement"),
        (1.0, "same"),
        (1.025, "same"),
        (1 / 1.025, "same"),
        (1.04, "regression"),
    ],
)
def test_times(factor: float, verdict: str) -> None:
    # the quartiles of STEADY are 1 % apart, so from 1.01 on they are disjoint, and the tolerance decides
    assert verdicts(row(), scaled(factor)) == {"time": verdict}


def test_inside_the_spread_is_quiet_however_large() -> None:
    noisy = [0.8, 0.9, 1.0, 1.2, 1.4]  # quartiles 0.9 and 1.2
    assert verdicts(row(noisy), scaled(1.25, noisy)) == {"time": "same"}
    assert verdicts(row(noisy), scaled(1.5, noisy)) == {"time": "regression"}


def test_speedups_are_better_when_larger() -> None:
    assert verdicts(speedup(1.6), speedup(1.4))["speed-up"] == "regression"
    assert verdicts(speedup(1.6), speedup(1.8))["speed-up"] == "improvement"
    assert verdicts(speedup(1.6, reach=0.2), speedup(1.4, reach=0.2))["speed-up"] == "same"
    assert verdicts(speedup(1.6), speedup(1.4, against="others"))["speed-up"] == "not compared"


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.03, "regression"), (0.97, "improvement"), (1.01, "same"), (0.99, "same")]
)
def test_bytes(factor: float, verdict: str) -> None:
    assert verdicts(memory(10**9), memory(int(factor * 10**9)))["memory"] == verdict
    sent = [made_row(*KEY, values={"comm_bytes": each * 10**8, "clips_per_s": each}) for each in (1, factor)]
    assert verdicts(*sent) == {"comm_bytes": verdict}


def test_resident_memory_scatters_by_pages() -> None:
    def verdict(before: int, after: int) -> str:
        rows = [memory(peak_bytes, "VmHWM over VmRSS before the call") for peak_bytes in (before, after)]
        return verdicts(*rows)["memory"]

    mib = 2**20
    assert [verdict(20 * mib, after * mib) for after in (16, 24, 25)] == ["same", "same", "regression"]
    assert [verdict(1000 * mib, after * mib) for after in (1030, 1031, 960)] == ["same", "regression", "improvement"]


def test_what_an_engine_leaves_behind_is_not_compared() -> None:
    before, after = (row(values={"left_bytes": left, "comm_bytes": 10**6}) for left in (10**6, -(10**7)))
    assert "left_bytes" not in verdicts(before, after)
    assert verdicts(before, after)["comm_bytes"] == "same"


def test_a_group_that_died_is_a_regression_even_over_its_own_older_rows() -> None:
    alive = [timed_row("peers", "small bf16", name, STEADY) for name in ("ours", "theirs")]
    dead = timed_row("peers", "small bf16", WHOLE_GROUP, STEADY)
    dead |= {"error": "the process was ended by SIGKILL", "fingerprint": alive[0]["fingerprint"]}
    for after in ([dead], [*alive, dead]):
        found = {change.key[2]: change.verdict for change in compare(alive, after, TOLERANCE)}
        assert found == {"ours": "vanished", "theirs": "vanished", WHOLE_GROUP: "regression"}
    assert {change.verdict for change in compare(alive, [dead, *alive], TOLERANCE)} == {"same"}, "it went well later"


def test_memory_counted_differently_is_not_compared() -> None:
    assert verdicts(memory(10**9), memory(2 * 10**9, source="cuda allocator"))["memory"] == "not compared"


def test_errors() -> None:
    failed = made_row(*KEY, error="OutOfMemoryError: 12 GiB")
    assert verdicts(row(), failed) == {"error": "regression"}
    assert verdicts(failed, row()) == {"error": "improvement"}
    assert verdicts(failed, failed) == {"error": "same"}
    assert "OutOfMemoryError: 12 GiB" in printed(compare([row()], [failed], TOLERANCE))


def test_a_variant_on_one_side_is_said() -> None:
    assert [change.verdict for change in compare([row()], [], TOLERANCE)] == ["vanished"]
    assert [change.verdict for change in compare([], [row()], TOLERANCE)] == ["new"]
    assert "vanished peers small bf16 ours" in printed(compare([row()], [], TOLERANCE)).replace("│ ", "")
    assert verdicts(memory(10**9), row())["memory"] == "vanished"


def test_the_newest_row_counts() -> None:
    assert [change.verdict for change in compare([scaled(3), row()], [scaled(5), row()], TOLERANCE)] == ["same"]


@pytest.mark.parametrize("fields", [{"device": "NVIDIA Made 100"}, {"machine": {"cpu": "Another"}}])
def test_other_machines_are_compared_in_ratios_alone(fields: dict[str, Any]) -> None:
    before = {**row(), "speedup": speedup(1.6)["speedup"], "memory": memory(10**9)["memory"]}
    after = {**scaled(5), "speedup": speedup(1.2)["speedup"], "memory": memory(2 * 10**9)["memory"], **fields}
    assert verdicts(before, after) == {"time": "not compared", "speed-up": "regression", "memory": "regression"}
    assert OTHER_MACHINE in printed(compare([before], [after], TOLERANCE))


def test_quiet_and_in_one_line_when_nothing_changed() -> None:
    rows = made_results()
    changes = compare(rows, copy.deepcopy(rows), TOLERANCE)
    assert {change.verdict for change in changes} == {"same"}
    text = printed(changes)
    variants = len({change.key for change in changes})
    assert text == f"no change beyond the spread in {variants} variants"


def test_two_runs_of_the_same_code_on_two_devices() -> None:
    changes = compare(made_results(), on_gpu(made_results()), TOLERANCE)
    assert {change.verdict for change in changes if change.quantity == "time"} == {"not compared"}
    assert {change.verdict for change in changes if change.quantity != "time"} == {"same"}


MIRROR = {"regression": "improvement", "improvement": "regression", "vanished": "new", "new": "vanished",
          "same": "same", "not compared": "not compared"}  # fmt: skip
seconds = st.floats(0.01, 100)


@st.composite
def any_rows(draw: st.DrawFn) -> Row | None:
    """A row of the one variant as it may turn out: absent, failed, or with any figures."""
    kind = draw(st.sampled_from(("absent", "failed", "timed", "timed", "timed")))
    if kind == "absent":
        return None
    if kind == "failed":
        return made_row(*KEY, error="RuntimeError: x")
    fields: dict[str, Any] = {"device": draw(st.sampled_from(("cpu", "cpu", "NVIDIA Made 100")))}
    if draw(st.booleans()):
        low, median, high = sorted(draw(st.tuples(seconds, seconds, seconds)))
        against = draw(st.sampled_from(("theirs", "others")))
        fields["speedup"] = {"against": against, "median": median, "low": low, "high": high}
    if draw(st.booleans()):
        fields["memory"] = {"peak_bytes": draw(st.integers(0, 10**12)), "source": "VmHWM"}
    if draw(st.booleans()):
        fields["values"] = {"comm_bytes": draw(st.integers(0, 10**12))}
    return row(draw(st.lists(seconds, min_size=1, max_size=9)), **fields)


@given(before=any_rows(), after=any_rows(), tolerance=st.floats(0, 0.5))
def test_swapping_the_sides_mirrors_the_verdicts(before: Row | None, after: Row | None, tolerance: float) -> None:
    sides = [[each] if each else [] for each in (before, after)]
    forth = {change.quantity: change.verdict for change in compare(*sides, tolerance)}
    back = {change.quantity: change.verdict for change in compare(*reversed(sides), tolerance)}
    assert back == {quantity: MIRROR[verdict] for quantity, verdict in forth.items()}


@given(base=seconds, factor=st.floats(1.0, 1.0 + COUNTED_TOLERANCE * 0.99), tolerance=st.floats(0.03, 0.5))
def test_what_is_within_the_tolerance_is_the_same(base: float, factor: float, tolerance: float) -> None:
    one = row([base] * 3, memory={"peak_bytes": base, "source": "VmHWM"})
    other = row([base * factor] * 3, memory={"peak_bytes": base * factor, "source": "VmHWM"})
    assert {change.verdict for change in compare([one], [other], tolerance)} == {"same"}


def test_exit_codes(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    before, same, slow = (write_rows(tmp_path / name, [each]) for name, each in
                          (("before", row()), ("same", row()), ("slow", scaled(1.5))))  # fmt: skip
    assert main(["compare", str(before), str(same)]) == 0
    assert capsys.readouterr().err.strip() == "no change beyond the spread in 1 variant"
    assert main(["compare", str(before), str(slow)]) == 1
    assert main(["compare", str(slow), str(before)]) == 0
