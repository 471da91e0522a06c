"""Closed forms against the published tables and against torch's own count of a real step."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.model.conftest import TINY, TINY_GEOMETRY, make_batch
from vmae2_ds.config.model import SIZES, ModelConfig
from vmae2_ds.config.pretrain import MaskConfig, ObjectiveConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.flops import count_parameters, mae_macs, recomputed_macs, training_flops
from vmae2_ds.masking import count_masks
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct

ENCODER_ONLY, DUAL, DISJOINT = (
    MaskConfig(decoder="none"),
    MaskConfig(),
    MaskConfig(decoder_tokens="disjoint"),
)
# docs/PAPER.md#macs, GMACs to the digits given there: encoder-only, dual, dual embedding visible cubes only, and disjoint.
GMACS = {
    "small": ("11.536171", "7.840334", "7.0099", "6.6225"),
    "base": ("35.439772", "25.839796", "24.1789", "23.1211"),
    "large": ("83.034636", "68.271735", "66.0571", "64.3951"),
    "huge": ("136.855945", "122.093044", "119.3248", "117.6628"),
    "giant": ("263.957053", "241.613537", "238.5669", "236.1111"),
}
PARTS_GMACS = {  # dual, embedding all cubes
    "base": {"embed": "1.850", "encoder": "14.061", "bridge": "0.047", "decoder": "9.419", "head": "0.462"},
    "giant": {"embed": "3.391", "encoder": "214.798", "bridge": "0.150", "decoder": "22.658", "head": "0.617"},
}
PARAMETERS = {  # encoder, decoder, bridge and mask token, total
    "small": (21_879_936, 2_075_520, 73_920, 24_029_376),
    "base": (86_227_200, 7_688_448, 295_296, 94_210_944),
    "large": (303_860_736, 13_396_480, 524_800, 317_782_016),
    "huge": (631_607_040, 13_396_480, 655_872, 645_659_392),
    "giant": (1_011_610_752, 13_974_400, 721_408, 1_026_306_560),
}


def geometry_of(size: str) -> ClipGeometry:
    return ClipGeometry(16, 224, 224, 2, SIZES[size][2])


def giga(macs: int, like: str) -> str:
    """In G, with as many decimals as `like`."""
    return f"{macs / 1e9:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("size", sorted(GMACS))
def test_macs_of_the_published_table(size: str) -> None:
    geometry, model = geometry_of(size), ModelConfig.of_size(size)
    for expected, masks, embed_all in zip(
        GMACS[size], (ENCODER_ONLY, DUAL, DUAL, DISJOINT), (True, True, False, False), strict=True
    ):
        visible, decode, _ = count_masks(masks, geometry)
        macs = mae_macs(model, geometry, visible, decode, embed_all=embed_all)
        assert giga(macs.total, expected) == expected


@pytest.mark.parametrize("size", sorted(PARTS_GMACS))
def test_macs_of_each_part(size: str) -> None:
    geometry = geometry_of(size)
    visible, decode, _ = count_masks(DUAL, geometry)
    macs = mae_macs(ModelConfig.of_size(size), geometry, visible, decode, embed_all=True)
    assert {part: giga(getattr(macs, part), text) for part, text in PARTS_GMACS[size].items()} == PARTS_GMACS[size]


@pytest.mark.parametrize("size", sorted(PARAMETERS))
def test_parameters_of_the_published_table_and_of_the_model(size: str) -> None:
    config = ModelConfig.of_size(size)
    count = count_parameters(config)
    assert (count.encoder, count.decoder, count.link, count.total) == PARAMETERS[size]
    with torch.device("meta"):
        model = MaskedAutoencoder(config, geometry_of(size), seed=None)
    assert sum(p.numel() for p in model.parameters()) == count.total
    assert sum(p.numel() for p in model.encoder.parameters()) == count.encoder


@pytest.mark.parametrize("masks", [ENCODER_ONLY, DUAL, DISJOINT], ids=["encoder only", "dual", "disjoint"])
@pytest.mark.parametrize("checkpointing", ["none", "decoder", "every_k", "all"])
def test_closed_form_equals_what_torch_counts_in_a_real_step(masks: MaskConfig, checkpointing: str) -> None:
    masks = MaskConfig.model_validate(masks.model_dump() | {"encoder_ratio": 0.75})
    config = ModelConfig.model_validate(TINY.model_dump() | {"checkpointing": checkpointing})
    objective = Reconstruct(MaskedAutoencoder(config, TINY_GEOMETRY), ObjectiveConfig(), TINY_GEOMETRY)
    batch = make_batch(masks, TINY_GEOMETRY)
    visible, decode, _ = count_masks(masks, TINY_GEOMETRY)
    macs = mae_macs(config, TINY_GEOMETRY, visible, decode)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        objective(batch)
    assert forward.get_total_flops() == 2 * 2 * macs.total  # 2 clips, 2 FLOPs in a MAC
    with FlopCounterMode(display=False) as step:
        objective(batch).loss.backward()
    recomputed = recomputed_macs(config, visible, decode)
    # The closed form also counts a gradient of the pixels, which nobody asks for.
    assert step.get_total_flops() == 2 * (training_flops(macs.total, recomputed) - 2 * macs.embed)


@pytest.mark.parametrize("masks", [ENCODER_ONLY, DUAL, DISJOINT], ids=["encoder only", "dual", "disjoint"])
@pytest.mark.parametrize("size", sorted(SIZES))
def test_closed_form_equals_what_torch_counts_for_every_size(size: str, masks: MaskConfig) -> None:
    geometry, config = geometry_of(size), ModelConfig.of_size(size, attention="math")
    visible, decode, _ = count_masks(masks, geometry)
    # On the meta device no weight is allocated, and torch counts by shapes. One clip: the closed form is per clip.
    with torch.device("meta"), torch.no_grad():
        model = MaskedAutoencoder(config, geometry, seed=None).to("meta")  # its positions are numpy's
        cubes = torch.empty(1, visible, geometry.cube_values)
        places = [torch.empty(1, number, dtype=torch.long) for number in (visible, decode)]
        with FlopCounterMode(display=False) as forward:
            model(cubes, *places)
    assert forward.get_total_flops() == 2 * mae_macs(config, geometry, visible, decode).total


# docs/PAPER.md#dual-masking, "FLOPs", which are multiply-adds: encoder-only and dual, embedding all cubes as published.
@pytest.mark.parametrize(("size", "gflops"), [("base", (35.48, 25.87)), ("giant", (263.93, 241.61))])
def test_macs_printed_in_the_paper(size: str, gflops: tuple[float, float]) -> None:
    geometry = geometry_of(size)
    counts = [count_masks(masks, geometry) for masks in (ENCODER_ONLY, DUAL)]
    model = ModelConfig.of_size(size)
    macs = [mae_macs(model, geometry, visible, decode, embed_all=True).total for visible, decode, _ in counts]
    assert [count / 1e9 for count in macs] == pytest.approx(gflops, rel=0.0015)
