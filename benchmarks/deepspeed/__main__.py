"""python -m benchmarks.deepspeed: run the cases with this interpreter's DeepSpeed, keep rows, make docs/DEEPSPEED.md."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.deepspeed.page import PAGE, ROWS, page_of, table_of
from benchmarks.record import append_rows, provenance
from vmae2_ds.disk import write_whole
from vmae2_ds.host import free_port
from vmae2_ds.json_lines import rows_of

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Arguments:
    """Small cases against plain PyTorch: which DeepSpeed does right, wrong, refuses, or cannot do on a CPU."""

    cases: tuple[str, ...] = ()
    """Names of cases; all where none is named."""
    settings: tuple[str, ...] = ()
    """Settings such as "zero1 bf16"; all of a case where none is named."""
    ways: tuple[str, ...] = ()
    """bare, ours; both where none is named."""
    rows: Path | None = None
    """Add rows to this file, the later ones count; a row is also printed."""
    page: bool = False
    """Write docs/DEEPSPEED.md anew from the kept rows, and run nothing."""


def run_worlds(asked: dict[str, object], folder: Path, timeout_s: float = 3000) -> list[dict]:
    """The cases of two ranks and then those of one, which start from what two have saved. Returns the rows."""
    out = folder / "rows.jsonl"
    (folder / "asked.json").write_text(json.dumps({**asked, "folder": str(folder)}))
    for size in (2, 1):
        port, started = free_port(), []
        for rank in range(size):
            where = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            env = {**os.environ, **{key: str(value) for key, value in where.items()}}
            env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "benchmarks.deepspeed.worker", str(folder / "asked.json"), str(out)]
            with (folder / f"log{size}.{rank}").open("w") as log:
                started.append(subprocess.Popen(command, env=env, cwd=ROOT, stdout=log, stderr=log))
        try:
            codes = [process.wait(timeout_s) for process in started]
        finally:
            for process in started:
                process.kill()
        if any(codes):
            log = folder / f"log{size}.{next(rank for rank, code in enumerate(codes) if code)}"
            raise RuntimeError(f"ranks ended with {codes}; the end of the first one's log:\n{log.read_text()[-3000:]}")
    return list(rows_of(out))


def main(argv: list[str] | None = None) -> int:
    """Run what is asked; the rows of an interpreter's DeepSpeed replace earlier ones of that version."""
    asked = tyro.cli(Arguments, args=argv, prog="python -m benchmarks.deepspeed")
    if asked.page:
        write_whole(PAGE, page_of(list(rows_of(ROWS))))
        return 0
    command = shlex.join(["python", "-m", "benchmarks.deepspeed", *(sys.argv[1:] if argv is None else argv)])
    with tempfile.TemporaryDirectory() as folder:
        rows = run_worlds({"cases": asked.cases, "settings": asked.settings, "ways": asked.ways}, Path(folder))
    if asked.rows:
        known = provenance()
        about = {"time": known["time"], "commit": known["commit"], "torch": known["versions"]["torch"]}
        append_rows(asked.rows, [{**about, "command": command, **row} for row in rows])
    print(table_of(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
