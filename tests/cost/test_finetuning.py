"""The planner's closed forms of fine-tuning, against the modules: parameters, calls, work, bytes, and fake GPU memory."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fake_memory import measure_classifier
from tests.cost.test_traffic import CountBytes
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import SIZES
from vmae2_ds.contracts import LabelledBatch
from vmae2_ds.cost.finetuning import tuned_activations, tuned_macs, tuned_parameters, tuned_shape, tuned_work
from vmae2_ds.cost.parameters import all_shapes
from vmae2_ds.cost.states import state_bytes
from vmae2_ds.cost.traffic import AttentionKind, ComputePrecision
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.objectives import Classify
from vmae2_ds.train.finetune import classification

TOLERANCE = 0.002
"""5 % is the bar."""
MIB = 2**20
CLIPS = 2


def small(optim: dict[str, Any] | None = None, **model: Any) -> FinetuneConfig:
    """A tiny model on clips of 8 frames of 32 pixels."""
    return FinetuneConfig.model_validate({
        "model": {
            "encoder": {"width": 48, "depth": 3, "heads": 3, "mlp": 192}, "patch": 8, "num_classes": 7, "attention": "math",
            **model,
        },
        "data": {"num_frames": 8, "size": 32, "views": 1},
        "optim": optim or {},
        "train": {"global_batch": CLIPS, "micro_batch": CLIPS},
    })  # fmt: skip


def published(size: str, *, depth: int = 3, attention: str = "sdpa", **settings: Any) -> FinetuneConfig:
    """A published size with a few of its blocks, where one more is no new question, on clips of 16 frames of 224 pixels."""
    tower, _, patch = SIZES[size]
    config = small(**settings).model_dump()
    config["model"] |= {
        "encoder": tower.model_dump() | {"depth": depth}, "patch": patch, "num_classes": 400, "attention": attention,
    }  # fmt: skip
    config["data"] |= {"num_frames": 16, "size": 224}
    return FinetuneConfig.model_validate(config)


def objective_of(config: FinetuneConfig) -> Classify:
    objective = classification(config)
    for parameter in objective.parameters():
        nn.init.normal_(parameter, std=0.1)
    return objective


def batch_of(config: FinetuneConfig) -> LabelledBatch:
    geometry, part = config.geometry, torch.tensor(0.7)
    clip_BTHWC = torch.zeros(CLIPS, geometry.num_frames, geometry.height, geometry.width, 3, dtype=torch.uint8)
    return LabelledBatch(clip_BTHWC, torch.zeros(CLIPS, dtype=torch.int64), part, part)


def lora(*targets: str) -> dict[str, Any]:
    return {"lora": {"rank": 4, **({"targets": targets} if targets else {})}}


KINDS: dict[str, dict[str, Any]] = {
    "all": {},
    "all, recomputed": {"checkpointing": "all"},
    "all, drops, recomputed": {"checkpointing": "all", "drop_path": 0.2},
    "last 2": {"optim": {"last_blocks": 2}},
    "last 2, every second recomputed": {"optim": {"last_blocks": 2}, "checkpointing": "every_k"},
    "last 3 of 3": {"optim": {"last_blocks": 3}},
    "head": {"optim": {"train_only": "head"}, "checkpointing": "all"},
    "lora": lora(),
    "lora, recomputed": {**lora(), "checkpointing": "all"},
    "lora, drops, every second recomputed": {**lora(), "checkpointing": "every_k", "drop_path": 0.2},
    "lora of q and v": lora("q", "v"),
    "lora of q and v, recomputed": {**lora("q", "v"), "checkpointing": "all"},
    "lora of proj": lora("proj"),
    "lora of mlp": lora("mlp"),
    "lora of proj and mlp, recomputed": {**lora("proj", "mlp"), "checkpointing": "all"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_parameters_are_those_of_the_module(kind: str) -> None:
    config = small(**KINDS[kind])
    named = dict(objective_of(config).model.named_parameters())
    of_module = {name: tuple(each.shape) for name, each in named.items()}
    found = tuned_parameters(tuned_shape(config))
    assert dict(all_shapes(found)) == of_module
    assert list(found.learning) == [name for name, each in named.items() if each.requires_grad]
    assert found.num_learning + found.num_frozen == sum(map(prod, of_module.values()))


@every_kind
def test_modules_are_called_in_the_order_that_zero_3_is_replayed_in(kind: str) -> None:
    """Forward, and what is computed again backward, as torch's own hooks see it; and which modules have a backward pass."""
    config = small(**KINDS[kind])
    objective, called, backward = objective_of(config), list[str](), set[str]()
    for name, module in objective.model.named_modules():
        if name:
            module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
            module.register_full_backward_pre_hook(lambda *_, name=name: backward.add(name))
    loss = objective(batch_of(config)).loss
    forward = len(called)
    loss.backward()
    tree, others = tuned_parameters(tuned_shape(config)).tree, {"objective", "model"}
    assert called[:forward] == [call.module for call in tree.forward() if call.enters and call.module not in others]
    again = [call.module for call in tree.backward() if call.enters and not call.is_backward]
    drops = {name for name in (*called, *again) if config.model.drop_path and name.endswith("drop_path")}
    assert [name for name in called[forward:] if name not in drops] == [name for name in again if name not in drops]
    assert backward == {call.module for call in tree.backward() if call.is_backward} - others


@every_kind
def test_work_is_what_torch_counts(kind: str) -> None:
    config = small(**KINDS[kind])
    objective, batch, shape = objective_of(config), batch_of(config), tuned_shape(config)
    macs, work = tuned_macs(shape), tuned_work(shape, CLIPS, attention="math", precision="fp32")
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        objective(batch)
    with FlopCounterMode(display=False) as step:
        objective(batch).loss.backward()
    assert forward.get_total_flops() == 2 * CLIPS * macs.forward
    assert step.get_total_flops() == 2 * CLIPS * (macs.forward + macs.backward + macs.recomputed)
    assert work.linear_flops + work.attention_flops == step.get_total_flops()


@every_kind
def test_operations_and_bytes_are_about_those_of_a_step(kind: str) -> None:
    config = small(**KINDS[kind])
    objective, batch = objective_of(config), batch_of(config)
    objective(batch)  # what the first pass makes and keeps
    with CountBytes() as counter:
        objective(batch).loss.backward()
    work = tuned_work(tuned_shape(config), CLIPS, attention="math", precision="fp32")
    print(work.kernels / counter.counted.kernels, (work.memory_bytes + work.score_bytes) / counter.counted.num_bytes)
    assert work.kernels == pytest.approx(counter.counted.kernels, rel=0.15)
    assert work.memory_bytes + work.score_bytes == pytest.approx(counter.counted.num_bytes, rel=0.15)


def closed_form(config: FinetuneConfig, attention: AttentionKind, precision: ComputePrecision) -> tuple[float, float]:
    found = tuned_activations(tuned_shape(config), 1, attention=attention, precision=precision)
    return found.held, found.peak


@pytest.mark.parametrize(
    ("size", "precision", "kind"),
    [
        *(("base", "bf16", kind) for kind in ("all", "last 2", "head", "lora", "lora of proj")),
        ("giant", "fp32", "lora, recomputed"),
    ],
)
def test_memory_held_on_a_fake_gpu(size: str, precision: ComputePrecision, kind: str) -> None:
    config = published(size, **KINDS[kind])
    held = measure_classifier(config, 2, precision).held
    form = closed_form(config, "flash", precision)[0]
    print(f"{form / MIB:.1f} MiB for {held / MIB:.1f}: {100 * (form / held - 1):+.3f} %")
    assert form == pytest.approx(held, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("size", "attention", "precision", "kind"),
    [
        *(("base", "flash", "bf16", kind) for kind in KINDS if kind.partition(",")[0] in ("all", "last 2", "lora")),
        *(("base", "flash", "bf16", kind) for kind in ("lora of q and v", "lora of proj")),
        *(("giant", "flash", "bf16", kind) for kind in ("head", "lora, recomputed")),
        *(("base", "math", "fp32", kind) for kind in ("lora", "lora of q and v, recomputed")),
    ],
)
def test_memory_at_the_peak_of_a_step(
    size: str, attention: AttentionKind, precision: ComputePrecision, kind: str
) -> None:
    config = published(size, attention="math" if attention == "math" else "sdpa", **KINDS[kind])
    measured = measure_classifier(config, 8, precision, backward=True)  # more than what weights' gradients take
    form = closed_form(config, attention, precision)
    for name, closed, real in zip(("held", "peak"), form, measured, strict=True):
        print(f"{name}: {closed / MIB:.1f} MiB for {real / MIB:.1f}: {100 * (closed / real - 1):+.3f} %")
    assert form == pytest.approx(tuple(measured), rel=TOLERANCE)


def test_adapters_have_the_optimizer_s_bytes_of_their_own_parameters_and_the_encoder_has_two_bytes_each() -> None:
    found = tuned_parameters(tuned_shape(small(**lora())))
    learns = (
        3 * 4 * (4 * 2 * 48 + 2 * (48 + 192)) + 2 * 48 + 7 * 49
    )  # blocks x rank x (in + out of each layer), norm, head
    assert found.num_learning == learns
    one = state_bytes(found, ZeroPolicy(stage=1, reduce_bucket=10**6, overlap_comm=False), 1, precision="bf16")
    assert one.weights == pytest.approx(2 * (learns + found.num_frozen), abs=100)
    assert one.master + one.moments == pytest.approx(12 * learns, abs=100)
