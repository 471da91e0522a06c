"""Weights: first values, the first update, groups, frozen and shared ones, their running mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.deepspeed.bench import Bench
from benchmarks.deepspeed.case import AT_STAGE_3, BOTH, IN_FP32, SUITE, Found, same
from benchmarks.deepspeed.setting import Setting
from benchmarks.deepspeed.toy import Toy, adamw, flat, moved

DECAY = 0.9


@SUITE.case(
    "The first update of AdamW is as long as PyTorch's (at bf16 stage 0 it is 0.735 of it: Adam's counter starts at 1).",
    settings=BOTH,
    ours="config/ds_config.py refuses bf16 at stage 0",
)
def first_update_of_adamw(bench: Bench) -> Found:
    engine, plain, batches = bench.engine(optimizer_of=adamw), bench.plain(optimizer_of=adamw), bench.batches(0, 1)
    before, first = engine.weights(), plain.weights()
    engine.step(batches[bench.ranks.rank])
    plain.step(batches)
    expected, got = moved(first, plain.weights()).norm(), moved(before, engine.weights()).norm()
    return same(expected.view(1), got.view(1))


@SUITE.case(
    "Rates that change from step to step, and weight decay, are those of each parameter's own group.", settings=BOTH
)
def hyper_parameters_of_groups(bench: Bench) -> Found:
    engine, plain = bench.engine(optimizer_of=adamw), bench.plain(optimizer_of=adamw)
    before, first = engine.weights(), plain.weights()
    for step, rates in enumerate([(1e-2, 3e-2), (2e-2, 0.0), (0.0, 1e-2)]):
        for groups in (engine.groups(), plain.optimizer.param_groups):
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate
        batches = bench.batches(step, 1)
        engine.step(batches[bench.ranks.rank])
        plain.step(batches)
    return same(moved(first, plain.weights()), moved(before, engine.weights()))


@SUITE.case("A frozen layer stays as it was, to the bit, and the others learn as they should.", settings=IN_FP32)
def frozen_layer(bench: Bench) -> Found:
    engine, plain = bench.engine(Toy(frozen="hidden"), accumulation=2), bench.plain(Toy(frozen="hidden"))
    before, first, batches = engine.weights(), plain.weights(), bench.batches(0, 2)
    engine.step(batches[bench.ranks.rank])
    plain.step(batches)
    after = engine.weights()
    frozen = [name for name in after if name.startswith("hidden")]
    if any(not torch.equal(after[name], first[name]) for name in frozen):
        return Found(float("inf"), "frozen", "moved")
    return same(moved(first, plain.weights()), moved(before, after))


@SUITE.case(
    "A weight that two layers share gets the gradient of both, once.", issue="DeepSpeed #684, #966", settings=IN_FP32
)
def tied_weights(bench: Bench) -> Found:
    engine, plain = bench.engine(Toy(tied=True), accumulation=2), bench.plain(Toy(tied=True))
    before, first, batches = engine.weights(), plain.weights(), bench.batches(0, 2)
    engine.step(batches[bench.ranks.rank])
    plain.step(batches)
    return same(moved(first, plain.weights()), moved(before, engine.weights()))


@SUITE.case(
    "The running mean (EMA) of the weights, as torch.optim.swa_utils keeps it of the engine's module, is that of the float32 "
    "weights.",
    settings=BOTH,
    ours="train/ema.py averages the float32 shards",
)
def running_mean_of_weights(bench: Bench) -> Found:
    engine, plain = bench.engine(optimizer_of=adamw), bench.plain(optimizer_of=adamw)
    for group in [*engine.groups(), *plain.optimizer.param_groups]:
        group["lr"] = 1e-4 if bench.setting.precision == "bf16" else 1e-2  # bf16 weights hardly see small steps
    first = plain.weights()
    mean = plain.weights()
    keep = _mean_of(bench, engine)
    for step in range(3):
        batches = bench.batches(step, 1)
        engine.step(batches[bench.ranks.rank])
        plain.step(batches)
        keep.update()
        mean = {name: DECAY * mean[name] + (1 - DECAY) * now for name, now in plain.weights().items()}
    return same(moved(first, mean), moved(first, keep.weights()))


def _mean_of(bench: Bench, engine: Any) -> Any:
    if bench.way == "ours":
        from vmae2_ds.train.ema import WeightAverage

        class OurMean(WeightAverage):
            def weights(self) -> Any:
                with self._in_place():
                    return {name: tensor.clone() for name, tensor in self._engine.shards.whole_weights()}

        return OurMean(engine.ours, DECAY)
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    class TheirMean:
        def __init__(self) -> None:
            named = list(engine.engine.module.named_parameters())
            self.names = [name for name, _ in named]
            holder = nn.ParameterList(nn.Parameter(p.detach().clone()) for _, p in named)
            self.mean = AveragedModel(holder, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
            self.mean.update_parameters(holder)

        def update(self) -> None:
            self.mean.update_parameters(nn.ParameterList(engine.engine.module.parameters()))

        def weights(self) -> Any:
            whole = {name: torch.full_like(p, float("nan")) for name, p in Toy().named_parameters()}
            found = dict(zip(self.names, self.mean.module.parameters(), strict=True))
            return {name: found[name].float() if found[name].shape == p.shape else p for name, p in whole.items()}

    return TheirMean()


@SUITE.case(
    "Under zero.Init, a model that sets its head's weight to 0.5 after it has made it has a weight of 0.5.",
    settings=AT_STAGE_3,
    ours="engine/partitioned.py fills gathered parameters",
)
def first_values_under_zero_init(bench: Bench) -> Found:
    import deepspeed

    class Halved(Toy):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.head.weight.mul_(0).add_(0.5)

    config, name = bench.config(), "head.weight"
    if bench.way == "ours":
        from vmae2_ds.engine.partitioned import build_partitioned

        values = dict(Halved().named_parameters())
        model = build_partitioned(Halved, lambda module, key, whole: whole.copy_(values[key]), config)
    else:
        with deepspeed.zero.Init(config_dict_or_path=config):
            model = Halved()
    weight = dict(model.named_parameters())[name]
    with deepspeed.zero.GatheredParameters([weight]):
        got = weight.detach().float().clone()
    return same(torch.full_like(got, 0.5), got)


@SUITE.case(
    "The section activation_checkpointing of the config takes effect.",
    settings=(Setting("zero3", "fp32"),),
    ours="engine/step.py hands it to deepspeed.checkpointing.configure",
)
def section_of_activation_checkpointing(bench: Bench) -> Found:
    from types import SimpleNamespace

    from deepspeed.runtime.activation_checkpointing import checkpointing

    checkpointing.deepspeed_checkpointing_enabled = False
    model = Toy()
    if bench.way == "ours":
        config = SimpleNamespace(checkpointing="deepspeed")
        object.__setattr__(
            model, "model", SimpleNamespace(config=config, use_checkpoint_function=lambda function: None)
        )
    bench.engine(model, more={"activation_checkpointing": {"partition_activations": True}})
    took, checkpointing.deepspeed_checkpointing_enabled = checkpointing.is_configured(), False
    return Found(float(not took), "in effect", "in effect" if took else "ignored")


@SUITE.case(
    "Weights that are loaded into the model are those that the next step starts from.",
    settings=BOTH,
    ours="train/build.py: weights are read before there is an engine",
)
def weights_loaded_into_the_model(bench: Bench) -> Found:
    import deepspeed

    other = Toy(seed=5).state_dict()
    plain, batches = bench.plain(Toy(seed=5)), bench.batches(0, 1)
    if bench.way == "ours":
        engine = bench.engine(Toy(seed=5))
    else:
        engine = bench.engine()
        for name, parameter in engine.engine.module.named_parameters():
            with (
                deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=engine.stage == 3),
                torch.no_grad(),
            ):
                parameter.copy_(other[name])
    engine.step(batches[bench.ranks.rank])
    plain.step(batches)
    return same(flat(plain.weights()), flat(engine.weights()))
