"""Pre-training that goes on, on a desk: which commands are run, and what becomes of their figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.desk import continued
from benchmarks.desk.lists import Lists
from vmae2_ds.errors import EXIT_OK
from vmae2_ds.json_lines import rows_of

VAL_LOSSES = {"continued": [6.4, 5.0, 5.5], "anew": [40.0, 20.0, 10.0]}  # thousandths


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run, each instead of a training that writes its validation."""
    ran: list[list[str]] = []

    def instead(words: list[Any], log: Path) -> None:
        ran.append([str(word) for word in words])
        run = Path(ran[-1][ran[-1].index("--train.run") + 1])
        run.mkdir(parents=True)
        (run / "finished.json").write_text("{}")
        losses = VAL_LOSSES.get(run.name.split("_")[0], [])
        rows = [
            {"step": 9 * i, "val_loss": loss / 1000, "seen_loss": loss / 2000, "val_videos": 12}
            for i, loss in enumerate(losses)
        ]
        (run / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def lists(data: Path, out: Path, *_: int) -> Lists:
        out.mkdir(exist_ok=True)
        here = {name: out / f"{name}.csv" for name in ("train", "val", "ut", "ut_train", "ut_val")}
        of = [{"ut": here[name]} for name in ("ut", "ut_train", "ut_val")]
        return Lists(here["train"], here["val"], *of, out / "mixture.toml", here["train"])

    monkeypatch.setattr(continued, "run_vmae2", instead)
    monkeypatch.setattr(continued, "write_lists", lists)
    monkeypatch.setattr(
        continued, "_probed", lambda run, _: {"ridge": 0.5 + 0.1 * ("seed1" in run.name), "motion": 0.25}
    )
    return ran


def test_what_goes_on_starts_from_the_first_and_its_row_is_the_look_before_the_first_step(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert continued.main(["--data", str(tmp_path), "--out", str(out), "--seeds", "0", "1"]) == EXIT_OK
    started = {Path(words[-1]).name: words for words in commands}
    assert list(started) == ["first_seed0", "continued_seed0", "continued_seed1", "anew_seed0", "anew_seed1"]
    for name, words in started.items():
        assert ("--train.init" in words) == name.startswith("continued")
        assert ("--data.val-manifest" in words) == (name != "first_seed0")
        assert words.count("--optim.base-lr") == 1
        assert words[words.index("--train.seed") + 1] == name[-1]
    at = commands[1].index("--train.init")
    assert commands[1][at + 1] == str(out / "runs" / "first_seed0")
    assert 'manifest = "bg_train.csv"\nshare = 0.2' in (out / "first.toml").read_text()

    rows = {(row["model"], row["seed"]): row for row in rows_of(out / "rows.jsonl")}
    assert list(rows) == [("first", 0), ("continued", 0), ("continued", 1), ("anew", 0), ("anew", 1)]
    assert (rows["first", 0]["step"], rows["first", 0]["val_loss"]) == (0, 0.0064)
    later = rows["continued", 1]
    assert [later[key] for key in ("val_loss", "lowest_val_loss", "lowest_at", "seen_loss")] == [
        0.0055,
        0.005,
        9,
        0.00275,
    ]
    told = capsys.readouterr().out
    assert "| continued | 5.500 (5.500 to 5.500; 2) | 5.000 (5.000 to 5.000; 2) |" in told
    assert "| 55.0 (50.0 to 60.0; 2) | 25.0 (25.0 to 25.0; 2) |" in told
    assert "| first | 6.400 | 6.400 |" in told

    done = len(commands)
    assert continued.main(["--data", str(tmp_path), "--out", str(out), "--seeds", "0", "1"]) == EXIT_OK
    assert len(commands) == done, "nothing is trained twice"
