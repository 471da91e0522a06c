"""A case: what is checked, the public report, at which settings, and what running it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.deepspeed.setting import Setting

if TYPE_CHECKING:
    import torch

    from benchmarks.deepspeed.bench import Bench

TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}
"""Relative. float32: sums run in another order. bf16: a gradient is rounded to 2^-9 in each micro step, and added up."""
VERDICTS = ("right", "wrong", "refused", "not on CPU")
"""`refused`: with an error, so not in silence."""
WAYS = ("bare", "ours")
"""DeepSpeed as its documentation uses it, and through vmae2_ds/engine, checkpoint and config."""

POLICIES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
BOTH = tuple(Setting(policy, precision) for policy, precision in product(POLICIES, TOLERANCE))
IN_FP32 = tuple(setting for setting in BOTH if setting.precision == "fp32")
OTHERS = (
    *(Setting(f"zero{stage}", "bf16", "grad_accum_dtype fp32") for stage in (1, 2, 3)),
    *(Setting(f"zero{stage}_offload", "bf16", "grad_accum_dtype fp32") for stage in (2, 3)),
    *(Setting(f"zero{stage}", "fp32", "reduced to owners") for stage in (1, 2)),
    *(Setting("zero3", precision, "hpZ") for precision in TOLERANCE),
    Setting("zeropp", "bf16"),
    Setting("cpu", "fp32"),
)
ALL = BOTH + OTHERS
AT_STAGE_3 = tuple(setting for setting in BOTH if setting.policy.startswith("zero3"))


class Found(NamedTuple):
    """What a run gave, and what plain PyTorch gives."""

    error: float
    """Relative: 0 where they agree."""
    expected: str
    got: str
    exact: bool = False
    """They have to agree to the last bit."""


def same(expected: torch.Tensor, got: torch.Tensor, exact: bool = False) -> Found:
    """Compare two vectors, by the length of what parts them."""
    expected, got = expected.double().flatten(), got.double().flatten()
    size = expected.norm()
    error = float((got - expected).norm() / size.clamp_min(1e-30))
    if exact:
        error = float((got - expected).abs().max())
    return Found(error, f"{float(size):.6g}", f"{float(got.norm()):.6g}", exact)


@dataclass(frozen=True)
class Case:
    """One thing that is checked."""

    name: str
    checks: str
    """A sentence: what has to hold."""
    issue: str
    """Where it was reported in public, or `none known`."""
    run: Callable[[Bench], Found]
    settings: tuple[Setting, ...]
    ways: tuple[str, ...]
    why_not_ours: str
    """Why our code cannot meet it, where `ways` lacks it."""
    ours: str
    """What in our code sees to it, where it does."""
    ranks: int = 2


@dataclass
class Suite:
    """The cases, by name, in the order in which they run."""

    cases: dict[str, Case] = field(default_factory=dict)

    def case(
        self,
        checks: str,
        *,
        issue: str = "none known",
        settings: tuple[Setting, ...] = BOTH,
        why_not_ours: str = "",
        ours: str = "",
        ranks: int = 2,
    ) -> Callable[[Callable[[Bench], Found]], Callable[[Bench], Found]]:
        """Add the decorated function as a case of its name."""

        def add(run: Callable[[Bench], Found]) -> Callable[[Bench], Found]:
            name = run.__name__.replace("_", " ")
            ways = WAYS[:1] if why_not_ours else WAYS
            self.cases[name] = Case(name, checks, issue, run, settings, ways, why_not_ours, ours, ranks)
            return run

        return add


SUITE = Suite()


def folder_of(root: Path, name: str, setting: Setting, way: str) -> Path:
    """Where ranks that save leave things for ranks that load."""
    return root / f"{name} {setting} {way}".replace(" ", "_").replace(",", "")
