"""Low-rank adapters against matrices written out: outputs, gradients, first weights, merged weights, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from vmae2_ds.config.finetune import FinetuneConfig, FinetuneOptimConfig
from vmae2_ds.config.lora import LoraConfig
from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.train.finetune import classification
from vmae2_ds.weights.merge import merged_state

GEOMETRY = ClipGeometry(4, 16, 16, 2, 8)
DEPTH, WIDTH, MLP, RANK, CLASSES = 3, 24, 40, 4, 5
TARGETS: Any = {
    "all": ("q", "k", "v", "proj", "mlp"),
    "published": ("q", "v"),
    "mlp": ("mlp",),
    "k proj": ("k", "proj"),
}


def config_of(**changes: Any) -> ClassifierConfig:
    tower = TowerConfig(width=WIDTH, depth=DEPTH, heads=3, mlp=MLP)
    return ClassifierConfig(
        encoder=tower, patch=8, num_classes=CLASSES, attention="math", head_init_scale=1.0, **changes
    )


def written_out(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Each weight W as W + scale * B A, its adapters' names taken apart one by one."""
    plain = {name: x for name, x in weights.items() if ".lora." not in name}
    for name in [name for name in plain if ".blocks." in name and name.endswith((".qkv.weight", ".proj.weight"))]:
        layer = name.removesuffix(".weight")
        if name.endswith("proj.weight"):
            parts = [weights.get(f"{layer}.lora.{part}.weight") for part in ("up", "down")]
            plain[name] = plain[name] if parts[0] is None else plain[name] + scale * parts[0] @ parts[1]
            continue
        rows = []
        for number, letter in enumerate("qkv"):
            rows.append(plain[name][number * WIDTH : (number + 1) * WIDTH])
            if f"{layer}.lora.{letter}.up.weight" in weights:
                up, down = (weights[f"{layer}.lora.{letter}.{part}.weight"] for part in ("up", "down"))
                rows[-1] = rows[-1] + scale * up @ down
        plain[name] = torch.cat(rows)
    for name in [name for name in plain if ".mlp." in name and name.endswith(".weight")]:
        layer = name.removesuffix(".weight")
        if f"{layer}.lora.up.weight" in weights:
            plain[name] = (
                plain[name] + scale * weights[f"{layer}.lora.up.weight"] @ weights[f"{layer}.lora.down.weight"]
            )
    return plain


def learnt(model: Classifier) -> Classifier:
    """In float64, every adapter's second matrix no longer zeros."""
    rng = torch.Generator().manual_seed(3)
    for name, parameter in model.double().named_parameters():
        if ".lora." in name and ".up." in name:
            parameter.data.normal_(std=0.1, generator=rng)
    return model


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("alpha", [None, 10.0])
def test_outputs_gradients_and_merged_weights_are_those_of_w_plus_ba(targets: str, alpha: float | None) -> None:
    config = config_of(lora=LoraConfig(rank=RANK, alpha=alpha, targets=TARGETS[targets]))
    model, plain = learnt(Classifier(config, GEOMETRY)), Classifier(config_of(), GEOMETRY).double()
    weights = {name: x.detach().clone().requires_grad_() for name, x in model.named_parameters()}
    scale = 1.0 if alpha is None else alpha / RANK
    rng = torch.Generator().manual_seed(0)
    cubes_BNP = torch.randn(2, GEOMETRY.num_cubes, GEOMETRY.cube_values, generator=rng, dtype=torch.float64)
    whole = written_out(weights, scale)
    logits_BC, expected_BC = model(cubes_BNP), functional_call(plain, whole, (cubes_BNP,))
    assert not torch.allclose(
        expected_BC, functional_call(plain, {n: weights[n] for n in whole}, (cubes_BNP,)), atol=1e-3
    )
    torch.testing.assert_close(logits_BC, expected_BC, rtol=1e-12, atol=1e-12)

    label_B = torch.tensor([1, 3])
    F.cross_entropy(logits_BC, label_B).backward()
    F.cross_entropy(expected_BC, label_B).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, rtol=1e-10, atol=1e-13, msg=name)

    merged = dict(merged_state(dict(model.state_dict()), config))
    assert {name: x.shape for name, x in merged.items()} == {name: x.shape for name, x in plain.state_dict().items()}
    for name, expected in whole.items():
        torch.testing.assert_close(merged[name], expected.detach(), rtol=1e-14, atol=1e-14, msg=name)


def test_first_weights_are_those_of_the_plain_model_and_compute_the_same_bits() -> None:
    adapted, plain = (Classifier(config_of(lora=lora), GEOMETRY) for lora in (LoraConfig(rank=RANK), LoraConfig()))
    drawn, before = dict(adapted.named_parameters()), dict(plain.named_parameters())
    assert [name for name in drawn if ".lora." not in name] == list(before)
    assert all(torch.equal(drawn[name], x) for name, x in before.items())
    cubes_BNP = torch.randn(2, GEOMETRY.num_cubes, GEOMETRY.cube_values, generator=torch.Generator().manual_seed(0))
    assert torch.equal(adapted(cubes_BNP), plain(cubes_BNP))
    for name, x in drawn.items():
        if ".lora." in name and ".up." in name:
            assert not x.any(), name
        elif ".lora." in name:  # uniform within 1 / sqrt(fan in), whose deviation is that over sqrt(3)
            bound = x.shape[1] ** -0.5
            assert x.abs().max() <= bound
            assert x.std().item() == pytest.approx(bound / 3**0.5, rel=0.25), name


def learning(**sections: Any) -> set[str]:
    model = config_of(**sections.pop("model", {}))
    config = FinetuneConfig(model=model, optim=FinetuneOptimConfig(**sections), data={"num_frames": 4, "size": 16})  # type: ignore[arg-type]
    return {name for name, p in classification(config).model.named_parameters() if p.requires_grad}


def test_what_learns_is_what_was_asked_for_and_no_more() -> None:
    head = {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    everything = learning()
    assert learning(train_only="head") == head
    last = {name for name in everything if ".blocks.1." in name or ".blocks.2." in name}
    assert len(last) == 26
    assert learning(last_blocks=2) == head | last
    assert learning(last_blocks=DEPTH) == {name for name in everything if ".embed." not in name}
    adapters = learning(model={"lora": LoraConfig(rank=2, targets=("q", "mlp"))})
    expected = {
        f"encoder.blocks.{block}.{layer}.lora.{part}.weight"
        for block in range(DEPTH)
        for layer, part in [
            *(("attn.qkv", f"q.{part}") for part in ("down", "up")),
            *((f"mlp.fc{number}", part) for number in (1, 2) for part in ("down", "up")),
        ]
    }
    assert adapters == head | expected


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"lora": {"rank": 25}},
        {},
        "rank=25: no adapter can have a higher rank than the narrowest layer beside it, of 24",
    ),
    ({"lora": {"rank": 4, "targets": ("q", "norm")}}, {}, "Input should be 'q', 'k', 'v', 'proj' or 'mlp'"),
    ({"lora": {"rank": 4, "targets": ("q", "q")}}, {}, "targets names one twice: q q; choose from q k v proj mlp"),
    ({"lora": {"rank": 4, "targets": ()}}, {}, "targets is empty; choose from q k v proj mlp, or set rank=0"),
    ({"lora": {"alpha": 16}}, {}, "alpha=16 is for adapters, and rank=0 makes none; set a rank, or leave alpha out"),
    ({"lora": {"rank": 4}, "checkpointing": "deepspeed"}, {}, "no gradient to an adapter behind a frozen embedding"),
    ({"lora": {"rank": 4}}, {"last_blocks": 1}, "--model.lora.rank 4 and --optim.last-blocks 1 each say what"),
    ({"lora": {"rank": 4}}, {"train_only": "head"}, "--model.lora.rank 4 and --optim.train-only head each say what"),
    ({}, {"train_only": "head", "last_blocks": 2}, "--optim.last-blocks 2 and --optim.train-only head each say what"),
    ({"lora": {"rank": 4}}, {"optimizer": "muon"}, "muon is for whole matrices of transformer blocks"),
    ({}, {"last_blocks": 4}, "--optim.last-blocks 4: the encoder has 3 blocks; name as many or fewer"),
    ({"checkpointing": "deepspeed"}, {"last_blocks": 2}, "deepspeed gives no gradient to a block behind frozen ones"),
]


@pytest.mark.parametrize(("model", "optim", "words"), REFUSED)
def test_what_cannot_be_is_one_clear_line(model: dict[str, Any], optim: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="validation error") as refused:
        FinetuneConfig(model=config_of(**model), optim=FinetuneOptimConfig(**optim))
    assert words in str(refused.value)


def test_the_order_in_which_targets_are_named_makes_no_other_model() -> None:
    assert LoraConfig(rank=4, targets=("mlp", "v", "q")) == LoraConfig(rank=4, targets=("q", "v", "mlp"))
