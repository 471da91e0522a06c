"""What a run's adapters have learnt becomes part of its weights: a state dict in, the same model's without adapters out."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vmae2_ds.config.model import ClassifierConfig, EncoderConfig
from vmae2_ds.model.lora import MARK, merged
from vmae2_ds.weights.lazy_state import StoredState, dtypes_of, shapes_of


def merged_state(state: Mapping[str, Tensor], model: EncoderConfig) -> Mapping[str, Tensor]:
    """The weights of `model.merged` from those of `model`, each made when it is asked for."""
    if not isinstance(model, ClassifierConfig) or not model.lora.rank:
        return state
    scale = model.lora.scale
    shapes = {name: shape for name, shape in shapes_of(state).items() if MARK not in name}
    dtypes = dtypes_of(state)
    return StoredState(shapes, lambda name: merged(state, name, scale), {name: dtypes[name] for name in shapes})
