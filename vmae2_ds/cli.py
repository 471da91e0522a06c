"""The verbs of `vmae2`: parse, call, and turn what goes wrong into one line and an exit code. Nothing else.

The same line works plain, or after `deepspeed --module vmae2_ds`, `torchrun -m vmae2_ds`, `mpirun` and `srun`.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import io
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from vmae2_ds import __version__
from vmae2_ds.errors import EXIT_OK, EXIT_USER_ERROR, ConfigError, Preempted, Vmae2Error

if TYPE_CHECKING:
    from vmae2_ds.config import PretrainConfig, RunConfig

Verb = Callable[[list[str]], None]
Asked = TypeVar("Asked")


def pretrain(args: list[str]) -> None:
    """Pre-train a named recipe with dual masking: vmae2 pretrain RECIPE --data.manifest FILE [--section.key value]."""
    config = _recipe("vmae2 pretrain", args)
    from vmae2_ds.train.pretrain import pretrain as run

    run(config)


def finetune(args: list[str]) -> None:
    """Train a classifier: post-pre-training, fine-tuning, linear probing: vmae2 finetune RECIPE --train.init RUN_OR_FILE ..."""
    config = _recipe("vmae2 finetune", args, "finetune")
    from vmae2_ds.train.finetune import finetune as run

    run(config)


def distil(args: list[str]) -> None:
    """Train a classifier on what a frozen teacher says of its clips: vmae2 distil RECIPE --teacher RUN_OR_FILE ..."""
    config = _recipe("vmae2 distil", args, "distil")
    from vmae2_ds.train.distil import distil as run

    run(config)


def distil_cache(args: list[str]) -> None:
    """Keep what the teacher of a distil run says of its clips, for runs to come: the run's line with --distil.cache FOLDER."""
    config = _recipe("vmae2 distil-cache", args, "distil")
    from vmae2_ds.train.distil_cache import distil_cache as run

    said = run(config)
    if os.environ.get("RANK", "0") == "0":
        print(said)


def evaluate(args: list[str]) -> None:
    """Test a classifier with several views of each video: vmae2 evaluate RUN_OR_FILE --manifest FILE."""
    from vmae2_ds.train.evaluate import describe
    from vmae2_ds.train.evaluate import evaluate as run

    result = _call(run, "vmae2 evaluate", args)
    if os.environ.get("RANK", "0") == "0":
        print(describe(result))


def probe(args: list[str]) -> None:
    """A probe on frozen features, beside a random encoder and pixels: vmae2 probe RUN_OR_FILE --manifest FILE."""
    from vmae2_ds.downstream.probe import describe
    from vmae2_ds.downstream.probe import probe as run

    print(describe(_call(run, "vmae2 probe", args)))


def visualize(args: list[str]) -> None:
    """Draw clips of a run as its model sees and completes them: frames, both masks, reconstruction; PNG and animation."""
    from vmae2_ds.visualize import visualize as run

    folder = _call(run, "vmae2 visualize", args)
    print(f"pictures: {folder}")


def data_synth(args: list[str]) -> None:
    """Write a small set of real h264 videos of moving shapes whose class is the motion, with train and val lists."""

    from vmae2_ds.data.synthetic import write_synthetic_set

    written = _call(write_synthetic_set, "vmae2 data synth", args)
    print(f"wrote {written.train}, {written.val} and the names of the classes, {written.labels}")


def data_index(args: list[str]) -> None:
    """Turn a long list of videos into a folder that every rank opens at once, whatever its length."""
    from vmae2_ds.data.index import index_manifest

    print(_call(index_manifest, "vmae2 data index", args))


def data_check(args: list[str]) -> None:
    """Read every file of a manifest under a time limit; write a clean list, a bad list with reasons, and a page of it."""
    from vmae2_ds.data.check import check_manifest

    print(_call(check_manifest, "vmae2 data check", args))


def data_pack(args: list[str]) -> None:
    """Copy the videos of a manifest into tar shards (webdataset) with checksums, and write the manifest that finds them."""
    from vmae2_ds.data.pack import pack_manifest

    print(_call(pack_manifest, "vmae2 data pack", args))


def data_prepare(args: list[str]) -> None:
    """Re-encode videos to a short side and a short GOP, in parallel, and tell how much faster clips are read."""
    from vmae2_ds.data.prepare import prepare_manifest

    print(_call(prepare_manifest, "vmae2 data prepare", args))


def data_index_shards(args: list[str]) -> None:
    """List the videos of tar shards that something else wrote, so that they can be read in any order."""
    from vmae2_ds.data.shards import index_shards

    print(_call(index_shards, "vmae2 data index-shards", args))


def data_merge_kinetics(args: list[str]) -> None:
    """Build K710 out of the lists of Kinetics-400, 600 and 700: train and val lists, class names, head maps, counts."""
    from vmae2_ds.data.kinetics import merge_kinetics

    print(_call(merge_kinetics, "vmae2 data merge-kinetics", args))


def import_weights(args: list[str]) -> None:
    """Turn a checkpoint of VideoMAE, transformers or mmaction2 into a safetensors file, every key accounted for."""
    from vmae2_ds.weights import import_weights as run

    print(_call(run, "vmae2 import", args))


def export_weights(args: list[str]) -> None:
    """Write weights for others: the published key names, a transformers folder, or mmaction2's and OpenTAD's."""
    from vmae2_ds.weights import export_weights as run

    print(_call(run, "vmae2 export", args))


def flops(args: list[str]) -> None:
    """MACs and training FLOPs by module and token set: vmae2 flops --model base [--json]."""
    from vmae2_ds.tune.flops import flops as run

    _show(_call(run, "vmae2 flops", args))


def memory(args: list[str]) -> None:
    """Activations per clip, and what each ZeRO stage holds: vmae2 memory --model base [--gpus N] [--json]."""
    from vmae2_ds.tune.memory import memory as run

    _show(_call(run, "vmae2 memory", args))


def plan(args: list[str]) -> None:
    """What a run will be: batch, memory, time, cost, what binds: vmae2 plan RECIPE --gpus N --gpu NAME [--nodes M]."""
    from vmae2_ds.tune.arguments import PlanArguments
    from vmae2_ds.tune.planner import check_fits, describe_plan, make_plan, plan_json

    asked, config, _ = _ask(PlanArguments, "vmae2 plan", args)
    made = make_plan(config, asked)
    _show(plan_json(made) if asked.json_ else describe_plan(made))
    check_fits(made)


def tune(args: list[str]) -> None:
    """Search ZeRO, offload, checkpointing and micro batch for the fastest that fits: vmae2 tune RECIPE --gpus N --gpu NAME."""
    from vmae2_ds.tune.arguments import TuneArguments
    from vmae2_ds.tune.tuner import describe_tuning, tuning_json
    from vmae2_ds.tune.tuner import tune as run

    asked, config, overrides = _ask(TuneArguments, "vmae2 tune", args)
    tuned = run(config, asked, overrides)
    _show(tuning_json(tuned) if asked.json_ else describe_tuning(tuned))


def launch_slurm(args: list[str]) -> None:
    """Write a SLURM script that saves in time and requeues itself: vmae2 launch slurm RECIPE --nodes 8 [--out FILE]."""
    from vmae2_ds.launch.slurm import SlurmArguments
    from vmae2_ds.launch.slurm import launch_slurm as run

    _show(run(*_ask_launch(SlurmArguments, "vmae2 launch slurm", args)))


def launch_hosts(args: list[str]) -> None:
    """Print or run the exact command lines for the hosts of a hostfile: vmae2 launch hosts RECIPE --hostfile FILE."""
    from vmae2_ds.launch.hosts import HostsArguments
    from vmae2_ds.launch.hosts import launch_hosts as run

    _show(run(*_ask_launch(HostsArguments, "vmae2 launch hosts", args)))


VERBS: dict[str, Verb] = {
    "pretrain": pretrain,
    "finetune": finetune,
    "distil": distil,
    "distil-cache": distil_cache,
    "evaluate": evaluate,
    "probe": probe,
    "visualize": visualize,
    "data synth": data_synth,
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
    "launch slurm": launch_slurm,
    "launch hosts": launch_hosts,
}


def main(argv: list[str] | None = None) -> None:
    """Run one verb and exit: 0 on success, 2 for what a user can mend, 75-78 as in errors.py, 1 for a defect."""
    args = [arg for arg in (sys.argv[1:] if argv is None else argv) if not arg.startswith("--local_rank")]
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    logging.basicConfig(
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    sys.exit(_run(args, debug))


def _run(args: list[str], debug: bool) -> int:
    if args in ([], ["-h"], ["--help"], ["help"]):
        print(_help())
        return EXIT_OK if args else EXIT_USER_ERROR
    if args in (["-V"], ["--version"]):
        print(__version__)
        return EXIT_OK
    try:
        verb, rest = _find_verb(args)
        verb(rest)
    except Vmae2Error as error:
        if debug:
            traceback.print_exc()
        rank = os.environ.get("RANK", "0")
        if rank != "0" and not isinstance(error, Preempted):
            time.sleep(5)  # rank 0 most likely says the same; its launcher then ends this one
        print(f"vmae2: {f'rank {rank}: ' if rank != '0' else ''}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("vmae2: interrupted", file=sys.stderr)
        return 130
    return EXIT_OK


def _find_verb(args: list[str]) -> tuple[Verb, list[str]]:
    for words in (2, 1):
        verb = VERBS.get(" ".join(args[:words]))
        if verb is not None:
            return verb, args[words:]
    asked = " ".join(args[:2] if args[0] in ("data", "launch") else args[:1])
    near = difflib.get_close_matches(asked, VERBS, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown verb {asked!r}; {guess}verbs are {', '.join(VERBS)}; see vmae2 --help")


def _help() -> str:
    lines = [f"  {name:<19} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: vmae2 VERB ...    (vmae2 VERB --help for its options)",
            "",
            *lines,
            "",
            "--debug shows the traceback behind an error. Exit codes: 0 done, 2 something to mend, 75 stopped by a signal",
            "or its time limit and saved, 76 the loss diverged, 77 the data could not be read on, 78 hung or a rank lost.",
            "After 75 and 78 the same command goes on.",
        ]
    )


def _recipe(prog: str, args: list[str], stage: str = "pretrain") -> Any:
    """The recipe of a stage named first in `args`, with the options that follow it."""
    from vmae2_ds.distil_recipes import DISTIL_RECIPES
    from vmae2_ds.finetune_recipes import FINETUNE_RECIPES
    from vmae2_ds.recipes import RECIPES, describe_recipe

    recipes: dict[str, Mapping[str, Callable[[], RunConfig]]]
    recipes = {"pretrain": RECIPES, "finetune": FINETUNE_RECIPES, "distil": DISTIL_RECIPES}
    table = {name: (describe_recipe(build), build()) for name, build in recipes[stage].items()}
    return _parse(tyro.extras.overridable_config_cli, table, prog=prog, args=args)


def _ask(arguments: type[Asked], prog: str, args: list[str]) -> tuple[Asked, PretrainConfig, list[str]]:
    """Split `args` into the verb's own options, the recipe, and the recipe's options, which are also given as typed."""
    parser = functools.partial(tyro.cli, return_unknown_args=True)
    asked, rest = _parse(parser, arguments, prog=f"{prog} RECIPE", args=args)
    return asked, _recipe(prog, rest), rest[1:]


def _ask_launch(arguments: type[Asked], prog: str, args: list[str]) -> tuple[Asked, RunConfig, list[str]]:
    """`_ask` for a recipe of any stage; the words begin with its verb and the recipe."""
    from vmae2_ds.finetune_recipes import FINETUNE_RECIPES

    parser = functools.partial(tyro.cli, return_unknown_args=True)
    asked, words = _parse(parser, arguments, prog=f"{prog} RECIPE", args=args)
    stage = "finetune" if words and words[0] in FINETUNE_RECIPES else "pretrain"
    return asked, _recipe(prog, words, stage), [stage, *words]


def _show(result: dict[str, Any] | str) -> None:
    """Print a calculator's answer: JSON, or text as it is."""
    with _reader_may_leave():
        print(result if isinstance(result, str) else json.dumps(result, indent=2), flush=True)


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Around what is printed, and nothing else: `| head` has seen enough, which is no error."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _call(function: Callable[..., Any], prog: str, args: list[str]) -> Any:
    """Parse `args` by the function's signature and docstring, then call it."""

    @functools.wraps(function)
    def remember(*values: Any, **named: Any) -> Callable[[], Any]:
        return functools.partial(function, *values, **named)

    return _parse(tyro.cli, remember, prog=prog, args=args)()


def _parse(parser: Callable[..., Any], subject: Any, *, prog: str, args: list[str]) -> Any:
    """Call a tyro parser; what it refuses becomes one ConfigError line instead of a box."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box), _reader_may_leave():
            return parser(subject, prog=prog, args=args)
        raise SystemExit(0)  # the help text had no reader any more
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise ConfigError(_one_line(box.getvalue())) from None


def _one_line(box: str) -> str:
    """tyro's box, without its frame, its title and pydantic's links."""
    inside = [line.strip("│ ") for line in box.splitlines() if not line.lstrip().startswith(("╭", "╰", "│ ──"))]
    words = re.sub(r"\s+", " ", " ".join(inside)).strip()
    words = re.sub(r"For further information visit \S+|__tyro-dummy-inner__\.|type=\w+, |, input_type=\w+", "", words)
    words = re.sub(r"Error parsing (\S+): 1 validation error for \w+ (\S+)", r"\1.\2:", words)
    words = re.sub(r" \[input_value=\{.*?\}\]", "", words)  # of a whole config
    words = words.replace(".Value: error,", ":")
    words = re.sub(r"Missing from [\w ]+: ", "missing: ", words)
    words = re.sub(r"\s*For full helptext, (see|run):? ", "; see ", words)
    return re.sub(r" in vmae2 [\w ]+ --help(?=.*;)", "", words)


if __name__ == "__main__":
    main()
