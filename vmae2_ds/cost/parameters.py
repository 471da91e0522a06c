"""Every parameter of a model by name, shape and weight-decay group, as ZeRO divides them: closed form, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from types import MappingProxyType

from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.cost.module_calls import Node, mae_tree
from vmae2_ds.cost.muon import MatrixShape, matrices_of

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)  # one object for each model: what is worked out of it is kept by its identity
class Parameters:
    """A model as ZeRO sees it: what learns, what does not, and which modules are called."""

    learning: Mapping[str, Shape]
    """Name -> shape, in the model's order."""
    frozen: Mapping[str, Shape]
    """Name -> shape of what has weights alone."""
    tree: Node
    parts: tuple[str, ...] = ("",)
    """What names begin with that have groups of the optimizer to themselves, in the groups' order."""
    of_muon: frozenset[str] = frozenset()
    """Names of what Muon updates, in groups of its own; AdamW has all else."""

    @property
    def num_learning(self) -> int:
        """Elements that an optimizer updates."""
        return sum(map(prod, self.learning.values()))

    @property
    def num_frozen(self) -> int:
        """Elements that stay as they are."""
        return sum(map(prod, self.frozen.values()))


Model = ModelConfig | Parameters
"""A masked autoencoder, or any other model."""


def all_shapes(model: Model) -> Mapping[str, Shape]:
    """Name -> shape of what learns and of what does not."""
    return {**model.frozen, **model.learning} if isinstance(model, Parameters) else parameter_shapes(model)


def frozen_size(model: Model) -> int:
    """Elements that do not learn."""
    return model.num_frozen if isinstance(model, Parameters) else 0


def module_tree(model: Model) -> Node:
    """The modules that a micro step calls."""
    return model.tree if isinstance(model, Parameters) else mae_tree(model)


@lru_cache(maxsize=64)
def parameter_shapes(model: Model) -> Mapping[str, Shape]:
    """Name -> shape of what learns, in the order of the model's `named_parameters()`."""
    if isinstance(model, Parameters):
        return model.learning
    encoder, decoder = model.encoder, model.decoder
    cube_values = 3 * model.tubelet * model.patch * model.patch
    shapes = {
        **encoder_shapes(encoder, cube_values),
        "encoder.norm.weight": (encoder.width,),
        "encoder.norm.bias": (encoder.width,),
        "bridge.weight": (decoder.width, encoder.width),
        "decoder.mask_token": (1, 1, decoder.width),
        **dict(block_shapes("decoder", decoder)),
        "decoder.norm.weight": (decoder.width,),
        "decoder.norm.bias": (decoder.width,),
        "decoder.head.weight": (cube_values, decoder.width),
        "decoder.head.bias": (cube_values,),
    }
    return MappingProxyType(shapes)


@lru_cache(maxsize=64)
def parameter_sizes(model: Model) -> tuple[int, ...]:
    """Elements of every parameter that learns, in the model's order; gradients are ready in about the reverse."""
    return tuple(prod(shape) for shape in parameter_shapes(model).values())


@lru_cache(maxsize=64)
def group_sizes(model: Model) -> tuple[tuple[int, ...], ...]:
    """Elements of each parameter, in order, in the optimizer's groups: each part with weight decay, then each without.

    DeepSpeed flattens, pads and divides every group of the optimizer by itself (`train.optim.parameter_groups`). The
    matrices of Muon in a group are one before it.
    """
    groups: dict[int, list[int]] = {number: [] for number in sorted({*group_of(model).values()})}
    for name, shape in parameter_shapes(model).items():
        groups[group_of(model)[name]].append(prod(shape))
    return tuple(map(tuple, groups.values()))


@lru_cache(maxsize=64)
def group_of(model: Model) -> Mapping[str, int]:
    """Name -> the number of its group."""
    parts = model.parts if isinstance(model, Parameters) else ("",)
    of_muon = model.of_muon if isinstance(model, Parameters) else frozenset()
    keys = {
        name: (
            not has_decay(name, shape),
            next(number for number, prefix in enumerate(parts) if name.startswith(prefix)),
            name not in of_muon,
        )
        for name, shape in parameter_shapes(model).items()
    }
    numbers = {key: number for number, key in enumerate(sorted({*keys.values()}))}
    return MappingProxyType({name: numbers[key] for name, key in keys.items()})


@lru_cache(maxsize=64)
def with_muon(model: Model) -> Parameters:
    """The model under Muon beside AdamW."""
    shapes = parameter_shapes(model)
    return Parameters(
        learning=shapes,
        frozen=model.frozen if isinstance(model, Parameters) else {},
        tree=module_tree(model),
        parts=model.parts if isinstance(model, Parameters) else ("",),
        of_muon=frozenset(name for name, shape in shapes.items() if matrices_of(name, shape)),
    )


@lru_cache(maxsize=64)
def muon_matrices(model: Model) -> Mapping[int, tuple[MatrixShape, ...]]:
    """Number of each group that is Muon's -> the shapes of its matrices, in order."""
    found: dict[int, list[MatrixShape]] = {}
    for name in muon_names(model):
        found.setdefault(group_of(model)[name], []).extend(matrices_of(name, parameter_shapes(model)[name]))
    return MappingProxyType({number: tuple(shapes) for number, shapes in found.items()})


def muon_names(model: Model) -> list[str]:
    """Names of what Muon updates, in the model's order."""
    of_muon = model.of_muon if isinstance(model, Parameters) else ()
    return [name for name in parameter_shapes(model) if name in of_muon]


def has_decay(name: str, shape: Shape) -> bool:
    """The rule of train.optim.has_weight_decay, which lies above this layer; a test holds the two together."""
    return len(shape) > 1 and not name.endswith(("bias", "mask_token"))


def encoder_shapes(tower: TowerConfig, cube_values: int) -> dict[str, Shape]:
    """Name -> shape of the encoder's embedding and blocks, in order, without a final norm."""
    return {
        "encoder.embed.proj.weight": (tower.width, cube_values),
        "encoder.embed.proj.bias": (tower.width,),
        **dict(block_shapes("encoder", tower)),
    }


def block_shapes(tower_name: str, tower: TowerConfig) -> Iterator[tuple[str, Shape]]:
    """Name and shape of every parameter of a tower's blocks, in order."""
    width, mlp = tower.width, tower.mlp
    for block in range(tower.depth):
        prefix = f"{tower_name}.blocks.{block}"
        yield f"{prefix}.norm1.weight", (width,)
        yield f"{prefix}.norm1.bias", (width,)
        yield f"{prefix}.attn.qkv.weight", (3 * width, width)
        yield f"{prefix}.attn.qkv.q_bias", (width,)
        yield f"{prefix}.attn.qkv.v_bias", (width,)
        yield f"{prefix}.attn.proj.weight", (width, width)
        yield f"{prefix}.attn.proj.bias", (width,)
        yield f"{prefix}.norm2.weight", (width,)
        yield f"{prefix}.norm2.bias", (width,)
        yield f"{prefix}.mlp.fc1.weight", (mlp, width)
        yield f"{prefix}.mlp.fc1.bias", (mlp,)
        yield f"{prefix}.mlp.fc2.weight", (width, mlp)
        yield f"{prefix}.mlp.fc2.bias", (width,)
