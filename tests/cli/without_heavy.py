"""`python -m tests.cli.without_heavy`: the command line where no heavy package can be imported; argv: JSON list of argv lists.

Prints a JSON list: for each line its exit code, or the name of the package that it asked for.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from importlib.abc import MetaPathFinder

HEAVY = {"torch", "torchvision", "deepspeed", "av", "matplotlib", "transformers", "timm", "decord", "torchcodec"}


class Asked(Exception):
    """A heavy package was asked for."""


class Refuse(MetaPathFinder):
    """Stands in front of all other finders."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in HEAVY:
            raise Asked(name)


def outcome(line: list[str]) -> int | str:
    """Exit code of one command line, or what it would have imported."""
    from vmae2_ds.cli.main import main

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(line)
    except SystemExit as stop:
        return int(stop.code or 0)
    except Asked as asked:
        return f"imports {asked}"
    raise AssertionError("main always exits")


if __name__ == "__main__":
    sys.meta_path.insert(0, Refuse())
    print(json.dumps([outcome(line) for line in json.loads(sys.argv[1])]))
