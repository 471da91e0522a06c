"""The cases by name: what is compared with what."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.cases import (
    attention,
    ceilings,
    checkpoint,
    checkpointing,
    compiled,
    data,
    decoder_masking,
    dual_masking,
    embed,
    extraction,
    fp8,
    guards,
    loader,
    loader_rate,
    optimizer,
    paper,
    peers,
    pipeline,
    planner,
    prediction,
    real_run,
    step_parts,
    tad_score,
    zero,
)

CASES: dict[str, Case] = {
    "paper": paper.CASE,
    "ceilings": ceilings.CASE,
    "dual_masking": dual_masking.CASE,
    "decoder_masking": decoder_masking.CASE,
    "step_parts": step_parts.CASE,
    "peers": peers.CASE,
    "planner": planner.CASE,
    "prediction": prediction.CASE,
    "attention": attention.CASE,
    "fp8": fp8.CASE,
    "embed": embed.CASE,
    "optimizer": optimizer.CASE,
    "checkpointing": checkpointing.CASE,
    "compiled": compiled.CASE,
    "zero": zero.CASE,
    "checkpoint": checkpoint.CASE,
    "data": data.CASE,
    "pipeline": pipeline.CASE,
    "loader": loader.CASE,
    "loader_rate": loader_rate.CASE,
    "guards": guards.CASE,
    "extraction": extraction.CASE,
    "tad_score": tad_score.CASE,
    "real_run": real_run.CASE,
}
"""In the order of a full run."""
