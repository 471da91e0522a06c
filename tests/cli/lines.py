"""A command line of every verb that would work but for what a test puts into it; a new verb needs one here."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from vmae2_ds.cli.main import main
from vmae2_ds.data.tools.check import CheckArguments
from vmae2_ds.data.tools.index import IndexArguments
from vmae2_ds.data.tools.kinetics import MergeKineticsArguments
from vmae2_ds.data.tools.listing import ListArguments
from vmae2_ds.data.tools.pack import PackArguments
from vmae2_ds.data.tools.prepare import PrepareArguments
from vmae2_ds.data.tools.shards import IndexShardsArguments
from vmae2_ds.data.tools.synthetic import SynthArguments
from vmae2_ds.doctor.doctor import DoctorArguments
from vmae2_ds.downstream.ava.box_arguments import AvaBoxesArguments
from vmae2_ds.downstream.ava.check import AvaCheckArguments
from vmae2_ds.downstream.ava.detect import AvaDetectArguments
from vmae2_ds.downstream.ava.score_report import AvaScoreArguments
from vmae2_ds.downstream.ava.show import AvaShowArguments
from vmae2_ds.downstream.ava.tube_convert import ConvertArguments
from vmae2_ds.downstream.ava.tube_report import ScoreTubesArguments
from vmae2_ds.downstream.classify.evaluate import EvaluateArguments
from vmae2_ds.downstream.classify.predict import PredictArguments
from vmae2_ds.downstream.features.arguments import ExtractArguments
from vmae2_ds.downstream.probe.probe import ProbeArguments
from vmae2_ds.downstream.tad.detect import TadDetectArguments
from vmae2_ds.downstream.tad.score_report import ScoreArguments
from vmae2_ds.downstream.tad.show import ShowArguments
from vmae2_ds.downstream.visualize import VisualizeArguments
from vmae2_ds.launch.doctor import HostDoctorsArguments
from vmae2_ds.launch.hosts import HostsArguments
from vmae2_ds.launch.slurm import SlurmArguments
from vmae2_ds.runs.export import ExportArguments, ImportArguments
from vmae2_ds.tune.arguments import PlanArguments, TuneArguments
from vmae2_ds.tune.flops_table import FlopsArguments
from vmae2_ds.tune.memory_table import MemoryArguments

LINES: dict[str, str] = {
    "pretrain": "vit_ti_pretrain_desk --data.manifest {list}",
    "finetune": "vit_ti_finetune_desk --data.manifest {list}",
    "distil": "vit_ti_distil_desk --data.manifest {list} --teacher {file}",
    "distil-cache": "vit_ti_distil_desk --data.manifest {list} --teacher {file} --augment.mixup 0 --augment.cutmix 0",
    "evaluate": "{file} --manifest {list}",
    "probe": "{file} --manifest {list}",
    "predict": "{file} {video}",
    "extract": "{file} --manifest {list} --out {new}",
    "tad": "tad_desk --data.annotations {segments} --data.features {features}",
    "tad detect": "{file} --out {new}.json",
    "ava": "ava_desk --data.truth {rows} --data.label-map {actions} --data.videos {features}",
    "ava detect": "{file} --out {new}.csv",
    "visualize": "{file} --manifest {list}",
    "tad score": "--gt {file} --pred {file}",
    "tad show": "{video} --pred {file} --out {new}.png",
    "ava check": "--truth {rows} --label-map {actions}",
    "ava boxes": "--from-coco {file} --truth {list} --out {new}.csv",
    "ava show": "{video} --det {file} --out {new}.png",
    "ava score": "--gt {file} --det {file} --labelmap {file}",
    "ava score-tubes": "--gt {file} --det {file} --labelmap {file}",
    "ava convert": "{file} --out {new} --fps 25",
    "data synth": "{new} --train-videos 4 --val-videos 4 --size 32",
    "data list": "{features} --out {new}.csv",
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
    "doctor": "",
    "launch slurm": "vit_b_pretrain_hybrid --nodes 4 --data.manifest elsewhere.csv",
    "launch hosts": "vit_b_pretrain_hybrid --hostfile {hosts} --data.manifest elsewhere.csv",
    "launch doctor": "--hostfile {hosts}",
}
"""{list}: a list of one video, which is no video; {file}: a file of no use; {new}: nothing there yet."""

MODELS: dict[str, type[BaseModel]] = {
    "evaluate": EvaluateArguments,
    "probe": ProbeArguments,
    "predict": PredictArguments,
    "extract": ExtractArguments,
    "tad detect": TadDetectArguments,
    "ava detect": AvaDetectArguments,
    "visualize": VisualizeArguments,
    "tad score": ScoreArguments,
    "tad show": ShowArguments,
    "ava boxes": AvaBoxesArguments,
    "ava check": AvaCheckArguments,
    "ava score": AvaScoreArguments,
    "ava score-tubes": ScoreTubesArguments,
    "ava convert": ConvertArguments,
    "ava show": AvaShowArguments,
    "data synth": SynthArguments,
    "data list": ListArguments,
    "data index": IndexArguments,
    "data check": CheckArguments,
    "data pack": PackArguments,
    "data index-shards": IndexShardsArguments,
    "data prepare": PrepareArguments,
    "data merge-kinetics": MergeKineticsArguments,
    "import": ImportArguments,
    "export": ExportArguments,
    "flops": FlopsArguments,
    "memory": MemoryArguments,
    "plan": PlanArguments,
    "tune": TuneArguments,
    "doctor": DoctorArguments,
    "launch slurm": SlurmArguments,
    "launch hosts": HostsArguments,
    "launch doctor": HostDoctorsArguments,
}
"""The arguments of each verb that has some of its own: the others take a recipe and its options alone."""


def line_of(verb: str, folder: Path) -> list[str]:
    """The words of a verb's line, with what it names made in `folder`."""
    names = ["list.csv", "file.safetensors", "hosts", "new", "video.mp4"]
    names += ["segments.json", "features", "rows.csv", "actions.txt"]
    places = {name: folder / name for name in names}
    places["segments.json"].write_text('{"database": {}}')
    places["rows.csv"].write_text("video,0902,0.1,0.2,0.3,0.4,1,0\n")
    places["actions.txt"].write_text("".join(f"action {number}\n" for number in range(15)))
    places["features"].mkdir(exist_ok=True)
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


def numbers_of(model: type[BaseModel]) -> Iterator[tuple[str, type]]:
    """(option, int or float) of each number that a model takes itself."""
    for name, field in model.model_fields.items():
        kinds = set(kinds_in(field.annotation))
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
