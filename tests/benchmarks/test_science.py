"""The grid of short pre-trainings: its order, its lengths by hand, what it trains, and what it makes of rows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.case import Bench, Options
from benchmarks.cases import CASES, science
from benchmarks.cases.science import grid, training
from benchmarks.cases.science.grid import BASE, BATCH, CELLS, OF_NAME, clip_flops, steps_of
from benchmarks.cases.science.sets import Sets
from benchmarks.cases.science.training import Trainer, Training, TrainingFailed, training_of
from benchmarks.record import Row
from tests.benchmarks.made_rows import made_row, write_rows


def sets_of(folder: Path) -> Sets:
    lists = {"synthetic": folder / "list.csv"}
    return Sets(lists, {"synthetic": 4000}, "synthetic", 12, {}, "made")  # type: ignore[arg-type]


def bench_in(folder: Path, **options: Any) -> Bench:
    return Bench(Options(device="cpu", **options), folder=folder)


def groups_of(folder: Path, **options: Any) -> list[str]:
    return [group.name for group in CASES["science"].groups(bench_in(folder, **options))]


def test_whatever_time_allows_has_three_seeds(tmp_path: Path) -> None:
    """Three seeds of what cannot wait, seed by seed; then three of each cell that can; then one more of all."""
    names = groups_of(tmp_path, seeds=4, videos=Path("list.csv"))
    assert names[-1] == "summary"
    pieces = [(int(seed.split()[1]), variant) for seed, _, variant in (name.partition(": ") for name in names[:-1])]
    assert len(set(pieces)) == len(pieces)
    first, later = ([cell.name for cell in CELLS if cell.can_wait == waits] for waits in (False, True))
    found = [piece for piece in pieces if piece[1] in OF_NAME]
    wanted = [(seed, name) for seed in range(3) for name in first] + [
        (seed, name) for name in later for seed in range(3)
    ]
    assert found == [*wanted, *((3, name) for name in (*first, *later))]
    assert [seed for seed, variant in pieces if variant == "random encoder"] == [0, 1, 2, 3]
    assert [seed for seed, variant in pieces if variant == "pixels"] == [0], "which no seed changes"


def test_without_a_list_there_is_no_question_of_data(tmp_path: Path) -> None:
    names = groups_of(tmp_path, seeds=1)
    assert not any("real" in name or "mixed" in name for name in names)
    assert len(groups_of(tmp_path, seeds=1, videos=Path("list.csv"))) == len(names) + 2


def test_work_of_a_clip_by_hand() -> None:
    """Of 144 cubes 0.75 are hidden and 36 seen; a running cell of half gives 72 mask tokens."""

    def block(width: int, tokens: int) -> int:
        return 12 * tokens * width**2 + 2 * tokens**2 * width

    def by_hand(visible: int, decoded: int) -> int:
        wide, narrow, cube = grid.MODEL.encoder.width, grid.MODEL.decoder.width, 2 * 8 * 8 * 3
        macs = visible * cube * wide + grid.MODEL.encoder.depth * block(wide, visible) + visible * wide * narrow
        macs += grid.MODEL.decoder.depth * block(narrow, visible + decoded) + decoded * narrow * cube
        return 6 * macs

    dual, none = by_hand(36, 72), by_hand(36, 108)
    assert clip_flops(OF_NAME[BASE].mask) == dual
    assert clip_flops(OF_NAME["none"].mask) == none
    assert steps_of(OF_NAME["none"], 1000) == 1000
    assert steps_of(OF_NAME["dual at none's FLOPs"], 1000) == round(1000 * none / dual) > 1000


def test_equal_work_is_equal_to_half_a_step() -> None:
    for cell in CELLS:
        if cell.as_much_as is not None:
            apart = grid.run_flops(cell) - grid.run_flops(OF_NAME[cell.as_much_as])
            assert abs(apart) <= BATCH * clip_flops(cell.mask) / 2
            assert steps_of(cell) > steps_of(OF_NAME[cell.as_much_as]), "its step is cheaper"


def test_lengths() -> None:
    assert [steps_of(OF_NAME[name], 1000) for name in ("half as long", BASE, "twice as long")] == [500, 1000, 2000]


def test_a_command_line_says_what_its_cell_does(tmp_path: Path) -> None:
    sets = sets_of(tmp_path)
    lines = {cell.name: " ".join(training_of(cell, 3, sets).words) for cell in CELLS if cell.data is None}
    assert "--mask.encoder tube --mask.encoder-ratio 0.9" in lines["encoder tube 90 %"]
    assert "--mask.decoder frame --mask.decoder-ratio 0.5" in lines["frame 50 %"]
    assert "--mask.decoder none" in lines["none"]
    assert "--objective.context-weight 1" in lines["dual with loss on all"]
    assert "--mask.decoder-tokens disjoint" in lines["tubes with disjoint tokens"]
    assert all("--train.seed 3" in line for line in lines.values())
    names = [training_of(cell, 3, sets).name for cell in CELLS if cell.data is None]
    assert len(set(names)) == len(names)
    labelled = training_of(OF_NAME["labels afterwards"], 3, sets)
    assert labelled.after == training_of(OF_NAME[BASE], 3, sets), "the run of the dual cell is not trained twice"
    assert labelled.flops > labelled.after.flops


PROGRAM = """
import json, pathlib, sys, time
words = sys.argv[1:]
run = pathlib.Path(words[words.index("--train.run") + 1])
run.mkdir(parents=True, exist_ok=True)
init = pathlib.Path(words[words.index("--train.init") + 1]).name if "--train.init" in words else ""
with (run.parent / "begun.txt").open("a") as file:
    file.write(run.name + f" from {init}" * bool(init) + "\\n")
time.sleep(float(words[0]))
if words[1] == "fails":
    sys.exit(3)
(run / "finished.json").write_text("{}")
"""


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """One that starts a program which takes as long as it is told."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setattr(training, "PROGRAM", (training.PROGRAM[0], str(program)))
    monkeypatch.setattr(training, "LOOK_EVERY_S", 0.01)
    return Trainer(tmp_path / "runs", sets_of(tmp_path), jobs=2, until=time.time() + 100)


def made(
    name: str, seconds: float = 0.0, how: str = "well", flops: float = 1.0, after: Training | None = None
) -> Training:
    return Training(name, (str(seconds), how), "synthetic", flops, 1, after)


def begun(trainer: Trainer) -> list[str]:
    path = trainer.folder / "begun.txt"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def test_a_finished_run_is_not_trained_again(trainer: Trainer) -> None:
    cost = trainer.finish(made("a"))
    assert cost is not None
    assert trainer.finish(made("a")) == cost
    again = Trainer(trainer.folder, trainer.sets, 2, trainer.until)
    assert again.finish(made("a")) == cost
    assert begun(trainer) == ["a"]
    assert 0 < cost.cpu_s < cost.wall_s + 1


def test_a_run_that_was_cut_goes_on(trainer: Trainer) -> None:
    (trainer.folder / "a").mkdir()
    (trainer.folder / "a" / "half.txt").write_text("of a run")
    assert trainer.finish(made("a")) is not None
    assert (trainer.folder / "a" / "half.txt").exists()


def test_so_many_at_once_in_their_order(trainer: Trainer) -> None:
    later = [made("b", 0.5), made("c", 0.5)]
    trainer.finish(made("a"), later)
    assert begun(trainer)[:2] in (["a", "b"], ["b", "a"])
    assert len(trainer.going) <= 2
    for each in later:
        assert trainer.finish(each) is not None
    assert sorted(begun(trainer)) == ["a", "b", "c"]


def test_what_it_starts_from_is_trained_first(trainer: Trainer) -> None:
    first = made("first", 0.2)
    trainer.finish(made("a"), [made("later", after=first)])
    assert "later from first" not in begun(trainer)
    assert trainer.finish(made("later", after=first)) is not None
    assert begun(trainer)[-2:] == ["first", "later from first"]


def test_a_run_that_would_not_end_in_time_is_not_begun(trainer: Trainer) -> None:
    trainer.finish(made("a", 0.3, flops=1.0))
    trainer.until = time.time() + 2
    assert trainer.finish(made("b", 0.0, flops=100.0)) is None, "by the first one's rate it takes half a minute"
    assert trainer.finish(made("c", 0.0, flops=1.0)) is not None
    assert begun(trainer) == ["a", "c"]


def test_a_run_that_fails_says_so_when_its_turn_comes(trainer: Trainer) -> None:
    broken = made("b", 0.0, "fails")
    assert trainer.finish(made("a", 0.5), [broken]) is not None
    with pytest.raises(TrainingFailed, match="b ended with exit code 3"):
        trainer.finish(broken)


def test_what_is_trained_ahead_is_not_trained_yet(tmp_path: Path) -> None:
    made_by = science.Grid(bench_in(tmp_path, seeds=1, jobs=2))
    vars(made_by)["sets"] = sets_of(tmp_path)
    first, second, third, fourth, *_ = made_by.pieces
    names = [made_by.training(piece).name for piece in (second, third, fourth)]
    assert [each.name for each in made_by.ahead(first)] == names[:2]
    run = made_by.trainer.folder / names[0]
    run.mkdir()
    for name in (training.FINISHED, training.COST):
        (run / name).write_text('{"cpu_s": 1, "wall_s": 1, "flops": 1}')
    assert [each.name for each in made_by.ahead(first)] == names[1:]
    write_rows(tmp_path, [made_row("science", third.group, third.variant)])
    assert names[1] not in [each.name for each in made_by.ahead(first)], "whose row is there"


def made_grid(seeds: int = 3) -> list[Row]:
    """Rows of runs: dual a point better than none by each seed, random ten points worse, the frame mask all over the place."""
    rows = []
    for seed in range(seeds):
        noise = 0.01 * (seed - 1)
        for variant, accuracy in {
            BASE: 0.6, "none": 0.59, "random 50 %": 0.5, "frame 50 %": 0.6 - 0.2 * (seed == 1), "random encoder": 0.3,
        }.items():  # fmt: skip
            config: dict[str, object] = {"seed": seed, "classes": 12}
            if variant in OF_NAME:
                config |= {"ablation": OF_NAME[variant].ablation, "steps": 1000, "flops": 1e12, "cpu_s": 60.0}
            values = {"motion": accuracy + noise + 0.001 * seed * (variant == BASE), "mean": 0.3, "one_frame": 0.083}
            fields = {"config": config, "values": values, "kind": "measured", "unix_time": 1795464000.0 + seed}
            rows.append(made_row("science", f"seed {seed}: {variant}", variant, **fields))
    return rows


def summarised(folder: Path, rows: list[Row]) -> list[Row]:
    write_rows(folder, rows)
    found = science.summarise(bench_in(folder))
    return [*rows, *(made_row("science", "summary", row.pop("variant"), **row) for row in found)]


def claims_of(rows: list[Row], metric: str = "motion") -> dict[tuple[str, str], Row]:
    """By the two cells that a sentence compares."""
    claims = [row for row in rows if row["variant"].startswith("claim") and row["config"]["metric"] == metric]
    return {(row["config"]["first"], row["config"]["second"]): row for row in claims}


def test_summary_of_made_rows(tmp_path: Path) -> None:
    rows = summarised(tmp_path, made_grid())
    over = {row["config"]["of"]: row["values"] for row in rows if row["variant"].startswith("over seeds")}
    assert over["none"]["motion"] == pytest.approx(0.59)
    assert (over["none"]["motion_low"], over["none"]["motion_high"], over["none"]["seeds"]) == pytest.approx(
        (0.58, 0.60, 3)
    )
    claims = claims_of(rows)
    dual = claims[BASE, "none"]
    assert dual["config"]["differences"] == pytest.approx([1.0, 1.1, 1.2])
    assert dual["values"]["difference"] == pytest.approx(1.1)
    assert dual["values"]["difference_low"] == pytest.approx(1.1 - 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert {pair: row["config"]["verdict"] for pair, row in claims.items() if row["values"]["seeds"]} == {
        (BASE, "none"): "supports", (BASE, "random 50 %"): "supports", (BASE, "frame 50 %"): "cannot tell",
    }  # fmt: skip
    assert {row["config"]["verdict"] for row in claims.values() if not row["values"]["seeds"]} == {"cannot tell"}


def test_accuracies_below_a_random_encoder_tell_nothing(tmp_path: Path) -> None:
    rows = made_grid()
    for row in rows:
        if row["variant"] == "random encoder":
            row["values"] |= {"motion": 0.9}
    dual = claims_of(summarised(tmp_path, rows))[BASE, "none"]
    assert (dual["config"]["verdict"], dual["config"]["above_random"]) == ("cannot tell", False)
    assert dual["values"]["difference_low"] > 0, "though dual is above none"


def test_of_an_error_lower_is_better(tmp_path: Path) -> None:
    rows = made_grid()
    for row in rows:
        better = row["variant"] == "none"
        row["values"] |= {"error_to_mean_colour": (0.5 if better else 0.6) + 0.001 * row["config"]["seed"] * better}
    claims = claims_of(summarised(tmp_path, rows), "error_to_mean_colour")
    dual = claims[BASE, "none"]
    assert dual["config"]["differences"] == pytest.approx([-10.0, -9.9, -9.8])
    assert dual["config"]["verdict"] == "contradicts"
    assert claims[BASE, "random 50 %"]["config"]["verdict"] == "cannot tell", "both have the same error"
    assert (grid.TUBES, BASE) not in claims, "whose hidden cubes are others"
    assert ("labels afterwards", BASE) not in claims, "which paints nothing"


def test_two_seeds_tell_nothing(tmp_path: Path) -> None:
    claims = claims_of(summarised(tmp_path, made_grid(seeds=2)))
    assert {row["config"]["verdict"] for row in claims.values()} == {"cannot tell"}
    assert claims[BASE, "none"]["values"]["seeds"] == 2


def test_seeds_of_one_side_alone_are_not_paired(tmp_path: Path) -> None:
    rows = [row for row in made_grid(4) if (row["variant"], row["config"]["seed"]) != ("none", 3)]
    assert claims_of(summarised(tmp_path, rows))[BASE, "none"]["values"]["seeds"] == 3


def test_a_failed_run_is_in_no_mean(tmp_path: Path) -> None:
    rows = made_grid(4)
    failed = next(row for row in rows if row["group"] == "seed 3: none")
    failed |= {"error": "TrainingFailed: none", "values": {}}
    assert claims_of(summarised(tmp_path, rows))[BASE, "none"]["values"]["seeds"] == 3


def test_a_new_row_asks_for_a_new_summary(tmp_path: Path) -> None:
    rows = made_grid()
    write_rows(tmp_path, rows[:-1])

    def settings() -> object:
        return list(CASES["science"].groups(bench_in(tmp_path)))[-1].settings

    before = settings()
    assert settings() == before
    write_rows(tmp_path, rows[-1:])
    assert settings() != before


def test_the_grid_learns_in_small(tmp_path: Path) -> None:
    """The smallest grid: trained by the product's own commands, each row with its figures; nothing is trained twice."""
    bench = bench_in(tmp_path, quick=True, jobs=1)
    groups = list(CASES["science"].groups(bench))
    found = {group.name: group.measure() for group in groups[:-1]}
    assert list(found) == [f"seed 0: {name}" for name in (BASE, "random encoder", "pixels", "labels afterwards")]
    for name, (row,) in found.items():
        assert {"motion", "mean", "one_frame"} <= row["values"].keys(), name
        assert row["config"]["videos"] == 24
        assert "/" not in json.dumps({**row, "config": {**row["config"], "words": ""}}), "no folder of this machine"
        assert str(tmp_path) not in json.dumps(row)
    (dual,), (labels,) = (found[f"seed 0: {name}"] for name in (BASE, "labels afterwards"))
    assert {"error_to_mean_colour", "error_to_nearest_cube"} <= dual["values"].keys()
    assert "error_to_mean_colour" not in labels["values"], "it paints nothing"
    (runs,) = (tmp_path / "science").glob("runs_*")
    times = {path: path.stat().st_mtime_ns for path in runs.glob("*.log")}
    assert len(times) == 2
    for group in list(CASES["science"].groups(bench))[:-1]:
        group.measure()
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*.log")} == times
