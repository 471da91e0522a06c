"""What others compute from our exports by the names alone: a plain video transformer, for mmaction2 and published names.

transformers computes for itself in test_transformers.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.weights.test_layouts import model_of
from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.objectives import Classify
from vmae2_ds.runs.export import ExportArguments, export_weights
from vmae2_ds.weights.files import write_weights
from vmae2_ds.weights.layouts import to_layout

GEOMETRY = ClipGeometry(4, 32, 32, 2, 16)
WIDTH, HIDDEN, HEADS, DEPTH, CLASSES = 192, 80, 3, 2, 5
CONFIG = ClassifierConfig(
    encoder=TowerConfig(width=WIDTH, depth=DEPTH, heads=HEADS, mlp=HIDDEN), patch=16, num_classes=CLASSES
)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""ImageNet's, of pixels from 0 to 255, as mmaction2's data_preprocessor has them."""

# what a state dict calls the embedding, an MLP's first and second layer, and the head
SPELLING = {
    "mmaction2": ("backbone.", "patch_embed.projection", "mlp.layers.0.0", "mlp.layers.1", "cls_head.fc_cls"),
    "published": ("", "patch_embed.proj", "mlp.fc1", "mlp.fc2", "head"),
}


def logits_by_hand(state: dict[str, Tensor], layout: str, clip_BTHWC: Tensor) -> Tensor:
    """The recogniser of mmaction2's vit_mae.py (mean pooling, fc_norm, no final norm), in float64: (B, C)."""
    prefix, embed, fc1, fc2, head = SPELLING[layout]
    weights = {name: tensor.double() for name, tensor in state.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    pixels_BCTHW = ((clip_BTHWC.double() - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 4, 1, 2, 3)
    kernel, bias = weights[f"{prefix}{embed}.weight"], weights[f"{prefix}{embed}.bias"]
    x = F.conv3d(pixels_BCTHW, kernel, bias, stride=kernel.shape[2:]).flatten(2).transpose(1, 2)
    place = np.arange(x.shape[1])[:, None] / 10000 ** (2 * (np.arange(WIDTH) // 2) / WIDTH)
    x = x + torch.from_numpy(np.where(np.arange(WIDTH) % 2, np.cos(place), np.sin(place)))
    for number in range(DEPTH):
        block = f"{prefix}blocks.{number}."
        normed = norm(x, f"{block}norm1")
        bias = torch.cat([weights[f"{block}attn.q_bias"], torch.zeros(WIDTH), weights[f"{block}attn.v_bias"]])
        q, k, v = (normed @ weights[f"{block}attn.qkv.weight"].T + bias).chunk(3, dim=-1)
        heads = []
        for cut in (slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS) for h in range(HEADS)):
            share = (q[..., cut] @ k[..., cut].transpose(1, 2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
            heads.append(share @ v[..., cut])
        x = x + linear(torch.cat(heads, dim=-1), f"{block}attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}norm2"), f"{block}{fc1}")), f"{block}{fc2}")
    return linear(norm(x.mean(1), f"{prefix}fc_norm"), head)


@pytest.mark.parametrize("layout", sorted(SPELLING))
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_second_implementation_computes_our_logits_from_the_names(tmp_path: Path, layout: Any, suffix: str) -> None:
    model = model_of(CONFIG, GEOMETRY).eval()
    write_weights(to_layout(model.state_dict(), CONFIG), tmp_path / "ours.safetensors", CONFIG)
    out = tmp_path / f"theirs{suffix}"
    export_weights(ExportArguments(source=tmp_path / "ours.safetensors", out=out, layout=layout))
    state = load_file(out) if suffix == ".safetensors" else torch.load(out, weights_only=True)["model"]
    clip_BTHWC = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        found_BC = Classify(model, 0.0, GEOMETRY).logits(clip_BTHWC)  # type: ignore[arg-type]
    # float32 against float64, logits of size 1
    torch.testing.assert_close(found_BC.double(), logits_by_hand(state, layout, clip_BTHWC), rtol=1e-4, atol=1e-4)


def test_the_mlp_s_layers_have_the_shapes_that_mmaction2_builds() -> None:
    """`layers.0.0` widens, `layers.1` narrows (mmcv's FFN); the qkv bias is two vectors of a third of the rows."""
    state = to_layout(model_of(CONFIG, GEOMETRY).state_dict(), CONFIG, "mmaction2")
    shapes = {
        name.removeprefix("backbone.blocks.1."): tuple(x.shape) for name, x in state.items() if "blocks.1" in name
    }
    assert shapes == {
        "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
        "attn.q_bias": (WIDTH,), "attn.v_bias": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH),
        "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
        "mlp.layers.0.0.weight": (HIDDEN, WIDTH), "mlp.layers.0.0.bias": (HIDDEN,),
        "mlp.layers.1.weight": (WIDTH, HIDDEN), "mlp.layers.1.bias": (WIDTH,),
    }  # fmt: skip
    assert state["backbone.patch_embed.projection.weight"].shape == (WIDTH, 3, 2, 16, 16)
    assert state["cls_head.fc_cls.weight"].shape == (CLASSES, WIDTH)
