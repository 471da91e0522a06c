"""One rank's part of what grows with the number of ranks, for any number of them, with stand-ins for the others.

Each part runs here as rank 0 or another rank has it; what the others say, write or open is made up in memory, in a folder or
over loopback. Times are CPU time of this process, the stand-ins' part of it left out where it can be.
"""

from __future__ import annotations

import json
import math
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.devices import Step
from vmae2_ds.checkpoint import zero_shards
from vmae2_ds.checkpoint.hashed_files import HashedFiles
from vmae2_ds.checkpoint.whole import WHOLE, declare_whole, why_torn
from vmae2_ds.checkpoint.zero_shards import MOMENTS, ZeroShards
from vmae2_ds.config.guard import GuardConfig
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.contracts import LoadedBatch, LossOutput, ReadFailure
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import make_cluster
from vmae2_ds.cost.hardware import get_accelerator
from vmae2_ds.data.bad_files import BadFileLedger
from vmae2_ds.data.sources.manifest import INDEX, read_manifest, write_index
from vmae2_ds.data.sources.order import SampleOrder, positions_of
from vmae2_ds.disk import WrittenFile
from vmae2_ds.dist import Ranks
from vmae2_ds.guard.hang import HangSwitch
from vmae2_ds.guard.peers import PeerWatch
from vmae2_ds.guard.rank_report import MUST_AGREE, RankReport, code_digests, host_table, problems_of, warnings_of
from vmae2_ds.guard.spikes import SpikeGuard
from vmae2_ds.guard.startup import put_report, take_reports
from vmae2_ds.guard.stopping import StopRequests
from vmae2_ds.host import allow_open_files
from vmae2_ds.launch.hostfile import read_hostfile
from vmae2_ds.launch.hosts import HostsArguments, command_lines
from vmae2_ds.launch.slurm import SlurmArguments, slurm_script
from vmae2_ds.provenance import installed_versions
from vmae2_ds.recipes import get_recipe
from vmae2_ds.recipes.pretrain import RECIPES
from vmae2_ds.train.tally import StepTally
from vmae2_ds.tune.candidates import search
from vmae2_ds.weights.layouts import our_shapes

PER_HOST = 8
ROWS = 1_000_000_000
BAD_FILES = 20_000
LOOKS = 100
"""Steps whose losses are looked at in one timing."""
KEYS = 1_000
"""Samples whose place in the order is found in one timing."""


class Part(NamedTuple):
    """One rank's part of something, among so many."""

    work: Step
    """What is timed, and whose memory is looked at."""
    counts: dict[str, float]
    """What does not depend on the machine: bytes, calls, files, connections."""


class CountingStore:
    """torch's store in memory, which counts what is asked of it and the bytes that go in and out."""

    def __init__(self) -> None:
        self._store = torch.distributed.HashStore()
        self.calls = self.bytes_in = self.bytes_out = 0

    def add(self, key: str, amount: int) -> int:
        """As torch's."""
        self.calls += 1
        return self._store.add(key, amount)

    def set(self, key: str, value: str) -> None:
        """As torch's."""
        self.calls += 1
        self.bytes_in += len(value)
        self._store.set(key, value)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """As torch's."""
        self.calls += 1
        found = self._store.multi_get(keys)
        self.bytes_out += sum(map(len, found))
        return found


def start(ranks: int, folder: Path) -> Part:
    """Rank 0 takes the reports of all at the start-up check and compares them."""
    del folder
    store: Any = CountingStore()
    values = enumerate(_flat(RECIPES["vit_g_pretrain_hybrid"]().model_dump()))
    settings = {f"section.setting_{number}": str(value) for number, value in values}
    code, versions = code_digests(), installed_versions(sorted(MUST_AGREE))
    for rank in range(ranks):
        host = f"node{rank // PER_HOST:04d}"
        put_report(
            store, rank, RankReport(host, 1000 + rank, "H200", 139.0, True, code, versions, settings, {"list": "1"})
        )
    calls = store.calls

    def work() -> None:
        store.calls = store.bytes_out = 0
        reports = take_reports(store, range(ranks))
        assert problems_of(reports) == [], "they are alike"
        host_table(reports, [0.0] * ranks)
        warnings_of(reports, [0.0] * ranks)

    work()
    found = {"bytes_to_rank_0": store.bytes_out, "calls_of_rank_0": store.calls, "calls_of_another": calls / ranks}
    return Part(work, found)


def _flat(section: dict[str, Any]) -> Iterator[Any]:
    for value in section.values():
        yield from _flat(value) if isinstance(value, dict) else (value,)


@dataclass(frozen=True)
class WithStandIns(Ranks):
    """Rank 0 among others that connect to it from a thread of this process."""

    sockets: list[socket.socket] = field(default_factory=list)

    def from_first(self, function: Callable[[], Any]) -> Any:
        """Where rank 0 listens; from then on the others come."""
        port, secret = found = function()

        def come() -> None:
            for rank in range(1, self.size):
                connection = socket.create_connection(("127.0.0.1", port))
                connection.sendall(f"{secret} rank {rank} on node{rank // PER_HOST}".encode())
                self.sockets.append(connection)

        threading.Thread(target=come, daemon=True).start()
        return found

    def any(self, flag: bool) -> bool:
        """As rank 0 has it."""
        return flag


def peers(ranks: int, folder: Path) -> Part:
    """Rank 0 takes a connection of every other rank, watches them, and lets go; the others' ends are in the same process."""
    del folder
    allow_open_files(2 * ranks + 1024)
    counts: dict[str, float] = {}

    def work() -> None:
        before, others = {*threading.enumerate()}, WithStandIns(0, 0, ranks)
        with PeerWatch(others) as watch:
            assert not watch.any_failed, "all have come"
            counts.update(connections_of_rank_0=len(watch._peers), connections_of_another=1)
            counts["threads"] = len({*threading.enumerate()} - before)  # others of this process may end meanwhile
        for connection in others.sockets:
            connection.close()

    work()
    return Part(work, counts)


def order(ranks: int, folder: Path) -> Part:
    """A rank opens an indexed list of a billion rows and a mixture of three, and finds its samples of some steps."""
    list_file = folder / "list.csv"
    list_file.write_text("path,shard,offset,bytes\n" + "a.mp4,a.tar,512,9\n" * 100)
    (folder / "a.tar").touch()
    index = folder / "index"
    write_index(list_file, index)
    with (index / "rows.bin").open("r+b") as rows:
        rows.truncate(ROWS * rows.seek(0, 2) // 100)  # a sparse file: what was not written takes no disk
    about = json.loads((index / INDEX).read_text())
    about |= {"videos": ROWS, "rows_bytes": (index / "rows.bin").stat().st_size}
    (index / INDEX).write_text(json.dumps(about))

    def work() -> None:
        manifest = read_manifest(index)
        sizes = (len(manifest), ROWS // 7, ROWS // 1000)
        mixture = SampleOrder(sizes, 0, shares=(0.6, 0.3, 0.1), limits=(None, None, 3 * sizes[-1]))
        for step in range(KEYS // 8):
            split = {"micro_batch": 8, "accumulation": 1, "world_size": ranks}
            for position in positions_of(10**6 // ranks + step, 0, ranks - 1, **split):
                key = mixture.key_at(position)
                manifest.listed(key.row)

    return Part(work, {"rows": ROWS, "samples": KEYS // 8 * 8})


def ledger(ranks: int, folder: Path) -> Part:
    """A rank names a bad file in the ledger that all ranks share, and so reads what the others have named, however many."""
    del ranks
    path = folder / "bad_files.jsonl"
    why = "moov atom not found"
    others = [ReadFailure(f"/data/videos/part_{number % 97}/{number:09d}.mp4", why) for number in range(BAD_FILES)]
    path.write_text("".join(json.dumps(one._asdict()) + "\n" for one in others))

    def work() -> None:
        BadFileLedger(path).record(others[:1])

    return Part(work, {"bad_files": BAD_FILES, "bytes_read": path.stat().st_size})


@dataclass(frozen=True)
class OneOf(Ranks):
    """A rank among others that say the same as it, or what they are given to say."""

    said: list[Any] | None = None

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """The sum with ranks that have zeros."""
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """What the others were given to say."""
        return self.said or [value] * self.size

    def from_first(self, function: Callable[[], Any]) -> Any:
        """As on rank 0."""
        return function()


def agreement(ranks: int, folder: Path) -> Part:
    """What a step has ranks add up, and the look at the losses of all."""
    del folder
    one = OneOf(ranks - 1, 0, ranks)
    guard, stop = SpikeGuard(GuardConfig(on_spike="skip"), one), StopRequests(1e9)
    recent = {key: [1.0] * 100 for key in ("loss", "rank_loss", "grad_norm")}
    tally = StepTally(torch.device("cpu"), 1, ("a", "b", "c"))
    tally.add(LoadedBatch(None, [], {"a": 8}), LossOutput(torch.tensor(1.0), torch.tensor(1), torch.tensor(1.0)))  # type: ignore[arg-type]
    told = tally.tell(one, guard, stop, loader_failed=False, is_written=True)

    def work() -> None:
        for _ in range(LOOKS):
            agreed = tally.agreed(tally.tell(one, guard, stop, loader_failed=False, is_written=True).tolist())
            guard.look_at_losses(recent, [1.0] * ranks if agreed.losses else [])

    return Part(work, {"bytes_added_up": told.numel() * told.element_size(), "steps": LOOKS})


def index(ranks: int, folder: Path) -> Part:
    """Rank 0 declares a checkpoint whole whose ranks have two files each; then a rank looks at its part of them."""
    files = HashedFiles(folder)
    names = [
        [f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", f"ema_rank{rank:05d}.pt"] for rank in range(ranks)
    ]
    said = [({name: WrittenFile(1, "0" * 64) for name in mine}, None) for mine in names]
    for mine in names:
        for name in mine:
            (folder / name).write_bytes(b"1")

    def work() -> None:
        assert declare_whole(files, {"step": 1, "world_size": ranks, "stage": 1}, OneOf(0, 0, ranks, said=said)) is None
        assert why_torn(folder, Ranks(ranks // 2, 0, ranks)) is None

    work()
    asked: Counter[str] = Counter()
    kept = Path.stat
    Path.stat = lambda path, **how: (asked.update([path.name]), kept(path, **how))[1]  # type: ignore[method-assign]
    try:
        why_torn(folder, Ranks(ranks // 2, 0, ranks))
    finally:
        Path.stat = kept  # type: ignore[method-assign]
    return Part(
        work, {"files": 2 * ranks, "index_bytes": (folder / WHOLE).stat().st_size, "files_looked_at": len(asked)}
    )


def conversion(ranks: int, folder: Path, stage: int) -> Part:
    """One of as many new ranks opens a 6b checkpoint of these and puts a norm together. Shards hold one value, repeated."""
    shapes = {f"model.{name}": torch.Size(shape) for name, shape in our_shapes(ModelConfig.of_size("6b")).items()}
    groups = [{name: shape for name, shape in shapes.items() if (len(shape) > 1) == matrix} for matrix in (True, False)]
    sizes = [
        sum(math.ceil(shape.numel() / ranks) for shape in group.values()) if stage == 3
        else math.ceil(sum(shape.numel() for shape in group.values()) / ranks)
        for group in groups
    ]  # fmt: skip
    flats = [torch.ones(1).expand(size) for size in sizes]
    states = {shard: {"step": torch.tensor(1.0), **dict.fromkeys(MOMENTS, flat)} for shard, flat in enumerate(flats)}
    inner = {"param_groups": [{"lr": 1.0}] * 2, "state": states}
    model: dict[str, Any] = {"module": {}, "param_shapes": groups, "frozen_param_shapes": None}
    split_keys = ("fp32_flat_groups", "optimizer_state_dict")
    keys = split_keys if stage == 3 else ("single_partition_of_fp32_groups", "base_optimizer_state")
    for rank in range(ranks):
        own = {"optimizer_state_dict": dict(zip(keys, (flats, inner), strict=True))}
        torch.save(own, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        if stage == 3 or rank == 0:
            torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    opened: list[str] = []
    kept = zero_shards.read_shard
    zero_shards.read_shard = lambda path: (opened.append(path.name), kept(path))[1]  # type: ignore[assignment]
    try:
        shards = ZeroShards(folder, ranks, stage)
        shards.whole("model.encoder.norm.weight")
    finally:
        zero_shards.read_shard = kept
    of_new = [
        {f.rank for name in list(shapes)[new::ranks] for f in shards.fragments(name)} | {0} for new in range(ranks)
    ]

    def work() -> None:
        ZeroShards(folder, ranks, stage).whole("model.encoder.norm.weight")

    return Part(work, {
        "files": ranks * (2 if stage == 3 else 1) + (stage < 3), "opened_for_a_norm": len(set(opened)),
        "opened_by_most": max(map(len, of_new)) + 1, "opened_in_all": sum(len(found) + 1 for found in of_new),
    })  # fmt: skip


def stacks(ranks: int, folder: Path) -> Part:
    """A rank opens and removes the file for the stacks of a hang, among those of all others."""
    (folder / "stacks").mkdir()
    for rank in range(1, ranks):
        (folder / "stacks" / f"rank{rank}.txt").touch()

    def work() -> None:
        for _ in range(20):
            with HangSwitch(folder, Ranks(0, 0, ranks), 100, 100) as switch:
                switch.step(1)

    return Part(work, {"files": ranks, "starts": 20})


def launch(ranks: int, folder: Path) -> Part:
    """The SLURM script, a hostfile, and the command lines for its hosts."""
    config = get_recipe("pretrain", "vit_g_pretrain_hybrid")
    words = ["pretrain", "vit_g_pretrain_hybrid", "--data.manifest", "/data/all.csv"]
    slurm = SlurmArguments(nodes=ranks // PER_HOST)
    file = folder / "hosts"
    file.write_text("".join(f"node{number:04d} slots={PER_HOST}\n" for number in range(ranks // PER_HOST)))
    arguments = HostsArguments(hostfile=file, launcher="ssh")

    def work() -> tuple[str, list[tuple[str, list[str]]]]:
        return slurm_script(slurm, config, words), command_lines(arguments, read_hostfile(file), words).commands

    script, commands = work()
    longest = max(len(" ".join(command)) for _, command in commands)
    return Part(work, {"script_bytes": len(script), "command_lines": len(commands), "longest_line_bytes": longest})


def tune(ranks: int, folder: Path) -> Part:
    """The search of the planner for ViT-g on so many GPUs, with a global batch that they divide."""
    del folder
    assumptions = Assumptions()
    cluster = make_cluster(get_accelerator("h200"), ranks, None, None, assumptions.usable_memory)
    config = RECIPES["vit_g_pretrain_hybrid"]().changed(train={"global_batch": 16_384})
    settings = len(search(config, cluster, assumptions).candidates)
    return Part(lambda: search(config, cluster, assumptions), {"settings": settings})


MakePart = Callable[[int, Path], Part]
"""From the number of ranks and a folder of its own."""
PARTS: dict[str, MakePart] = {
    "start-up check of rank 0": start,
    "peers watched by rank 0": peers,
    "order of a billion rows": order,
    "ledger of bad files": ledger,
    "agreement of a step": agreement,
    "index of a checkpoint": index,
    "conversion of 6b at stage 1": partial(conversion, stage=1),
    "conversion of 6b at stage 3": partial(conversion, stage=3),
    "stacks of a hang": stacks,
    "launch": launch,
    "tune": tune,
}
