"""What the .wandb files of a run's starts hold, read from what W&B's client wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmae2_ds.track.wandb_file import records_of


def records_of_wandb(folder: Path) -> list[Any]:
    """All records, in the order of the starts."""
    from wandb.proto.wandb_internal_pb2 import Record

    return [Record.FromString(data) for path in sorted(folder.rglob("*.wandb")) for data in records_of(path)]


def rows_of_wandb(folder: Path) -> dict[int, dict[str, Any]]:
    """The figures of each step, without what is W&B's own; a step that is there twice fails the test."""
    rows: dict[int, dict[str, Any]] = {}
    for record in records_of_wandb(folder):
        if record.WhichOneof("record_type") == "history":
            named = {(*item.nested_key,) or (item.key,): json.loads(item.value_json) for item in record.history.item}
            assert record.history.step.num not in rows, "a step twice"
            rows[record.history.step.num] = {
                name[0]: value for name, value in named.items() if len(name) == 1 and name[0][0] != "_"
            }
    return rows
