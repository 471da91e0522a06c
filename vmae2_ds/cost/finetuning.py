"""Fine-tuning of a classifier as closed forms: what ZeRO divides, work, activations and traffic of a clip; no torch.

The whole model learns, or the encoder's last blocks, low-rank adapters beside its layers, or nothing of it; the norm behind the
pooling and the head always do (train/finetune.py:freeze). Held against the module in tests/cost/test_finetuning.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import CheckpointingName, TowerConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.activations import STATISTICS, WIDTHS, TowerActivations
from vmae2_ds.cost.compute_time import ATTENTION_PRODUCTS, Work
from vmae2_ds.cost.flops import StepMacs, block_macs, block_parts
from vmae2_ds.cost.low_rank import AdaptedBlock
from vmae2_ds.cost.module_calls import Node, blocks_node
from vmae2_ds.cost.parameters import Parameters, Shape, encoder_shapes
from vmae2_ds.cost.traffic import (
    BLOCK_KERNELS,
    AttentionKind,
    ComputePrecision,
    Passes,
    block_traffic,
    encoder_ends,
    score_traffic,
    widths_of,
)

END_KERNELS = 50
"""Operations outside of the blocks, forward and backward."""
MIXED = 4
"""Float copies of a clip's pixels while it is mixed: the clip, a part of it, the clip read backwards, a part of that."""

# N cubes of a clip, D width, C classes, P values in a cube.


@dataclass(frozen=True)
class TunedShape:
    """The shape of a classifier, and what of it learns."""

    tower: TowerConfig
    clip: ClipGeometry
    num_classes: int
    recomputed_blocks: range
    checkpointing: CheckpointingName
    frozen: int | None
    """Blocks that stay as they are, and the embedding with them; None where it learns too."""
    adapted: AdaptedBlock | None
    """A frozen block and its adapters, which every block has then."""
    drops: bool = False
    """Whether branches are dropped at random."""

    @property
    def first(self) -> int:
        """The first block that has a backward pass."""
        return 0 if self.adapted is not None else self.frozen or 0

    @property
    def again(self) -> range:
        """Blocks that are computed a second time: those without a backward pass are not."""
        kept = self.recomputed_blocks
        return range(0) if not kept else kept[-(-self.first // kept.step) :]

    @property
    def learning_blocks(self) -> range:
        """Blocks that have a backward pass."""
        return range(self.first, self.tower.depth)


@dataclass(frozen=True)
class TunedActivations:
    """Bytes of the clips of a micro step, and when they are the most."""

    held: int
    """Alive at the end of the forward pass."""
    peak: int
    """Alive at the worst moment."""


def tuned_shape(config: FinetuneConfig) -> TunedShape:
    """The shape of a run's model."""
    model = config.model
    adapted = AdaptedBlock(model.encoder, config.geometry.num_cubes, model.lora) if model.lora.rank else None
    return TunedShape(
        model.encoder,
        config.geometry,
        model.num_classes,
        model.recomputed_blocks,
        model.checkpointing,
        config.frozen_blocks,
        adapted,
        model.drop_path > 0,
    )


def tuned_macs(shape: TunedShape) -> StepMacs:
    """Work of a clip. Nobody asks for the gradient of pixels, nor of what goes into the first layer that learns where the
    embedding does not."""
    tower, tokens, adapted = shape.tower, shape.clip.num_cubes, shape.adapted
    embed, head = tokens * shape.clip.cube_values * tower.width, tower.width * shape.num_classes
    block = block_macs(tower, tokens) + (adapted.macs if adapted else 0)
    backward = 2 * block * len(shape.learning_blocks) if adapted is None else adapted.backward_macs
    return StepMacs(
        forward=embed + tower.depth * block + head,
        backward=2 * head + backward + (embed if shape.frozen is None else 0),
        recomputed=sum(block - _skipped_macs(shape, number) for number in shape.again),
    )


def _skipped_macs(shape: TunedShape, number: int) -> int:
    """MACs of a block that is computed again which torch's checkpoint leaves out: its last product, where nothing behind needs
    what it makes. Stochastic depth, of all blocks but the first, keeps its draw behind that product."""
    if shape.checkpointing == "deepspeed" or (shape.drops and number):
        return 0
    tower, adapted = shape.tower, shape.adapted
    if adapted is not None and adapted.config.rank_of("mlp"):
        return shape.clip.num_cubes * adapted.config.rank * tower.width
    return shape.clip.num_cubes * tower.mlp * tower.width


def tuned_activations(
    shape: TunedShape, clips: int, *, attention: AttentionKind, precision: ComputePrecision
) -> TunedActivations:
    """Activation memory of some clips that go through together."""
    widths, tokens, tower, clip = WIDTHS[precision], shape.clip.num_cubes, shape.tower, shape.clip
    blocks = TowerActivations(
        tower, shape.again, shape.checkpointing, tokens, attention, widths, widths.encoder_stream, shape.drops
    )
    pixels, nd = tokens * clip.cube_values, tokens * tower.width
    given = clip.num_frames * clip.height * clip.width * 3
    embed = widths.linear * pixels if shape.frozen is None else 0
    # behind the blocks: the mean of the tokens, in and out of the norm; float32 logits, what the loss makes of them, the target
    head = 2 * widths.linear * tower.width + STATISTICS + (widths.linear + 4 * 4) * shape.num_classes
    adapted = shape.adapted

    def held(number: int) -> int:
        if adapted is None or number in shape.again:
            return blocks.held(number)
        return adapted.held(number, attention, widths)

    def again(number: int) -> int:
        if number not in shape.again or adapted is None:
            return blocks.recomputed(number)
        shared = widths.norm * nd if adapted.keeps_input(number) else 0
        return adapted.held(number, attention, widths) - shared

    def transient(number: int) -> int:
        return blocks.transient(number) if adapted is None else adapted.transient(number, attention, widths)

    total = given + embed + head + sum(map(held, shape.learning_blocks))

    def moments() -> Iterator[int]:
        yield given + MIXED * 4 * pixels
        # No graph, in a block's GELU: what the row of blocks was given, the block's input, that of its MLP, before and behind
        # the norm, and both hidden widths. The callers hold the pixels as floats.
        yield given + 4 * pixels + widths.linear * (4 * nd + 2 * tokens * tower.mlp)
        # the last block's end: its branch, that after a draw, and the sum; and what the row was given, where no block keeps it
        last = widths.linear * nd * (2 + shape.drops) if adapted is None else adapted.forward_transient(widths)
        given_to_row = widths.linear * nd * (adapted is not None or bool(shape.frozen))
        yield total + 4 * pixels + given_to_row + last
        released = head
        for number in reversed(shape.learning_blocks):
            yield total - released + again(number) + transient(number)
            released += held(number)

    return TunedActivations(clips * total, clips * max(moments()))


@lru_cache(maxsize=64)
def tuned_parameters(shape: TunedShape) -> Parameters:
    """What ZeRO sees."""
    width, frozen = shape.tower.width, shape.frozen
    encoder = encoder_shapes(shape.tower, shape.clip.cube_values)
    ends: dict[str, Shape] = {
        "fc_norm.weight": (width,),
        "fc_norm.bias": (width,),
        "head.weight": (shape.num_classes, width),
        "head.bias": (shape.num_classes,),
    }
    stays = ("encoder.embed.", *(f"encoder.blocks.{number}." for number in range(frozen or 0)))
    still = {name: each for name, each in encoder.items() if frozen is not None and name.startswith(stays)}
    learning = {name: each for name, each in encoder.items() if name not in still}
    if shape.adapted is not None:
        learning = dict(shape.adapted.shapes())
    return Parameters({**learning, **ends}, still, _tree(shape))


def _tree(shape: TunedShape) -> Node:
    proj = Node("encoder.embed.proj")
    embed = Node("encoder.embed", (proj,), has_backward=shape.frozen is None)
    tower = "encoder", shape.tower, shape.again, shape.checkpointing
    if shape.adapted is None:
        blocks = blocks_node(*tower, first=shape.first)
    else:
        blocks = blocks_node(*tower, children_of=shape.adapted.children, last=shape.adapted.last)
    learns = bool(shape.learning_blocks)
    encoder = Node("encoder", (embed, blocks, Node("encoder.norm", has_backward=learns)), has_backward=learns)
    return Node("objective", (Node("model", (encoder, *map(Node, ("fc_norm", "head_drop", "head")))),))


def tuned_work(shape: TunedShape, clips: int, *, attention: AttentionKind, precision: ComputePrecision) -> Work:
    """Forward and backward of the clips of a micro step, with what is computed again; without the optimizer."""
    tower, tokens, widths, adapted = shape.tower, shape.clip.num_cubes, widths_of(precision, "encoder"), shape.adapted
    macs, again, learning = tuned_macs(shape), len(shape.again), len(shape.learning_blocks)
    forward, backward = ATTENTION_PRODUCTS[attention]
    attending = learning if adapted is None else learning - (not adapted.attends(0))
    product = block_parts(tower, tokens)["attention"]  # both
    as_linear = 2 * product * (tower.depth + 2 * attending + again)
    products = product * (forward * (tower.depth + again) + backward * attending)
    moved, scores = block_traffic(tower, tokens, attention, widths), score_traffic(tower, tokens, attention, widths)
    kernels = BLOCK_KERNELS[attention]
    if adapted is not None:
        moved, kernels = adapted.traffic(moved, widths.activation), adapted.kernels(kernels)
    ends = encoder_ends(tower.width, shape.clip, tokens, widths)
    mixing = tokens * shape.clip.cube_values * 4 * 9  # two products of a number, what is read backwards, and their sum

    def both(passes: Passes, backward_blocks: int) -> int:
        return passes.forward * (tower.depth + again) + passes.backward * backward_blocks

    return Work(
        linear_flops=clips * (2 * (macs.forward + macs.backward + macs.recomputed) - as_linear),
        attention_flops=clips * products,
        memory_bytes=clips * (both(moved, learning) + ends + mixing),
        score_bytes=clips * both(scores, attending),
        kernels=END_KERNELS + both(kernels, learning),
    )
