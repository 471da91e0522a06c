"""A probe in a process of its own: needs come on standard input, findings leave on standard output, noise goes to the other.

It imports the probe's module and no more: there are a dozen of these at a time.
"""

from __future__ import annotations

import json
import os
import pkgutil
import sys
from dataclasses import asdict

from vmae2_ds.doctor.needs import Needs
from vmae2_ds.host import die_with


def main(parent: str, look: str, *about: str) -> None:
    """Run the probe that is written as `module:function`, and end at once: what a package does at exit is its own."""
    die_with(int(parent))
    answer = os.dup(1)
    os.dup2(2, 1)  # what a package prints at import
    with os.fdopen(answer, "w") as out:
        for finding in pkgutil.resolve_name(look)(*about, Needs.of_json(sys.stdin.read())):
            print(json.dumps(asdict(finding)), file=out, flush=True)  # a line each: what comes next may hang or crash
    os._exit(0)
