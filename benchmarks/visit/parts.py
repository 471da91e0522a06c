"""What a visit measures, in order of worth: each part is a case with options."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from benchmarks.case import Options
from benchmarks.cases import CASES
from benchmarks.devices import DeviceName
from benchmarks.record import RESULTS
from vmae2_ds.config.model import SIZES
from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.errors import ConfigError
from vmae2_ds.model.attention import ATTENTION

DOCTOR = "doctor"
"""The part that is no case: what `vmae2 doctor` says of the machine."""


class Asked(StrictModel):
    """What `python -m benchmarks visit` is asked for."""

    minutes: float = Field(10.0, gt=0)
    """Wall time of the whole command, from its start until the report is written."""
    out: Path = RESULTS / "mine" / "visit"
    """Folder of rows, logs and report; the same folder again goes on with what is missing."""
    device: DeviceName = "auto"
    """Where to measure; auto takes the GPU where there is one."""
    sizes: tuple[str, ...] = ()
    """Model sizes by worth: the first two are measured in every way, the others by dual masking alone. Default: base, giant,
    small, large, huge on a GPU; tiny on a CPU."""
    rounds: int | None = Field(None, gt=0)
    """Counted rounds of each group. Default: 5 on a GPU, 3 on a CPU."""
    fresh: bool = False
    """Measure again what is already there."""


class Part(NamedTuple):
    """A case with options: as much as is planned, named and left out together."""

    name: str
    case: str
    options: Options
    kernels: tuple[str, ...] = ()
    """Of the groups that name a kernel, those of these; all where none is named."""
    policy: str = ""
    """Of real runs, those under this ZeRO policy."""

    def takes(self, group: str) -> bool:
        """Whether a group of the case belongs to it: one that keeps freed memory changes the process for all after it."""
        named = [word for word in group.split() if word in ATTENTION]
        return (
            not group.endswith(" kept")
            and (not self.kernels or all(word in self.kernels for word in named))
            and (not self.policy or self.policy in group.split())
        )


EVERY_WAY = 2
"""How many of the sizes are measured in every way."""
USUAL_KERNELS = ("sdpa", "math")
"""Where not every kernel is worth its time: what torch takes by itself, and the formula written out."""
SIZES_ON = {"cuda": ("base", "giant", "small", "large", "huge"), "cpu": ("tiny",)}
ROUNDS_ON = {"cuda": (5, 2), "cpu": (3, 1)}
"""Counted, and thrown out before."""
FEW_ROUNDS = 3
"""Of what takes seconds a round."""


def parts_of(asked: Asked, device: str) -> list[Part]:
    """The parts of a visit on a device of type `device`, what is worth most first.

    Raises:
        ConfigError: a size that is not known.
    """
    sizes = asked.sizes or SIZES_ON[device]
    if strange := [size for size in sizes if size not in SIZES]:
        raise ConfigError(f"no size {', '.join(strange)}: choose from {', '.join(SIZES)}")
    rounds, warmup = ROUNDS_ON[device]
    options = Options(
        device="cuda" if device == "cuda" else "cpu",
        sizes=sizes[:1],
        precisions=("bf16",),
        rounds=asked.rounds or rounds,
        warmup=warmup,
    )
    return [part for part in _by_worth(options, sizes) if part.case in CASES]


def _by_worth(options: Options, sizes: tuple[str, ...]) -> Iterator[Part]:
    main, rest = sizes[:EVERY_WAY], sizes[EVERY_WAY:]

    def of(case: str, *only: str, kernels: tuple[str, ...] = (), policy: str = "", **less: int) -> Iterator[Part]:
        for size in only:
            name = " ".join(filter(None, (case, size, policy)))
            yield Part(name, case, options.model_copy(update={"sizes": (size,), **less}), kernels, policy)

    yield Part("ceilings", "ceilings", options)
    yield from of("dual_masking", *main)
    yield from of("peers", main[0])
    yield from of("attention", *main[::-1])
    yield from of("checkpointing", main[-1], kernels=USUAL_KERNELS)
    yield from of("planner", *main, kernels=USUAL_KERNELS[:1])
    yield from of("real_run", *main[::-1], policy="zero1")
    yield from of("fp8", main[-1])
    yield from of("real_run", *main, policy="zero3")
    yield from of("loader_rate", main[0], rounds=FEW_ROUNDS, warmup=1)
    yield from of("compiled", main[0])
    yield from of("dual_masking", *rest, kernels=USUAL_KERNELS)
    yield from of("step_parts", *main)
    yield from of("peers", *main[1:])
    yield from of("decoder_masking", main[0])
