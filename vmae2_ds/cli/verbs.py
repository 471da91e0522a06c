"""The verbs of `vmae2`, a function each: its line of help, its options, and the work, which is imported when it is asked for.

No verb's `--help` imports torch: the functions and models that say the options lie where nothing heavy is imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from vmae2_ds.cli.answers import Verb, say_of_part, say_once, show_answer
from vmae2_ds.cli.ava import AVA_VERBS
from vmae2_ds.cli.parse import ask, ask_for, call, pretraining, recipe
from vmae2_ds.config.stages import STAGES
from vmae2_ds.console.terminal import say
from vmae2_ds.dist import is_alone
from vmae2_ds.errors import EXIT_USER_ERROR, ConfigError


def train(stage: str) -> Verb:
    """The verb of a stage of STAGES."""

    def verb(args: list[str]) -> None:
        _, config = recipe(f"vmae2 {stage}", args, [stage])
        from vmae2_ds.runs.first_look import first_look

        inputs = first_look(config)
        from vmae2_ds.train.session import train_run

        train_run(config, inputs)

    verb.__doc__ = STAGES[stage].help
    return verb


def distil_cache(args: list[str]) -> None:
    """Save a teacher's answers for every clip of a distil run, so that later runs need no teacher.

    The line is that of the run, without mixing of clips. Started again it goes on where it was cut; with more epochs it adds
    their answers. Runs then take --distil.cache FOLDER instead of --teacher.
    """
    _, config = recipe("vmae2 distil-cache", args, ["distil"])
    from vmae2_ds.config.distil import DistilConfig, check_has_teacher
    from vmae2_ds.runs.first_look import cache_of, check_cache, first_look

    assert isinstance(config, DistilConfig), "what a recipe of distil makes"
    check_has_teacher(config, must_ask=True)
    inputs = first_look(config, learns=False)
    folder = cache_of(config)
    if is_alone():  # several ranks: the verb, for all of them together
        check_cache(folder)
    from vmae2_ds.train.distil.cache import distil_cache as run

    said = run(config, inputs)
    say_once(said)


def evaluate(args: list[str]) -> None:
    """Test a classifier on labelled videos, several views of each: top-1 and top-5, and a table per class."""
    from vmae2_ds.downstream.classify.evaluate import EvaluateArguments, describe
    from vmae2_ds.downstream.classify.evaluate import evaluate as run

    result = call(run, EvaluateArguments, "vmae2 evaluate", args)
    say_once(describe(result))


def predict(args: list[str]) -> None:
    """Name the classes of videos that have no labels, with scores."""
    from vmae2_ds.downstream.classify.predict import PredictArguments
    from vmae2_ds.downstream.classify.predict import predict as run

    found = call(run, PredictArguments, "vmae2 predict", args)
    if found is not None:  # on rank 0
        say(found.shown)
        found.finish()


def probe(args: list[str]) -> None:
    """Measure what frozen features tell with a small probe, beside a random encoder and plain pixels."""
    from vmae2_ds.downstream.probe.probe import ProbeArguments, describe
    from vmae2_ds.downstream.probe.probe import probe as run

    say(describe(call(run, ProbeArguments, "vmae2 probe", args)))


def extract(args: list[str]) -> None:
    """Write features of videos: a vector for each window of frames, one for each video, or all tokens."""
    from vmae2_ds.downstream.features.arguments import ExtractArguments, describe
    from vmae2_ds.downstream.features.extract import extract as run

    result = call(run, ExtractArguments, "vmae2 extract", args)
    say_once(describe(result))


def tad_detect(args: list[str]) -> None:
    """Find actions in long videos with a trained head, and write them in a file that scorers read."""
    from vmae2_ds.downstream.tad.detect import TadDetectArguments
    from vmae2_ds.downstream.tad.detect import tad_detect as run

    result = call(run, TadDetectArguments, "vmae2 tad detect", args)
    say_once(str(result))


def visualize(args: list[str]) -> None:
    """Draw clips as a model sees and completes them: both masks and the reconstruction, PNG and animation."""
    from vmae2_ds.downstream.visualize import VisualizeArguments
    from vmae2_ds.downstream.visualize import visualize as run

    folder = call(run, VisualizeArguments, "vmae2 visualize", args)
    say(f"pictures: {folder}")


def tad_score(args: list[str]) -> None:
    """Score actions found in long videos (mAP, recall) by the rules of a published scorer."""
    from vmae2_ds.downstream.tad.score_report import ScoreArguments, describe, score, scores_json

    def shown(asked: ScoreArguments) -> Mapping[str, Any] | str:
        return scores_json(score(asked)) if asked.json_ else describe(score(asked))

    show_answer(call(shown, ScoreArguments, "vmae2 tad score", args))


def tad_show(args: list[str]) -> None:
    """Draw found actions beside the truth: a timeline of one video, or a page of all, the worst first."""
    from vmae2_ds.downstream.tad.show import ShowArguments
    from vmae2_ds.downstream.tad.show import show as run

    say(str(call(run, ShowArguments, "vmae2 tad show", args)))


def data_synth(args: list[str]) -> None:
    """Write a small labelled set of videos of moving shapes, whose class is the motion."""

    from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set

    written = call(write_synthetic_set, SynthArguments, "vmae2 data synth", args)
    say(f"wrote {written.train}, {written.val} and the names of the classes, {written.labels}")


def data_list(args: list[str]) -> None:
    """List the videos in a folder, long films as parts of some seconds."""
    from vmae2_ds.data.tools.listing import ListArguments, list_folder

    say(str(call(list_folder, ListArguments, "vmae2 data list", args)))


def data_index(args: list[str]) -> None:
    """Turn a long list of videos into a folder that is opened at once, whatever its length."""
    from vmae2_ds.data.tools.index import IndexArguments, index_manifest

    say_of_part(call(index_manifest, IndexArguments, "vmae2 data index", args))


def data_check(args: list[str]) -> None:
    """Read every file of a list under a time limit: a clean list, a bad list with reasons, a page."""
    from vmae2_ds.data.tools.check import CheckArguments, check_manifest

    say_of_part(call(check_manifest, CheckArguments, "vmae2 data check", args))


def data_pack(args: list[str]) -> None:
    """Copy the videos of a list into tar shards (webdataset) with checksums."""
    from vmae2_ds.data.tools.pack import PackArguments, pack_manifest

    say_of_part(call(pack_manifest, PackArguments, "vmae2 data pack", args))


def data_prepare(args: list[str]) -> None:
    """Encode videos anew, small and with many key frames, so that clips are read faster."""
    from vmae2_ds.data.tools.prepare import PrepareArguments, prepare_manifest

    say_of_part(call(prepare_manifest, PrepareArguments, "vmae2 data prepare", args))


def data_index_shards(args: list[str]) -> None:
    """List the videos of tar shards that another program wrote."""
    from vmae2_ds.data.tools.shards import IndexShardsArguments, index_shards

    say(str(call(index_shards, IndexShardsArguments, "vmae2 data index-shards", args)))


def data_merge_kinetics(args: list[str]) -> None:
    """Build K710 from the lists of Kinetics-400, 600 and 700, with head maps and every count."""
    from vmae2_ds.data.tools.kinetics import MergeKineticsArguments, merge_kinetics

    say(str(call(merge_kinetics, MergeKineticsArguments, "vmae2 data merge-kinetics", args)))


def import_weights(args: list[str]) -> None:
    """Turn a checkpoint of VideoMAE, transformers or mmaction2 into a file for --train.init."""
    from vmae2_ds.runs.export import ImportArguments
    from vmae2_ds.runs.export import import_weights as run

    say(str(call(run, ImportArguments, "vmae2 import", args)))


def export_weights(args: list[str]) -> None:
    """Write weights for other programs: published key names, transformers, mmaction2 or OpenTAD."""
    from vmae2_ds.runs.export import ExportArguments
    from vmae2_ds.runs.export import export_weights as run

    say(str(call(run, ExportArguments, "vmae2 export", args)))


def flops(args: list[str]) -> None:
    """Count MACs and training FLOPs of a model, by module and by which cubes it sees."""
    from vmae2_ds.tune.flops_table import FlopsArguments, describe_flops
    from vmae2_ds.tune.flops_table import flops as run

    def shown(asked: FlopsArguments) -> Mapping[str, Any] | str:
        return run(asked) if asked.json_ else describe_flops(run(asked))

    show_answer(call(shown, FlopsArguments, "vmae2 flops", args), fits=True)


def memory(args: list[str]) -> None:
    """Count the memory of a model: activations of a clip, and what each ZeRO stage holds on a GPU."""
    from vmae2_ds.tune.memory_table import MemoryArguments, describe_memory
    from vmae2_ds.tune.memory_table import memory as run

    def shown(asked: MemoryArguments) -> Mapping[str, Any] | str:
        return run(asked) if asked.json_ else describe_memory(run(asked))

    show_answer(call(shown, MemoryArguments, "vmae2 memory", args), fits=True)


def plan(args: list[str]) -> None:
    """Say what a run will be before it starts: batch, memory, time with bounds, cost, what limits it."""
    from vmae2_ds.tune.arguments import PlanArguments
    from vmae2_ds.tune.forecast import check_fits, describe_forecast, forecast_json, make_forecast
    from vmae2_ds.tune.workload import PLANNED, planned

    asked, config, _, _ = ask(PlanArguments, "vmae2 plan", args, list(PLANNED))
    made = make_forecast(planned(config), asked)
    show_answer(forecast_json(made) if asked.json_ else describe_forecast(made), fits=True)
    check_fits(made)


def tune(args: list[str]) -> None:
    """Find the fastest layout of a pre-training recipe that fits these GPUs, as a ds_config."""
    from vmae2_ds.tune.arguments import TuneArguments
    from vmae2_ds.tune.tuner import describe_tuning, tuning_json
    from vmae2_ds.tune.tuner import tune as run

    asked, config, _, words = ask(TuneArguments, "vmae2 tune", args, ["pretrain"])
    tuned = run(pretraining("vmae2 tune", config), asked, words[1:])
    show_answer(tuning_json(tuned) if asked.json_ else describe_tuning(tuned))


def doctor(args: list[str]) -> None:
    """Say what this host has and lacks for a recipe, with a remedy beside each red or yellow line."""
    from vmae2_ds.doctor.doctor import DoctorArguments
    from vmae2_ds.doctor.doctor import doctor as run
    from vmae2_ds.doctor.page import as_json, page

    asked, config, _, words = ask(DoctorArguments, "vmae2 doctor", args, list(STAGES), lambda asked: asked.recipe)
    made = run(asked, config, tuple(words[1:]))
    show_answer(as_json(made) if asked.json_ else page(made))
    if made.light == "red":
        raise SystemExit(EXIT_USER_ERROR)


def launch_doctor(args: list[str]) -> None:
    """Run vmae2 doctor on every host at once, and name the hosts that differ."""
    from vmae2_ds.launch.doctor import HostDoctorsArguments, ask_hosts, describe_hosts, hosts_json

    asked, _, _, words = ask(
        HostDoctorsArguments, "vmae2 launch doctor", args, list(STAGES), lambda asked: asked.recipe
    )
    answers = ask_hosts(asked, words[1:])
    show_answer(hosts_json(answers) if asked.json_ else describe_hosts(answers))
    if any(answer.light == "red" for answer in answers):
        raise SystemExit(EXIT_USER_ERROR)


def launch_slurm(args: list[str]) -> None:
    """Write a SLURM script that saves in time and requeues itself, for a recipe or a data tool."""
    for at, (word, tool) in enumerate(itertools.pairwise(args)):
        if word == "data" and (f"data {tool}" in VERBS or (at == 0 and not tool.startswith("-"))):
            return _launch_array(tool, [*args[:at], *args[at + 2 :]])
    from vmae2_ds.launch.slurm import SlurmArguments
    from vmae2_ds.launch.slurm import launch_slurm as run

    asked, config, stage, words = ask(SlurmArguments, "vmae2 launch slurm", args, list(STAGES))
    show_answer(run(asked, config, [stage, *words]))


def _launch_array(tool: str, args: list[str]) -> None:
    from vmae2_ds.launch.slurm_array import ArrayArguments
    from vmae2_ds.launch.slurm_array import launch_array as run

    if tool not in SHARED:
        what = (
            f"vmae2 data {tool} is work of one process" if f"data {tool}" in VERBS else f"vmae2 data has no tool {tool}"
        )
        raise ConfigError(f"{what}; an array job is for data {', '.join(SHARED)}")
    prog = f"vmae2 launch slurm data {tool}"
    asked, words = ask_for(ArrayArguments, SHARED[tool](), prog, args, f"vmae2 data {tool}")
    show_answer(run(asked, tool, words))


def launch_hosts(args: list[str]) -> None:
    """Print or run the exact commands that start a recipe on the hosts of a hostfile."""
    from vmae2_ds.launch.hosts import HostsArguments
    from vmae2_ds.launch.hosts import launch_hosts as run

    asked, config, stage, words = ask(HostsArguments, "vmae2 launch hosts", args, list(STAGES))
    show_answer(run(asked, config, [stage, *words]))


def _check_arguments() -> type[BaseModel]:
    from vmae2_ds.data.tools.check import CheckArguments

    return CheckArguments


def _prepare_arguments() -> type[BaseModel]:
    from vmae2_ds.data.tools.prepare import PrepareArguments

    return PrepareArguments


def _pack_arguments() -> type[BaseModel]:
    from vmae2_ds.data.tools.pack import PackArguments

    return PackArguments


def _index_arguments() -> type[BaseModel]:
    from vmae2_ds.data.tools.index import IndexArguments

    return IndexArguments


SHARED = {
    "check": _check_arguments,
    "prepare": _prepare_arguments,
    "pack": _pack_arguments,
    "index": _index_arguments,
}
"""Data tools whose work several processes share -> their options."""

VERBS: dict[str, Verb] = {
    **{stage: train(stage) for stage in STAGES},
    "distil-cache": distil_cache,
    "evaluate": evaluate,
    "predict": predict,
    "probe": probe,
    "extract": extract,
    "tad detect": tad_detect,
    "visualize": visualize,
    **AVA_VERBS,
    "tad score": tad_score,
    "tad show": tad_show,
    "data synth": data_synth,
    "data list": data_list,
    "data index": data_index,
    "data check": data_check,
    "data pack": data_pack,
    "data index-shards": data_index_shards,
    "data prepare": data_prepare,
    "data merge-kinetics": data_merge_kinetics,
    "import": import_weights,
    "export": export_weights,
    "flops": flops,
    "memory": memory,
    "plan": plan,
    "tune": tune,
    "doctor": doctor,
    "launch slurm": launch_slurm,
    "launch hosts": launch_hosts,
    "launch doctor": launch_doctor,
}
