"""Temporal adapters: golden numbers of the published one, and what an encoder with them promises of graph, memory and reach."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.golden_data import GOLDEN, TINY_EVERY, golden_json
from vmae2_ds.config.adapters import AdapterConfig
from vmae2_ds.config.model import ClassifierConfig, EncoderConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.errors import CheckpointError
from vmae2_ds.model.adapters import AdaptedEncoder, TemporalAdapter, draw_adapter
from vmae2_ds.model.embed import every_cube, normalise_pixels
from vmae2_ds.model.encoder import ClipEncoder
from vmae2_ds.weights.adapters import from_opentad

NUMBERS = golden_json("tad/adapter_tiny.json")
TENSORS = load_file(GOLDEN / "tad" / "adapter_tiny.safetensors")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # of the golden file's README
GEOMETRY = ClipGeometry(8, 32, 32, 2, 16)  # 4 steps of 2 x 2 cells
CONFIG = EncoderConfig(encoder=TowerConfig(width=32, depth=4, heads=2, mlp=64))
CLIPS = 3


def golden_adapter(shape: str, weights: str) -> TemporalAdapter:
    config = NUMBERS[shape]["config"]
    theirs = {
        name.replace(f"{shape}/{weights}/", "blocks.0.adapter."): tensor
        for name, tensor in TENSORS.items()
        if name.startswith(f"{shape}/{weights}/")
    }
    ours = {name.removeprefix("adapters.0."): tensor for name, tensor in from_opentad(theirs).items()}
    adapter = TemporalAdapter(config["width"], config["hidden"])
    adapter.load_state_dict(ours)
    return adapter


def golden_input(shape: str) -> Tensor:
    """As a window: (B, T, S, D)."""
    config = NUMBERS[shape]["config"]
    x = TENSORS[f"{shape}/x"].view(config["windows"], config["temporal_size"], -1, config["width"])
    return x.clone().requires_grad_()


def norms_of(adapter: TemporalAdapter, x_BTSD: Tensor) -> dict[str, float]:
    ours = {name: parameter.grad for name, parameter in adapter.named_parameters()}
    theirs = {"down.": "down_proj.", "across.up.": "up_proj.", "across.": ""}
    found = {"x": float(x_BTSD.grad.norm())} if x_BTSD.grad is not None else {}
    for name, gradient in ours.items():
        for mine, other in theirs.items():
            if name.startswith(mine):
                found[other + name.removeprefix(mine)] = float(gradient.norm()) if gradient is not None else 0.0
                break
    return found


@pytest.mark.parametrize("shape", ["square", "oblong"])
def test_one_adapter_gives_the_published_numbers(shape: str) -> None:
    adapter, x_BTSD = golden_adapter(shape, "sd"), golden_input(shape)
    out_BTSD = adapter(x_BTSD)
    every = TINY_EVERY if shape == "square" else 1
    torch.testing.assert_close(out_BTSD.flatten()[::every], TENSORS[f"{shape}/out"].flatten(), **CLOSE)
    loss = out_BTSD.square().mean()
    assert loss.item() == pytest.approx(NUMBERS[shape]["loss"], abs=1e-5)
    loss.backward()
    assert norms_of(adapter, x_BTSD) == pytest.approx(NUMBERS[shape]["grad_norm"], rel=1e-3)


def test_an_adapter_starts_as_the_identity_and_only_its_last_projection_learns_then() -> None:
    adapter, x_BTSD = golden_adapter("oblong", "init"), golden_input("oblong")
    out_BTSD = adapter(x_BTSD)
    assert torch.equal(out_BTSD, x_BTSD)
    out_BTSD.square().mean().backward()
    assert norms_of(adapter, x_BTSD) == pytest.approx(NUMBERS["oblong"]["init"]["grad_norm"], rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("shape", ["square", "oblong"])
def test_a_change_reaches_one_step_on_each_side_also_across_clips(shape: str) -> None:
    adapter, config, reach = golden_adapter(shape, "sd"), NUMBERS[shape]["config"], NUMBERS[shape]["reach"]
    x_BTSD = golden_input(shape).detach()
    changed_BTSD = x_BTSD.clone()
    changed_BTSD[0, config["steps_per_clip"] - 1] += 1
    differs_BT = (adapter(x_BTSD) != adapter(changed_BTSD)).flatten(2).any(dim=2)
    assert differs_BT.nonzero().tolist() == reach["steps_whose_output_changed"]


def test_numbers_of_parameters_are_the_published_ones() -> None:
    for width, expected in NUMBERS["parameters_per_block_ratio_quarter"].items():
        with torch.device("meta"):
            adapter = TemporalAdapter(int(width), AdapterConfig().hidden(int(width)))
        assert sum(parameter.numel() for parameter in adapter.parameters()) == expected, width


def test_first_weights_are_spread_as_published() -> None:
    adapter = TemporalAdapter(1408, 352)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            draw_adapter(f"adapters.0.{name}", parameter.zero_(), torch.Generator().manual_seed(0))
    theirs = {"down": "down_proj", "across.up": "up_proj", "across.dwconv": "dwconv", "across.conv": "conv"}
    for name, parameter in adapter.requires_grad_(False).named_parameters():
        layer, _, kind = name.rpartition(".")
        mean, std = NUMBERS["init_mean_std_at_width_1408"][f"{theirs[layer]}.{kind}" if layer in theirs else kind]
        found = float(parameter.std()) if parameter.numel() > 1 else 0.0
        # two draws of n values: their deviations differ by about std / sqrt(n)
        assert found == pytest.approx(std, abs=4 * std / parameter.numel() ** 0.5), name
        assert float(parameter.mean()) == pytest.approx(mean, abs=6 * std / parameter.numel() ** 0.5), name


def test_names_of_other_adapters_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"blocks\.3\.adapter\.scale is no part of AdaTAD's adapter"):
        from_opentad({"module.backbone.blocks.3.adapter.scale": torch.zeros(1), "module.head": torch.zeros(1)})


def adapted(blocks: Any, *, clips_at_once: int = 8, seed: int = 1, awake: bool = True) -> AdaptedEncoder:
    """`awake`: with adapters that do something already."""
    model = AdaptedEncoder(CONFIG, GEOMETRY, AdapterConfig(blocks=blocks, clips_at_once=clips_at_once), seed)
    if awake:
        rng = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("across.up.weight"):
                    parameter.normal_(std=0.3, generator=rng)
    return model


def windows(number: int = 2) -> Tensor:
    shape = (number, CLIPS * GEOMETRY.num_frames, 32, 32, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("blocks", ["all", "last_half", (1, 3)])
def test_features_at_the_start_are_the_plain_encoders_bit_for_bit(blocks: Any) -> None:
    model, window_BFHWC = adapted(blocks, awake=False), windows()
    plain = ClipEncoder(ClassifierConfig(encoder=CONFIG.encoder), GEOMETRY)
    plain.encoder.load_state_dict(model.encoder.state_dict())
    tokens_CND = plain.requires_grad_(False).tokens(window_BFHWC.reshape(-1, 8, 32, 32, 3))
    assert torch.equal(model.tokens(window_BFHWC), tokens_CND)
    expected_BTD = tokens_CND.view(2, CLIPS * 4, 4, 32).mean(dim=2)
    assert torch.equal(model(window_BFHWC), expected_BTD)


def test_features_are_interpolated_between_the_middles_of_steps() -> None:
    model, window_BFHWC = adapted("all"), windows(1)
    x_TD, fitted_TD = model(window_BFHWC)[0], model(window_BFHWC, length=2 * CLIPS * 4)[0]
    # twice as many positions: the k-th step's middle lies a quarter of a step after position 2k's
    expected_TD = torch.stack([0.25 * x_TD[:-1] + 0.75 * x_TD[1:], 0.75 * x_TD[1:] + 0.25 * x_TD[:-1]])[0]
    torch.testing.assert_close(fitted_TD[2::2], expected_TD)


def test_gradients_are_the_adapters_alone() -> None:
    model = adapted("last_half")
    model(windows()).square().mean().backward()
    has_gradient = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
    assert has_gradient == {name: name.startswith("adapters.") for name in has_gradient}
    assert {name.split(".")[1] for name in has_gradient if name.startswith("adapters.")} == {"2", "3"}
    assert all(
        parameter.grad.abs().max() > 0 for parameter in model.adapters.parameters() if parameter.grad is not None
    )


@pytest.mark.parametrize("blocks", ["none", "all"])
def test_only_adapters_carry_a_frame_over_the_border_of_its_clip(blocks: Any) -> None:
    model, window_BFHWC = adapted(blocks), windows(1)
    changed_BFHWC = window_BFHWC.clone()
    changed_BFHWC[:, 7] = 255 - changed_BFHWC[:, 7]  # the last frame of clip 0
    with torch.no_grad():
        difference_T = (model(window_BFHWC) - model(changed_BFHWC)).abs().amax(dim=(0, 2))
    # attention spreads it over its clip, and each adapter carries it a step further: 4 adapters, and clips behind them whole
    reached = [bool(part.max() > 0) for part in difference_T.split(4)]
    assert reached == ([True, False, False] if blocks == "none" else [True, True, True])


@pytest.mark.parametrize("blocks", ["all", (1, 3), (0, 2)])
def test_chunks_of_clips_change_neither_features_nor_gradients(blocks: Any) -> None:
    window_BFHWC = windows()
    gradients, outputs = [], []
    for clips_at_once in (6, 1, 4):  # of 2 windows of 3 clips
        model = adapted(blocks, clips_at_once=clips_at_once)
        output = model(window_BFHWC, length=10)
        output.square().mean().backward()
        outputs.append(output)
        gradients.append([parameter.grad for parameter in model.adapters.parameters()])
    for other, found in zip(outputs[1:], gradients[1:], strict=True):
        torch.testing.assert_close(other, outputs[0], rtol=1e-6, atol=1e-6)
        for one, same in zip(found, gradients[0], strict=True):
            torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6)


def plain_features(model: AdaptedEncoder, window_BFHWC: Tensor) -> Tensor:
    """The same without chunks, checkpoints, or a stretch without a graph: block, adapter, block, adapter."""
    clip_CFHWC = window_BFHWC.reshape(-1, 8, 32, 32, 3)
    cubes_CNP = normalise_pixels(every_cube(clip_CFHWC, GEOMETRY))
    x_CND = model.encoder.embed(cubes_CNP, torch.arange(16).expand(len(cubes_CNP), -1))
    for number, block in enumerate(model.encoder.blocks):
        x_CND = block(x_CND)
        if str(number) in model.adapters:
            x_CND = model.adapters[str(number)](x_CND.view(len(window_BFHWC), -1, 4, 32)).view_as(x_CND)
    return x_CND.view(len(window_BFHWC), -1, 4, 32).mean(dim=2)


@pytest.mark.parametrize("blocks", ["all", (1, 3), (0, 2)])
def test_features_and_gradients_are_those_of_the_plain_way(blocks: Any) -> None:
    model, window_BFHWC = adapted(blocks, clips_at_once=2), windows()
    found = model(window_BFHWC)
    got = torch.autograd.grad(found.square().mean(), list(model.adapters.parameters()))
    expected = plain_features(model, window_BFHWC)
    wanted = torch.autograd.grad(expected.square().mean(), list(model.adapters.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for one, same in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-7)


def test_blocks_before_the_first_adapter_run_without_a_graph() -> None:
    model = adapted((2,), clips_at_once=2)
    saved: list[tuple[int, ...]] = []
    graphs: dict[int, bool] = {}

    def note(number: int, out: Tensor) -> None:
        graphs[number] = out.requires_grad

    def pack(x: Tensor) -> Tensor:
        saved.append(tuple(x.shape))
        return x

    for number, block in enumerate(model.encoder.blocks):
        block.register_forward_hook(lambda _, __, out, number=number: note(number, out))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = model.tokens(windows(1))
    assert out.requires_grad
    assert graphs == {0: False, 1: False, 2: False, 3: True}
    # block 2's output, which the first projection reads, and that projection; what goes into block 3, chunk by chunk
    assert saved == [(CLIPS * 16, 32), (1, CLIPS * 4, 4, 8), (2, 16, 32), (1, 16, 32)]


class Alive(TorchDispatchMode):
    """The bytes of all storages that were made inside and are still there. (MemTracker has no place for frozen weights.)"""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[weakref.ref[Any], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.sizes[weakref.ref(storage, self.sizes.pop)] = storage.nbytes()
        return out


def bytes_kept(model: AdaptedEncoder, number: int) -> int:
    """At the end of a forward pass on `number` windows."""
    window_BFHWC = windows(number)
    with Alive() as alive:
        out = model(window_BFHWC)
        kept = sum(alive.sizes.values())
    assert out.shape[0] == number
    return kept - window_BFHWC.nbytes  # of which views were made


@pytest.mark.parametrize(
    ("blocks", "inputs", "adapters"), [("all", 4, 4), ("last_half", 2, 2), ((1,), 3, 1), ((0, 3), 4, 2), ("none", 0, 0)]
)
def test_what_is_kept_for_the_backward_pass_is_what_the_docstring_says(blocks: Any, inputs: int, adapters: int) -> None:
    model = adapted(blocks, clips_at_once=2)
    tokens, width, hidden = CLIPS * GEOMETRY.num_cubes, 32, 8
    features = CLIPS * 4 * width  # what comes out
    expected = 4 * (inputs * tokens * width + adapters * tokens * hidden + features)
    assert bytes_kept(model, 4) - bytes_kept(model, 2) == 2 * expected
