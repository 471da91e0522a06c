"""`vmae2 tune`: search, explain, write the ds_config, and on request measure the best settings and refit the assumptions."""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vmae2_ds.config.ds_config import fill_policy
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.console.tables import table
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.cluster import Cluster
from vmae2_ds.cost.hardware import ACCELERATORS, find_accelerator
from vmae2_ds.disk import check_out_file, check_out_folder, write_whole
from vmae2_ds.errors import ConfigError
from vmae2_ds.tune.arguments import TuneArguments, assumptions_of, cluster_of, count_videos
from vmae2_ds.tune.candidates import Candidate, Search, predict_candidate, search
from vmae2_ds.tune.explain import candidate_json, front_table, nothing_fits, rejected_table
from vmae2_ds.tune.forecast import ENDS, Forecast, cost_line, forecast_json, forecast_setting
from vmae2_ds.tune.measure import Trial, measure, refit
from vmae2_ds.tune.setting_cost import Setting, notes_on
from vmae2_ds.tune.tables import duration

log = logging.getLogger(__name__)

CALIBRATION, TRIAL = "calibration.json", "trial"
"""What lies in the folder beside --out after --measure: a file, and the beginning of the trials' folders."""
TUNED_KEYS = {"zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"} | {
    "gradient_clipping", "bf16", "steps_per_print"
}  # fmt: skip
OWN_KEYS = {"zero_force_ds_cpu_optimizer", "zero_allow_untested_optimizer", "timers"}
"""Keys of a ds_config as it is written here; offload and Muon bring the first two, and earlier versions did not write the
third."""


@dataclass(frozen=True)
class Tuning:
    """What `tune` found and did."""

    found: Search
    chosen: Candidate
    out: Path
    command: str
    trials: list[Trial]
    calibration: Path | None
    refitted: list[str]
    forecast: Forecast | None
    """The setting taken as a whole run; None where nobody says how many videos there are."""


def tune(config: PretrainConfig, arguments: TuneArguments, overrides: Sequence[str]) -> Tuning:
    """Search every setting of `config` on the machines asked for, and write the best one's ds_config.

    Args:
        overrides: the recipe's options as they were typed, to be repeated in the command to start.

    Raises:
        ConfigError: nothing fits, with what would; or the question cannot be answered as asked.
    """
    _check_files(arguments, config)
    assumptions = assumptions_of(arguments)
    cluster = cluster_of(arguments, assumptions)
    options = {"quantized": arguments.quantized, "offload": arguments.offload}
    found = search(config, cluster, assumptions, **options)
    chosen = found.chosen
    if chosen is None:
        raise nothing_fits(found, assumptions, **options)
    trials: list[Trial] = []
    calibration, refitted = None, []
    if arguments.measure:
        folder = _trials_folder(arguments)
        trials = _measure_best(found, cluster, assumptions, arguments, folder)
        calibration = folder / CALIBRATION
        refitted = _write_calibration(trials, assumptions, calibration)
        chosen = _fastest_measured(trials) or chosen
    write_ds_config(chosen.setting, cluster, arguments.out)
    command = launch_command(chosen, arguments, overrides)
    return Tuning(
        found=found,
        chosen=chosen,
        out=arguments.out,
        command=command,
        trials=trials,
        calibration=calibration if refitted else None,
        refitted=refitted,
        forecast=_whole_run(chosen, assumptions, arguments),
    )


def _whole_run(chosen: Candidate, assumptions: Assumptions, arguments: TuneArguments) -> Forecast | None:
    try:
        videos = count_videos(arguments, chosen.setting.config)
    except ConfigError:
        return None
    return forecast_setting(chosen.setting, chosen.cluster, assumptions, videos, arguments.gpu_hour_price)


def _check_files(arguments: TuneArguments, config: PretrainConfig) -> None:
    """Before the search: what would fail after it. `--train.ds-config` takes a path for a file only if it ends in .json."""
    if arguments.out.suffix != ".json" or arguments.out.is_dir():
        raise ConfigError(f"--out {arguments.out}: the name of a file that ends in .json")
    inputs = [config.train.ds_config, *(str(path) for path in (arguments.calibration, arguments.hostfile) if path)]
    check_out_file(arguments.out, inputs=inputs, is_ours=_was_tuned)
    if arguments.measure:
        check_out_folder(_trials_folder(arguments), "--measure: the folder of the trials,", is_ours=_holds_trials)
    if arguments.hostfile is not None and not arguments.hostfile.is_file():
        raise ConfigError(f"--hostfile {arguments.hostfile}: no such file; leave it out for the GPUs of this machine")


def _trials_folder(arguments: TuneArguments) -> Path:
    return arguments.out.with_suffix("")


def _holds_trials(folder: Path) -> bool:
    return all(path.name == CALIBRATION or path.name.startswith(TRIAL) for path in folder.iterdir())


def _was_tuned(path: Path) -> bool:
    """Does the file hold just the keys that `write_ds_config` writes? Someone's own ds_config has other ones."""
    try:
        written = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(written, dict) and set(written) - OWN_KEYS == TUNED_KEYS


def write_ds_config(setting: Setting, cluster: Cluster, path: Path) -> None:
    """Write the setting as a complete ds_config: every number stands in it, so DeepSpeed itself can read it."""
    config = setting.config
    plan = plan_run(config, config.train.global_batch, cluster.num_gpus)
    policy: dict[str, Any] = {"zero_optimization": setting.policy.zero_optimization()}
    ds_config = fill_policy(policy, config, plan, on_cpu=cluster.on_cpu)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(ds_config, indent=2) + "\n")


def launch_command(chosen: Candidate, arguments: TuneArguments, overrides: Sequence[str]) -> str:
    """The line that starts the run as tuned."""
    config, cluster = chosen.setting.config, chosen.cluster
    where = ["--hostfile", "HOSTFILE"] if cluster.num_nodes > 1 else ["--num_accelerators", str(cluster.num_gpus)]
    tuned = ["--train.ds-config", str(arguments.out), "--train.micro-batch", str(config.train.micro_batch)]
    tuned += ["--model.checkpointing", config.model.checkpointing]
    if config.model.checkpointing == "every_k":
        tuned += ["--model.checkpoint-every", str(config.model.checkpoint_every)]
    if not cluster.on_cpu:
        tuned += ["--data.workers", str(workers_needed(chosen))]
    tuned.append("--train.ds-zero-init" if config.train.ds_zero_init else "--train.no-ds-zero-init")
    manifest = [] if config.data.manifest else ["--data.manifest", "LIST.csv"]
    words = ["deepspeed", *where, "--module", "vmae2_ds", "pretrain", config.recipe, *overrides, *manifest, *tuned]
    return shlex.join(words)


def workers_needed(chosen: Candidate) -> int:
    """Loader workers for twice the reading that is expected, as far as there are cores: idle ones cost little."""
    workers, time = chosen.setting.config.data.workers, chosen.time
    return max(1, min(workers, math.ceil(2 * workers * time.data_s / time.device_s)))


def _measure_best(
    found: Search, cluster: Cluster, assumptions: Assumptions, arguments: TuneArguments, folder: Path
) -> list[Trial]:
    """Run the best settings, each on as many ranks as there are here; predictions are made for that number."""
    here = cluster if arguments.hostfile else _cluster_here(cluster)
    trials = []
    for number, candidate in enumerate(found.ranked[: arguments.measure]):
        setting = _on(here, candidate.setting, cluster)
        path = folder / f"{TRIAL}{number}" / "ds_config.json"
        write_ds_config(setting, here, path)
        log.info("measuring %d of %d: %s", number + 1, arguments.measure, candidate.describe())
        measured = measure(
            setting, path, here.num_gpus, path.parent, hostfile=arguments.hostfile, timeout_s=arguments.measure_timeout
        )
        trials.append(Trial(candidate, predict_candidate(setting, here, assumptions), measured))
        if measured.error:
            log.warning("trial %d failed: %s", number, measured.error)
    return trials


def _cluster_here(cluster: Cluster) -> Cluster:
    if cluster.on_cpu:
        return cluster
    import torch

    devices = torch.cuda.device_count()
    if devices == 0:
        raise ConfigError("--measure: this machine has no GPU; run it where the GPUs are, or plan with --gpu cpu")
    here = find_accelerator(torch.cuda.get_device_name())
    if here is not None and here != cluster.gpu and cluster.gpu in ACCELERATORS:
        raise ConfigError(f"--measure: this machine has {here.name}, not {cluster.gpu.name}; say --gpu {here.key}")
    num_gpus = min(devices, cluster.num_gpus)
    return replace(cluster, num_gpus=num_gpus, num_nodes=1)


def _on(here: Cluster, setting: Setting, cluster: Cluster) -> Setting:
    """The setting on the ranks at hand: micro batch, accumulation and policy stay, the global batch shrinks with the ranks."""
    global_batch = setting.config.train.global_batch * here.num_gpus // cluster.num_gpus
    return setting._replace(config=setting.config.changed(train={"global_batch": global_batch}))


def _write_calibration(trials: Sequence[Trial], assumptions: Assumptions, path: Path) -> list[str]:
    """Refit, and write the file if anything was measured; returns the names of what was refitted."""
    where = trials[0].candidate.cluster
    source = (
        f"vmae2 tune --measure, {where.num_gpus} x {where.gpu.name}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    )
    fitted, names = refit(assumptions, trials, source)
    if names:
        write_whole(path, fitted.model_dump_json(indent=1) + "\n")
    return names


def _fastest_measured(trials: Sequence[Trial]) -> Candidate | None:
    """None where fewer ranks ran than are asked for: what is fastest on one GPU, which sends nothing, is not so on 64."""
    done = [
        trial
        for trial in trials
        if trial.measured.step_s is not None and trial.candidate.cluster.num_gpus == trial.asked.cluster.num_gpus
    ]
    return min(done, key=lambda trial: trial.measured.step_s or 0.0).asked if done else None


def tuning_json(tuning: Tuning) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "recipe": tuning.found.config.recipe,
        "cluster": str(tuning.found.cluster),
        "searched": len(tuning.found.candidates),
        "fitting": len(tuning.found.fitting),
        "chosen": candidate_json(tuning.chosen),
        "front": [candidate_json(candidate) for candidate in tuning.found.front],
        "ds_config": str(tuning.out),
        "command": tuning.command,
        "run": None if tuning.forecast is None else forecast_json(tuning.forecast),
        "trials": [
            {"predicted": candidate_json(trial.candidate), "measured": trial.measured._asdict()}
            for trial in tuning.trials
        ],
        "calibration": None if tuning.calibration is None else str(tuning.calibration),
        "refitted": tuning.refitted,
    }


def describe_tuning(tuning: Tuning) -> str:
    """What was found, as text."""
    chosen, found = tuning.chosen, tuning.found
    lines = [
        f"{found.config.recipe} on {found.cluster}, global batch {found.config.train.global_batch}",
        "",
        front_table(found),
        "",
        rejected_table(found),
        "",
    ]
    if tuning.trials:
        lines += [_trials_table(tuning.trials), ""]
    if tuning.calibration:
        lines += [
            f"refitted {', '.join(tuning.refitted)}: run again with --calibration {tuning.calibration}, which plan takes too",
            "",
        ]
    margin = "also in the worst case" if chosen.is_safe else "but not in the worst case"
    lines += [
        f"taken: {chosen.describe()}",
        f"  {duration(chosen.time.total_s)} a step, {chosen.memory.total_gib:.1f} GiB; fits {margin}",
        *_run_lines(tuning.forecast),
        *(
            f"  BUT its trial failed: {t.measured.error}"
            for t in tuning.trials
            if t.asked is chosen and t.measured.error
        ),
        *(f"  {note}" for note in notes_on(chosen.setting, chosen.cluster)),
        f"wrote {tuning.out}; start with:",
        f"  {tuning.command}",
    ]
    return "\n".join(lines)


def _run_lines(forecast: Forecast | None) -> list[str]:
    """The whole recipe: hours and GPU hours with their bounds, utilisation."""
    if forecast is None:
        return []
    best, expected, worst = (duration(3600 * forecast.hours(end)) for end in ENDS)
    mfu, hfu = forecast.utilisation("expected")
    return [
        f"  {forecast.run.own_steps:,} steps over {forecast.run.num_videos:,} videos: {expected} ({best} to {worst}), "
        f"{cost_line(forecast)}; MFU {mfu:.0%}, HFU {hfu:.0%}"
    ]


def _trials_table(trials: Sequence[Trial]) -> str:
    rows = [[trial.candidate.describe(), *_beside(trial)] for trial in trials]
    ranks = trials[0].candidate.cluster.num_gpus
    header = ["setting", "step predicted", "measured", "error", "GiB predicted", "measured", "error"]
    failed = [f"  failed: {each.candidate.describe()}: {each.measured.error}" for each in trials if each.measured.error]
    return "\n".join([table(f"Measured on {ranks} rank{'s' if ranks > 1 else ''}", header, rows), *failed])


def _beside(trial: Trial) -> list[str]:
    """Prediction, measurement and error of time and memory."""
    step_s, gib = trial.candidate.time.device_s, trial.candidate.memory.total_gib
    measured = trial.measured
    if measured.step_s is None or measured.peak_gib is None:
        return [duration(step_s), "failed", "", f"{gib:.2f}", "", ""]
    time = [duration(step_s), duration(measured.step_s), f"{step_s / measured.step_s - 1:+.0%}"]
    return [*time, f"{gib:.2f}", f"{measured.peak_gib:.2f}", f"{gib / measured.peak_gib - 1:+.0%}"]
