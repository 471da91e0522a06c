"""The steps that a .wandb file holds, as the client's own process has put them on disk.

The file is a log of records of protobuf in LevelDB's format (https://github.com/google/leveldb) behind a
header of seven bytes: blocks of 32 KiB, in each pieces with CRC-32, length and kind. The client has no reader of it in Python.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32768
HEADER = struct.Struct("<4sHB")
PIECE = struct.Struct("<IHB")
FULL, FIRST, _, LAST = range(1, 5)


def records_of(path: Path) -> Iterator[bytes]:
    """The records up to the first that is torn: a kill loses what the process had not yet written."""
    data = path.read_bytes()
    at, record = HEADER.size, b""
    while True:
        if BLOCK - at % BLOCK < PIECE.size:  # too little for a piece: padding
            at += BLOCK - at % BLOCK
        if at + PIECE.size > len(data):
            return
        crc, length, kind = PIECE.unpack_from(data, at)
        piece = data[at + PIECE.size : at + PIECE.size + length]
        if len(piece) < length or zlib.crc32(piece, zlib.crc32(bytes([kind]))) != crc:
            return
        at += PIECE.size + length
        record = piece if kind in (FULL, FIRST) else record + piece
        if kind in (FULL, LAST):
            yield record


def last_step(folder: Path, run_id: str) -> int:
    """The last step in any file of the run, of which each start writes one; -1 where there is none."""
    from wandb.proto import wandb_internal_pb2 as messages  # generated: a type checker sees nothing in it

    last = -1
    for path in folder.glob(f"offline-run-*/run-{run_id}.wandb"):
        for data in records_of(path):
            record = messages.Record.FromString(data)  # type: ignore[attr-defined]
            if record.WhichOneof("record_type") == "history":
                last = max(last, record.history.step.num)
    return last
