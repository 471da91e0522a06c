"""The batch script under a real bash, with an srun and an scontrol that write down what they are given."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from vmae2_ds.cli.main import main
from vmae2_ds.errors import ConfigError
from vmae2_ds.launch.slurm import SlurmArguments, launch_slurm
from vmae2_ds.recipes.pretrain import RECIPES

RECIPE = "vit_g_pretrain_hybrid"
HOSTILE = [
    "two words",
    "$(touch pwned)",
    "`touch pwned`",
    "a;touch pwned",
    "a\ntouch pwned\n",
    "a' 'b\"c\\",
    "a|touch pwned&",
    ">pwned",
    "*",
    "~",
    "${HOME}",
    "%h%n%%",
    "!!",
    "ünï",
    "{braces}",
]

FAKE_SRUN = r"""#!/bin/bash
printf '%s\0' "$@" >"$RECORD/srun"
printf '%s\n' "$MASTER_ADDR:$MASTER_PORT" "${ASKED-}" >"$RECORD/env"
trap 'echo USR1 >>"$RECORD/signals"; exit "$SRUN_CODE"' USR1
if [ -n "${SRUN_SLEEPS-}" ]; then
    touch "$RECORD/running"
    for _ in $(seq 200); do sleep 0.05; [ -e "$RECORD/end" ] && break; done
fi
exit "$SRUN_CODE"
"""
FAKE_SCONTROL = r"""#!/bin/bash
if [ "$1" = show ]; then printf 'node3\nnode4\n'; else echo "$@" >>"$RECORD/scontrol"; fi
"""


def written(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["launch", "slurm", RECIPE, "--nodes", "8", "--data.manifest", "all.csv", *args])
    out = capsys.readouterr()
    assert not stop.value.code, out.err
    return out.out


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["launch", "slurm", RECIPE, "--data.manifest", "all.csv", *args])
    assert stop.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("vmae2: ")
    return line


class Job:
    """A job of one script: a folder, a job number, and what its commands were given."""

    def __init__(self, script: str, folder: Path) -> None:
        self.folder = folder
        self.record = folder / "record"
        (folder / "bin").mkdir()
        self.record.mkdir()
        for name, text in (("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        (folder / "job.sh").write_text(script)
        subprocess.run(["bash", "-n", "job.sh"], cwd=folder, check=True)

    def start(self, code: int, **more: str) -> subprocess.Popen[str]:
        env = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "RECORD": str(self.record),
            "SRUN_CODE": str(code),
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "node[3-4]",
            **more,
        }
        return subprocess.Popen(
            ["bash", "job.sh"], cwd=self.folder, env=env, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )

    def run(self, code: int, **more: str) -> tuple[int, str]:
        """(exit code, what it says) of a start whose srun ends with `code`."""
        process = self.start(code, **more)
        said = process.communicate(timeout=30)[1]
        return process.returncode, said

    @property
    def requeues(self) -> int:
        asked = self.record / "scontrol"
        return asked.read_text().splitlines().count("requeue 123456") if asked.exists() else 0

    @property
    def command(self) -> list[str]:
        """What srun was to start on each rank."""
        words = (self.record / "srun").read_text().split("\0")[:-1]
        return words[words.index("vmae2_ds") + 1 :]


def test_the_script_asks_for_a_task_per_gpu_and_starts_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = written(capsys, "--time", "2-00:00:00", "--partition", "a100,h100", "--job-name", "g1", "--notice", "300")
    head = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {"nodes=8", "ntasks-per-node=8", "gpus-per-node=8", "time=2-00:00:00", "partition=a100,h100"} <= head
    assert {"signal=B:USR1@300", "requeue", "open-mode=append", "output=%x-%j.out", "job-name=g1"} <= head
    job = Job(script, tmp_path)
    assert job.run(0) == (0, "")
    assert job.command == ["pretrain", RECIPE, "--data.manifest", "all.csv", "--train.run", f"runs/{RECIPE}/g1"]
    assert (job.record / "env").read_text().splitlines()[0] == "node3:23456"
    srun = (job.record / "srun").read_text().split("\0")
    assert {"--kill-on-bad-exit=1", "--cpu-bind=cores", "--cpus-per-task=12"} <= set(srun)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not here: Debian's shellcheck")
def test_shellcheck_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.sh").write_text(written(capsys, "--workdir", "/data", "--env", "A=b c"))
    checked = subprocess.run(["shellcheck", tmp_path / "job.sh"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_words_of_the_user_reach_the_ranks_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, word in enumerate(HOSTILE):
        folder = tmp_path / str(number)
        workdir = folder / f"in {word.replace('/', '')}"
        workdir.mkdir(parents=True)
        more = ["--train.run", word, "--env", f"ASKED={word}", "--workdir", str(workdir)]
        job = Job(written(capsys, *more, "--container", f"image{word}"), folder)
        assert job.run(0) == (0, "")
        assert job.command[-2:] == ["--train.run", word]
        assert (job.record / "env").read_text().split("\n", 1)[1] == f"{word}\n"
        assert f"--container-image=image{word}" in (job.record / "srun").read_text().split("\0")
        assert not list(folder.rglob("pwned"))


@pytest.mark.parametrize(
    "option", ["--job-name", "--partition", "--account", "--qos", "--constraint", "--time", "--mem"]
)
@pytest.mark.parametrize("value", ["a\n#SBATCH --uid=0", "a b", "$(id)", "a'", "a\\", "", "a#"])
def test_what_sbatch_would_misread_is_refused(option: str, value: str) -> None:
    config = RECIPES[RECIPE]().changed(data={"manifest": Path("all.csv")})
    arguments = SlurmArguments.model_validate({"nodes": 8, option.strip("-").replace("-", "_"): value})
    with pytest.raises(ConfigError, match=option):
        launch_slurm(arguments, config, ["pretrain", RECIPE])


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--nodes", "7"], ["--train.global-batch 8192", "56 ranks"]),
        (["--nodes", "0"], ["--nodes 0: at least 1"]),
        ([], ["--nodes"]),
        (["--nodes", "8", "--train.ds-config", "zero9"], ["zero9"]),
        (["--nodes", "8", "--data.vews", "3"], ["--data.vews"]),
        (["--nodes", "8", "--env", "A B=1"], ["--env", "A B=1"]),
        (["--nodes", "8", "--logs", "a b"], ["--logs", "a b"]),
        (["--nodes", "8", "--train.run", "a\0b"], ["zero byte"]),
        (["--nodes", "8", "--submit"], ["sbatch is not here"]),
    ],
)
def test_what_cannot_start_is_not_written(
    args: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    line = refused(capsys, *args)
    for part in parts:
        assert part in line


def test_a_finetuning_recipe_starts_its_own_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["vit_b_finetune_k400", "--nodes", "1", "--data.manifest", "k.csv", "--out", str(tmp_path / "job.sh")]
    with pytest.raises(SystemExit):
        main(["launch", "slurm", *words])
    said = capsys.readouterr().out
    assert "k.csv is not on this machine" in said
    assert f"wrote {tmp_path / 'job.sh'}" in said
    assert " finetune vit_b_finetune_k400 " in (tmp_path / "job.sh").read_text()


@pytest.mark.parametrize(
    ("code", "requeues", "said"),
    [
        (0, 0, ""),
        (75, 1, "stopped and saved; requeued after start 1"),
        (78, 1, "a rank hung or was lost (code 78), 1 of at most 5 in a row"),
        (137, 1, "a rank hung or was lost (code 137)"),
        (1, 0, "code 1: not requeued"),
        (2, 0, "code 2: not requeued"),
        (76, 0, "code 76: not requeued"),
        (77, 0, "code 77: not requeued"),
    ],
)
def test_requeue_by_exit_code(
    code: int, requeues: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(written(capsys), tmp_path)
    ended, told = job.run(code)
    assert ended == code
    assert job.requeues == requeues
    assert said in told
    assert bool(said) == bool(told)


def test_requeues_are_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(written(capsys, "--max-requeues", "3"), tmp_path)
    told = [job.run(75, SLURM_RESTART_COUNT=str(restarts))[1] for restarts in range(4)]
    assert job.requeues == 3
    assert "not requeued: this was start 4, and --max-requeues is 3" in told[-1]


def test_losses_in_a_row_are_bounded_and_a_save_between_them_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(written(capsys, "--max-losses", "2"), tmp_path)
    for code in (78, 137, 75, 78, 78):
        job.run(code)
    assert job.requeues == 5
    assert "3 times in a row: not requeued" in job.run(78)[1]
    assert job.requeues == 5


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.02)


def test_the_notice_before_the_time_limit_goes_to_the_ranks_and_the_job_comes_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(written(capsys), tmp_path)
    process = job.start(75, SRUN_SLEEPS="1")
    wait_for(job.record / "running")
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 75
    assert (job.record / "signals").read_text() == "USR1\n"
    assert "requeued after start 1" in said
    assert job.requeues == 1


def test_a_cancelled_job_does_not_come_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(written(capsys), tmp_path)
    process = job.start(75, SRUN_SLEEPS="1")
    wait_for(job.record / "running")
    process.send_signal(signal.SIGTERM)  # SLURM sends it to the ranks too, which save and end with 75
    (job.record / "end").touch()
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 75
    assert "SLURM decides" in said
    assert job.requeues == 0


def test_submitting_hands_the_script_to_sbatch_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ncat >{tmp_path}/given; echo Submitted batch job 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    said = written(capsys, "--submit", "--logs", str(tmp_path / "logs"), "--out", str(tmp_path / "job.sh"))
    assert "Submitted batch job 7" in said
    assert "global batch 8192 clips" in said
    assert (tmp_path / "given").read_text() == (tmp_path / "job.sh").read_text()
    assert (tmp_path / "logs").is_dir()
