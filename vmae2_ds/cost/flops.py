"""Floating point work and parameters of the masked autoencoder as closed forms: plain integers, no torch.

A MAC is one multiply and one add of a matrix product or convolution in the forward pass of one clip; norms, softmax and
GELU are not counted. The published tables count the same way (docs/PAPER.md#macs).
"""

from __future__ import annotations

from dataclasses import dataclass

from vmae2_ds.config.ava import AvaModelConfig
from vmae2_ds.config.model import ClassifierConfig, ModelConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry


@dataclass(frozen=True)
class MaeMacs:
    """MACs of one clip's forward pass, by part."""

    embed: int
    encoder: int
    bridge: int
    decoder: int
    head: int

    @property
    def total(self) -> int:
        """All parts."""
        return self.embed + self.encoder + self.bridge + self.decoder + self.head


@dataclass(frozen=True)
class MaeParameters:
    """Parameters, by part."""

    encoder: int
    """Embedding, blocks and norm: what fine-tuning keeps."""
    decoder: int
    """Blocks, norm and head."""
    link: int
    """Bridge and mask token."""

    @property
    def total(self) -> int:
        """All parts."""
        return self.encoder + self.decoder + self.link


@dataclass(frozen=True)
class StepMacs:
    """MACs of a training step's passes over one clip, or one window."""

    forward: int
    backward: int
    recomputed: int
    """What checkpointing runs a second time."""


def mae_macs(
    model: ModelConfig, geometry: ClipGeometry, visible: int, decode: int, *, embed_all: bool = False
) -> MaeMacs:
    """Work for `visible` encoder tokens and `decode` mask tokens of one clip.

    `embed_all` counts the embedding of all cubes, as the published code does before it drops the hidden ones.
    """
    encoder, decoder = model.encoder, model.decoder
    embedded = geometry.num_cubes if embed_all else visible
    return MaeMacs(
        embed=embedded * geometry.cube_values * encoder.width,
        encoder=encoder.depth * block_macs(encoder, visible),
        bridge=visible * encoder.width * decoder.width,
        decoder=decoder.depth * block_macs(decoder, visible + decode),
        head=decode * decoder.width * geometry.cube_values,
    )


def classifier_macs(model: ClassifierConfig | AvaModelConfig, geometry: ClipGeometry) -> int:
    """Work of one clip through the classifier, which sees every cube; of a head on boxes its layer for one box."""
    embed = geometry.num_cubes * geometry.cube_values * model.encoder.width
    blocks = model.encoder.depth * block_macs(model.encoder, geometry.num_cubes)
    return embed + blocks + model.encoder.width * model.num_classes


def block_macs(tower: TowerConfig, tokens: int) -> int:
    """One block on `tokens` tokens."""
    return sum(block_parts(tower, tokens).values())


def block_parts(tower: TowerConfig, tokens: int) -> dict[str, int]:
    """MACs of one block by product: qkv, the two attention products (q k^T, weights times v), output projection, MLP."""
    width = tower.width
    return {
        "qkv": 3 * tokens * width * width,
        "attention": 2 * tokens * tokens * width,
        "projection": tokens * width * width,
        "mlp": 2 * tokens * width * tower.mlp,
    }


def recomputed_macs(model: ModelConfig, visible: int, decode: int) -> int:
    """MACs that `model.checkpointing` runs a second time in the backward pass of one clip.

    torch's checkpoint stops as soon as it has what the backward pass needs, so a block's last product (fc2) is not
    repeated; DeepSpeed's own repeats whole blocks.
    """
    return sum(recomputed_by_tower(model, visible, decode))


def recomputed_by_tower(model: ModelConfig, visible: int, decode: int) -> tuple[int, int]:
    """`recomputed_macs` of the encoder and of the decoder."""
    found = []
    towers = zip((model.encoder, model.decoder), (visible, visible + decode), model.recomputed_blocks, strict=True)
    for tower, tokens, blocks in towers:
        last_product = 0 if model.checkpointing == "deepspeed" else tokens * tower.mlp * tower.width
        found.append(len(blocks) * (block_macs(tower, tokens) - last_product))
    encoder, decoder = found
    return encoder, decoder


def training_flops(macs: int, recomputed: int = 0) -> int:
    """FLOPs of forward and backward: 2 per MAC, the backward pass costs two forward passes.

    `recomputed` MACs run forward once more (activation checkpointing): hardware work, to be left out of MFU.
    """
    return 6 * macs + 2 * recomputed


def inference_flops(macs: int) -> int:
    """FLOPs of a forward pass alone, as a frozen teacher makes it: 2 per MAC."""
    return 2 * macs


def count_parameters(model: ModelConfig) -> MaeParameters:
    """Exact number of parameters."""
    encoder, decoder = model.encoder, model.decoder
    cube_values = 3 * model.tubelet * model.patch * model.patch
    return MaeParameters(
        encoder=(cube_values + 1) * encoder.width + tower_parameters(encoder),
        decoder=tower_parameters(decoder) + (decoder.width + 1) * cube_values,
        link=encoder.width * decoder.width + decoder.width,
    )


def tower_parameters(tower: TowerConfig) -> int:
    """Blocks and final norm."""
    width, mlp = tower.width, tower.mlp
    qkv = 3 * width * width + 2 * width  # keys have no bias
    projection = width * width + width
    mlp_layers = 2 * width * mlp + mlp + width
    norm = 2 * width
    return tower.depth * (qkv + projection + mlp_layers + 2 * norm) + norm
