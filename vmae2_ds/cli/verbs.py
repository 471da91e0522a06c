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
    """Keep what the teacher of a distil run says of its clips, for runs to come: the run's line with --distil.cache FOLDER."""
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
    """Test a classifier with several views of each video: vmae2 evaluate RUN_OR_FILE --manifest FILE."""
    from vmae2_ds.downstream.classify.evaluate import EvaluateArguments, describe
    from vmae2_ds.downstream.classify.evaluate import evaluate as run

    result = call(run, EvaluateArguments, "vmae2 evaluate", args)
    say_once(describe(result))


def predict(args: list[str]) -> None:
    """Name videos that have no labels, with scores: vmae2 predict RUN_OR_FILE VIDEO_FOLDER_OR_LIST ... [--json] [--out DIR]."""
    from vmae2_ds.downstream.classify.predict import PredictArguments
    from vmae2_ds.downstream.classify.predict import predict as run

    found = call(run, PredictArguments, "vmae2 predict", args)
    if found is not None:  # on rank 0
        say(found.shown)
        found.finish()


def probe(args: list[str]) -> None:
    """A probe on frozen features, beside a random encoder and pixels: vmae2 probe RUN_OR_FILE --manifest FILE."""
    from vmae2_ds.downstream.probe.probe import ProbeArguments, describe
    from vmae2_ds.downstream.probe.probe import probe as run

    say(describe(call(run, ProbeArguments, "vmae2 probe", args)))


def extract(args: list[str]) -> None:
    """Features of long videos, a vector a window: vmae2 extract RUN_OR_FILE --manifest FILE --out FOLDER [--grid opentad]."""
    from vmae2_ds.downstream.features.arguments import ExtractArguments, describe
    from vmae2_ds.downstream.features.extract import extract as run

    result = call(run, ExtractArguments, "vmae2 extract", args)
    say_once(describe(result))


def tad_detect(args: list[str]) -> None:
    """Find actions in long videos with a trained head, and write them for scorers: vmae2 tad detect RUN --out FILE.json."""
    from vmae2_ds.downstream.tad.detect import TadDetectArguments
    from vmae2_ds.downstream.tad.detect import tad_detect as run

    result = call(run, TadDetectArguments, "vmae2 tad detect", args)
    say_once(str(result))


def visualize(args: list[str]) -> None:
    """Draw clips of a run as its model sees and completes them: frames, both masks, reconstruction; PNG and animation."""
    from vmae2_ds.downstream.visualize import VisualizeArguments
    from vmae2_ds.downstream.visualize import visualize as run

    folder = call(run, VisualizeArguments, "vmae2 visualize", args)
    say(f"pictures: {folder}")


def tad_score(args: list[str]) -> None:
    """Score detections of actions in long videos: vmae2 tad score --gt FILE --pred FILE [--protocol NAME] [--json]."""
    from vmae2_ds.downstream.tad.score_report import ScoreArguments, describe, score, scores_json

    def shown(asked: ScoreArguments) -> Mapping[str, Any] | str:
        return scores_json(score(asked)) if asked.json_ else describe(score(asked))

    show_answer(call(shown, ScoreArguments, "vmae2 tad score", args))


def tad_show(args: list[str]) -> None:
    """Timelines of truth and detections: a picture of a video, or a page of a set, the worst first: vmae2 tad show [VIDEO]."""
    from vmae2_ds.downstream.tad.show import ShowArguments
    from vmae2_ds.downstream.tad.show import show as run

    say(str(call(run, ShowArguments, "vmae2 tad show", args)))


def data_synth(args: list[str]) -> None:
    """Write a small set of real h264 videos of moving shapes whose class is the motion, with train and val lists."""

    from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set

    written = call(write_synthetic_set, SynthArguments, "vmae2 data synth", args)
    say(f"wrote {written.train}, {written.val} and the names of the classes, {written.labels}")


def data_list(args: list[str]) -> None:
    """List the videos in a folder, long films as parts of some seconds: vmae2 data list FOLDER --out FILE.csv [--part-s 10]."""
    from vmae2_ds.data.tools.listing import ListArguments, list_folder

    say(str(call(list_folder, ListArguments, "vmae2 data list", args)))


def data_index(args: list[str]) -> None:
    """Turn a long list of videos into a folder that every rank opens at once, whatever its length."""
    from vmae2_ds.data.tools.index import IndexArguments, index_manifest

    say_of_part(call(index_manifest, IndexArguments, "vmae2 data index", args))


def data_check(args: list[str]) -> None:
    """Read every file of a manifest under a time limit; write a clean list, a bad list with reasons, and a page of it."""
    from vmae2_ds.data.tools.check import CheckArguments, check_manifest

    say_of_part(call(check_manifest, CheckArguments, "vmae2 data check", args))


def data_pack(args: list[str]) -> None:
    """Copy the videos of a manifest into tar shards (webdataset) with checksums, and write the manifest that finds them."""
    from vmae2_ds.data.tools.pack import PackArguments, pack_manifest

    say_of_part(call(pack_manifest, PackArguments, "vmae2 data pack", args))


def data_prepare(args: list[str]) -> None:
    """Re-encode videos to a short side and a short GOP, in parallel, and tell how much faster clips are read."""
    from vmae2_ds.data.tools.prepare import PrepareArguments, prepare_manifest

    say_of_part(call(prepare_manifest, PrepareArguments, "vmae2 data prepare", args))


def data_index_shards(args: list[str]) -> None:
    """List the videos of tar shards that something else wrote, so that they can be read in any order."""
    from vmae2_ds.data.tools.shards import IndexShardsArguments, index_shards

    say(str(call(index_shards, IndexShardsArguments, "vmae2 data index-shards", args)))


def data_merge_kinetics(args: list[str]) -> None:
    """Build K710 out of the lists of Kinetics-400, 600 and 700: train and val lists, class names, head maps, counts."""
    from vmae2_ds.data.tools.kinetics import MergeKineticsArguments, merge_kinetics

    say(str(call(merge_kinetics, MergeKineticsArguments, "vmae2 data merge-kinetics", args)))


def import_weights(args: list[str]) -> None:
    """Turn a checkpoint of VideoMAE, transformers or mmaction2 into a safetensors file, every key accounted for."""
    from vmae2_ds.runs.export import ImportArguments
    from vmae2_ds.runs.export import import_weights as run

    say(str(call(run, ImportArguments, "vmae2 import", args)))


def export_weights(args: list[str]) -> None:
    """Write weights for others: the published key names, a transformers folder, or mmaction2's and OpenTAD's."""
    from vmae2_ds.runs.export import ExportArguments
    from vmae2_ds.runs.export import export_weights as run

    say(str(call(run, ExportArguments, "vmae2 export", args)))


def flops(args: list[str]) -> None:
    """MACs and training FLOPs by module and token set: vmae2 flops --model base [--json]."""
    from vmae2_ds.tune.flops_table import FlopsArguments, describe_flops
    from vmae2_ds.tune.flops_table import flops as run

    def shown(asked: FlopsArguments) -> Mapping[str, Any] | str:
        return run(asked) if asked.json_ else describe_flops(run(asked))

    show_answer(call(shown, FlopsArguments, "vmae2 flops", args), fits=True)


def memory(args: list[str]) -> None:
    """Activations per clip, and what each ZeRO stage holds: vmae2 memory --model base [--gpus N] [--json]."""
    from vmae2_ds.tune.memory_table import MemoryArguments, describe_memory
    from vmae2_ds.tune.memory_table import memory as run

    def shown(asked: MemoryArguments) -> Mapping[str, Any] | str:
        return run(asked) if asked.json_ else describe_memory(run(asked))

    show_answer(call(shown, MemoryArguments, "vmae2 memory", args), fits=True)


def plan(args: list[str]) -> None:
    """What a run of pre-training or detection will be: batch, memory, time, cost, what binds: vmae2 plan RECIPE ..."""
    from vmae2_ds.tune.arguments import PlanArguments
    from vmae2_ds.tune.forecast import check_fits, describe_forecast, forecast_json, make_forecast
    from vmae2_ds.tune.workload import PLANNED, planned

    asked, config, _, _ = ask(PlanArguments, "vmae2 plan", args, list(PLANNED))
    made = make_forecast(planned(config), asked)
    show_answer(forecast_json(made) if asked.json_ else describe_forecast(made), fits=True)
    check_fits(made)


def tune(args: list[str]) -> None:
    """Search ZeRO, offload, checkpointing and micro batch for the fastest that fits: vmae2 tune RECIPE --gpus N --gpu NAME."""
    from vmae2_ds.tune.arguments import TuneArguments
    from vmae2_ds.tune.tuner import describe_tuning, tuning_json
    from vmae2_ds.tune.tuner import tune as run

    asked, config, _, words = ask(TuneArguments, "vmae2 tune", args, ["pretrain"])
    tuned = run(pretraining("vmae2 tune", config), asked, words[1:])
    show_answer(tuning_json(tuned) if asked.json_ else describe_tuning(tuned))


def doctor(args: list[str]) -> None:
    """What this host has and lacks for a recipe, with a remedy beside each red line: vmae2 doctor [--recipe NAME] [--json]."""
    from vmae2_ds.doctor.doctor import DoctorArguments
    from vmae2_ds.doctor.doctor import doctor as run
    from vmae2_ds.doctor.page import as_json, page

    asked, config, _, words = ask(DoctorArguments, "vmae2 doctor", args, list(STAGES), lambda asked: asked.recipe)
    made = run(asked, config, tuple(words[1:]))
    show_answer(as_json(made) if asked.json_ else page(made))
    if made.light == "red":
        raise SystemExit(EXIT_USER_ERROR)


def launch_doctor(args: list[str]) -> None:
    """Run vmae2 doctor on every host at once, and name those that differ: vmae2 launch doctor --hostfile FILE [--json]."""
    from vmae2_ds.launch.doctor import HostDoctorsArguments, ask_hosts, describe_hosts, hosts_json

    asked, _, _, words = ask(
        HostDoctorsArguments, "vmae2 launch doctor", args, list(STAGES), lambda asked: asked.recipe
    )
    answers = ask_hosts(asked, words[1:])
    show_answer(hosts_json(answers) if asked.json_ else describe_hosts(answers))
    if any(answer.light == "red" for answer in answers):
        raise SystemExit(EXIT_USER_ERROR)


def launch_slurm(args: list[str]) -> None:
    """A SLURM script that saves in time and requeues itself: vmae2 launch slurm RECIPE --nodes 8, or data TOOL --parts 64."""
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
    """Print or run the exact command lines for the hosts of a hostfile: vmae2 launch hosts RECIPE --hostfile FILE."""
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
