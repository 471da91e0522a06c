"""docs/DEEPSPEED.md and the table of a run, from rows."""

from __future__ import annotations

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import benchmarks.deepspeed.cases  # noqa: F401  they register themselves
from benchmarks.deepspeed.case import SUITE, TOLERANCE, Case

ROOT = Path(__file__).parents[2]
PAGE, ROWS = ROOT / "docs" / "DEEPSPEED.md", Path(__file__).with_name("rows.jsonl")
NEWEST = ("2026-11-29", "0.19.8")
"""The day PyPI was asked, and the newest version there."""
Row = dict
ASKED = ("case", "setting", "by", "deepspeed")
WIDTH = 120
"""Of the page's lines, as of all pages (tests/test_docs_lines.py)."""

HEAD = """# What DeepSpeed gets silently wrong

Small cases, each against plain PyTorch on one process, at every ZeRO policy that is allowed here and with the options
that a policy of your own may set. `make deepspeed VERSION=0.19.3` runs them on two ranks with that version, in an
environment of its own, and prints this table; the code is [benchmarks/deepspeed/](../benchmarks/deepspeed/), and this
page is made from its rows (`python -m benchmarks.deepspeed --page`). Everything ran on CPUs: no GPU has run it.

**Read a cell so**: `right 12` at twelve settings; `WRONG 2` at two, without an error or a warning; `refused 1`: with an
error; `no CPU 1`: cannot run on one. Right means within {fp32:g} of PyTorch's in fp32 and {bf16:g} in bf16, relative,
or equal to the bit where the case says so. A cell counts the settings that were run with that version; not all were
with each. Oldest version allowed: {oldest}; pinned: {pinned}; newest on PyPI on {day}: {newest}.

"""


def bounds() -> tuple[str, str]:
    """The oldest version that setup.py allows, and the one that constraints.txt pins."""
    oldest = re.search(r"deepspeed>=([\d.]+)", (ROOT / "setup.py").read_text())
    pinned = re.search(r"^deepspeed==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert oldest is not None, "setup.py names DeepSpeed"
    assert pinned is not None, "constraints.txt names DeepSpeed"
    return oldest[1], pinned[1]


def latest(rows: list[Row]) -> list[Row]:
    """The last row of each case, setting, way and version."""
    return list({tuple(row[name] for name in ASKED): row for row in rows}.values())


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _cell(rows: list[Row], case: Case, way: str) -> str:
    if way not in case.ways:
        return "does not do it"
    counts = Counter(row["verdict"] for row in rows if row["by"] == way)
    words = {"wrong": "**WRONG {}**", "right": "right {}", "refused": "refused {}", "not on CPU": "no CPU {}"}
    return ", ".join(text.format(counts[kind]) for kind, text in words.items() if counts[kind])


def table_of(rows: list[Row]) -> str:
    """A line for each case, two columns for each version: DeepSpeed by itself, and through this package."""
    rows = latest(rows)
    versions = sorted({row["deepspeed"] for row in rows}, key=_order)
    columns = [(version, way) for version in versions for way in ("bare", "ours")]
    columns = [(v, w) for v, w in columns if any(row["deepspeed"] == v and row["by"] == w for row in rows)]
    head = [f"{version}{', through vmae2_ds' if way == 'ours' else ''}" for version, way in columns]
    lines = ["| case | reported | " + " | ".join(head) + " |", "|---" * (2 + len(head)) + "|"]
    for case in SUITE.cases.values():
        mine = [row for row in rows if row["case"] == case.name]
        if mine:
            cells = [_cell([row for row in mine if row["deepspeed"] == v], case, w) for v, w in columns]
            lines.append(f"| {case.name} | {case.issue} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _wrong(rows: list[Row], case: Case, way: str) -> list[str]:
    """What is wrong by one way: settings and versions with the same numbers in one line."""
    alike: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["case"] == case.name and row["by"] == way and row["verdict"] == "wrong":
            alike[row["expected"], row["got"]][row["setting"]].append(row["deepspeed"])
    lines = []
    for (expected, got), found in alike.items():
        by_versions: dict[str, list[str]] = defaultdict(list)
        for setting, versions in found.items():
            by_versions[", ".join(sorted(versions, key=_order))].append(setting)
        for versions, settings in by_versions.items():
            lines.append(f"  - {'; '.join(settings)}: {got} where PyTorch has {expected} ({versions})")
    return lines


def _refused(rows: list[Row], case: Case, version: str) -> list[str]:
    """What the errors say, in the version that is pinned."""
    words: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        mine = row["case"] == case.name and row["deepspeed"] == version and "words" in row
        if mine and "ConfigError: bf16 with ZeRO stage 0" not in row["words"] and "zeropp" not in row["setting"]:
            words[row["words"][:150]].append(f"{row['setting']} ({row['by']})")
    return [f"  - {'; '.join(where)}: refused, `{what}`" for what, where in words.items()]


def _short(text: str) -> Iterator[str]:
    """Its lines, items of lists ended at the pages' width; code between back-ticks stays whole."""
    for line in text.splitlines(keepends=True):
        if len(line) <= WIDTH or not (item := re.match(r" *- ", line)):
            yield line
            continue
        whole = re.sub(r"`[^`]*`", lambda code: code[0].replace(" ", "\0"), line.strip())
        filled = textwrap.wrap(
            whole,
            WIDTH,
            initial_indent=" " * line.index("-"),
            subsequent_indent=" " * item.end(),
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield from (each.replace("\0", " ") + "\n" for each in filled)


def page_of(rows: list[Row]) -> str:
    """docs/DEEPSPEED.md."""
    rows, (oldest, pinned) = latest(rows), bounds()
    day, newest = NEWEST
    parts = [HEAD.format(**TOLERANCE, oldest=oldest, pinned=pinned, day=day, newest=newest)]
    allowed = [row for row in rows if _order(row["deepspeed"]) >= _order(oldest)]
    before = [row for row in rows if _order(row["deepspeed"]) < _order(oldest)]
    parts.append("## Versions that are allowed\n\n" + table_of(allowed) + "\n\n")
    if before:
        parts.append("## Versions that are not allowed\n\n" + table_of(before) + "\n\n")
    parts.append("## Case by case\n\n")
    for case in SUITE.cases.values():
        parts.append(f"- **{case.name}** ({case.issue}): {case.checks}\n")
        for way, title in (("bare", "DeepSpeed"), ("ours", "through vmae2_ds")):
            if found := _wrong(rows, case, way):
                parts.append(f"  - wrong, {title}:\n" + "".join(f"  {line}\n" for line in found))
        parts.append("".join(f"{line}\n" for line in _refused(rows, case, pinned)))
        if case.ours:
            parts.append(f"  - here: {case.ours}\n")
        if case.why_not_ours:
            parts.append(f"  - not done here: {case.why_not_ours}\n")
    return "".join(line for part in parts for line in _short(part)) + "\n" + FOOT


FOOT = """## What follows

- **The bound in `setup.py`** was 0.19.3 and is 0.19.8 now: this package trains with neither 0.19.3 nor 0.19.7, which
  lack `combine_grad_norm_groups` (`engine/internals.py`), and both still apply some gradients that are not finite.
  0.19.2 applies one in bf16 at stage 2 too (#8035), and 0.18.9 averages the last micro batch of no other rank under
  `grad_accum_dtype` fp32 (#7985). 0.19.4 to 0.19.6 were not run. The reports of backward passes lost under offload
  (#7981) and of a norm that lacks micro batches (#7967) are of versions before 0.19.2, which is right there; 0.18.9
  could not be seen to be wrong: with torch 2.14 its stage 2 ends with an error on a CPU.
- **bf16 at stage 0** is refused, and so is `data_types.grad_accum_dtype` fp32 at stage 1 and with offload at stage 2
  (`config/ds_config.py`). With `zero2` and `zero3` it does what it says; `cost/states.py` does not count its memory.
- **A model of your own that does not use each of its weights in each micro batch** loses gradients at `zero1` and with
  offload, through this package as well: nothing can be seen of it from outside. Use `zero2` or `zero3` without offload
  for it.
- **bf16 gradients add up in bf16**: many small micro batches after a large one count for nothing. Two to eight micro
  steps lose less than they are rounded by.
- **DeepCompile** builds its extension on CUDA alone, **SuperOffload** runs on NVIDIA GPUs alone, and **ZenFlow** asks
  for a DeepSpeed optimizer of its own and does not take ours; each was started as its case says and none is offered.
- **A frozen layer under hpZ** (`zero_hpz_partition_size`, so `zeropp`) is loaded into the shards, and passes go on with
  the node's copy of what it was before: the run learns around weights that no checkpoint holds, and nothing tells.
  `engine/shards.py` throws those copies away wherever weights are loaded. Where one process builds an engine with hpZ,
  every later engine of that process has such copies too, at any stage 3 policy.
- **zero_to_fp32** leaves frozen weights out at stage 1; `checkpoint/zero_shards.py` finds them.
- **zeropp** quantises with CUDA kernels: on a CPU only its secondary partition (hpZ) was run.
"""
