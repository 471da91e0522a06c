"""`vmae2 launch slurm`: a batch script that starts one task per GPU, saves before its time is over, and comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from vmae2_ds import __version__
from vmae2_ds.config.pretrain import StrictModel
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.strict import Machines, Whole
from vmae2_ds.disk import check_out_file, write_whole
from vmae2_ds.dist import SLURM_PORTS
from vmae2_ds.errors import EXIT_HUNG, EXIT_PREEMPTED, ConfigError
from vmae2_ds.launch.preflight import bash_words, check_run, check_words, environment_of, refuse_unless

_WORD = r"[\w.@:+=/%,&|*()\[\]-]+"
"""What may stand behind `#SBATCH --option=`: sbatch reads those lines by rules of its own."""


class JobArguments(StrictModel):
    """What every job is asked for."""

    time: str = "24:00:00"
    """Time limit of one start of the job, in SLURM's notation; the job requeues itself and goes on."""
    job_name: str | None = None
    """Name of the job, its log and its run folder; default: the recipe, or the data tool. A job of the same name continues
    the same run."""
    partition: str | None = None
    """SLURM partition, or several separated by commas."""
    account: str | None = None
    """SLURM account that the job is charged to."""
    qos: str | None = None
    """SLURM quality of service."""
    constraint: str | None = None
    """Features that the hosts must have, as SLURM's --constraint."""
    cpus_per_task: int = Field(12, ge=1, le=2**16)
    """CPU cores of each rank, or of each part of a data tool; more than --data.workers."""
    mem: str = "0"
    """Host memory of each node, in SLURM's notation; 0 takes all of it."""
    logs: Path = Path()
    """Folder of the logs, called NAME-JOB.out. It must exist when the job starts; --submit creates it."""
    workdir: Path | None = None
    """Folder that the job runs in and relative paths start from; default: the folder sbatch is called from."""
    python: str = sys.executable
    """Python interpreter that has vmae2_ds installed, as a path on every host or in the container."""
    env: tuple[str, ...] = ()
    """Environment variables for all ranks, as NAME=VALUE ..."""
    container: str | None = None
    """Container image, for srun's --container-image (pyxis)."""
    container_mounts: str | None = None
    """Folders mounted into the container, as HOST:INSIDE,..."""
    notice: int = Field(600, ge=30, le=65535)
    """Seconds before the time limit at which the ranks are told to save and stop; must be longer than a step and a save
    together."""
    max_requeues: Whole = 100
    """How often the job may requeue itself after its first start, whatever the reason."""
    max_losses: Whole = 5
    """The job stops for good after this many starts in a row that ended with a lost or hung rank."""
    print_: Annotated[bool, tyro.conf.arg(name="print")] = False
    """Print the script. This is the default where it is neither written to a file nor submitted."""
    submit: bool = False
    """Submit the script with sbatch."""


class SlurmArguments(JobArguments):
    """Write a batch script for SLURM that starts a recipe; options of the recipe may follow.

    `vmae2 pretrain --help`, finetune and distil list the recipes, `vmae2 pretrain RECIPE --help` their options.

    Example: vmae2 launch slurm vit_g_pretrain_hybrid --nodes 8 --out job.sh --data.manifest /data/all.csv; sbatch job.sh

    Data tools as an array job: vmae2 launch slurm data prepare LIST --out FOLDER --parts 64 --script job.sh (its options: vmae2
    launch slurm data prepare --help).
    """

    nodes: Machines
    """Number of hosts."""
    gpus_per_node: int = Field(8, ge=1, le=1024)
    """Number of GPUs on each host; one rank runs on each."""
    out: Path | None = None
    """File that the script is written to."""


def launch_slurm(arguments: SlurmArguments, config: RunConfig, words: Sequence[str]) -> str:
    """Check, then write, submit or return the script; returns what to print.

    Args:
        words: the verb, the recipe and its options, as they follow `vmae2`.

    Raises ConfigError or DataError where the run cannot start on that many ranks, or an option cannot stand in a script.
    """
    about = check_run(config, arguments.nodes * arguments.gpus_per_node)
    script = slurm_script(arguments, config, words)
    write_script(arguments.out, "--out", script, about)
    if arguments.submit:
        about.append(submit(arguments, script))
    shown = arguments.print_ or not (arguments.out or arguments.submit)
    return script if shown else "\n".join(about)


def write_script(out: Path | None, option: str, script: str, about: list[str]) -> None:
    """Write a script to the file that `option` names, if it does, and say so."""
    if out is not None:
        check_out_file(out, option, is_ours=_is_a_script_of_ours)
        write_whole(out, script)
        about.append(f"wrote {out}")


def submit(arguments: JobArguments, script: str, *options: str) -> str:
    """Give a script to sbatch, with options that count before the script's own; returns what sbatch says."""
    arguments.logs.mkdir(parents=True, exist_ok=True)
    try:
        told = subprocess.run(["sbatch", *options], input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        way_out = "write the script to a file and submit it where SLURM is"
        raise ConfigError(f"sbatch is not here; {way_out}") from None
    if told.returncode:
        raise ConfigError(f"sbatch refused the script: {told.stderr.strip() or told.returncode}")
    return told.stdout.strip()


def _is_a_script_of_ours(path: Path) -> bool:
    return _WRITTEN_BY in path.read_text(encoding="utf-8", errors="replace")[:200]


def slurm_script(arguments: SlurmArguments, config: RunConfig, words: Sequence[str]) -> str:
    """The script as text. Every word that a user gave is checked (#SBATCH lines) or quoted (bash)."""
    name = config.recipe if arguments.job_name is None else arguments.job_name
    words = [*words] if config.train.run else [*words, "--train.run", str(config.train.runs / config.recipe / name)]
    tasks = {
        "nodes": arguments.nodes,
        "ntasks-per-node": arguments.gpus_per_node,
        "gpus-per-node": arguments.gpus_per_node,
        "output": arguments.logs / "%x-%j.out",
    }
    return script_of(arguments, name, words, tasks, meeting=_MEETING.format(ports=SLURM_PORTS))


def script_of(
    arguments: JobArguments,
    name: str,
    words: Sequence[str],
    tasks: dict[str, object],
    *,
    about: str = "",
    meeting: str = "",
    more: str = "",
) -> str:
    """A script that starts `vmae2 WORDS` and comes back.

    Args:
        arguments: What the job is asked for.
        name: Of the job.
        words: Checked here, and quoted.
        tasks: Options of sbatch that say how many there are of what.
        about: Comments in front.
        meeting: Lines of bash by which the tasks find each other.
        more: Lines of bash that add to the array `command`.
    """
    _refuse_what_sbatch_would_misread(arguments, name)
    check_words([*words, arguments.python, str(arguments.workdir or "")])
    command = [arguments.python, "-u", "-m", "vmae2_ds", *words]
    variables = "".join(
        f"export {bash_words([f'{key}={value}'])}\n" for key, value in environment_of(arguments.env).items()
    )
    srun = ["srun", "--kill-on-bad-exit=1", "--distribution=block", "--cpu-bind=cores", "--export=ALL"]
    srun += [f"--cpus-per-task={arguments.cpus_per_task}"]  # since 22.05 a step no longer takes the job's
    if arguments.container:
        srun += [f"--container-image={arguments.container}"]
    if arguments.container_mounts:
        srun += [f"--container-mounts={arguments.container_mounts}"]
    options = {
        "job-name": name,
        **tasks,
        "cpus-per-task": arguments.cpus_per_task,
        "mem": arguments.mem,
        "time": arguments.time,
        "partition": arguments.partition,
        "account": arguments.account,
        "qos": arguments.qos,
        "constraint": arguments.constraint,
        "signal": f"B:USR1@{arguments.notice}",
        "open-mode": "append",
    }
    head = "".join(f"#SBATCH --{option}={value}\n" for option, value in options.items() if value is not None)
    return _SCRIPT.format(
        version=__version__,
        head=head,
        workdir=f"cd -- {bash_words([str(arguments.workdir)])} || exit 2\n" if arguments.workdir else "",
        variables=variables,
        about=about,
        meeting=meeting,
        losses=bash_words([str(arguments.logs / f"{name}-")]),
        max_requeues=arguments.max_requeues,
        max_losses=arguments.max_losses,
        srun=bash_words(srun),
        command=bash_words(command),
        more=more,
        saved=EXIT_PREEMPTED,
        hung=EXIT_HUNG,
    )


def _refuse_what_sbatch_would_misread(arguments: JobArguments, name: str) -> None:
    refuse_unless(r"\w[\w.+-]*", "--job-name", name, "a name of letters, digits and . _ + -")
    refuse_unless(r"(\d+-)?\d+(:\d+){0,2}", "--time", arguments.time, "a time limit such as 24:00:00 or 7-00:00:00")
    refuse_unless(r"\d+[KMGT]?", "--mem", arguments.mem, "an amount such as 900G, or 0 for all")
    refuse_unless(r"[\w./+-]+", "--logs", str(arguments.logs), "a path of letters, digits and . _ + - /")
    for option in ("partition", "account", "qos", "constraint"):
        refuse_unless(_WORD, f"--{option}", getattr(arguments, option), "one word as sbatch takes it")


_WRITTEN_BY = "# Written by vmae2_ds "
_MEETING = """\
# All GPUs of a host stay visible to each of its tasks: a rank takes the one of its local number.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$(({ports} + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT
"""
_SCRIPT = """\
#!/bin/bash
# Written by vmae2_ds {version}, `vmae2 launch slurm`. Start it with sbatch; the folder in --output has to exist.
{about}{head}#SBATCH --requeue

# A rank ends with 0: done; {saved}: stopped and saved; {hung}: hung, or lost a rank; anything else: somebody has to look.
# srun returns the highest code of its tasks, or 128 + the signal where all that ended early died of one.
{workdir}{variables}{meeting}export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-1}}"
export PYTHONUNBUFFERED=1
losses_file={losses}"$SLURM_JOB_ID.losses"
command=(
    {command}
)
{more}
{srun} "${{command[@]}}" &
step=$!
time_is_over='' cancelled='' interrupted=''
trap 'time_is_over=1 interrupted=1; kill -USR1 "$step" 2>/dev/null' USR1 # srun hands it on to every rank
trap 'cancelled=1 interrupted=1' TERM # SLURM tells the ranks itself: scancel, preemption, the time limit at last
while :; do
    interrupted=''
    wait "$step"
    code=$?
    [ -n "$interrupted" ] || break # else wait came back for the signal
done

come_again() {{
    local starts=$((${{SLURM_RESTART_COUNT:-0}} + 1))
    if [ -n "$cancelled" ] && [ -z "$time_is_over" ]; then
        echo "vmae2: $1; the job was cancelled or preempted, so SLURM decides whether it comes again" >&2
    elif [ "$starts" -gt {max_requeues} ]; then
        echo "vmae2: $1; not requeued: this was start $starts, and --max-requeues is {max_requeues}" >&2
    else
        echo "vmae2: $1; requeued after start $starts" >&2
        scontrol requeue "$SLURM_JOB_ID"
    fi
}}

if [ "$code" -eq {saved} ]; then
    rm -f -- "$losses_file"
    come_again "stopped and saved"
elif [ "$code" -eq {hung} ] || [ "$code" -gt 128 ]; then
    echo "$(date) code $code" >>"$losses_file"
    losses=$(wc -l <"$losses_file")
    if [ "$losses" -gt {max_losses} ]; then
        echo "vmae2: a rank hung or was lost (code $code), $losses times in a row: not requeued; look for a bad host" >&2
    else
        come_again "a rank hung or was lost (code $code), $losses of at most {max_losses} in a row"
    fi
elif [ "$code" -ne 0 ]; then
    echo "vmae2: ended with code $code: not requeued" >&2
else
    rm -f -- "$losses_file"
fi
exit "$code"
"""
