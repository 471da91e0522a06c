"""Weights of the published ActionFormer under our names (github.com/happyharrycn/actionformer_release at commit 61ea7eb)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vmae2_ds.downstream.tad.pyramid import ActionPyramid
from vmae2_ds.errors import CheckpointError
from vmae2_ds.weights.layouts import some

_RULES = (
    (r"^backbone\.embd\.(\d+)\.conv", r"embed.\1.conv"),
    (r"^backbone\.embd_norm\.(\d+)", r"embed.\1.norm"),
    (r"^backbone\.(stem|branch)\.", r"\1."),
    (r"\.attn\.(query|key|value)_conv\.conv", r".attn.\1.conv"),
    (r"\.attn\.(query|key|value)_norm", r".attn.\1.norm"),
    (r"\.attn\.(query|key|value)\.(weight|bias)$", r".attn.\1.linear.\2"),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.3\.", ".fc2."),
    (r"\.drop_path_attn\.scale$", ".gain1_D"),
    (r"\.drop_path_mlp\.scale$", ".gain2_D"),
    (r"^neck\.fpn_norms\.", "level_norms."),
    (r"^cls_head\.cls_head\.conv", "classify.last"),
    (r"^reg_head\.offset_head\.conv", "locate.last"),
    (r"^cls_head\.(head|norm)\.(\d+)", r"classify.convs.\2.\1"),
    (r"^reg_head\.(head|norm)\.(\d+)", r"locate.convs.\2.\1"),
    (r"\.head\.conv\.", ".conv."),
)
"""Theirs to ours, one after the other."""
_SCALE = re.compile(r"^reg_head\.scale\.(\d+)\.scale$")


def from_actionformer(state: Mapping[str, Tensor], pyramid: ActionPyramid) -> dict[str, Tensor]:
    """Our state dict of this pyramid from a published one, which may carry `module.` before its names; every number is kept.

    Raises CheckpointError, naming what is missing, without a place, or of another shape.
    """
    names = {name.removeprefix("module."): name for name in state}
    scales = sorted((int(found[1]), name) for short, name in names.items() if (found := _SCALE.match(short)))
    taken = {_ours(short): state[name] for short, name in names.items() if not _SCALE.match(short)}
    if scales:
        taken["offset_scale_L"] = torch.stack([state[name].reshape(()) for _, name in scales])
    expected = pyramid.state_dict()
    problems = [f"missing: {some(missing)}"] if (missing := [name for name in expected if name not in taken]) else []
    if extra := [name for name in taken if name not in expected]:
        problems.append(f"without a place: {some(extra)}")
    if wrong := [
        f"{name} {tuple(taken[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in taken and taken[name].numel() != tensor.numel()
    ]:
        problems.append(f"of another shape: {some(wrong)}")
    if problems:
        raise CheckpointError(f"the checkpoint is not an ActionFormer of these settings: {'; '.join(problems)}")
    return {name: taken[name].reshape(expected[name].shape) for name in expected}


def _ours(name: str) -> str:
    for theirs, ours in _RULES:
        name = re.sub(theirs, ours, name)
    return name
