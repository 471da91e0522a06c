"""Low-rank adapters beside layers of a frozen block (model/lora.py) as closed forms: work, what is kept, traffic; no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vmae2_ds.config.lora import LETTERS, LoraConfig
from vmae2_ds.config.model import TowerConfig
from vmae2_ds.cost.activations import STATISTICS, TowerWidths
from vmae2_ds.cost.flops import block_parts
from vmae2_ds.cost.module_calls import Node
from vmae2_ds.cost.traffic import AttentionKind, Passes

# N tokens of width D go through the block, M hidden width of the MLP, R rank.


@dataclass(frozen=True)
class AdaptedBlock:
    """A frozen block on the tokens of one clip, with adapters."""

    tower: TowerConfig
    tokens: int
    config: LoraConfig

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """Name of each layer with an adapter in the block -> its numbers of inputs and outputs, in the module's order."""
        width, mlp, lora = self.tower.width, self.tower.mlp, self.config
        found = {f"attn.qkv.lora.{letter}": (width, width) for letter in LETTERS if letter in lora.targets}
        if lora.rank_of("proj"):
            found["attn.proj.lora"] = width, width
        if lora.rank_of("mlp"):
            found |= {"mlp.fc1.lora": (width, mlp), "mlp.fc2.lora": (mlp, width)}
        return found

    def shapes(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and shape of every parameter of the adapters of all blocks."""
        rank = self.config.rank
        for number in range(self.tower.depth):
            for layer, (into, out) in self.layers.items():
                yield f"encoder.blocks.{number}.{layer}.down.weight", (rank, into)
                yield f"encoder.blocks.{number}.{layer}.up.weight", (out, rank)

    @property
    def num_letters(self) -> int:
        """How many of q, k and v have an adapter."""
        return sum(layer.startswith("attn.qkv.") for layer in self.layers)

    @property
    def macs(self) -> int:
        """Forward MACs of a block's adapters."""
        return self.tokens * self.config.rank * sum(into + out for into, out in self.layers.values())

    @property
    def backward_macs(self) -> int:
        """Backward MACs of all blocks: frozen weights need no gradient, adapters do; and of the first block, nobody asks for
        what is in front of its first adapter."""
        parts, rank, width = block_parts(self.tower, self.tokens), self.config.rank, self.tower.width
        whole = parts["qkv"] + 2 * parts["attention"] + parts["projection"] + parts["mlp"] + 2 * self.macs
        left_out = parts["qkv"]
        if self.num_letters:
            inputs = self.num_letters * width
        elif self.config.rank_of("proj"):
            left_out, inputs = left_out + 2 * parts["attention"] + parts["projection"], width
        else:
            left_out += 2 * parts["attention"] + parts["projection"] + parts["mlp"] // 2
            inputs = width
        return self.tower.depth * whole - left_out - self.tokens * rank * inputs

    def attends(self, number: int) -> bool:
        """Whether this block's attention has a backward pass."""
        return bool(number or self.num_letters)

    def keeps_input(self, number: int) -> bool:
        """Whether this block's first norm keeps its input: that of the first block has no gradient, so it has no graph."""
        return number > 0

    def held(self, number: int, attention: AttentionKind, width: TowerWidths) -> int:
        """What autograd saves in this block, in bytes: a frozen layer keeps no input, its adapter does."""
        nd, nm = self.tokens * self.tower.width, self.tokens * self.tower.mlp
        norm = width.norm * nd + STATISTICS * self.tokens
        kept = width.linear * self.tokens * self.config.rank * len(self.layers)
        has_proj, has_mlp = bool(self.config.rank_of("proj")), bool(self.config.rank_of("mlp"))
        if self.keeps_input(number):
            kept += norm
        if self.num_letters:
            kept += width.linear * nd
        if self.attends(number):
            kept += 3 * width.linear * nd
            if attention == "math":
                kept += width.score * self._scores
            else:
                kept += 4 * self.tokens * self.tower.heads
        if has_proj or (self.attends(number) and attention != "math"):
            kept += width.linear * nd  # attention's output
        if self.attends(number) or has_proj:
            kept += norm
        return kept + has_mlp * width.linear * (nd + nm) + width.linear * nm

    def transient(self, number: int, attention: AttentionKind, width: TowerWidths) -> int:
        """Gradients at the worst moment of the block's backward pass, less what it has given back by then."""
        nd, nm = self.tokens * self.tower.width, self.tokens * self.tower.mlp
        # Beside the stream's gradient, GELU's own, in and out. With an adapter at the MLP's second layer, what both make of the
        # hidden width and their sum, less what that adapter had kept: as much.
        mlp = width.linear * (nd + 2 * nm)
        if attention != "math" or not self.attends(number):
            return mlp
        # softmax: left are the first norm's input and output, as far as they were kept, q and k; beside them the gradients of v
        # and of the stream
        left = self.keeps_input(number) * (width.norm * nd + STATISTICS * self.tokens)
        left += width.linear * nd * (2 + bool(self.num_letters))
        left += width.linear * self.tokens * self.config.rank * self.num_letters
        return max(
            mlp,
            left + 2 * width.linear * nd + width.score_backward * self._scores - self.held(number, attention, width),
        )

    def forward_transient(self, width: TowerWidths) -> int:
        """What is there at the worst moment of the block's forward pass beside what it keeps."""
        nd, nm = self.tokens * self.tower.width, self.tokens * self.tower.mlp
        if self.config.rank_of("mlp"):  # what both made of the first layer and their sum, before GELU's output is there
            return width.linear * nm
        return width.linear * (2 * nd + nm)  # the second norm's output, GELU's, and the block's branch

    @property
    def _scores(self) -> int:
        return self.tower.heads * self.tokens**2

    @property
    def last(self) -> str:
        """The layer of a block that asks for its input first in the backward pass."""
        return "mlp.fc2.lora.up" if self.config.rank_of("mlp") else "mlp.fc2"

    def children(self, name: str) -> tuple[Node, ...]:
        """The modules of the block of this name in the order of their calls, and which have a backward pass."""
        number = int(name.rpartition(".")[2])
        qkv, attends = f"{name}.attn.qkv", self.attends(number)
        has_attention = attends or bool(self.config.rank_of("proj"))
        projection = Node(
            qkv,
            tuple(_adapter(f"{qkv}.lora.{letter}") for letter in LETTERS if letter in self.config.targets),
            has_backward=attends,
        )
        drop_path = Node(f"{name}.drop_path")
        first_drop = Node(f"{name}.drop_path", has_backward=has_attention)
        attention = Node(
            f"{name}.attn", (projection, self._linear(f"{name}.attn.proj", "proj")), has_backward=has_attention
        )
        mlp = Node(f"{name}.mlp", tuple(self._linear(f"{name}.mlp.fc{layer}", "mlp") for layer in (1, 2)))
        return (
            Node(f"{name}.norm1", has_backward=self.keeps_input(number)),
            attention,
            first_drop,
            Node(f"{name}.norm2", has_backward=has_attention),
            mlp,
            drop_path,
        )

    def _linear(self, name: str, target: str) -> Node:
        return Node(name, (_adapter(f"{name}.lora"),) if target in self.config.targets else ())

    def traffic(self, plain: Passes, width: int) -> Passes:
        """Bytes of a block like one whose traffic is `plain`: adapters' sums with what they stand beside, and no gradients of
        biases. `width`: bytes of an activation."""
        channels, hidden = self.tokens * self.tower.width, self.tokens * self.tower.mlp
        outputs = self.tokens * sum(out for _, out in self.layers.values())
        inputs = self.tokens * sum(into for into, _ in self.layers.values())
        joined = 2 * 3 * channels * (self.num_letters > 0)
        scaled = 2 * self.tokens * self.config.rank * len(self.layers)
        return Passes(
            plain.forward + width * (3 * outputs + joined + scaled),
            plain.backward + width * (3 * inputs + joined + scaled - 5 * channels - hidden),
        )

    def kernels(self, plain: Passes) -> Passes:
        """Operations of a block like one that launches `plain`: of an adapter two products, a scale and a sum, backward four
        products, a scale and a sum; of a frozen layer one product less, and no gradient of a bias."""
        adapters, joined = len(self.layers), int(self.num_letters > 0)
        return Passes(plain.forward + 4 * adapters + joined, plain.backward + 6 * adapters + joined - 9)


def _adapter(name: str) -> Node:
    return Node(name, (Node(f"{name}.down"), Node(f"{name}.up")))
