"""The cases: what is compared with what. Each yields groups of rows; a group is timed interleaved, in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from pydantic import Field

from benchmarks.harness import Variant, rows_of, spread, time_interleaved
from benchmarks.prediction import prediction
from benchmarks.record import provenance
from benchmarks.steps import (
    MASKS,
    Precision,
    geometry_of,
    matmul_step,
    our_step,
    step_flops,
    transformers_step,
)
from vmae2_ds.config import ModelConfig, StrictModel
from vmae2_ds.masking import count_masks
from vmae2_ds.train.build import fastest_attention
from vmae2_ds.train.peak import DTYPES

Rows = list[dict[str, Any]]
Tell = Callable[[str], None]


class Options(StrictModel):
    """What the command line may change; the defaults give the figures in docs/BENCHMARKS.md."""

    sizes: tuple[str, ...] = ("small", "base")
    """Model sizes for dual_masking."""
    precisions: tuple[Precision, ...] = ("bf16", "fp32")
    """Precisions for dual_masking and peers."""
    batch_size: int = Field(2, gt=0)
    """Clips of 16 x 224 x 224 in a step."""
    rounds: int = Field(15, gt=0)
    """Counted rounds; every variant runs once in each."""
    warmup: int = Field(2, ge=0)
    """Rounds thrown out first."""
    quick: bool = False
    """ViT-S in bf16 with 3 rounds: to see that everything runs; not for figures."""

    def resolved(self) -> Options:
        """With `quick` applied."""
        changes = {"sizes": ("small",), "precisions": ("bf16",), "rounds": 3, "warmup": 1}
        return self.model_copy(update=changes) if self.quick else self


class Case(NamedTuple):
    """A named comparison."""

    run: Callable[[Options, Tell], Iterator[Rows]]
    about: str


def _timed(case: str, variants: list[Variant], base: str | None, options: Options, tell: Tell, **extra: Any) -> Rows:
    timings = time_interleaved(variants, options.rounds, options.warmup, tell=tell)
    shared = {"clock": "process_time", "rounds": options.rounds, "warmup": options.warmup, **extra, **provenance()}
    return rows_of(case, variants, timings, base, shared)


def _ours(
    name: str, size: str, mask_name: str, precision: Precision, batch_size: int, *, with_optimizer: bool = True
) -> Variant:
    """A training step of ours, with the attention that `auto` finds for it."""
    mask, geometry = MASKS[mask_name], geometry_of(size)
    counts = count_masks(mask, geometry)
    attention = fastest_attention(ModelConfig.of_size(size), counts, batch_size, DTYPES[precision], torch.device("cpu"))
    config = {
        "package": "vmae2_ds", "size": size, "mask": mask_name, "precision": precision, "batch_size": batch_size,
        "clip": [geometry.num_frames, geometry.height, geometry.width], "visible": counts.visible,
        "decode": counts.decode, "attention_encoder": attention[0], "attention_decoder": attention[1],
        "optimizer": with_optimizer and "fused AdamW" + ", float32 masters" * (precision == "bf16"),
    }  # fmt: skip
    build = partial(our_step, size, mask, precision, batch_size, attention, with_optimizer=with_optimizer)
    return Variant(name, build, config, step_flops(size, mask, batch_size))


def dual_masking(options: Options, tell: Tell) -> Iterator[Rows]:
    """Encoder-only masking against dual masking, both decoder token sets: the whole training step."""
    for size in options.sizes:
        for precision in options.precisions:
            tell(f"ViT {size}, {precision}")
            variants = [_ours(name, size, name, precision, options.batch_size) for name in MASKS]
            rows = _timed("dual_masking", variants, "encoder_only", options, tell)
            base_flops = variants[0].flops or 1.0
            yield [
                {**row, "flop_ratio": base_flops / (variant.flops or 1.0)}
                for row, variant in zip(rows, variants, strict=True)
            ]


def peers(options: Options, tell: Tell) -> Iterator[Rows]:
    """Our ViT-S step against transformers' VideoMAEForPreTraining, which has encoder-only masking alone."""
    size, variants = "small", []
    for precision in options.precisions:
        choices: list[tuple[str, bool]] = [("eager", False), ("sdpa", False)]
        if precision == "bf16":
            choices.append(("eager", True))
        for attention, masters in choices:
            variants.append(_transformers(size, precision, options.batch_size, attention, masters))
        variants += [_ours(f"{name}_{precision}", size, name, precision, options.batch_size) for name in MASKS]
    yield _timed("peers", variants, f"transformers_eager_{options.precisions[0]}", options, tell)


def _transformers(size: str, precision: Precision, batch_size: int, attention: Any, masters: bool) -> Variant:
    mask, geometry = MASKS["encoder_only"], geometry_of(size)
    counts = count_masks(mask, geometry)
    config = {
        "package": "transformers", "size": size, "mask": "encoder_only", "precision": precision,
        "batch_size": batch_size, "clip": [geometry.num_frames, geometry.height, geometry.width],
        "visible": counts.visible, "decode": counts.decode, "attention": attention,
        "optimizer": "fused AdamW" + ", float32 masters" * masters,
    }  # fmt: skip
    build = partial(transformers_step, size, precision, batch_size, attention, masters=masters)
    name = f"transformers_{attention}_{precision}" + "_masters" * masters
    return Variant(name, build, config, step_flops(size, mask, batch_size))


def roofline(options: Options, tell: Tell) -> Iterator[Rows]:
    """Achieved FLOP/s of ViT-B bf16 dual steps as a share of the fastest large matrix product of the same rounds."""
    size = "small" if options.quick else "base"
    precision: Precision = "bf16"
    products = [
        Variant(
            f"matmul_{edge}",
            partial(matmul_step, precision, edge),
            {"edge": edge, "precision": precision},
            2.0 * edge**3,
        )
        for edge in (2048, 4096)
    ]
    steps = [
        _ours(f"{mask}{suffix}", size, mask, precision, options.batch_size, with_optimizer=not suffix)
        for mask in ("dual", "dual_disjoint")
        for suffix in ("", "_no_optimizer")
    ]
    variants = [*products, *steps]
    rows = _timed("roofline", variants, None, options, tell)
    peak = max((row for row in rows[: len(products)] if not row["error"]), key=lambda row: row["flops_per_s"])
    named = {"flops_per_s": peak["flops_per_s"], "source": f"{peak['variant']} bf16, 1 thread, same rounds"}
    for row in rows:
        row["peak"] = named
        if not row["error"]:
            pairs = zip(peak["samples_s"], row["samples_s"], strict=True)
            row["share_of_peak"] = spread([row["flops"] / own * base / peak["flops"] for base, own in pairs])._asdict()
    yield rows


CASES: dict[str, Case] = {
    function.__name__: Case(function, str(function.__doc__).strip())
    for function in (dual_masking, peers, roofline, prediction)
}
"""Cases by name."""
