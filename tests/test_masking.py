"""Masks against the published generators' counts and patterns, and the properties that the model relies on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden_data import golden_json
from vmae2_ds.config.pretrain import MaskConfig
from vmae2_ds.contracts import ClipGeometry, Masks
from vmae2_ds.errors import ConfigError
from vmae2_ds.masking import count_masks, make_masks, passes_over_hidden

GOLDEN = golden_json("masks.json")
PUBLISHED = ClipGeometry(16, 224, 224, 2, 16)


def geometry_of(grid: tuple[int, int, int]) -> ClipGeometry:
    t, h, w = grid
    return ClipGeometry(2 * t, 16 * h, 16 * w, 2, 16)


def draw(config: MaskConfig, geometry: ClipGeometry, seed: int = 0) -> Masks:
    return make_masks(config, geometry, np.random.default_rng(seed))


def is_kept(index: np.ndarray, geometry: ClipGeometry) -> np.ndarray:
    kept = np.zeros(geometry.num_cubes, dtype=bool)
    kept[index] = True
    return kept.reshape(geometry.grid)


@pytest.mark.parametrize("case", GOLDEN["tube"], ids=lambda c: f"{c['grid']}-{c['ratio']}")
def test_tube_hides_as_many_cells_as_published_the_same_in_every_step(case: dict) -> None:
    geometry, config = geometry_of(case["grid"]), MaskConfig(encoder_ratio=case["ratio"])
    visible_THW = is_kept(draw(config, geometry).visible_V, geometry)
    assert count_masks(config, geometry).visible == visible_THW.sum() == case["visible_total"]
    assert (~visible_THW[0]).sum() == case["masked_per_frame"]
    assert (visible_THW == visible_THW[0]).all()


@pytest.mark.parametrize("case", GOLDEN["running_cell"], ids=lambda c: f"{c['ratio']}")
def test_running_cell_draws_exactly_the_four_published_maps(case: dict) -> None:
    geometry, config = geometry_of(case["grid"]), MaskConfig(decoder_ratio=case["ratio"])
    seen = set()
    for seed in range(40):
        decode_THW = is_kept(draw(config, geometry, seed).decode_M, geometry)
        assert ((~decode_THW).sum(axis=(1, 2)) == case["masked_per_frame"]).all()
        cell_THW = decode_THW[:, :2, :2]
        assert (decode_THW == np.tile(cell_THW, (1, 7, 7))).all()
        seen.add(tuple(map(tuple, (~cell_THW).reshape(8, 4).astype(int).tolist())))
    assert seen == {tuple(map(tuple, phase)) for phase in case["cells_2x2_by_map_and_time"]}


@pytest.mark.parametrize("case", GOLDEN["overlap"], ids=lambda c: f"{c['grid']}")
def test_overlap_of_tube_and_running_cell_is_the_published_constant(case: dict) -> None:
    geometry = geometry_of(case["grid"])
    counts = count_masks(MaskConfig(), geometry)
    assert counts == (case["visible"], case["dec_visible"], case["dec_visible"] - case["overlap_max"])
    for seed in range(8):
        assert draw(MaskConfig(), geometry, seed).is_supervised_M.sum() == counts.supervised
    disjoint = MaskConfig(decoder_tokens="disjoint")
    assert count_masks(disjoint, geometry).decode == counts.supervised  # 704, and 920 for ViT-g


def masks_of(decoder: str, decoded: int | None, **others: Any) -> MaskConfig:
    return MaskConfig(decoder=decoder, decoded=None if decoder == "none" else decoded, **others)


CONFIGS = st.builds(
    masks_of,
    visible=st.one_of(st.none(), st.sampled_from([1, 4, 8, 16, 36, 64])),
    decoded=st.one_of(st.none(), st.sampled_from([2, 8, 9, 16, 49, 64])),
    encoder=st.sampled_from(["tube", "random", "frame"]),
    encoder_ratio=st.sampled_from([0.25, 0.5, 0.6, 0.75, 0.9]),
    decoder=st.sampled_from(["none", "running_cell", "frame", "random"]),
    decoder_ratio=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    decoder_tokens=st.sampled_from(["official", "disjoint"]),
)
GEOMETRIES = st.tuples(st.integers(1, 9), st.integers(1, 8), st.integers(1, 8)).map(geometry_of)


@settings(max_examples=300, deadline=None)
@given(config=CONFIGS, geometry=GEOMETRIES, seed=st.integers(0, 2**32 - 1))
def test_what_is_not_refused_has_the_counts_it_promises(config: MaskConfig, geometry: ClipGeometry, seed: int) -> None:
    try:
        counts = count_masks(config, geometry)
    except ConfigError:
        with pytest.raises(ConfigError, match=r"use|try"):  # drawing refuses too, and names a way out
            draw(config, geometry, seed)
        return
    masks = draw(config, geometry, seed)
    assert (len(masks.visible_V), len(masks.decode_M)) == (counts.visible, counts.decode)
    assert counts.visible > 0
    assert counts.decode > 0
    for index in (masks.visible_V, masks.decode_M):
        assert index.dtype == np.int64
        assert (np.diff(index) > 0).all(), "sorted, no cube twice"
        assert index[0] >= 0
        assert index[-1] < geometry.num_cubes
    seen_too = np.isin(masks.decode_M, masks.visible_V)
    np.testing.assert_array_equal(masks.is_supervised_M, ~seen_too)
    if counts.supervised is not None:
        assert masks.is_supervised_M.sum() == counts.supervised
    if config.decoder == "none" or config.decoder_tokens == "disjoint":
        assert not seen_too.any()
    if config.decoder == "none":
        assert counts.visible + counts.decode == geometry.num_cubes
    np.testing.assert_array_equal(draw(config, geometry, seed).decode_M, masks.decode_M)


@pytest.mark.parametrize(
    # frames, size, patch: longer and larger clips, 19 x 19 cubes of ViT-g's at 266 pixels among them
    ("frames", "size", "patch", "visible", "decoded"),
    [(32, 224, 16, 160, 784), (64, 224, 16, 160, 1568), (16, 288, 16, 160, 1296), (16, 384, 16, 160, 2304),
     (32, 266, 14, 208, 1444), (64, 266, 14, 192, 2888)],
)  # fmt: skip
def test_masks_keep_the_number_of_cubes_on_other_clips(
    frames: int, size: int, patch: int, visible: int, decoded: int
) -> None:
    geometry, config = ClipGeometry(frames, size, size, 2, patch), MaskConfig(visible=visible, decoded=decoded)
    by_share = count_masks(MaskConfig(), geometry)
    steps, cells = frames // 2, (size // patch) ** 2
    assert by_share[:2] == (steps * (cells - int(0.9 * cells)), steps * cells // 2)
    counts = count_masks(config, geometry)
    assert counts[:2] == (visible, decoded)
    for seed in range(3):
        masks = draw(config, geometry, seed)
        seen_TS, decoded_TS = (is_kept(index, geometry).reshape(steps, cells) for index in masks[:2])
        assert (seen_TS == seen_TS[0]).all(), "the same cells in every step"
        assert (decoded_TS.sum(axis=0) == steps * decoded // (steps * cells)).all(), "every cell equally often"
        assert masks.is_supervised_M.sum() == counts.supervised == decoded - (seen_TS & decoded_TS).sum()


@pytest.mark.parametrize("encoder", ["tube", "random", "frame"])
@pytest.mark.parametrize("decoder", ["running_cell", "random", "frame"])
def test_supervised_count_is_none_exactly_where_it_varies(encoder: str, decoder: str) -> None:
    config = MaskConfig(encoder=encoder, encoder_ratio=0.75, decoder=decoder)
    found = {int(draw(config, PUBLISHED, seed).is_supervised_M.sum()) for seed in range(60)}
    promised = count_masks(config, PUBLISHED).supervised
    assert (len(found) > 1) if promised is None else (found == {promised})


@pytest.mark.parametrize("axis", ["encoder", "decoder"])
def test_random_masks_hide_every_cube_equally_often(axis: str) -> None:
    geometry = geometry_of((2, 4, 4))
    config = MaskConfig(encoder="random", encoder_ratio=0.5, decoder="random", decoder_ratio=0.5)
    draws = [draw(config, geometry, seed) for seed in range(2000)]
    kept = np.mean([is_kept(m.visible_V if axis == "encoder" else m.decode_M, geometry) for m in draws], axis=0)
    assert abs(kept - 0.5).max() < 5 * 0.5 / np.sqrt(2000)  # five standard errors


@pytest.mark.parametrize(
    ("config", "geometry", "says"),
    [
        (MaskConfig(), ClipGeometry(12, 112, 112, 2, 16), "multiple of 32, or a multiple of 8 frames"),  # 7x7, 6 steps
        (MaskConfig(decoder_ratio=0.6), PUBLISHED, "use 0.25, 0.5 or 0.75"),
        (MaskConfig(decoder_ratio=0.0), PUBLISHED, "use 0.25, 0.5 or 0.75"),
        (MaskConfig(encoder="frame"), PUBLISHED, "try 0.875"),
        (MaskConfig(encoder="frame", encoder_ratio=0.5), ClipGeometry(2, 224, 224, 2, 16), "whole frames"),
        (MaskConfig(encoder_ratio=0.0), PUBLISHED, "leaves nothing to predict"),
        (MaskConfig(encoder="random", encoder_ratio=0.0), PUBLISHED, "leaves nothing to predict"),
        (MaskConfig(encoder_ratio=0.2), geometry_of((4, 2, 2)), "use a ratio from 0.25"),
        (MaskConfig(decoder_tokens="disjoint"), ClipGeometry(12, 224, 224, 2, 16), "multiple of 8 frames"),
        (MaskConfig(decoder_tokens="disjoint", encoder="random"), PUBLISHED, "encoder=tube"),
        (MaskConfig(decoder_tokens="disjoint", decoder="random"), PUBLISHED, "decoder_tokens=official"),
        (
            MaskConfig(visible=161),
            PUBLISHED,
            r"visible 161: a tube mask keeps multiples of the 8 .* 1560; try 160 or 168",
        ),
        (MaskConfig(visible=1568), PUBLISHED, "visible 1568: of 1568 cubes, at most 1560; try 1560"),
        (MaskConfig(visible=3), PUBLISHED, "try 8 or 16"),
        (MaskConfig(encoder="frame", visible=200), PUBLISHED, "196 cubes of a frame, at most 1372; try 196 or 392"),
        (MaskConfig(decoded=700), PUBLISHED, "keeps a quarter, .* of 1568 cubes: 392, 784, 1176; use one of them"),
        (MaskConfig(decoder="random", decoded=1569), PUBLISHED, "of 1568 cubes, at most 1568; try 1568"),
    ],
)
def test_refuses_what_the_mask_cannot_be(config: MaskConfig, geometry: ClipGeometry, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        count_masks(config, geometry)


@settings(max_examples=200, deadline=None)
@given(config=CONFIGS, geometry=GEOMETRIES, seed=st.integers(0, 2**32 - 1))
def test_the_passes_decode_every_hidden_cube_with_masks_of_the_same_kind(
    config: MaskConfig, geometry: ClipGeometry, seed: int
) -> None:
    try:
        counts = count_masks(config, geometry)
    except ConfigError:
        return
    masks = draw(config, geometry, seed)
    passes = passes_over_hidden(config, geometry, masks, np.random.default_rng(seed))
    hidden = np.setdiff1d(np.arange(geometry.num_cubes), masks.visible_V)
    decoded = [np.setdiff1d(one.decode_M, masks.visible_V) for one in passes]
    np.testing.assert_array_equal(np.unique(np.concatenate(decoded)), hidden)
    assert passes[0] is masks
    for one in passes:
        np.testing.assert_array_equal(one.visible_V, masks.visible_V)
        assert len(one.decode_M) == counts.decode, "as many mask tokens as in training"
        assert (np.diff(one.decode_M) > 0).all()
        np.testing.assert_array_equal(one.is_supervised_M, np.isin(one.decode_M, hidden))
    kept_share = 1.0 if config.decoder == "none" else 1 - config.decoder_ratio
    if config.decoded is not None:
        kept_share = config.decoded / geometry.num_cubes
    if config.decoder in ("none", "running_cell") or (kept_share * geometry.grid[0]).is_integer():
        assert len(passes) == math.ceil(1 / kept_share)
    if kept_share in (1.0, 0.5) and len(passes) == math.ceil(1 / kept_share) and geometry.num_cubes % 2 == 0:
        assert sum(map(len, decoded)) == len(hidden), "complements: each cube once"


@pytest.mark.parametrize("case", GOLDEN["running_cell"], ids=lambda c: f"{c['ratio']}")
def test_the_passes_of_the_running_cell_are_published_maps(case: dict) -> None:
    geometry, config = geometry_of(case["grid"]), MaskConfig(decoder_ratio=case["ratio"])
    published = {tuple(map(tuple, phase)) for phase in case["cells_2x2_by_map_and_time"]}
    for seed in range(8):
        masks = draw(config, geometry, seed)
        found = []
        for one in passes_over_hidden(config, geometry, masks, np.random.default_rng(0)):
            cell_THW = ~is_kept(one.decode_M, geometry)[:, :2, :2]
            found.append(tuple(map(tuple, cell_THW.reshape(8, 4).astype(int).tolist())))
        assert set(found) <= published
        assert len(set(found)) == len(found) == {0.25: 2, 0.5: 2, 0.75: 4}[case["ratio"]]
