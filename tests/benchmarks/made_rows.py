"""Rows as the cases write them, with made numbers: what the tests of the report and of `compare` work on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import paired_ratio, spread
from benchmarks.record import SCHEMA, Row

MASKS = {"encoder_only": 1.0, "dual": 0.62, "dual_disjoint": 0.58}
"""Masking -> work over encoder-only masking."""
SIZE_STEP_S = {"small": 1.1, "base": 3.4}
PARTS = (
    "embed",
    "encoder forward",
    "decoder forward",
    "target and loss",
    "decoder backward",
    "encoder backward",
    "optimizer",
)
CPU, GPU = "Made Processor 7313P", "NVIDIA Made 100"


def made_row(case: str, group: str, variant: str, **fields: Any) -> Row:
    """A row without measurements, as a CPU run leaves it; `fields` replace or add."""
    return {
        "schema": SCHEMA, "case": case, "group": group, "variant": variant, "config": {}, "error": None, "samples_s": [],
        "command": f"python -m benchmarks run {case}", "commit": "abc1234", "code": "0123456789ab", "fingerprint": "f00d",
        "time": "2026-11-23T20:00:00+0000", "unix_time": 1795464000.0, "device": "cpu", "ranks": 1, "clock": "process_time",
        "machine": {"cpu": CPU, "cores": 2, "memory_gib": 23.5, "threads": 1, "load": [0.5, 1.25, 2.0],
                    "platform": "Linux-6.1-x86_64-with-glibc2.36", "python": "3.11.7"},
        "versions": {"vmae2_ds": "0.1.0", "torch": "2.14.1"}, **fields,
    }  # fmt: skip


def timed_row(case: str, group: str, variant: str, samples_s: Sequence[float], **fields: Any) -> Row:
    """A row of a variant that was timed."""
    time_s = spread(samples_s)._asdict()
    return made_row(
        case, group, variant, samples_s=list(samples_s), time_s=time_s, rounds=len(samples_s), warmup=1, **fields
    )


def made_results(seed: int = 0) -> list[Row]:
    """A run of every sort of case on a CPU."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for part in (_dual_masking, _decoder_masking, _step_parts, _paper, _zero, _others):
        rows += part(rng)
    return rows


def on_gpu(rows: Iterable[Row], factor: float = 0.01) -> list[Row]:
    """The same rows as if a GPU had taken `factor` of the time."""
    moved = []
    for row in rows:
        row = {**row, "device": GPU}
        if "time_s" in row:
            row["time_s"] = {key: value * factor for key, value in row["time_s"].items()}
        moved.append(row)
    return moved


def write_rows(folder: Path, rows: Iterable[Row]) -> Path:
    """The rows as files of a result folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        with (folder / f"{row['case']}.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    return folder


def _samples(rng: np.random.Generator, seconds: float, rounds: int = 9) -> list[float]:
    return [float(each) for each in seconds * rng.lognormal(0, 0.02, rounds)]


def _group(
    rng: np.random.Generator, case: str, group: str, seconds: dict[str, float], **more: Callable[[str], Any]
) -> list[Row]:
    """Variants timed in turns, the first one the base; `more` makes further fields from a variant's name."""
    samples = {variant: _samples(rng, each) for variant, each in seconds.items()}
    base = next(iter(seconds))
    rows = []
    for variant, mine in samples.items():
        flops = 1e11 * seconds[variant] / seconds[base]
        speedup = {"against": base, **paired_ratio(samples[base], mine)._asdict()}
        fields = {"speedup": speedup, "flops": flops, "flop_ratio": 1e11 / flops * 0.97} | {
            name: make(variant) for name, make in more.items()
        }
        rows.append(timed_row(case, group, variant, mine, **fields))
    return rows


def _dual_masking(rng: np.random.Generator) -> list[Row]:
    rows: list[Row] = []
    for size, step_s in SIZE_STEP_S.items():
        for precision, slower in (("bf16", 1.0), ("fp32", 1.7)):
            for attention in ("math", "sdpa"):
                for ending, batch in (("", 2), (" batch 4", 4), (" kept", 2)):
                    if batch == 4 and size == "base":
                        continue
                    config = {"package": "vmae2_ds", "size": size, "precision": precision, "batch_size": batch,
                              "attention_encoder": attention, "attention_decoder": attention, "clip": [16, 224]}  # fmt: skip
                    seconds = {mask: step_s * slower * share * batch / 2 for mask, share in MASKS.items()}
                    group = f"{size} {precision} {attention}{ending}"
                    peak = {"peak_flops": 2.1e11, "peak_source": "2048^3 matrix product"}
                    rows += _group(
                        rng, "dual_masking", group, seconds,
                        config=lambda mask, config=config: {**config, "mask": mask, "decode": 784},
                        memory=lambda mask, batch=batch: {"peak_bytes": int(5e8 * batch * MASKS[mask]), "source": "VmHWM"},
                        flops_counted=lambda mask: round(1.0012e11 * MASKS[mask]), flops_per_s=lambda mask: 1.5e11,
                        mfu=lambda mask, peak=peak: {**spread(rng.uniform(0.6, 0.8, 9).tolist())._asdict(), **peak},
                    )  # fmt: skip
    error = "OutOfMemoryError: tried to allocate 12.00 GiB"
    return [*rows, made_row("dual_masking", "giant fp32 math", "encoder_only", error=error, config={"size": "giant"})]


def _decoder_masking(rng: np.random.Generator) -> list[Row]:
    work = {
        "none": 1.0,
        "frame_50": 0.63,
        "random_50": 0.63,
        "running_cell_25": 0.8,
        "running_cell_50": 0.63,
        "running_cell_75": 0.5,
    }
    return _group(
        rng, "decoder_masking", "small bf16", {mask: 1.1 * share for mask, share in work.items()},
        config=lambda mask: {"size": "small", "precision": "bf16", "mask": mask, "decode": int(1408 * work[mask])},
        memory=lambda mask: {"peak_bytes": int(9e8 * work[mask]), "source": "VmHWM"},
    )  # fmt: skip


def _step_parts(rng: np.random.Generator) -> list[Row]:
    rows = _group(
        rng, "step_parts", "small bf16", {mask: 1.1 * share for mask, share in MASKS.items()},
        config=lambda mask: {"size": "small", "precision": "bf16", "mask": mask},
    )  # fmt: skip
    for row in rows:
        shares = [0.02, 0.14, 0.22 * MASKS[row["variant"]], 0.04, 0.3 * MASKS[row["variant"]], 0.24, 0.04]
        row["segment_flops"] = {part: 1e9 * share for part, share in zip(PARTS, shares, strict=True) if "coder" in part}
        row["segments_s"] = {
            part: spread(_samples(rng, 1.1 * share))._asdict() for part, share in zip(PARTS, shares, strict=True)
        }
    return rows


def _paper(rng: np.random.Generator) -> list[Row]:
    del rng
    rows: list[Row] = []
    macs = {"none": 35_439_772_000, "frame_50": 25_839_796_000, "random_50": 25_839_796_000, "running_cell_25": 31_592_000_000,
            "running_cell_50": 25_839_796_000, "running_cell_75": 21_030_000_000, "disjoint_50": 23_121_100_000}  # fmt: skip
    for size, scale in (("base", 1.0), ("giant", 7.4)):
        config = {"size": size, "clip": [16, 224, 224]}
        for variant, value in macs.items():
            values = {"macs_published": value * scale, "macs_published_with_norms": value * scale * 1.0012,
                      "macs_ours": value * scale * 0.95, "macs_ours_counted": value * scale * 0.95}  # fmt: skip
            rows.append(made_row("paper", f"flops {size}", variant, config=config, kind="counted", values=values))
        for mask, share in MASKS.items():
            for attention, each in (("math", 533), ("flash", 168)):
                held = each * 2**20 * share**0.5 * scale
                values = {"held_bytes_counted": held, "held_bytes": held * 1.01, "peak_bytes": held * 1.1}
                if attention == "math":
                    values |= {"published_loop_peak_bytes": held * 1.2, "published_held_bytes_counted": held * 1.1}
                rows.append(
                    made_row(
                        "paper", f"memory {size}", f"{mask} {attention}", config=config, kind="counted", values=values
                    )
                )
        for variant, value in (("encoder_only", 2.31), ("dual", 1.36)):
            values = {"hours": value * scale, "hours_low": value * 0.9 * scale, "hours_high": value * 1.3 * scale}
            rows.append(made_row("paper", f"hours {size}", variant, config=config, kind="modelled", values=values))
        values = {"ratio": 1.7, "ratio_low": 1.66, "ratio_high": 1.74}
        rows.append(made_row("paper", f"hours {size}", "speedup", config=config, kind="modelled", values=values))
    return rows


def _zero(rng: np.random.Generator) -> list[Row]:
    rows: list[Row] = []
    for ranks in (1, 2, 4):
        for group, seconds in (
            (f"small bf16 {ranks} ranks", 1.0),
            (f"weak small {ranks} ranks", 1 + 0.05 * ranks),
            (f"strong small of 4 clips {ranks} ranks", 1.1 / ranks),
        ):
            for stage in (0, 3):
                nested = {
                    "stage": stage,
                    "bucket_size": 5 * 10**7 - stage,
                    "offload_param": {"device": f"made {stage}"},
                }
                config = {"stage": stage, "offload": ["param"] * (stage == 3), "zero_optimization": nested}
                samples = _samples(rng, seconds * (1 + 0.1 * stage))
                rows.append(timed_row(
                    "zero", group, f"stage {stage}", samples, ranks=ranks, config=config,
                    memory={"peak_bytes": 10**9, "source": "VmHWM"}, values={"comm_bytes": 96_117_504 * ranks}, kind="measured",
                    predicted={"time_s": seconds, "peak_bytes": 1.1e9, "comm_bytes": 9.6e7, "source": "the planner"},
                    residual={"time": seconds / spread(samples).median - 1, "memory": 0.1, "comm": -0.0012},
                ))  # fmt: skip
    return rows


def _others(rng: np.random.Generator) -> list[Row]:
    config = {name: {"package": each, "size": "small"} for name, each in
              (("transformers_eager", "transformers"), ("dual", "vmae2_ds"))}  # fmt: skip
    rows = _group(rng, "peers", "small bf16", {"transformers_eager": 1.44, "dual": 0.71}, config=config.__getitem__)
    product = {"edge": 2048}
    rows.append(timed_row("peers", "small bf16", "matmul", _samples(rng, 0.09), config=product, flops=2.0 * 2048**3))
    rows.append(timed_row("data", "decode", "240p, GOP 16", _samples(rng, 0.04), kind="measured",
                          config={"height": 240, "views": [1, 4]}, values={"clips_per_s": 25.3}))  # fmt: skip
    rows.append(
        made_row(
            "unheard_of",
            "some group",
            "variant|with <odd> *signs*",
            values={"made_per_s": 3, "made_per_s_low": 2, "made_per_s_high": 40},
            kind="counted",
        )
    )
    return rows
