"""The timed steps do the work that their rows say: same tokens, same weights, real updates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import tyro
from pydantic import ValidationError
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import steps
from benchmarks.__main__ import Run
from benchmarks.case import Bench, Options
from benchmarks.cases import CASES, peers
from benchmarks.published import PublishedBench
from benchmarks.steps import MASKS, Precision, Workbench, fused_adamw, geometry_of, make_batch, step_flops
from benchmarks.worker import Job, mark_of
from vmae2_ds.errors import ConfigError
from vmae2_ds.model import kernel_support


@pytest.mark.parametrize(("mask", "supervised"), [("encoder_only", 1408), ("dual", 704), ("dual_disjoint", 704)])
def test_batches_have_the_published_counts(mask: str, supervised: int) -> None:
    batch = make_batch(MASKS[mask], geometry_of("small"), 2)
    assert batch.visible_BV.shape == (2, 160)
    assert batch.is_supervised_BM.sum(dim=1).tolist() == [supervised, supervised]


def test_flops_are_six_per_mac_of_what_is_computed() -> None:
    # docs/PAPER.md#macs: GMACs of ViT-S per clip, embedding visible cubes only: dual 7.0099, disjoint 6.6225
    assert step_flops("small", MASKS["dual"], 2) == pytest.approx(2 * 6 * 7.0099e9, rel=1e-4)
    assert step_flops("small", MASKS["dual_disjoint"], 1) == pytest.approx(6 * 6.6225e9, rel=1e-4)


def test_masters_keep_what_bf16_would_lose() -> None:
    start = torch.linspace(-1, 1, 64).bfloat16()
    with_masters, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    reference = nn.Parameter(start.float())
    updates = [
        fused_adamw([with_masters], masters=True),
        fused_adamw([plain], masters=False),
        fused_adamw([reference], masters=False),
    ]
    for _ in range(20):  # 20 steps of 1e-4 are half a bf16 step near 1, and every one of them is lost without masters
        for parameter, update in zip((with_masters, plain, reference), updates, strict=True):
            parameter.grad = torch.ones_like(parameter)
            update()
            assert parameter.grad is None
    assert torch.equal(with_masters, reference.bfloat16())
    assert not torch.equal(plain, reference.bfloat16())


def test_cases_are_described_and_quick_is_small() -> None:
    for case in CASES.values():
        names = [group.name for group in case.groups(Bench(Options(device="cpu", quick=True).resolved()))]
        assert case.about
        assert names
        assert len(set(names)) == len(names)
    quick = Options(quick=True).resolved()
    assert (quick.sizes, quick.rounds) == (("small",), 3)
    assert Options(rounds=7).resolved().rounds == 7


@pytest.mark.parametrize("kernels", [("math", "sdpa"), ("sdpa", "math"), ("sdpa", "sdpa"), ("math", "flash")])
def test_a_row_says_which_kernels_sdpa_took(kernels: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At each tower's own shape: 208 tokens in 16 heads of 88, 1,232 in 8 of 64 (docs/PAPER.md#sizes)."""
    asked = {(2, 208, 16, 88): "cudnn", (2, 1232, 8, 64): "torch_flash"}
    monkeypatch.setattr(kernel_support, "sdpa_kernel", lambda shape, dtype, device: asked[shape])
    config = steps.step_config("giant", "dual", MASKS["dual"], "bf16", 2, kernels)
    both = [name for kernel, name in zip(kernels, asked.values(), strict=True) if kernel == "sdpa"]
    expected = {"sdpa_took": ", ".join(both)} if both else {}
    assert steps.sdpa_took(config, torch.device("cpu")) == expected


def test_a_row_of_the_published_style_asks_nothing_of_sdpa() -> None:
    """Its precision is autocast, which is no dtype of an operation."""
    style = peers._published(PublishedBench("tiny", torch.device("cpu")), "dual", 1, "autocast")
    assert steps.sdpa_took(style.config, torch.device("cpu")) == {}


def test_a_shared_model_trains_as_one_of_its_own() -> None:
    """Variants of a group take turns on one model: a step's work does not depend on the one before it."""
    bench = Workbench("tiny", "fp32", torch.device("cpu"))
    kinds = [("dual", "math", "none"), ("encoder_only", "sdpa", "none"), ("dual", "math", "all")]
    steps = [
        bench.step(MASKS[mask], 1, (kernel, kernel), until="backward", checkpointing=how) for mask, kernel, how in kinds
    ]
    alone = []
    for step in (steps[0], steps[1]):
        with FlopCounterMode(display=False) as counter:
            step()
        alone.append(counter.get_total_flops())
    with FlopCounterMode(display=False) as counter:
        steps[2]()
        recomputed = counter.get_total_flops()
        steps[0]()
        steps[1]()
    assert recomputed > 1.2 * alone[0]
    assert counter.get_total_flops() == recomputed + sum(alone)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_step_changes_the_weights_and_leaves_no_gradient(precision: Precision) -> None:
    bench = Workbench("tiny", precision, torch.device("cpu"))
    step = bench.step(MASKS["dual"], 1, ("math", "math"))
    before = [parameter.detach().clone() for parameter in bench.model.parameters()]
    step()
    assert any(not torch.equal(old, new) for old, new in zip(before, bench.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in bench.model.parameters())


def test_quick_is_refused_beside_what_it_decides() -> None:
    with pytest.raises(ConfigError, match="--sizes, --rounds"):
        Options(quick=True, sizes=("base",), rounds=8, precisions=("bf16",)).resolved()


@pytest.mark.parametrize("field", ["sizes", "precisions", "batch_sizes", "ranks"])
def test_nothing_to_measure_is_refused(field: str) -> None:
    with pytest.raises(ValidationError):
        Options.model_validate({field: ()})
    with pytest.raises(ValidationError):
        Options.model_validate({"ranks": (1, 0)})


@pytest.mark.parametrize(
    ("case", "one", "other"),
    [
        ("prediction", {"sizes": ("small",)}, {"sizes": ("small", "large")}),
        ("optimizer", {"rounds": 3, "warmup": 1, "sizes": ("small",), "precisions": ("bf16",)}, {"quick": True}),
        ("zero", {"batch_sizes": (2,), "ranks": (1, 2, 4)}, {"batch_sizes": (4,), "ranks": (1, 2)}),
    ],
)
def test_other_work_has_another_fingerprint(case: str, one: dict, other: dict, tmp_path: Path) -> None:
    """Two runs whose groups have one name must not take each other's rows."""

    def marks(options: dict) -> set[str]:
        chosen = Options(device="cpu", **options).resolved()
        job = Job(case=case, options=chosen, out=tmp_path, command="typed", since=0)
        bench = Bench(chosen)
        return {mark_of(job, group, bench) for group in CASES[case].groups(bench)}

    assert marks(one) == marks(one)
    assert marks(one).isdisjoint(marks(other))


def test_quick_alone_is_taken_from_the_command_line() -> None:
    """tyro sets every field: that a setting was given shows in its value alone."""
    asked = tyro.cli(Run, args=["embed", "--quick", "--device", "cpu"])
    assert asked.options.resolved().rounds == 3
