"""The module calls of a micro step, forward and backward, which ZeRO-3's hooks stand around: trees of modules, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vmae2_ds.config.model import CheckpointingName, ModelConfig, TowerConfig


class Call(NamedTuple):
    """A module's hook before (`enters`) or after its forward or backward."""

    module: str
    enters: bool
    is_backward: bool = False


@dataclass(frozen=True)
class Node:
    """A module and its calls to children, in forward order. Modules without parameters count: each call prefetches.

    Without a name it is no module, but a function that is computed again as one.
    """

    name: str
    children: tuple[Node, ...] = ()
    recomputed: str = "no"
    has_backward: bool = True

    def forward(self) -> Iterator[Call]:
        """The calls of the forward pass."""
        if self.name:
            yield Call(self.name, True)
        for child in self.children:
            yield from child.forward()
        if self.name:
            yield Call(self.name, False)

    def backward(self) -> Iterator[Call]:
        """The calls of the backward pass, with what is computed again."""
        if not self.has_backward:
            return
        if self.recomputed == "deepspeed":  # reentrant: the whole block first
            yield from self.forward()
        if self.name:
            yield Call(self.name, True, True)
        for child in reversed(self.children):
            yield from child.backward()
        if self.name:
            yield Call(self.name, False, True)


@dataclass(frozen=True)
class TorchRecomputed(Node):
    """What stands under torch's checkpoint: computed again when the backward pass first asks for what it did not keep, up to
    what it needs last."""

    asked_by: str = ""
    """The module whose backward pass asks first."""
    last: Call | None = None
    """The last call: an exception ends the computation there, and no hook runs after it."""

    def backward(self) -> Iterator[Call]:
        """The calls of any module, and forward once more."""
        for call in Node(self.name, self.children).backward():
            yield call
            if call == Call(self.asked_by, True, True):
                for again in self.forward():
                    yield again
                    if again == self.last:
                        break


def mae_tree(model: ModelConfig) -> Node:
    """The objective of pre-training (objectives.py:Reconstruct) with its model."""
    of_encoder, of_decoder = model.recomputed_blocks
    encoder = encoder_node(model.encoder, of_encoder, model.checkpointing)
    last = (Node("decoder.norm"), Node("decoder.head"))
    decoder = Node("decoder", (blocks_node("decoder", model.decoder, of_decoder, model.checkpointing), *last))
    return Node("objective", (Node("model", (encoder, Node("bridge"), decoder)),))


def encoder_node(tower: TowerConfig, recomputed: range, checkpointing: CheckpointingName) -> Node:
    """The encoder with its final norm (model/encoder.py:Encoder)."""
    embed = Node("encoder.embed", (Node("encoder.embed.proj"),))
    return Node("encoder", (embed, blocks_node("encoder", tower, recomputed, checkpointing), Node("encoder.norm")))


def blocks_node(
    tower_name: str,
    tower: TowerConfig,
    recomputed: range,
    checkpointing: CheckpointingName,
    *,
    first: int = 0,
    children_of: Callable[[str], tuple[Node, ...]] | None = None,
    last: str = "mlp.fc2",
) -> Node:
    """A tower's blocks (model/block.py:Blocks).

    Args:
        tower_name: encoder or decoder.
        tower: its shape.
        recomputed: the blocks that are computed again, as `checkpointing` does it.
        checkpointing: a name of `config.model.CheckpointingName`.
        first: the first block that has a backward pass.
        children_of: the modules of the block of a name; default: those of a block without adapters.
        last: the layer of a block that asks for its input first.
    """
    blocks = []
    for block in range(tower.depth):
        name = f"{tower_name}.blocks.{block}"
        children = (children_of or block_children)(name)
        if block not in recomputed:
            blocks.append(Node(name, children, has_backward=block >= first))
        elif checkpointing == "deepspeed":
            blocks.append(Node(name, children, "deepspeed"))
        else:
            blocks.append(recomputed_block(name, children, last))
    return Node(f"{tower_name}.blocks", tuple(blocks))


def block_children(name: str) -> tuple[Node, ...]:
    """The modules of a transformer block (model/block.py:Block)."""
    drop_path = Node(f"{name}.drop_path")
    attention = Node(f"{name}.attn", (Node(f"{name}.attn.qkv"), Node(f"{name}.attn.proj")))
    mlp = Node(f"{name}.mlp", (Node(f"{name}.mlp.fc1"), Node(f"{name}.mlp.fc2")))
    return (Node(f"{name}.norm1"), attention, drop_path, Node(f"{name}.norm2"), mlp, drop_path)


def recomputed_block(name: str, children: tuple[Node, ...] | None = None, last: str = "mlp.fc2") -> Node:
    """A block that is computed again when its last layer (fc2) asks for its input, up to that layer."""
    asks = f"{name}.{last}"
    return TorchRecomputed(name, children or block_children(name), asked_by=asks, last=Call(asks, True))
