"""Attention, embedding, optimizer, checkpointing: variants do the same work, and what rows say about it is what happens."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.case import MATMUL, UNCOUNTED, Bench, Options
from benchmarks.cases import attention, checkpointing, embed, guards, optimizer
from benchmarks.devices import Step, measure_memory
from benchmarks.held import count_held_bytes
from benchmarks.record import Row
from benchmarks.steps import MASKS, Precision, Workbench
from tests.benchmarks.few_blocks import use_few_blocks
from tests.benchmarks.fresh import in_fresh_process
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.flops import count_parameters
from vmae2_ds.engine.device_peak import DTYPES
from vmae2_ds.guard import spikes
from vmae2_ds.model.attention import get_attention

CPU = torch.device("cpu")
ONCE = Bench(Options(device="cpu", sizes=("tiny",), precisions=("fp32",), rounds=1, warmup=0))


def by_variant(rows: list[Row]) -> dict[str, Row]:
    assert all(row["error"] is None for row in rows), [row["error"] for row in rows]
    return {row["variant"]: row for row in rows if row["variant"] != MATMUL}


def counted_flops(step: Step) -> int:
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        step()
    return counter.get_total_flops()


# --- attention -------------------------------------------------------------------------------------------------------


def test_attention_runs_at_the_model_s_shapes() -> None:
    found = {name: (place.tokens, place.tower.heads) for name, place in attention.places("base").items()}
    # docs/PAPER.md#sizes: 160 visible cubes; with 784 or 1408 mask tokens in the decoder
    assert found == {"encoder": (160, 12), "decoder dual": (944, 6), "decoder encoder_only": (1568, 6)}
    assert attention.places("giant")["encoder"].tokens == 208
    titles = [group.name for group in attention.groups(Bench(Options(device="cpu")))]
    assert len(set(titles)) == len(titles) == 2 * 2 * 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_holds_what_the_closed_form_says(precision: Precision) -> None:
    clips, tokens, heads, channels = 2, 33, 3, 8
    qkv_BN3HK = torch.randn(clips, tokens, 3, heads, channels).to(DTYPES[precision]).requires_grad_()
    size = qkv_BN3HK.element_size()
    values, scores = clips * tokens * heads * channels, clips * heads * tokens**2
    held = {name: count_held_bytes(partial(get_attention(name), qkv_BN3HK)) for name in ("math", "sdpa")}
    # math: copies of scaled q, of k and v, and the softmax; sdpa: packed q, k, v, the output, float32 log-sum-exp of rows
    assert held["math"] == size * (3 * values + scores)
    assert held["sdpa"] == size * 4 * values + 4 * clips * tokens * heads


def test_attention_rows() -> None:
    rows = by_variant(attention.measure(ONCE, "tiny", "fp32", "encoder", batch_size=1))
    assert set(rows) == {"math", "sdpa"}
    width, tokens, blocks = 192, 160, 12
    for row in rows.values():
        assert row["flops"] == 6 * 2 * tokens**2 * width * blocks
        assert row["values"]["held_bytes"] > 0
        assert row["memory"]["peak_bytes"] > 0
        assert row["mfu"]["median"] > 0
    # two products forward and four back; kernels without scores compute them again: five back (arXiv 2205.14135)
    assert rows["math"]["flops_counted"] == rows["math"]["flops"]
    assert rows["sdpa"]["flops_counted"] == rows["sdpa"]["flops"] * 7 / 6
    assert rows["sdpa"]["speedup"]["against"] == "math"
    assert rows["sdpa"]["config"]["sdpa_took"] == "cpu_flash"
    assert "sdpa_took" not in rows["math"]["config"]


# --- embedding -------------------------------------------------------------------------------------------------------


def test_embeddings_give_the_same_tokens_and_gradients() -> None:
    embedding = embed.Embedding("tiny", "fp32", 2, CPU)
    proj, conv = embedding.ours.proj, embedding.published
    tokens, gradients = {}, {}
    for name, way in embed.WAYS.items():
        tokens[name] = way.forward(embedding)()
        for parameter in (*proj.parameters(), *conv.parameters()):
            parameter.grad = None
        tokens[name].backward(torch.ones_like(tokens[name]))
        kernel = proj.weight.grad if conv.weight.grad is None else conv.weight.grad.permute(0, 2, 3, 4, 1).flatten(1)
        assert kernel is not None
        gradients[name] = kernel
    for name in ("all_cubes", "visible"):
        # sums of 1536 products of size 1 in float32, in another order
        torch.testing.assert_close(tokens[name], tokens["published"], rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(gradients[name], gradients["published"], rtol=1e-4, atol=1e-3)
    assert tokens["visible"].shape == (2, 160, 192)


def test_embedding_rows() -> None:
    rows = by_variant(embed.measure(ONCE, "tiny", "fp32", batch_size=1))
    macs = 1536 * 192
    for name, cubes in (("published", 1568), ("all_cubes", 1568), ("visible", 160)):
        assert rows[name]["config"]["embedded"] == cubes
        assert rows[name]["flops"] == rows[name]["flops_counted"] == 4 * cubes * macs
    assert rows["visible"]["flop_ratio"] == pytest.approx(9.8)
    pixels = 16 * 224 * 224 * 3
    assert rows["published"]["values"]["input_bytes"] == 4 * pixels
    assert rows["visible"]["values"] == {"input_bytes": pixels, "held_bytes": 4 * 160 * 1536}  # the projection's input


def test_both_ways_cut_out_the_same_cubes() -> None:
    geometry = ClipGeometry(4, 48, 32, 2, 16)
    clip_BTHWC = torch.randint(0, 256, (3, 4, 48, 32, 3), dtype=torch.uint8)
    index_BV = torch.stack([torch.randperm(geometry.num_cubes)[:5] for _ in range(3)])
    assert torch.equal(
        embed.index_view(clip_BTHWC, index_BV, geometry), embed.gather_cubes(clip_BTHWC, index_BV, geometry)
    )


def test_cutting_out_is_timed_alone() -> None:
    rows = embed.measure_gather(ONCE, batch_size=1)
    assert [row["variant"] for row in rows] == ["indexed view", "runs"]
    assert not any(row["error"] for row in rows)
    assert rows[0]["speedup"]["median"] == 1


# --- optimizer -------------------------------------------------------------------------------------------------------


def updated(make: optimizer.MakeOptimizer, precision: Precision, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Parameters after a few of the timed steps."""
    made: list[nn.Parameter] = []
    inner = optimizer.make_parameters

    def noted(*args: object) -> tuple[list[nn.Parameter], list[torch.Tensor]]:
        parameters, gradients = inner(*args)  # type: ignore[arg-type]
        made.extend(parameters)
        return parameters, gradients

    monkeypatch.setattr(optimizer, "make_parameters", noted)
    shapes = [torch.Size((5, 7)), torch.Size((11,))]
    step = optimizer.update_step(shapes, precision, CPU, make, masters=precision == "bf16")
    before = [parameter.detach().clone() for parameter in made]
    for _ in range(3):
        step()
    monkeypatch.setattr(optimizer, "make_parameters", inner)
    assert not torch.equal(made[0], before[0])
    return [parameter.detach() for parameter in made]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_optimizers_make_the_same_update(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = updated(optimizer.TORCH_WAYS[optimizer.BASE], precision, monkeypatch)
    ways = dict(optimizer.TORCH_WAYS)
    if optimizer.cpu_adam_is_built():
        ways["deepspeed_cpu_adam"] = optimizer.cpu_adam
    for name, make in ways.items():
        found = updated(make, precision, monkeypatch)
        # another order of the same operations in float32; one bf16 step where that crosses a rounding boundary
        tolerance = {"fp32": 1e-6, "bf16": 2**-8}[precision]
        torch.testing.assert_close(
            found, expected, rtol=tolerance, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_optimizer_rows_without_anything_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "cpu_adam_is_built", lambda: False)
    quick = Bench(ONCE.options.model_copy(update={"quick": True}))
    rows = {row["variant"]: row for row in optimizer.measure(quick, "tiny", "bf16")}
    total = count_parameters(ModelConfig.of_size("tiny")).total
    assert sum(shape.numel() for shape in optimizer.parameter_shapes("tiny")) == total
    assert set(rows) == {"one_by_one", "foreach", "fused", "fused, no masters"}
    for row in rows.values():
        seconds = row["time_s"]["median"]
        assert row["values"]["parameters_per_s"] * seconds == pytest.approx(total)
        # masters: gradient up 2 + 4, seven float32 passes, weights down 4 + 2; in place seven passes of 2 bytes
        passed = 7 * 2 if row["variant"] == "fused, no masters" else 6 + 7 * 4 + 6
        assert row["values"]["bytes_per_s"] * seconds == pytest.approx(passed * total)


# --- checkpointing ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workbench() -> Workbench:
    return Workbench("tiny", "fp32", CPU)


def test_recomputation_changes_no_gradient(workbench: Workbench) -> None:
    gradients: dict[str, list[torch.Tensor]] = {}
    for way in checkpointing.WAYS:
        step = workbench.step(MASKS["dual"], 1, ("math", "math"), until="backward", checkpointing=way)
        kept: list[torch.Tensor] = []
        hooks = [
            parameter.register_post_accumulate_grad_hook(lambda p, kept=kept: kept.append(p.grad.clone()))
            for parameter in workbench.model.parameters()
        ]
        step()
        for hook in hooks:
            hook.remove()
        gradients[way] = kept
    count = len(list(workbench.model.parameters()))
    for way in checkpointing.WAYS:
        assert len(gradients[way]) == count
        assert all(torch.equal(one, other) for one, other in zip(gradients[way], gradients["none"], strict=True)), way


def test_recomputed_flops_are_counted(workbench: Workbench) -> None:
    def count(way: str) -> int:
        return counted_flops(
            workbench.step(MASKS["dual"], 1, ("math", "math"), until="backward", checkpointing=way)  # type: ignore[arg-type]
        )

    plain = count("none")
    for way in ("decoder", "every_k", "all"):
        more = checkpointing.hardware_flops("tiny", way, 1) - checkpointing.hardware_flops("tiny", "none", 1)  # type: ignore[arg-type]
        assert more > 0
        assert count(way) - plain == more


def checkpointing_rows() -> list[Row]:
    use_few_blocks(3, 2)  # a decoder of one block holds as much with it recomputed as without
    return list(checkpointing.measure(ONCE, "tiny", "fp32", "math", batch_size=1))


def test_checkpointing_rows() -> None:
    rows = by_variant(in_fresh_process(checkpointing_rows))
    assert tuple(rows) == checkpointing.WAYS
    assert rows["none"]["hfu"] == rows["none"]["mfu"]
    for way, row in rows.items():
        more = row["config"]["hardware_flops"] / row["flops"]
        assert row["hfu"]["median"] == pytest.approx(more * row["mfu"]["median"])
        assert row["hfu"]["peak_flops"] == row["mfu"]["peak_flops"]
        assert (more > 1) == (way != "none")
        assert row["residual"]["memory"] == pytest.approx(
            row["predicted"]["peak_bytes"] / row["memory"]["peak_bytes"] - 1
        )
    by_prediction, by_measurement = (
        sorted(rows, key=lambda way: rows[way][field]["peak_bytes"]) for field in ("predicted", "memory")
    )
    assert by_prediction[0] == by_measurement[0] == "all"
    assert by_prediction[-1] == by_measurement[-1] == "none"
    # 1 to 7 % was measured
    assert abs(rows["none"]["residual"]["memory"]) < 0.15


# --- memory ----------------------------------------------------------------------------------------------------------


MIB = 2**20


def memory_with_holes() -> int:
    """Peak bytes of 100 tensors of a MiB and then one of 60, on a heap whose holes they would fit into."""
    between = [torch.ones(MIB // 4) for _ in range(300)]
    del between[::2]  # the C library would fill them first, and keep them

    def step() -> None:
        many = [torch.ones(MIB // 4) for _ in range(100)]
        del many
        torch.ones(60 * MIB // 4)  # after them, not beside them

    measured = measure_memory(step, CPU)
    assert measured is not None
    return measured.peak_bytes


@pytest.mark.skipif(measure_memory(lambda: None, CPU) is None, reason="no /proc/self/clear_refs")
def test_memory_is_what_tensors_take_at_once_whatever_the_heap_looks_like() -> None:
    assert 99 * MIB < in_fresh_process(memory_with_holes) < 104 * MIB

    def fails() -> None:
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        measure_memory(fails, CPU)


# --- guards ----------------------------------------------------------------------------------------------------------


def test_guards_that_are_on_look_and_those_that_are_off_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    looked, config = [], guards.guarded_config()
    monkeypatch.setattr(spikes, "spike_limit", lambda values, *_: looked.append(len(values)) or math.inf)
    for number, (spikes_on, hang_on) in enumerate([(False, True), (True, False)]):
        on = guards.Guards(spikes_on, hang_on)
        step = guards.loop_step(guards.idle_engine(), config, guards.clips_of(config), on, tmp_path / str(number), 3)
        assert bool(looked) == spikes_on, "its history is full before anything is timed"
        looked.clear()
        step()
        # of each step: the mean loss, the largest norm to apply, and the norm that was
        assert looked == [100] * 3 * 3 * spikes_on


def test_guard_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "IDLE_STEPS", 2)
    rows = by_variant(guards.measure(ONCE, idle=True))
    assert set(rows) == set(guards.VARIANTS)
    for name, row in rows.items():
        values = row["values"]
        assert values["step_s"] == row["time_s"]["median"] / 2 > 0
        assert values["added_share"] == pytest.approx(1 / row["speedup"]["median"] - 1)
        assert (values["added_share"] == 0) == (name == guards.BASE)
