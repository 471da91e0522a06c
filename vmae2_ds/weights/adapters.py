"""Adapters of OpenTAD's checkpoints under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from vmae2_ds.errors import CheckpointError

_THEIRS = re.compile(r"(?:^|\.)blocks\.(\d+)\.adapter\.(.+)$")
_OURS = {
    "gamma": "across.gamma",
    **{f"dwconv.{kind}": f"across.dwconv.{kind}" for kind in ("weight", "bias")},
    **{f"conv.{kind}": f"across.conv.{kind}" for kind in ("weight", "bias")},
    **{f"down_proj.{kind}": f"down.{kind}" for kind in ("weight", "bias")},
    **{f"up_proj.{kind}": f"across.up.{kind}" for kind in ("weight", "bias")},
}
"""What they call the parts of an adapter (vit_adapter.py; docs/PAPER.md#temporal-adapters), and what we do."""


def from_opentad(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapters in a state dict of OpenTAD's AdaTAD, as `AdaptedEncoder` names them; all else is left out.

    Their 1x1 convolution (H, H, 1) is our matrix (H, H). Raises CheckpointError for an adapter of another make.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not (found := _THEIRS.search(name)):
            continue
        if found[2] not in _OURS:
            raise CheckpointError(f"{name} is no part of AdaTAD's adapter; its parts are {', '.join(sorted(_OURS))}")
        ours[f"adapters.{found[1]}.{_OURS[found[2]]}"] = tensor.squeeze(-1) if found[2] == "conv.weight" else tensor
    return ours
