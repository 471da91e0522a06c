"""A process that hangs ends with its own exit code, its stacks on disk, whatever it hangs in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmae2_ds.dist import Ranks
from vmae2_ds.errors import EXIT_HUNG
from vmae2_ds.guard.hang import STACKS, HangSwitch

HANGS = {
    "in Python": "import time; time.sleep(100)",
    "in C, with the interpreter's lock": (
        "mutex, libc = ctypes.create_string_buffer(64), ctypes.PyDLL(None)\n"
        "libc.pthread_mutex_lock(mutex); libc.pthread_mutex_lock(mutex)"
    ),
    "in C, without it": (
        "mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)\n"
        "libc.pthread_mutex_lock(mutex); libc.pthread_mutex_lock(mutex)"
    ),
}
PROGRAM = """
import ctypes, sys
from pathlib import Path
from vmae2_ds.dist import Ranks
from vmae2_ds.guard import hang
hang.SAY_AFTER_S, hang.EXIT_AFTER_S = 0.1, 1.5  # the line has to be written whole on a busy machine, too
switch = hang.HangSwitch(Path(sys.argv[1]), Ranks(3, 0, 8), 0.3, 100)
for number in range(3):
    switch.step(number)
with switch.slow("a save"):
    pass
{}
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("hang", HANGS)
def test_a_hang_ends_with_stacks_a_line_and_its_code(hang: str, tmp_path: Path) -> None:
    folder = tmp_path / "100% run"
    folder.mkdir()
    ended = run(PROGRAM.format(HANGS[hang]), folder)
    assert ended.returncode == EXIT_HUNG
    assert (
        f"vmae2: rank 3: no step was finished within 0.3 s after step 2; what every rank was doing is in {folder}"
        in (ended.stderr)
    )
    stacks = folder / STACKS / "rank3.txt"
    assert 'File "<string>", line 1' in stacks.read_text()  # of this program: the lines of HANGS come last


def test_what_is_no_step_has_a_limit_of_its_own(tmp_path: Path) -> None:
    slow = "import time\nwith switch.slow('a save'):\n    time.sleep(1)\nsys.exit(0)"
    assert run(PROGRAM.format(slow), tmp_path).returncode == 0
    too_slow = PROGRAM.replace("0.3, 100", "100, 0.3").format(slow.replace("sleep(1)", "sleep(100)"))
    ended = run(too_slow, tmp_path)
    assert ended.returncode == EXIT_HUNG
    assert "a save took longer than 0.3 s after step 2" in ended.stderr


def test_without_a_limit_nothing_ends(tmp_path: Path) -> None:
    endless = PROGRAM.replace("0.3, 100", "0, 0.1").format("import time; time.sleep(1)")
    assert run(endless, tmp_path).returncode == 0


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    with HangSwitch(tmp_path, Ranks(), 100, 100) as switch:
        switch.step(1)
        assert [path.name for path in (tmp_path / STACKS).iterdir()] == ["rank0.txt"]
    assert list(tmp_path.iterdir()) == []


def test_stacks_of_an_earlier_hang_stay_and_nobody_lists_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rank has a file in it: a list for each would be ranks x ranks entries."""
    folder = tmp_path / STACKS
    folder.mkdir()
    (folder / "rank0.txt").write_text("hung in a save")
    listed = []
    monkeypatch.setattr(os, "scandir", lambda path=".": listed.append(path))
    monkeypatch.setattr(os, "listdir", lambda path=".": listed.append(path) or [])
    with HangSwitch(tmp_path, Ranks(), 100, 100) as switch:
        switch.step(1)
    monkeypatch.undo()
    assert listed == []
    (kept,) = folder.glob("rank0_*.txt")
    assert kept.read_text() == "hung in a save"


def test_an_end_that_was_announced_comes(tmp_path: Path) -> None:
    """Even if the process goes on taking steps, which it may between two collectives."""
    ending = "import time\nswitch.end_in(0.2, 'rank 1 is gone')\nwhile True: switch.step(3); time.sleep(0.05)"
    ended = run(PROGRAM.replace("0.3, 100", "100, 100").format(ending), tmp_path)
    assert ended.returncode == EXIT_HUNG
    assert "vmae2: rank 3: rank 1 is gone; exit code 78" in ended.stderr
