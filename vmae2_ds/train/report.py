"""report.html of a run folder: one self-contained page, made from the files the run wrote and from nothing else."""

from __future__ import annotations

import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.stages import read_run_config
from vmae2_ds.console.progress import counted
from vmae2_ds.disk import write_whole
from vmae2_ds.draw.charts import CURVES, Curve, curve_svg, has_values
from vmae2_ds.draw.pages import templates_of
from vmae2_ds.guard.by_heart import ByHeartWatch
from vmae2_ds.guard.hang import STACKS
from vmae2_ds.guard.loader_watch import BINDS
from vmae2_ds.guard.rollback import EVENTS
from vmae2_ds.json_lines import rows_of
from vmae2_ds.runs.folder import is_finished
from vmae2_ds.train.report_pictures import picture_sets
from vmae2_ds.train.row import SOURCE_VIDEOS, source_shares
from vmae2_ds.train.stage import training_of

TAIL = 0.1  # the end of a run that its closing figures are medians of
MOST_BAD_FILES, MOST_EVENTS = 20, 20

NOTES = {
    "loss": "Averaged over ranks and over the steps between two rows.",
    "val_loss": "Of one clip from the middle of each video; in pre-training under the same masks every time.",
    "val_map": "Over --data.val-tious, as ActivityNet's scorer counts it; of the weights' running mean, where there is one.",
    "val_frame_map": "At IoU 0.5, by --data.val-protocol; of the weights' running mean, where there is one.",
    "val_top1": "Of one clip from the middle of each video.",
    "lr": "Peak = base rate x videos per step / --optim.lr-batch.",
    "grad_norm": "Over all parameters and ranks.",
    "clips_per_s": "Clips, not videos: each video gives --data.views of them.",
    "data_wait_share": "The loader is the bottleneck where this is far from zero.",
    "mfu": "Work of the model as configured, recomputation left out.",
}


class Fact(NamedTuple):
    """One closing figure of the run."""

    name: str
    value: str
    note: str


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html from its json and jsonl files, stacks/ and pictures/.

    All but run.json may be missing or torn: a run that was killed has a report too.
    """
    config = read_run_config(folder)
    rows, validations = (list(rows_of(folder / f"{name}.jsonl")) for name in ("metrics", "validation"))
    bad_files = list(rows_of(folder / "bad_files.jsonl"))
    events = list(rows_of(folder / EVENTS))
    environment = _read_json(folder / "env.json")
    drawn = [*rows, *validations]
    marks = [row["step"] for row in events if row.get("limit") is not None]
    page = (
        templates_of("vmae2_ds.train")
        .get_template("report.html")
        .render(
            title=f"{config.recipe}: {folder.name}",
            status=_status(folder, rows, environment),
            warnings=[*_warnings(folder, rows), *_by_heart(config, validations)],
            events=[_event(row) for row in events[-MOST_EVENTS:]],
            more_events=max(0, len(events) - MOST_EVENTS),
            sources=_sources(rows),
            facts=[*_facts(config, rows, environment), *_held_back(validations)],
            curves=[
                {"title": curve.title, "svg": curve_svg(drawn, curve, marks), "note": _note(curve, environment)}
                for curve in curves_of(config)
                if has_values(drawn, curve)
            ],
            picture_sets=picture_sets(folder),
            bad_files=[
                {"path": row.get("path", "?"), "reason": row.get("reason", "?")} for row in bad_files[:MOST_BAD_FILES]
            ],
            more_bad_files=max(0, len(bad_files) - MOST_BAD_FILES),
            config=_sections(config),
            ds_config=json.dumps(_read_json(folder / "ds.json"), indent=1),
            environment=json.dumps(environment, indent=1),
        )
    )
    path = folder / "report.html"
    write_whole(path, page)
    return path


def curves_of(config: RunConfig) -> list[Curve]:
    """The curves of a page, that of the loss in words of what the run's stage learns."""
    words = training_of(config).loss_words(config)
    loss = replace(CURVES["loss"], title=f"Loss ({words.parts})", beside_label=words.flat)
    return [loss if curve.key == "loss" else curve for curve in CURVES.values()]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _status(folder: Path, rows: list[dict[str, Any]], environment: dict[str, Any]) -> str:
    parts = ["finished" if is_finished(folder) else "not finished"]
    if rows:
        parts.append(f"step {rows[-1]['step']}, epoch {rows[-1]['epoch']:.1f}")
    for key, text in (("started", "started {}"), ("commit", "commit {}"), ("device", "on {}")):
        if environment.get(key) is not None:
            parts.append(text.format(environment[key]))
    if environment.get("ranks") is not None:
        parts.append(counted(environment["ranks"], "rank"))
    return ", ".join(parts)


def _warnings(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    warnings = []
    if hung := [path.name for path in sorted((folder / STACKS).glob("*.txt")) if path.stat().st_size]:
        warnings.append(f"Stacks of a hang: {counted(len(hung), 'file')} in {STACKS}/, from {hung[0]} to {hung[-1]}.")
    if not rows:
        return warnings
    if rows[-1].get("skipped_steps"):
        warnings.append(
            f"Skipped: {counted(rows[-1]['skipped_steps'], 'step')}, where a loss or gradient was not finite, or a spike."
        )
    if rows[-1].get("spikes"):
        warnings.append(
            f"{counted(rows[-1]['spikes'], 'spike')} of the loss or the gradient norm, "
            f"{counted(rows[-1]['rollbacks'], 'rollback')}: see below."
        )
    wait = _tail_median(rows, "data_wait_share")
    if wait is not None and wait > BINDS:
        warnings.append(
            f"{wait:.0%} of the time went into waiting for data: raise --data.workers while cores are left, re-encode the "
            "videos (vmae2 data prepare), or raise --data.views."
        )
    return warnings


def _by_heart(config: RunConfig, validations: list[dict[str, Any]]) -> list[str]:
    """What the run's log said of it, from the rows that it wrote."""
    watch = ByHeartWatch(config)
    said = [warning for row in validations if (warning := watch.row(row))]
    return [f"{warning[0].upper()}{warning[1:]}." for warning in said]


def _held_back(validations: list[dict[str, Any]]) -> list[Fact]:
    """The loss of videos that are held back, where there are any."""
    rows = [row for row in validations if row.get("val_loss") is not None and row.get("seen_loss") is not None]
    if not rows:
        return []
    best, last = min(rows, key=lambda row: row["val_loss"]), rows[-1]
    note = f"step {best['step']}; the last {last['val_loss']:.4f}, and {last['seen_loss']:.4f} on trained videos"
    return [Fact("Best loss of held-back videos", f"{best['val_loss']:.4f}", note)]


def _event(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table of spikes."""
    return {
        "step": str(row.get("step", "?")),
        "what": str(row.get("what", "?")),
        "value": _text(row.get("value"), "{:.4g}") if row.get("value") is not None else "not finite",
        "limit": _text(row.get("limit"), "{:.4g}"),
        "action": str(row.get("action", "?")),
        "when": time.strftime("%Y-%m-%d %H:%M", time.localtime(row.get("time", 0))),
    }


def _sources(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Sources of the videos, a line each; nothing where all came from one."""
    tail = math.ceil(TAIL * len(rows))
    now, before = (_source_videos(part[-1] if part else {}) for part in (rows, rows[: len(rows) - tail]))
    if len(now) < 2:
        return []
    in_all, lately = source_shares(now, {}), source_shares(now, before)
    return [
        {
            "name": name,
            "videos": f"{count:,}",
            "share": f"{in_all[name]:.2%}",
            "lately": f"{lately[name]:.2%}",
        }
        for name, count in now.items()
    ]


def _source_videos(row: dict[str, Any]) -> dict[str, int]:
    return {key.removeprefix(SOURCE_VIDEOS): count for key, count in row.items() if key.startswith(SOURCE_VIDEOS)}


def _facts(config: RunConfig, rows: list[dict[str, Any]], environment: dict[str, Any]) -> list[Fact]:
    if not rows:
        return []
    last = rows[-1]
    nothing = training_of(config).loss_words(config).know_nothing
    loss_note = f"{nothing} would give {_text(_tail_median(rows, 'flat_loss'), '{:.4f}')}"
    first_loss = next((row["loss"] for row in rows if row.get("loss") is not None), None)
    peak = (environment.get("peak") or {}).get("name", "no known peak: set --train.peak-flops")
    flops = _tail_median(rows, "flops_per_s")
    first = _text(first_loss, "{:.4f}")
    return [
        Fact("Loss at the end", _text(_tail_median(rows, "loss"), "{:.4f}"), f"first row {first}; {loss_note}"),
        Fact("Clips per second", _text(_tail_median(rows, "clips_per_s"), "{:.1f}"), "all ranks, median of the last tenth"),
        Fact("Step time", _text(_tail_median(rows, "step_time_s"), "{:.3g} s"), f"{config.train.global_batch} clips a step"),
        Fact("Waiting for data", _text(_tail_median(rows, "data_wait_share"), "{:.1%}"), "median of the last tenth"),
        Fact("Loader workers", _text(_tail_median(rows, "worker_mem_sum_gib"), "{:.2f} GiB"), "memory, of the rank with most"),
        Fact("MFU", _text(_tail_median(rows, "mfu"), "{:.1%}"), f"against {peak}"),
        Fact("Achieved", _text(flops and flops / 1e9, "{:,.1f} GFLOP/s"), "per rank, 6 per MAC of what learns"),
        Fact("Skipped steps", str(last.get("skipped_steps", 0)), "loss or gradient not finite, or a spike"),
        Fact("Rollbacks", str(last.get("rollbacks", 0)), f"{counted(last.get('spikes', 0), 'spike')} of loss or gradient norm"),
        Fact("Videos replaced", str(last.get("bad_videos", 0)), "unreadable or too short, each time they came up"),
    ]  # fmt: skip


def _tail_median(rows: list[dict[str, Any]], key: str) -> float | None:
    """Median of the last tenth of the rows that have a number, at least one."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return statistics.median(values[-max(1, math.ceil(TAIL * len(values))) :]) if values else None


def _text(value: float | None, template: str) -> str:
    return "-" if value is None else template.format(value)


def _note(curve: Curve, environment: dict[str, Any]) -> str:
    if curve.key == "mfu" and environment.get("peak"):
        return f"{NOTES['mfu']} Peak: {environment['peak']['name']}."
    return NOTES[curve.key]


def _sections(config: RunConfig) -> list[dict[str, Any]]:
    """The configuration as one table per section, nested keys joined with dots."""

    def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
        rows: list[tuple[str, str]] = []
        for key, value in values.items():
            rows += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", _setting(value))]
        return rows

    dumped = config.model_dump(mode="json")
    return [{"name": name, "rows": flat(values)} for name, values in dumped.items() if isinstance(values, dict)]


def _setting(value: Any) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
