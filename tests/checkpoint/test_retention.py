"""Which checkpoints stay, call after call, as a run of many days writes them."""

from __future__ import annotations

from vmae2_ds.checkpoint.retention import RetentionRules, SavedCheckpoint, survivors


def run_for(hours: int, keep: RetentionRules, losses: dict[int, float] | None = None) -> list[int]:
    """A checkpoint every hour, dropping after each: the hours of those left."""
    left: list[SavedCheckpoint] = []
    for hour in range(hours):
        figures = {"loss": (losses or {}).get(hour, 1.0), "val_top1": hour / 100 if hour < 7 else 0.0}
        left.append(SavedCheckpoint(f"step{hour:08d}", 3600.0 * hour, figures))
        stay = survivors(left, keep)
        left = [saved for saved in left if saved.name in stay]
    return [int(saved.name.removeprefix("step")) for saved in left]


def test_the_newest_stay() -> None:
    assert run_for(10, RetentionRules(3)) == [7, 8, 9]
    assert run_for(1, RetentionRules(2)) == [0]


def test_one_every_some_hours_stays_for_good() -> None:
    assert run_for(50, RetentionRules(2, every_hours=12)) == [0, 12, 24, 36, 48, 49]


def test_the_best_stays_until_a_better_one_comes() -> None:
    assert run_for(20, RetentionRules(2, best="loss"), {4: 0.5, 9: 0.4, 11: 0.6}) == [9, 18, 19]
    assert run_for(20, RetentionRules(2, best="val_top1")) == [6, 18, 19]


def test_a_figure_that_is_not_there_keeps_nothing_more() -> None:
    assert run_for(10, RetentionRules(2, best="val_loss")) == [8, 9]


def test_what_is_being_copied_stays_for_now() -> None:
    saved = [SavedCheckpoint(f"step{step:08d}", 60.0 * step, {}) for step in range(5)]
    copied = frozenset({"step00000001", "step00000099"})  # the second is not there any more
    assert survivors(saved, RetentionRules(2, for_now=copied)) == {"step00000001", "step00000003", "step00000004"}
    assert survivors(saved, RetentionRules(2)) == {"step00000003", "step00000004"}
