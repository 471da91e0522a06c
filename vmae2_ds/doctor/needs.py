"""What a recipe needs of a host, as plain figures that a probe in a process of its own can be handed. Nothing is imported."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Needs:
    """What the ranks of one host ask for."""

    recipe: str
    ranks: int
    """Ranks on this host: one for each of its GPUs."""
    shapes: dict[str, tuple[int, int, int, int]]
    """Tower -> (clips, tokens, heads, channels of a head) that its attention sees in a forward pass."""
    precision: str = "bf16"
    attention: str = "auto"
    compile: str = "none"
    deterministic: bool = False
    zero_stage: int = 1
    checkpointing: str = "none"
    ops: tuple[str, ...] = ()
    """DeepSpeed's ops that the ZeRO policy has built at the start."""
    reader: str = "pyav"
    readers: dict[str, str] = field(default_factory=dict)
    """The package behind each reader of ours."""
    workers: int = 8
    """Loader workers of one rank."""
    shm_bytes: int = 0
    """What the loaders of all ranks take in /dev/shm."""
    memory_bytes: int = 0
    """Host memory of all ranks, /dev/shm included, offload not."""
    trackers: tuple[str, ...] = ()
    """Packages of the trackers that the run is shown in."""
    open_files: int = 256
    """Files that one process may have open at once."""
    checkpoint_bytes: int = 0
    keep: int = 2
    """Checkpoints that stay."""
    runs: str = "runs"
    """Folder of the runs."""

    def to_json(self) -> str:
        """One line, which `of_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Needs:
        """What `to_json` wrote."""
        read: dict[str, Any] = json.loads(text)
        read["shapes"] = {tower: tuple(shape) for tower, shape in read["shapes"].items()}
        return cls(**read | {key: tuple(read[key]) for key in ("ops", "trackers")})
