"""Hostfiles: one host a line and how many ranks it runs, as DeepSpeed and OpenMPI read them."""

from __future__ import annotations

import re
from pathlib import Path

from vmae2_ds.errors import ConfigError

_LINE = re.compile(r"(\S+)\s+slots=(\d+)")
_HOST = re.compile(r"(?:[\w.-]+@)?\w[\w.-]*")
_HERE = re.compile(r"localhost(?:\..*)?|127\..*")


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks by host, in the file's order; raises ConfigError with the line for anything but `NAME slots=N` and comments."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"--hostfile {path}: {error.strerror}; see hostfiles/README.md") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--hostfile {path} is not a text file") from None
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        written = line.partition("#")[0].strip()
        if not written:
            continue
        found = _LINE.fullmatch(written)
        if found is None or not _HOST.fullmatch(found[1]):
            raise ConfigError(f"{path}:{number}: {written!r} is not a host and its ranks; write node1 slots=8")
        host, slots = found[1], int(found[2])
        if host in hosts:
            raise ConfigError(f"{path}:{number}: {host} is there twice; give it one line with all its slots")
        if slots < 1:
            raise ConfigError(f"{path}:{number}: {host} has slots=0; leave it out, or write how many ranks it runs")
        hosts[host] = slots
    if not hosts:
        raise ConfigError(f"{path} names no host; write node1 slots=8")
    here = [host for host in hosts if _HERE.fullmatch(host)]
    if here and len(hosts) > 1:
        raise ConfigError(
            f"{path}: {here[0]} is another machine for each host; write the name by which the others find it"
        )
    return hosts
