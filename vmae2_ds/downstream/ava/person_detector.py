"""Detectors that find persons in a picture: torchvision's by name, with weights out of a file, or a function of one's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.weights.files import read_published

Pictures = Sequence[NDArray[np.uint8]]
"""(H, W, 3) each, of any sizes."""
Detector = Callable[[Pictures], Sequence[NDArray[Any]]]
"""Pictures -> (n, 5) for each: x1, y1, x2, y2 in pixels, score."""
CLASSES = "roi_heads.box_predictor.cls_score.bias"
"""The tensor of Faster and Mask R-CNN that has a value for each class."""


def load_detector(
    name: str,
    weights: Path,
    device: torch.device,
    *,
    label: int = 1,
    threshold: float = 0.05,
    short_side: int | None = None,
) -> Detector:
    """The detector called `name`, on `device`; nothing is fetched, neither its weights nor those of its backbone.

    Args:
        name: One of torchvision.models.detection, or module:function, which is called with `weights` and `device`.
        weights: Its weights, a file of torch.save or safetensors.
        device: Where it runs.
        label: The class of persons.
        threshold: Score that torchvision's suppression of boxes begins at.
        short_side: What pictures are brought to, in pixels; None: what the detector does by itself.

    Raises:
        ConfigError: No such detector, or no such size of pictures.
        CheckpointError: Weights that cannot be read, or of another model.
    """
    module, colon, function = name.partition(":")
    if colon:
        try:
            made = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"--detector {name}: {error}; is its folder in PYTHONPATH?") from None
        return made(weights, device)  # type: ignore[no-any-return]
    model = _torchvision_model(name, weights).to(device).eval()
    for part in (model, getattr(model, "roi_heads", model)):
        if hasattr(part, "score_thresh"):
            part.score_thresh = threshold
    if short_side is not None:
        if getattr(model.transform, "fixed_size", None) is not None:
            raise ConfigError(f"--short-side {short_side}: {name} brings every picture to one size; leave it away")
        model.transform.min_size = (short_side,)  # type: ignore[union-attr, assignment]

    def detect(pictures: Pictures) -> list[NDArray[Any]]:
        with torch.inference_mode():
            inputs = [torch.from_numpy(np.array(one)).to(device).permute(2, 0, 1) / 255 for one in pictures]
            return [_persons(found, label) for found in model(inputs)]

    return detect


def _torchvision_model(name: str, file: Path) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models.detection)
    if name not in known:
        raise ConfigError(
            f"unknown detector {name!r}; choose one of {', '.join(known)}, or module:function of your own"
        )
    state = read_published(file)
    classes = {"num_classes": len(state[CLASSES])} if CLASSES in state else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None, **classes)
    own = model.state_dict()
    missing, others = [key for key in own if key not in state], [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or others or shapes:
        told = [
            f"{len(keys)} tensors {what}, such as {keys[0]}"
            for keys, what in (
                (missing, "are missing"),
                (others, "are of something else"),
                (shapes, "have other shapes"),
            )
            if keys
        ]
        raise CheckpointError(f"{file} has no weights of {name}: {'; '.join(told)}; name their model by --detector")
    model.load_state_dict(state)
    return model


def _persons(found: dict[str, Tensor], label: int) -> NDArray[Any]:
    is_person = found["labels"] == label
    rows = torch.cat([found["boxes"], found["scores"][:, None]], dim=1)[is_person]
    return rows.double().cpu().numpy()
