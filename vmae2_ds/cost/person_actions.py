"""A detector of people's actions as closed forms: what ZeRO divides, work, activations and traffic of a clip; no torch.

An encoder that sees whole clips, and a head on the part of its features inside of each person's box (downstream/ava/model.py).
Held against the module in tests/cost/test_person_actions.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.config.model import CheckpointingName, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.activations import STATISTICS, WIDTHS, TowerActivations
from vmae2_ds.cost.compute_time import ATTENTION_PRODUCTS, Work
from vmae2_ds.cost.flops import StepMacs, block_macs, block_parts
from vmae2_ds.cost.module_calls import Node, encoder_node
from vmae2_ds.cost.parameters import Parameters, Shape, encoder_shapes
from vmae2_ds.cost.traffic import (
    BLOCK_KERNELS,
    AttentionKind,
    ComputePrecision,
    block_traffic,
    encoder_ends,
    score_traffic,
    widths_of,
)

END_KERNELS = 45
"""Operations outside of the blocks, forward and backward."""

# B clips of N cubes, S of them in a step of time, D width, G boxes of a clip, C classes.


@dataclass(frozen=True)
class ActionShape:
    """The shape of a model and of what it is shown."""

    tower: TowerConfig
    clip: ClipGeometry
    """A clip as cubes; all of them are seen."""
    num_classes: int
    cells: int
    """Cells that a box is divided into."""
    boxes: int
    """G, boxes of a clip."""
    recomputed_blocks: range
    checkpointing: CheckpointingName
    drops: bool = False
    """Whether branches are dropped at random."""
    is_frozen: bool = False
    """Whether only the final norm and the head learn."""

    @property
    def again(self) -> range:
        """Blocks that are computed a second time: those of a frozen encoder are not."""
        return range(0) if self.is_frozen else self.recomputed_blocks


@dataclass(frozen=True)
class ActionActivations:
    """Bytes of the clips of a micro step, and when they are the most."""

    held: int
    """Alive at the end of the forward pass."""
    peak: int
    """Alive at the worst moment."""


def action_shape(config: AvaConfig) -> ActionShape:
    """The shape of a run's model, with the most boxes that a training clip has."""
    model, data = config.model, config.data
    return ActionShape(
        model.encoder,
        config.geometry,
        model.num_classes,
        model.head.size**2,
        data.most_boxes,
        model.recomputed_blocks,
        model.checkpointing,
        model.drop_path > 0,
        config.optim.train_only == "head",
    )


def action_macs(shape: ActionShape) -> StepMacs:
    """Work of a clip. Nobody asks for the gradient of pixels; RoIAlign and what finds maxima multiply no matrices."""
    tower, tokens = shape.tower, shape.clip.num_cubes
    embed, block = tokens * shape.clip.cube_values * tower.width, block_macs(tower, tokens)
    head = shape.boxes * tower.width * shape.num_classes
    last_product = 0 if shape.checkpointing == "deepspeed" else tokens * tower.mlp * tower.width
    return StepMacs(
        forward=embed + tower.depth * block + head,
        backward=2 * head if shape.is_frozen else embed + 2 * tower.depth * block + 2 * head,
        recomputed=len(shape.again) * (block - last_product),
    )


def action_activations(
    shape: ActionShape, clips: int, *, attention: AttentionKind, precision: ComputePrecision
) -> ActionActivations:
    """Activation memory of some clips that go through together, each with all its boxes."""
    widths, tokens, tower, clip = WIDTHS[precision], shape.clip.num_cubes, shape.tower, shape.clip
    nd, boxes = tokens * tower.width, shape.boxes
    blocks = TowerActivations(
        tower, shape.again, shape.checkpointing, tokens, attention, widths, widths.encoder_stream, shape.drops
    )
    given = clip.num_frames * clip.height * clip.width * 3 + boxes * (4 * 4 + 1 + 4 * shape.num_classes)
    embed, norm = widths.linear * tokens * clip.cube_values, widths.norm * nd + STATISTICS * tokens
    # float32: the cells of a box, what is largest of them and, int64, where it was; the logits and what the loss makes of them
    pooled = 4 * boxes * tower.width * shape.cells
    head = pooled + boxes * ((4 + 8) * tower.width + 3 * 4 * shape.num_classes)
    if shape.is_frozen:
        held = given + norm + head
        # no graph, in a block's GELU: what the row of blocks was given, the block's input, that of its MLP, before and behind
        # the norm, and both hidden widths; the callers hold the pixels as floats
        forward = given + 4 * tokens * clip.cube_values + widths.linear * (4 * nd + 2 * tokens * tower.mlp)
        return ActionActivations(clips * held, clips * max(forward, held + pooled))
    held = given + embed + blocks.total_held() + norm + head

    def moments() -> Iterator[int]:
        yield held + pooled  # the gradient of what was pooled
        released = head + norm
        for block in reversed(range(tower.depth)):
            yield held - released + blocks.recomputed(block) + blocks.transient(block)
            released += blocks.held(block)

    return ActionActivations(clips * held, clips * max(moments()))


@lru_cache(maxsize=64)
def action_parameters(shape: ActionShape) -> Parameters:
    """What ZeRO sees."""
    width = shape.tower.width
    encoder = encoder_shapes(shape.tower, shape.clip.cube_values)
    ends: dict[str, Shape] = {
        "encoder.norm.weight": (width,),
        "encoder.norm.bias": (width,),
        "head.weight": (shape.num_classes, width),
        "head.bias": (shape.num_classes,),
    }
    model = (encoder_node(shape.tower, shape.again, shape.checkpointing), Node("head"))
    tree = Node("objective", (Node("model", model),))
    if shape.is_frozen:
        return Parameters(ends, encoder, tree)
    return Parameters({**encoder, **ends}, {}, tree)


def action_work(shape: ActionShape, clips: int, *, attention: AttentionKind, precision: ComputePrecision) -> Work:
    """Forward and backward of the clips of a micro step, with what is computed again; without the optimizer."""
    tower, tokens, widths = shape.tower, shape.clip.num_cubes, widths_of(precision, "encoder")
    macs, again = action_macs(shape), len(shape.again)
    forward, backward = ATTENTION_PRODUCTS[attention]
    backward_blocks = 0 if shape.is_frozen else tower.depth
    product = block_parts(tower, tokens)["attention"]  # both
    as_linear = 2 * product * (tower.depth + 2 * backward_blocks + again)
    products = product * (forward * (tower.depth + again) + backward * backward_blocks)
    moved, scores = block_traffic(tower, tokens, attention, widths), score_traffic(tower, tokens, attention, widths)
    # the mean over time and its gradient; what is pooled is written, read for its maximum, and the same backward
    features = tokens * tower.width * widths.activation * 2
    pooled = shape.boxes * tower.width * shape.cells * 4 * 6
    per_clip = (
        moved.forward * (tower.depth + again) + moved.backward * backward_blocks
        + encoder_ends(tower.width, shape.clip, tokens, widths) + features + pooled
    )  # fmt: skip
    of_block = BLOCK_KERNELS[attention]
    return Work(
        linear_flops=clips * (2 * (macs.forward + macs.backward + macs.recomputed) - as_linear),
        attention_flops=clips * products,
        memory_bytes=clips * per_clip,
        score_bytes=clips * (scores.forward * (tower.depth + again) + scores.backward * backward_blocks),
        kernels=END_KERNELS + of_block.forward * (tower.depth + again) + of_block.backward * backward_blocks,
    )
