"""The array job of a data tool under a real bash, with an sbatch and an srun that write down what they are given."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.lines import answer, refusal
from vmae2_ds.cli.main import main

SBATCH = r"""#!/bin/bash
# Takes a script from standard input, and runs its tasks one after another, as many as its own line or an option says.
printf '%s\n' "$*" >>"$RECORD/sbatch"
job=$(($(wc -l <"$RECORD/sbatch") + 6))
cat >"$RECORD/job.sh"
array=$(sed -n 's/^#SBATCH --array=//p' "$RECORD/job.sh")
for word in "$@"; do case $word in --array=*) array=${word#--array=} ;; esac; done
array=${array%\%*}
for task in $(seq "${array%-*}" "${array#*-}"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$((100 * job + task)) bash "$RECORD/job.sh" >>"$RECORD/said" 2>&1
done
echo "$job;cluster"
"""
SRUN = r"""#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
printf '%s\0' "${@:5}" >"$RECORD/task.$SLURM_ARRAY_TASK_ID"
[ "$SLURM_ARRAY_TASK_ID" != "${DIES-}" ] || exit 137
"""
SCONTROL = """#!/bin/bash
echo "$@" >>"$RECORD/scontrol"
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-ins write to."""
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL}.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    (tmp_path / "record").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "record"


def command_of(task: int, record: Path) -> list[str]:
    """What srun was to start for a task."""
    return (record / f"task.{task}").read_text().split("\0")[:-1]


def test_the_tasks_do_a_part_each_and_a_last_job_what_a_lost_one_left(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are no videos: what is said of each takes no decoding. The second of three parts dies before its work."""
    listed = tmp_path / "a set" / "list $(touch pwned).csv"
    listed.parent.mkdir()
    for number in range(6):
        (listed.parent / f"{number}.mp4").write_text(f"no video {number}")
    listed.write_text("path\n" + "".join(f"{number}.mp4\n" for number in range(6)))
    words = ["data", "check", str(listed), "--decode", "none", "--workers", "1", "--pictures", "0"]
    job = ["--parts", "3", "--at-once", "2", "--cpus-per-task", "4", "--mem", "9G", "--submit", "--script", "job.sh"]
    monkeypatch.setenv("DIES", "2")
    code, said, _ = answer(["launch", "slurm", *words, "--out", "out", *job], capsys)
    assert code == 0
    assert "submitted as job 7, and job 8 after it for what lost parts leave" in said
    script = (tmp_path / "job.sh").read_text()
    subprocess.run(["bash", "-n", "job.sh"], check=True)
    head = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {"array=1-3%2", "ntasks=1", "cpus-per-task=4", "mem=9G", "output=%x-%A_%a.out", "requeue"} <= head
    assert not any(line.startswith("gpus") for line in head)
    assert (record / "sbatch").read_text() == "--parsable\n--parsable --array=0 --dependency=afterany:7\n"
    assert (record / "job.sh").read_text() == script
    assert (record / "scontrol").read_text() == "requeue 702\n"  # lost: it comes again by itself, a few times
    parts = {task: command_of(task, record) for task in range(4)}
    assert parts == {
        0: [*words, "--out", "out"],
        **{task: [*words, "--out", "out", "--part", f"{task}/3"] for task in (1, 2, 3)},
    }
    for task in (1, 3, 0):
        with pytest.raises(SystemExit) as stop:
            main(parts[task])
        assert not stop.value.code
        told = capsys.readouterr().out
        assert ("6 rows, 6 files" in told) == (task == 0)
    with pytest.raises(SystemExit):
        main([*words, "--out", "one"])
    assert {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()} == {
        path.name: path.read_bytes() for path in Path("one").iterdir() if path.is_file()
    }
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("data prepare x.csv --out o", "missing: --parts"),
        ("data prepare x.csv --parts 3", "missing: --out"),
        ("data prepare x.csv --out o --parts 0", "--parts 0"),
        ("data prepare x.csv --out o --parts 10001", "--parts 10001"),
        ("data prepare x.csv --out o --parts 3 --part 1/3", "each task of the array job has its own"),
        ("data prepare x.csv --out o --parts 3 --part=1/3", "each task of the array job has its own"),
        ("data check x.csv --out o --parts 3 --crf 3", "no option --crf"),
        ("data prepare x.csv --out o --parts 3 --crf 90", "--crf 90: at most 51"),
        ("data prepare x.csv --out o --parts 3 --mem lots", "--mem 'lots'"),
        ("--parts 3 data synth o", "vmae2 data synth is work of one process"),
        (
            "data prepair x.csv --out o --parts 3",
            "vmae2 data has no tool prepair; an array job is for data check, prep",
        ),
    ],
)
def test_what_no_task_could_do_is_refused_where_the_script_is_written(
    line: str, said: str, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refusal(["launch", "slurm", *line.split(), "--script", "job.sh"], capsys)
    assert not Path("job.sh").exists()


def test_options_of_job_and_tool_may_stand_in_any_order(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    orders = (
        "--parts 3 --time 1:00:00 data prepare x.csv --out o --crf 9",
        "data prepare --parts 3 x.csv --time 1:00:00 --out o --crf 9",
    )
    first, second = (answer(["launch", "slurm", *line.split()], capsys)[1] for line in orders)
    assert first == second
    assert " data prepare x.csv --out o --crf 9\n" in first
