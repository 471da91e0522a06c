"""Every line comes, whatever the packages and the machine do: raise, exit, crash, hang, or are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from vmae2_ds.doctor.ask import ask
from vmae2_ds.doctor.examine import PROBES, SECTIONS, Probe, examine
from vmae2_ds.doctor.finding import Finding, green
from vmae2_ds.doctor.needs import Needs
from vmae2_ds.doctor.page import SCHEMA
from vmae2_ds.errors import EXIT_USER_ERROR

ROOT = Path(__file__).parents[2]
LONG_S = 60.0


def made_package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code + "\n")


BROKEN = {
    "raise ImportError('libavcodec.so.61: cannot open')": "ImportError: libavcodec.so.61: cannot open",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "import sys; sys.exit(3)": "SystemExit: 3",
    "class Odd(BaseException): ...\nraise Odd('two\\nlines')": "Odd: two lines",
    "import os; os.abort()": "signal 6",
    "import os; os._exit(5)": "exit code 5",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_package_that_breaks_at_import_is_a_line(
    code: str, needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_package(tmp_path, "decord", code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    found = examine(needs, LONG_S, {"decord": PROBES["decord"]})["decord"]
    assert found.light == "yellow"
    assert BROKEN[code] in found.value
    assert "decord" in str(found.remedy)


def test_a_package_that_hangs_ends_with_all_that_it_started(
    needs: Needs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "started"
    code = (
        f"import subprocess, time\nsubprocess.Popen(['sh', '-c', 'echo $$ >{mark}; exec sleep 1000'])\ntime.sleep(1000)"
    )
    made_package(tmp_path, "decord", code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    found = examine(needs, 4, {"decord": PROBES["decord"]})["decord"]
    assert found.light == "yellow"
    assert "not done within" in found.value
    assert "--limit-s" in str(found.remedy)
    if mark.exists():  # else the machine was too busy to come as far
        assert ends(int(mark.read_text()))


def test_a_doctor_that_is_killed_takes_what_hangs_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    made_package(
        tmp_path, "cv2", f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    code = """
from vmae2_ds.doctor import examine, needs
examine.examine(needs.Needs("r", 1, {}), 1000, {"cv2": examine.PROBES["cv2"]})
"""
    doctor = subprocess.Popen([sys.executable, "-c", code], env=env)
    while not mark.exists() or not mark.read_text():
        threading.Event().wait(0.02)
    doctor.kill()
    doctor.wait()
    assert ends(int(mark.read_text()))


def ends(process: int) -> bool:
    """Within a few seconds: a process that is killed is gone a moment later."""
    for _ in range(200):
        if not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            return True
        threading.Event().wait(0.02)
    return False


def test_the_reader_of_the_recipe_is_missed_and_others_are_not(needs: Needs) -> None:
    for reader, light in (("torchcodec", "red"), ("pyav", "green"), ("mine:read", "green")):
        found = PROBES["torchcodec"].look(replace(needs, reader=reader))[0]
        if found.value.startswith("not installed"):
            assert found.light == light


def test_a_look_that_hangs_or_fails_leaves_the_others_alone(needs: Needs) -> None:
    never = threading.Event()

    def fails(needs: Needs) -> list[Finding]:
        raise ZeroDivisionError("so it goes")

    def hangs(needs: Needs) -> list[Finding]:
        never.wait()
        return []

    probes = {
        "hangs": Probe("Host", hangs, ("hangs", "hangs_too"), no_answer="red"),
        "fails": Probe("Host", fails, ("fails",)),
        "works": Probe("Host", lambda needs: [green("works", "yes")], ("works",)),
    }
    found = examine(needs, 1, probes)
    assert {name: finding.light for name, finding in found.items()} == {
        "hangs": "red", "hangs_too": "yellow", "fails": "yellow", "works": "green",
    }  # fmt: skip
    assert "ZeroDivisionError: so it goes" in found["fails"].value
    assert found["hangs_too"].value == "not known, as hangs did not answer"
    never.set()


def look_that_breaks(needs: Needs) -> Iterator[Finding]:
    yield green("first", "there", about=needs.recipe)
    if needs.reader == "hangs":
        time.sleep(1000)
    os.abort()


@pytest.mark.parametrize(("how", "why"), [("hangs", "not done within"), ("crashes", "signal 6")])
def test_what_was_found_before_a_crash_or_a_hang_is_kept(how: str, why: str, needs: Needs) -> None:
    probes = {"torch": Probe("Host", look_that_breaks, ("first", "second", "third"), alone=True, no_answer="red")}
    first, second, third = examine(replace(needs, reader=how), 5 if how == "hangs" else LONG_S, probes).values()
    assert first == green("first", "there", about="r")
    assert (second.light, why in second.value) == ("red", True)
    assert (third.light, third.value) == ("yellow", "not known, as second did not answer")


def test_a_broken_numpy_is_a_red_line(tmp_path: Path) -> None:
    made_package(tmp_path, "numpy", "raise SystemError('built for another Python')")
    code = """
from vmae2_ds.doctor import doctor, examine
from vmae2_ds.recipes.pretrain import RECIPES
doctor.examine = lambda needs, limit_s: examine.examine(needs, limit_s, {"numpy": examine.PROBES["numpy"]})
found = doctor.doctor(doctor.DoctorArguments(limit_s=60), RECIPES["vit_b_pretrain_hybrid"]()).findings["numpy"]
print(found.light, found.value)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("red "), done.stderr
    assert "SystemError: built for another Python" in done.stdout


def test_a_program_that_is_not_there_or_too_slow_has_no_answer() -> None:
    assert ask(["/nonexistent/program"], 1) is None
    slow = ask(["sh", "-c", "echo first; exec sleep 1000"], 0.5)
    assert slow is not None
    assert (slow.code, slow.out) == (None, "first\n")
    both = ask(["sh", "-c", "cat; echo last >&2; exit 3"], LONG_S, "given")
    assert both == (3, "given", "last\n")


def test_every_name_is_one_probe_s_and_every_section_is_drawn() -> None:
    names = [name for probe in PROBES.values() for name in probe.names]
    assert len(names) == len(set(names))
    assert {probe.section for probe in PROBES.values()} == set(SECTIONS)


def test_the_whole_verb_as_json(tmp_path: Path) -> None:
    """From a folder with nothing in it, the checkout on PYTHONPATH alone; one package talks, another breaks."""
    made_package(tmp_path, "cv2", "print('hello from a package', flush=True)\n__version__ = '4'")
    made_package(tmp_path, "transformers", "raise RuntimeError('built for another Python')")
    (tmp_path / "empty").mkdir()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "vmae2_ds", "doctor", "--json", "--limit-s", "120", "--recipe"]
    done = subprocess.run(
        [*command, "vit_g_pretrain_hybrid", "--data.workers", "1"],
        cwd=tmp_path / "empty", env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = json.loads(done.stdout)  # nothing else is there
    print(f"{told['seconds']} s")
    assert told["schema"] == SCHEMA
    assert {"host", "utc", "unix_s", "seconds", "recipe", "words", "ranks", "light", "counts"} < set(told)
    assert (told["recipe"], told["words"]) == ("vit_g_pretrain_hybrid", ["--data.workers", "1"])
    findings = told["findings"]
    assert list(findings) == [name for probe in PROBES.values() for name in probe.names]
    for name, finding in findings.items():
        assert set(finding) == {"section", "value", "light", "remedy", "figures"}, name
        assert (finding["remedy"] is None) == (finding["light"] == "green"), name
    reds = [name for name, finding in findings.items() if finding["light"] == "red"]
    assert done.returncode == (EXIT_USER_ERROR if reds else 0), (reds, done.stderr)
    assert told["light"] == ("red" if reds else "yellow")
    assert findings["cv2"]["figures"]["version"] == "4"
    assert "built for another Python" in findings["transformers"]["value"]
    assert findings["torch"]["figures"]["version"].startswith("2."), findings["torch"]
    assert set(findings["sdpa"]["figures"]["kernels"]) == {"encoder", "decoder"}
    assert "cpu_adam" in findings["deepspeed_ops"]["value"]
    assert list((tmp_path / "empty").iterdir()) == []
