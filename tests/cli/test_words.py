"""What the command line says: exit codes as numbers, errors of the system as lines, on terminals and pipes of every kind."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.lines import answer, line_of, refusal
from vmae2_ds import errors
from vmae2_ds.cli import main as cli
from vmae2_ds.cli import tyro_refusals
from vmae2_ds.cli.main import VERBS, main

ROOT = Path(__file__).parents[2]


def raise_in(verb: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: list[str]) -> None:
        raise error

    monkeypatch.setitem(VERBS, verb, broken)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.DataError("x"), 2),
        (errors.CheckpointError("x"), 2),
        (errors.SaveFailed("x"), 74),
        (errors.Preempted("x"), 75),
        (errors.Diverged("x"), 76),
        (errors.TooManyBadFiles("x"), 77),
        (errors.LoaderFailed("x"), 77),
        (errors.RankLost("x"), 78),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes_are_these_numbers(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scripts that requeue compare with numbers: so does this."""
    raise_in("flops", error, monkeypatch)
    found, out, err = answer(["flops"], capsys)
    assert found == code
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("vmae2: ")


@pytest.mark.parametrize("code", ["0", "2", "74", "75", "76", "77", "78", "130", "1"])
def test_help_and_page_tell_the_same_exit_codes(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = " ".join(answer(["--help"], capsys)[1].split("Exit codes:")[1].split())
    page = (ROOT / "docs" / "CLI.md").read_text().split("## Exit codes")[1].split("## ")[0]
    for text in (told, page):
        assert f" {code} " in f" {text}"


def test_a_defect_is_not_called_a_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in("flops", ZeroDivisionError("ours"), monkeypatch)
    with pytest.raises(ZeroDivisionError):  # the interpreter prints it and ends with 1
        main(["flops"])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EMFILE])
def test_an_error_of_the_system_from_anywhere_is_a_line_with_path_reason_and_way_out(
    number: int, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raise_in(verb, OSError(number, os.strerror(number), "some/file"), monkeypatch)
    line = refusal(verb.split(), capsys)
    assert line == f"vmae2: some/file: {os.strerror(number)}; {cli.WAYS_OUT[number]}"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no number, no path"), "no number, no path"),
        (
            FileNotFoundError(2, "No such file or directory", b"caf\xe9", None, "other"),
            "caf\udce9 -> other: No such file",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_without_a_path_is_told_as_well(error: OSError, said: str) -> None:
    assert said in cli.describe_os_error(error)


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raise_in("flops", OSError(errno.ENOSPC, "No space left on device", "x"), monkeypatch)
    code, _, err = answer(["flops", "--debug"], capsys)
    assert code == 2
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("vmae2: x: No space left on device")


# --- verbs and options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelt_option_is_one_line(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = line_of(verb, tmp_path)
    line = refusal([*words, "--mannifest", "x"], capsys)
    assert "--mannifest" in line
    assert f"vmae2 {verb}" in line.split("; ", 1)[1]
    assert len(line) < 300


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain vit_ti_pretrain_desk --data.manifst x", "did you mean '--data.manifest'?"),
        ("pretrain vit_ti_pretrain_desk --manifest x", "did you mean '--data.manifest'?"),
        ("pretrain vit_ti_pretrain_dsk", "did you mean 'vit_ti_pretrain_desk'?"),
        ("pretrain --data.manifest x vit_ti_pretrain_desk", "vmae2 pretrain vit_ti_pretrain_desk --data.manifest ..."),
        (
            "pretrain vit_s_distil_k710",
            "vit_s_distil_k710 is a distillation recipe, and vmae2 pretrain takes pre-training",
        ),
        (
            "plan vit_s_distil_k710 --gpus 8 --gpu h100",
            "is a distillation recipe, and vmae2 plan takes pre-training, fine-tuning, temporal detection and spatial",
        ),
        (
            "tune vit_s_distil_k710 --gpus 8 --gpu h100",
            "is a distillation recipe, and vmae2 tune takes pre-training recipes",
        ),
        ("plan vit_b_pretrain_hybrid --gpus 8 --gpu a100", "did you mean 'a100-40g' or 'a100-80g'?"),
        ("launch slurm vit_b_pretrain_hybrid --nodes 0", "--nodes 0: at least 1"),
        ("help data chek", "did you mean 'data check'?"),
        ("flops --model gigantic", "--model gigantic: did you mean 'giant'?"),
    ],
)
def test_what_was_meant_is_offered(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refusal(line.split(), capsys)


@pytest.mark.parametrize("recipe", ["vit_b_pretrain_hybrid", "vit_b_finetune_k400", "vit_s_distil_k710"])
def test_launch_takes_recipes_of_every_stage(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [recipe if word == "vit_b_pretrain_hybrid" else word for word in line_of("launch slurm", tmp_path)]
    if "distil" in recipe:
        words += ["--teacher", "elsewhere.safetensors"]
    code, out, _ = answer(words, capsys)
    assert code == 0
    assert f"vmae2_ds {'pretrain' if 'pretrain' in recipe else recipe.split('_')[2]} {recipe}" in out


@pytest.mark.parametrize(
    "line", ["data", "data --help", "data -h", "launch", "launch --help", "help data", "help launch"]
)
def test_a_group_lists_its_verbs(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = answer(line.split(), capsys)
    group = "data" if "data" in line else "launch"
    told = {name for name in VERBS if f"  {name} " in out}
    assert (code, told) == (0, {name for name in VERBS if name.startswith(f"{group} ")})


def test_help_of_a_verb_is_the_verb_s_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(["help", "launch", "slurm"], capsys) == answer(["launch", "slurm", "--help"], capsys)


def test_a_recipe_s_command_hardware_and_source_have_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["pretrain", "--help"], ["pretrain", "vit_ti_pretrain_desk", "--help"]):
        starts = [each.split()[0] for each in answer(line, capsys)[1].splitlines() if each.strip()]
        assert {"Command:", "Hardware:", "Source:"} <= set(starts)


# --- terminals and pipes --------------------------------------------------------------------------------------------

SHOWN = ("flops", "memory", "plan", "tune", "launch slurm", "launch hosts")


ENCODINGS = pytest.mark.parametrize("encoding", ["ascii", "latin-1"])


def run(args: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(args)
    return int(stop.value.code or 0)


def shown(args: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, bytes]:
    """Exit code and what a terminal of 40 columns without line-drawing characters gets, of both streams."""
    held = io.BytesIO()
    with monkeypatch.context() as patch:
        streams = [io.TextIOWrapper(held, encoding, write_through=True) for _ in range(2)]
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        patch.setenv("COLUMNS", "40")
        return run(args), held.getvalue()


@ENCODINGS
@pytest.mark.parametrize("verb", VERBS)
def test_help_can_be_read_on_any_terminal(verb: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = shown([*verb.split(), "--help"], encoding, monkeypatch)
    assert code == 0
    assert f"vmae2 {verb}" in said.decode("ascii")  # nothing of it needs more
    assert b"\\x" not in said


@ENCODINGS
@pytest.mark.parametrize("verb", SHOWN)
def test_what_is_computed_can_be_read_on_any_terminal(
    verb: str, encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, said = shown(line_of(verb, tmp_path), encoding, monkeypatch)
    assert code == 0
    assert "Traceback" not in said.decode("ascii")
    assert b"\\u2500" not in said


@ENCODINGS
def test_letters_that_a_terminal_lacks_are_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "caf\u00e9 \u4e2d" / "no.csv"
    code, said = shown(["data", "index", str(place), "--out", str(tmp_path / "x")], encoding, monkeypatch)
    assert code == 2
    assert b"\\u4e2d" in said
    assert (b"caf\\xe9" if encoding == "ascii" else b"caf\xe9") in said


def test_a_name_that_is_no_text_is_escaped_on_every_terminal(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["data", "index", str(tmp_path / "caf\udce9.csv"), "--out", str(tmp_path / "x")]) == 2
    assert "caf\\udce9.csv" in capfd.readouterr().err


@pytest.mark.parametrize(
    "line", [["--help"], ["data"], *([*verb.split(), "--help"] for verb in VERBS), ["flops"], ["memory"]]
)
def test_a_reader_that_leaves_is_no_error(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert run(line) == 0


def test_the_shell_sees_no_error_either() -> None:
    """To the end of the interpreter, which flushes what it still holds."""
    command = f"'{sys.executable}' -m vmae2_ds --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_under_standard_output_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert run(["flops"]) == 2
    assert capsys.readouterr().err == "vmae2: standard output: No space left on device; what was to be said is lost\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "plan vit_ti_pretrain_desk --gpus 1 --gpu h100 --videos 9 --data.size 70",
            "--data.size 70 is not a positive multiple",
        ),
        ("memory --size 70", "--size 70 is not a positive multiple"),
        ("flops --num-frames 15", "--num-frames 15 is not a positive multiple"),
        ("memory --mask.encoder-ratio 0", "--mask.encoder-ratio 0.0 hides 0"),
        ("flops --mask.decoder-ratio 0", "--mask.decoder-ratio 0.0 is no share"),
        (
            "pretrain vit_ti_pretrain_desk --objective.context-weight 0.5 --mask.decoder none",
            "--objective.context-weight 0.5 is for cubes that encoder and decoder both see, and with --mask.decoder none there",
        ),
        (
            "pretrain vit_ti_pretrain_desk --objective.context-weight 1 --mask.decoder-tokens disjoint",
            "--objective.context-weight 1 is for cubes that encoder and decoder both see, and with --mask.decoder-tokens disj",
        ),
        ("pretrain vit_ti_pretrain_desk --model.positions-from 15 64", "--model.positions-from: its frames, 15"),
        ("plan vit_ti_pretrain_desk --gpus 7 --gpu h100 --videos 9", "--train.global-batch 32 is not a multiple"),
        ("distil vit_ti_distil_desk --distil.alpha 0 --teacher x", "--distil.alpha 0 and --distil.feature-weight 0"),
        ("launch hosts vit_s_distil_k710", "missing: --hostfile PATH"),
        ("plan vit_b_pretrain_hybrid --gpus 8", "missing: --gpu STR"),
        ("pretrain vit_ti_pretrain_desk --train.epochs", "--train.epochs: 1 value needed"),
        ("evaluate --manifest x.csv", "missing: PATH: "),
        ("evaluate w.pth --manifest x.csv --clips=2.5 --crops 1", "--clips: '2.5' is not a whole number"),
        (
            "evaluate w.pth --manifest x.csv --sampling dens",
            "--sampling dens: did you mean 'dense'? one of dense, segments;",
        ),
        ("evaluate w.pth --manifest x.csv --max-bad-share 1.5", "--max-bad-share 1.5: at most 1;"),
        ("pretrain vit_ti_pretrain_desk --optim.betas 0.9 x", "--optim.betas: '0.9 x' is not FLOAT FLOAT;"),
        ("data merge-kinetics new --k400 a.csv b.csv", "--k400: 'a.csv b.csv' is not PATH PATH PATH;"),
        ("flops base", "base: no argument and no option takes this;"),
    ],
)
def test_a_refusal_names_the_flag_that_is_typed(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(line.split(), capsys)
    assert told.startswith(f"vmae2: {said}")
    assert not re.search(r"(?<![-\w/])(data|mask|train|model|optim|distil)\.[a-z_]+|Unrecognized|\(s\)", told)


def test_a_tyro_without_events_still_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tyro_refusals, "tyro_errors", None)
    code, _, said = answer(["flops", "--model", "base", "--frames", "many"], capsys)
    assert code == 2
    assert "--frames" in said
