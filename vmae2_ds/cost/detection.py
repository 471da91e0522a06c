"""A temporal detector as closed forms: what ZeRO divides, work and activations of a window; no torch.

A pyramid on features from files, or on a frozen encoder with adapters (downstream/tad/pyramid.py, model/adapters.py). Held
against the modules in tests/cost/test_detection.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from vmae2_ds.config.tad import TadConfig
from vmae2_ds.config.tad_head import HeadConfig
from vmae2_ds.cost.activations import WIDTHS
from vmae2_ds.cost.adapters import ADAPTER_STEPS, AdaptedShape, adapted_activations, adapted_macs
from vmae2_ds.cost.flops import StepMacs
from vmae2_ds.cost.module_calls import Call, Node, TorchRecomputed, block_children, recomputed_block
from vmae2_ds.cost.parameters import Parameters, Shape, encoder_shapes
from vmae2_ds.cost.pyramid import KERNEL, pyramid_held, pyramid_macs
from vmae2_ds.cost.traffic import AttentionKind, ComputePrecision
from vmae2_ds.errors import ConfigError


@dataclass(frozen=True)
class DetectorShape:
    """A pyramid, and the encoder under it where there is one."""

    head: HeadConfig
    width: int
    """D, the width of the features."""
    num_classes: int
    length: int
    """T, positions of a window."""
    encoder: AdaptedShape | None = None
    clips: int = 0
    """Clips of a window that go through the encoder."""


@dataclass(frozen=True)
class DetectorActivations:
    """Bytes of the windows of a micro step, and when they are the most."""

    encoder: int
    """Held by the encoder when its forward pass ends, pixels included."""
    head: int
    """Held by the pyramid when its forward pass ends, features included where they come from files."""
    transient: int
    """What the encoder's backward pass adds at its worst moment, when the pyramid's are gone."""

    @property
    def peak(self) -> int:
        """Alive at the worst moment."""
        return self.encoder + max(self.head, self.transient)


def detector_shape(config: TadConfig) -> DetectorShape:
    """The shape of the model of a run. Raises ConfigError for a window that is no whole number of clips."""
    model, data = config.model, config.data
    encoder, clips = None, 0
    if model.is_end_to_end:
        tower, adapters = model.encoder, model.adapters
        numbers = adapters.numbers(tower.depth)
        encoder = AdaptedShape(tower, config.geometry, numbers, adapters.hidden(tower.width), adapters.clips_at_once)
        clips, rest = divmod(data.window_frames, data.num_frames)
        if rest:
            raise ConfigError(
                f"a window of --data.length {data.length} x --data.frames-per-position {data.frames_per_position} = "
                f"{data.window_frames} frames is no whole number of clips of --data.num-frames {data.num_frames}; try "
                f"--data.length {(clips or 1) * data.num_frames}"
            )
    return DetectorShape(model.head, model.encoder.width, model.num_classes, data.length, encoder, clips)


def detector_macs(shape: DetectorShape) -> StepMacs:
    """Work of a window; nobody asks for the gradient of features that come from files."""
    head = pyramid_macs(shape.head, shape.width, shape.num_classes, shape.length)
    if shape.encoder is None:
        return StepMacs(head, 2 * head - shape.length * KERNEL * shape.width * shape.head.width, 0)
    clip = adapted_macs(shape.encoder)
    return StepMacs(
        shape.clips * clip.forward + head, shape.clips * clip.backward + 2 * head, shape.clips * clip.recomputed
    )


def detector_activations(
    shape: DetectorShape, windows: int, *, attention: AttentionKind, precision: ComputePrecision
) -> DetectorActivations:
    """Activation memory of some windows that go through together."""
    head = windows * pyramid_held(shape.head, shape.width, shape.length, WIDTHS[precision].linear)
    if shape.encoder is None:
        return DetectorActivations(0, head, 0)
    clips = windows * shape.clips
    encoder = adapted_activations(shape.encoder, clips, attention=attention, precision=precision)
    return DetectorActivations(encoder.held, head, encoder.transient)


@lru_cache(maxsize=64)
def detector_parameters(shape: DetectorShape) -> Parameters:
    """What ZeRO sees; encoder and adapters stand before the pyramid."""
    pyramid, frozen, learning = dict(_pyramid_shapes(shape)), dict[str, Shape](), dict[str, Shape]()
    nodes: tuple[Node, ...] = (_pyramid_tree(shape.head),)
    if shape.encoder is not None:
        frozen = encoder_shapes(shape.encoder.tower, shape.encoder.clip.cube_values)
        learning = dict(_adapter_shapes(shape.encoder))
        nodes = (*_encoder_calls(shape.encoder, shape.clips), *nodes)
    tree = Node("objective", (Node("model", nodes),))
    parts = ("pyramid.", "adapters.") if learning else ("",)
    return Parameters({**learning, **pyramid}, frozen, tree, parts)


def _adapter_shapes(encoder: AdaptedShape) -> Iterator[tuple[str, Shape]]:
    width, hidden = encoder.tower.width, encoder.hidden
    for number in encoder.numbers:
        name = f"adapters.{number}"
        yield f"{name}.down.weight", (hidden, width)
        yield f"{name}.down.bias", (hidden,)
        yield f"{name}.across.gamma", (1,)
        yield f"{name}.across.dwconv.weight", (hidden, 1, ADAPTER_STEPS)
        yield f"{name}.across.dwconv.bias", (hidden,)
        yield f"{name}.across.conv.weight", (hidden, hidden)
        yield f"{name}.across.conv.bias", (hidden,)
        yield f"{name}.across.up.weight", (width, hidden)
        yield f"{name}.across.up.bias", (width,)


def _encoder_calls(encoder: AdaptedShape, clips: int) -> Iterator[Node]:
    """Embedding and the blocks before the first adapter on some clips after others, without a backward pass; then each block
    on them, computed again as far as its adapter, and the adapter on all."""
    chunks, first = -(-clips // encoder.clips_at_once), encoder.numbers[0]
    embed = Node("encoder.embed", (Node("encoder.embed.proj"),), has_backward=False)
    before = [f"encoder.blocks.{number}" for number in range(first + 1)]
    for _ in range(chunks):
        yield embed
        yield from (Node(name, block_children(name), has_backward=False) for name in before)
    for number in range(first, encoder.tower.depth):
        name, adapter = f"encoder.blocks.{number}", f"adapters.{number}"
        down = f"{adapter}.down"
        if number > first:
            part = recomputed_block(name)
            if number in encoder.numbers:
                both = (Node(name, block_children(name)), Node(down))
                part = TorchRecomputed("", both, asked_by=down, last=Call(down, True))
            yield from [part] * chunks
        else:
            yield Node(down)
        if number in encoder.numbers:
            across = f"{adapter}.across"
            parts = tuple(Node(f"{across}.{part}") for part in ("dwconv", "conv", "up"))
            yield TorchRecomputed(across, parts, asked_by=across, last=Call(f"{across}.up", False))


def _pyramid_shapes(shape: DetectorShape) -> Iterator[tuple[str, Shape]]:
    head, width = shape.head, shape.head.width

    def norm(name: str) -> Iterator[tuple[str, Shape]]:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)

    def linear(name: str, out: int, into: int) -> Iterator[tuple[str, Shape]]:
        yield f"{name}.weight", (out, into)
        yield f"{name}.bias", (out,)

    def conv_norm(name: str, into: int) -> Iterator[tuple[str, Shape]]:
        yield f"{name}.conv.weight", (width, into, KERNEL)
        yield from norm(f"{name}.norm")

    yield "pyramid.offset_scale_L", (head.levels,)
    for number in range(head.embed_convs):
        yield from conv_norm(f"pyramid.embed.{number}", width if number else shape.width)
    for name in _blocks_of(head):
        if head.layer_scale:
            yield from ((f"{name}.gain{number}_D", (width,)) for number in (1, 2))
        yield from norm(f"{name}.norm1")
        for part in ("query", "key", "value"):
            yield f"{name}.attn.{part}.conv.weight", (width, 1, KERNEL)
            yield from norm(f"{name}.attn.{part}.norm")
            yield from linear(f"{name}.attn.{part}.linear", width, width)
        yield from linear(f"{name}.attn.proj", width, width)
        yield from norm(f"{name}.norm2")
        yield from linear(f"{name}.fc1", 4 * width, width)
        yield from linear(f"{name}.fc2", width, 4 * width)
    for level in range(head.levels):
        yield from norm(f"pyramid.level_norms.{level}")
    for name, out in (("classify", shape.num_classes), ("locate", 2)):
        for number in range(head.head_convs):
            yield from conv_norm(f"pyramid.{name}.convs.{number}", width)
        yield f"pyramid.{name}.last.weight", (out, width, KERNEL)
        yield f"pyramid.{name}.last.bias", (out,)


def _blocks_of(head: HeadConfig) -> list[str]:
    stem = [f"pyramid.stem.{number}" for number in range(head.stem)]
    return stem + [f"pyramid.branch.{number}" for number in range(head.levels - 1)]


def _pyramid_tree(head: HeadConfig) -> Node:
    def conv_norm(name: str) -> Node:
        return Node(name, (Node(f"{name}.conv"), Node(f"{name}.norm")))

    def block(name: str) -> Node:
        drop_path = Node(f"{name}.drop_path")
        projections = tuple(
            Node(
                f"{name}.attn.{part}", tuple(Node(f"{name}.attn.{part}.{each}") for each in ("conv", "norm", "linear"))
            )
            for part in ("query", "key", "value")
        )
        attention = Node(f"{name}.attn", (*projections, Node(f"{name}.attn.proj")))
        mlp = (Node(f"{name}.norm2"), Node(f"{name}.fc1"), Node(f"{name}.fc2"))
        return Node(name, (Node(f"{name}.norm1"), attention, drop_path, *mlp, drop_path))

    def answer(name: str) -> Node:
        convs = (conv_norm(f"{name}.convs.{number}") for number in range(head.head_convs))
        return Node(name, (*convs, Node(f"{name}.last")))

    answers = (answer("pyramid.classify"), answer("pyramid.locate"))
    levels = (node for level in range(head.levels) for node in (Node(f"pyramid.level_norms.{level}"), *answers))
    embed = (conv_norm(f"pyramid.embed.{number}") for number in range(head.embed_convs))
    return Node("pyramid", (*embed, *map(block, _blocks_of(head)), *levels))
