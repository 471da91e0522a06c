"""What a CUDA graph would need of a micro step: nothing in it waits for the host, comes from it, or changes its shape.

Forward passes on a fake GPU; backward passes on the fake CPU, because torch asks the driver for a context there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.distributed.steps import make_config
from vmae2_ds.contracts import PretrainBatch
from vmae2_ds.masking import count_masks
from vmae2_ds.model import kept
from vmae2_ds.model.mae import MaskedAutoencoder
from vmae2_ds.objectives import Reconstruct

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "bincount", "equal"}
"""Operators whose result, or its shape, the host has to read."""


class Uncapturable(TorchDispatchMode):
    """Operators that a graph cannot hold: waits for the host, and copies between it and the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        places = {each.device.type for each in tree_leaves((args, kwargs, result)) if isinstance(each, Tensor)}
        if name in WAITS or (len(places) > 1 and "copy" in name):
            self.found.append(name)
        return result


def found_in(device: str, *, backward: bool, **model: Any) -> list[str]:
    """What cannot be captured in a micro step after the first, which may make constants."""
    config = make_config(1, model=model)
    config = config.model_copy(update={"model": config.model.model_copy(update={"attention": "math"})})
    counts = count_masks(config.mask, config.geometry)
    with FakeTensorMode(), torch.device(device):
        clip = torch.zeros(2, 8, 32, 32, 3, dtype=torch.uint8)
        visible, decode = (torch.zeros(2, number, dtype=torch.int64) for number in (counts.visible, counts.decode))
        batch = PretrainBatch(clip, visible, decode, torch.ones(2, counts.decode, dtype=torch.bool))
        network = MaskedAutoencoder(config.model, config.geometry, seed=None)
        objective = Reconstruct(network, config.objective, config.geometry)
        objective(batch)
        with Uncapturable() as seen:
            loss = objective(batch).loss
            if backward:
                loss.backward()
    return seen.found


@pytest.mark.parametrize("model", [{}, {"checkpointing": "all"}, {"drop_path": 0.5}], ids=str)
@pytest.mark.parametrize("backward", [False, True])
def test_a_micro_step_asks_the_host_for_nothing(
    model: dict[str, Any], backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_can_keep", lambda like: True)  # fake constants too, for the length of this test
    monkeypatch.setattr(kept, "_kept", {})
    assert found_in("cpu" if backward else "cuda", backward=backward, **model) == []


def test_what_would_wait_is_found() -> None:
    with FakeTensorMode(), Uncapturable() as seen:
        x = torch.ones(3, device="cuda")
        x.copy_(torch.ones(3))
        torch.ones(3).to("cuda")
        with pytest.raises(Exception, match=r"(?i)data.dependent|_local_scalar_dense"):
            float(x.sum())
    assert len(seen.found) >= 2
