"""Pickles are read as plain data: what Python wrote comes back, and nothing that a file asks for is called."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae2_ds.downstream.ava.plain_pickle import load_plain_pickle
from vmae2_ds.errors import DataError

SHARED = np.arange(10.0).reshape(2, 5)
PLAIN: dict[Any, Any] = {
    "-5KQ66BBWC4,0902": SHARED,
    "the same again": SHARED,
    "пешеход,12.5": np.zeros((0, 5), np.float32),
    "columns first": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    "every second": np.arange(10.0)[::2],
    "one": np.array(3.5),
    "truth": np.array([True, False]),
    "texts": np.array(["ab", "é"]),
    "bytes": np.array([b"a", b"bcd"]),
    "numpy's numbers": [np.float32(1.5), np.int64(-3), np.bool_(True)],
    "numbers": (True, None, 0, -5, 255, 65536, 2**40, -(2**100), 1.5, float("inf"), 1 + 2j),
    "more bytes": [b"", b"\x00\xff", bytearray(b"xy"), "", "\u20ac\n'\"\\"],
    "sets": [{1, "two"}, frozenset((3.0,)), set()],
    "ordered": collections.OrderedDict(a=1, b=[[], {}]),
    ("a pair", 902): 1,
    7: "a number",
}


def written(folder: Path, content: bytes) -> Path:
    file = folder / "boxes.pkl"
    file.write_bytes(content)
    return file


def same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            same(ours[key], theirs[key])
    else:
        assert ours == theirs


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", ["core", "_core"])
def test_plain_data_of_every_protocol_comes_back_by_the_names_of_numpy_1_and_2(
    tmp_path: Path, protocol: int, core: str
) -> None:
    content = pickle.dumps(PLAIN, protocol)
    for module in (b"multiarray", b"numeric"):  # as the other numpy would have written it
        for before in (b"numpy.core." + module, b"numpy._core." + module):
            after = b"numpy." + core.encode() + b"." + module
            content = content.replace(b"c" + before + b"\n", b"c" + after + b"\n")
            content = content.replace(b"\x8c" + bytes([len(before)]) + before, b"\x8c" + bytes([len(after)]) + after)
    content = b"".join((content[:2], content[11:])) if protocol >= 4 else content  # the frame's length is another now
    loaded = load_plain_pickle(written(tmp_path, content))
    same(loaded, PLAIN)
    assert loaded["the same again"] is loaded["-5KQ66BBWC4,0902"]


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """Bytes are text there; put together by hand, opcode by opcode, for no Python 3 writes it."""
    row = np.array([[0.1, 0.2, 0.3, 0.4, 0.999]])
    text = b"U" + bytes([row.nbytes]) + row.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I1\nI5\ntcnumpy\ndtype\n"
        b"(U\x02f8I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\n" + text + b"tb"
    )
    content = b"\x80\x02}U\x08vid,0902" + array + b"q\x01sU\x08vid,0903h\x01s."  # its first number in the memo is 1
    same(load_plain_pickle(written(tmp_path, content)), {"vid,0902": row, "vid,0903": row})


class _Calls:
    """An object whose pickle asks for a call."""

    def __init__(self, called: Callable[..., Any], *values: Any) -> None:
        self.call = (called, values)

    def __reduce__(self) -> Any:
        return self.call


class _Thing:
    """An object with something inside."""

    def __init__(self) -> None:
        self.inside = 1


def _objects() -> np.ndarray[Any, Any]:
    return np.array([{"a": 1}, None], object)


HOSTILE = {
    "os.system|posix.system": lambda flag: {"vid,0902": _Calls(os.system, f"touch {flag}")},
    "builtins.eval|__builtin__.eval": lambda flag: [_Calls(eval, f"open({str(flag)!r}, 'w')")],
    "builtins.getattr|__builtin__.getattr": lambda _: _Calls(getattr, "a", "upper"),
    "builtins.open|io.open|_io.open|__builtin__.open": lambda flag: _Calls(open, str(flag), "w"),
    "codecs.decode": lambda _: _Calls(__import__("codecs").decode, b"00", "hex"),
    "numpy.testing|numpy.fromfile|numpy.loadtxt": lambda _: _Calls(np.loadtxt, "/etc/hostname"),
    "_Thing|_reconstructor|copy_reg": lambda _: {"vid,0902": _Thing()},
    "of Python objects": lambda _: {"vid,0902": _objects()},
    "records|'V": lambda _: {"vid,0902": np.zeros(2, [("x", "f4")])},
    "'M8'|'M": lambda _: {"vid,0902": np.zeros(2, "datetime64[s]")},
    "itself": lambda _: {"vid,0902": np.ndarray},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("named", HOSTILE)
def test_what_is_not_plain_is_named_in_one_line_and_never_run(tmp_path: Path, named: str, protocol: int) -> None:
    flag = tmp_path / "was run"
    try:
        content = pickle.dumps(HOSTILE[named](flag), protocol)
    except (TypeError, pickle.PicklingError):
        pytest.skip("this protocol cannot write it")
    file = written(tmp_path, content)
    with pytest.raises(DataError) as refused:
        load_plain_pickle(file)
    said = str(refused.value)
    assert any(name in said for name in named.split("|")), said
    assert str(file) in said
    assert "not plain data" in said
    assert "\n" not in said
    assert not flag.exists()


def test_torch_tensors_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for protocol in (2, 4):
        with pytest.raises(DataError, match=r"refers to torch\.\S+, which is not plain data; no code in a file is run"):
            load_plain_pickle(written(tmp_path, pickle.dumps({"vid,0902": torch.zeros(2, 5)}, protocol)))
    saved = io.BytesIO()
    torch.save({"vid,0902": torch.zeros(2, 5)}, saved)
    with pytest.raises(DataError, match="cut or damaged, or no pickle"):
        load_plain_pickle(written(tmp_path, saved.getvalue()))


def _array_op(shape: bytes, dtype: bytes, content: bytes) -> bytes:
    """An array as protocol 2 writes it, of any shape that a file may claim."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(" + shape + b"tcnumpy\ndtype\n"
        b"(U" + bytes([len(dtype)]) + dtype + b"I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntbI00\n" + content + b"tb"
    )


_TEXT = b"X" + struct.pack("<I", 20_000) + b"x" * 20_000
BOMBS = {
    "array of shape": b"\x80\x02" + _array_op(b"L100000000000L\n", b"f8", b"U\x00") + b".",
    "type 'S999999": b"\x80\x02" + _array_op(b"I1\n", b"S999999999", b"U\x00") + b".",
    "read: a memo far away": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a length of bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "a length of text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
    "read: a frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "copies of text": b"\x80\x02]" + _TEXT + b"q\x000(" + b"c_codecs\nencode\n(h\x00U\x06latin1tR" * 5_000 + b"e.",
    "copies of a list": b"\x80\x02]("
    + b"K\x01" * 20_000
    + b"eq\x000]("
    + b"c__builtin__\nset\n(h\x00tR" * 5_000
    + b"e.",
    "tuples in tuples for a key": b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",
    "bits": b"\x80\x02\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b".",
    "read: lists in lists": b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b".",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_little_memory_whatever_it_asks_for(tmp_path: Path, bomb: str) -> None:
    file = written(tmp_path, BOMBS[bomb])
    tracemalloc.start()
    try:
        if bomb.startswith("read"):  # it asks for little in the end
            load_plain_pickle(file)
        else:
            with pytest.raises(DataError, match=r"^[^\n]{0,400}$"):
                load_plain_pickle(file)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50 << 20  # bytes; 100,000 lists and tuples are a good half of it


def test_a_pickle_that_is_cut_anywhere_or_damaged_is_one_line(tmp_path: Path) -> None:
    content = pickle.dumps({"vid,0902": SHARED[:1]}, 4)
    for end in range(len(content)):
        with pytest.raises(DataError, match="cut or damaged, or no pickle"):
            load_plain_pickle(written(tmp_path, content[:end]))
    rng = np.random.default_rng(0)
    for _ in range(200):  # one byte is another: read or refused, and never anything else
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] = rng.integers(256)
        with contextlib.suppress(DataError):
            load_plain_pickle(written(tmp_path, bytes(damaged)))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pkl: No such file"):
        load_plain_pickle(tmp_path / "none.pkl")
