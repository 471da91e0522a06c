"""`vmae2 launch slurm data TOOL`: an array job whose tasks do a part each of a data tool's work, and one that does the rest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from vmae2_ds.config.strict import Count
from vmae2_ds.data.tools.parts import MOST_PARTS
from vmae2_ds.errors import ConfigError
from vmae2_ds.launch.slurm import JobArguments, script_of, submit, write_script


class ArrayArguments(JobArguments):
    """Write a batch script for SLURM that does a data tool's work as an array job, a part each; options of the tool may follow.

    Example: vmae2 launch slurm data prepare /data/all.csv --out /data/small --parts 64 --script job.sh; sbatch job.sh
    """

    parts: int = Field(ge=1, le=MOST_PARTS)
    """Number of parts, which run in any order; SLURM takes up to 1,000, or what its MaxArraySize says."""
    at_once: Count | None = None
    """Number of parts that SLURM may run at the same time; default: as many as it has room for."""
    mem: str = "16G"
    """Host memory of each part, in SLURM's notation."""
    script: Path | None = None
    """File that the script is written to."""
    submit: bool = False
    """Submit the parts with sbatch, and after them a job that does what lost parts left and puts the result together."""


def launch_array(arguments: ArrayArguments, tool: str, words: Sequence[str]) -> str:
    """Write, submit or return the script; returns what to print.

    Args:
        arguments: What the job is asked for.
        tool: The verb of `vmae2 data`.
        words: Its options, checked by the tool.

    Raises ConfigError where an option cannot stand in a script.
    """
    if any(word.partition("=")[0] == "--part" for word in words):
        raise ConfigError(
            "--part: each task of the array job has its own; leave it out, --parts N says how many there are"
        )
    name = arguments.job_name or f"data-{tool}"
    limit = "" if arguments.at_once is None else f"%{arguments.at_once}"
    tasks: dict[str, object] = {
        "array": f"1-{arguments.parts}{limit}",
        "ntasks": 1,
        "output": arguments.logs / "%x-%A_%a.out",
    }
    script = script_of(
        arguments,
        name,
        ["data", tool, *words],
        tasks,
        about=_ABOUT.format(parts=arguments.parts),
        more=_PART.format(parts=arguments.parts),
    )
    about = [f"{arguments.parts} parts; the last to end puts the result together"]
    write_script(arguments.script, "--script", script, about)
    if arguments.submit:
        job = submit(arguments, script, "--parsable").partition(";")[0]  # JOB, or JOB;CLUSTER
        rest = submit(arguments, script, "--parsable", "--array=0", f"--dependency=afterany:{job}").partition(";")[0]
        about.append(f"submitted as job {job}, and job {rest} after it for what lost parts leave")
    shown = arguments.print_ or not (arguments.script or arguments.submit)
    return script if shown else "\n".join(about)


_ABOUT = """\
#   sbatch SCRIPT                                      {parts} parts in any order; the last to end puts the result together
#   sbatch --array=3,17 SCRIPT                         parts that were lost, once more: what is finished stays
#   sbatch --array=0 --dependency=afterany:JOB SCRIPT  when job JOB is over: all that is left, and the result
"""
_PART = """\
[ "$SLURM_ARRAY_TASK_ID" -eq 0 ] || command+=(--part "$SLURM_ARRAY_TASK_ID/{parts}")
"""
