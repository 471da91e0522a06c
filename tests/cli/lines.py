"""A command line of every verb that would work but for what a test puts into it; a new verb needs one here."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from vmae2_ds.cli.main import VERBS, main
from vmae2_ds.cli.options import Subject
from vmae2_ds.errors import ConfigError
from vmae2_ds.launch.hosts import HostsArguments
from vmae2_ds.launch.slurm import SlurmArguments
from vmae2_ds.tune.arguments import PlanArguments, TuneArguments

LINES: dict[str, str] = {
    "pretrain": "vit_ti_pretrain_desk --data.manifest {list}",
    "finetune": "vit_ti_finetune_desk --data.manifest {list}",
    "distil": "vit_ti_distil_desk --data.manifest {list} --teacher {file}",
    "distil-cache": "vit_ti_distil_desk --data.manifest {list} --teacher {file} --augment.mixup 0 --augment.cutmix 0",
    "evaluate": "{file} --manifest {list}",
    "probe": "{file} --manifest {list}",
    "predict": "{file} {video}",
    "visualize": "{file} --manifest {list}",
    "data synth": "{new} --train-videos 4 --val-videos 4 --size 32",
    "data index": "{list} --out {new}",
    "data check": "{list} --out {new}",
    "data pack": "{list} --out {new}",
    "data index-shards": "{file} --out {new}.csv",
    "data prepare": "{list} --out {new}",
    "data merge-kinetics": "{new} --k400 {list} {list} {list}",
    "import": "{file} --out {new}.safetensors",
    "export": "{file} --out {new}.pth",
    "flops": "",
    "memory": "",
    "plan": "vit_b_pretrain_hybrid --gpus 8 --gpu h100",
    "tune": "vit_ti_pretrain_desk --gpus 8 --gpu h100 --no-offload --out {new}.json",
    "launch slurm": "vit_b_pretrain_hybrid --nodes 4 --data.manifest elsewhere.csv",
    "launch hosts": "vit_b_pretrain_hybrid --hostfile {hosts} --data.manifest elsewhere.csv",
}
"""{list}: a list of one video, which is no video; {file}: a file of no use; {new}: nothing there yet."""

MODELS: dict[str, type[BaseModel]] = {
    "plan": PlanArguments,
    "tune": TuneArguments,
    "launch slurm": SlurmArguments,
    "launch hosts": HostsArguments,
}
"""Verbs whose own options are a model's fields."""


def line_of(verb: str, folder: Path) -> list[str]:
    """The words of a verb's line, with what it names made in `folder`."""
    places = {name: folder / name for name in ("list.csv", "file.safetensors", "hosts", "new", "video.mp4")}
    places["list.csv"].write_text("path,label,source\nvideo.mp4,0,a\n")
    places["hosts"].write_text("node1 slots=8\nnode2 slots=8\n")
    for name in ("file.safetensors", "video.mp4"):
        places[name].write_bytes(b"no tensors, no frames")
    named = {name.partition(".")[0]: str(path) for name, path in places.items()}
    return [*verb.split(), *LINES[verb].format(**named).split()]


def answer(args: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command line, run in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(args)
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out, out.err


def refusal(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command line ends with exit code 2, and nothing else ends it."""
    code, _, err = answer(args, capsys)
    said = [line for line in err.splitlines() if line.startswith("vmae2: ")]
    assert (code, len(said)) == (2, 1), f"{args}: exit code {code}, {err}"
    assert "Traceback" not in err
    return said[0]


def subject_of(verb: str, monkeypatch: pytest.MonkeyPatch) -> Subject | None:
    """What says the verb's own options: a model, or the function that `call` is given; None for verbs of a recipe alone."""
    if verb in MODELS:
        return MODELS[verb]
    seen: list[Subject] = []

    class Seen(Exception):
        """The function is known."""

    def note(function: Subject, prog: str, args: list[str]) -> None:
        seen.append(function)
        raise Seen

    monkeypatch.setattr("vmae2_ds.cli.verbs.call", note)
    with contextlib.suppress(Seen, ConfigError):  # of a recipe that is not there
        VERBS[verb](["vit_x"])
    monkeypatch.undo()
    return seen[0] if seen else None


def numbers_of(subject: Subject) -> Iterator[tuple[str, type]]:
    """(option, int or float) of each number that a function or a model takes itself."""
    if isinstance(subject, type) and issubclass(subject, BaseModel):
        hints: dict[str, Any] = {name: field.annotation for name, field in subject.model_fields.items()}
    else:
        hints = {name: typing.get_type_hints(subject)[name] for name in inspect.signature(subject).parameters}
    for name, hint in hints.items():
        kinds = set(kinds_in(hint))
        for kind in (float, int):
            if kind in kinds:
                yield f"--{name.strip('_').replace('_', '-')}", kind
                break


def kinds_in(hint: Any) -> Iterator[type]:
    """The plain types that a hint is made of."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        parts = parts[:1]
    if typing.get_origin(hint) is typing.Literal:
        return
    if not parts and isinstance(hint, type):
        yield hint
    for part in parts:
        yield from kinds_in(part)
