"""Pickles of plain data, read without a way for the file to call anything.

Python's own reader calls what a file names. This one has `pickletools` take the file apart, and puts together what it knows:
containers, numbers, texts, and numpy's arrays of them. What it makes is bounded by the size of the file.
"""

from __future__ import annotations

import math
import pickletools
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vmae2_ds.errors import DataError

PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f(2|4|8|16)|c(8|16)|[SU]\d{1,5}")
"""Numbers, and texts of a fixed length; no objects, no records, no dates."""
LARGEST_INT_BYTES = 16
_BUILTINS = ("bytes", "bytearray", "set", "frozenset", "complex")
_NUMPY = ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
NAMED = {
    **{name: name for name in ("numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict")},
    **{f"numpy.{core}.{name}": name for core in ("core", "_core") for name in _NUMPY},
    **{f"{module}.{name}": name for module in ("builtins", "__builtin__") for name in _BUILTINS},
}
"""What plain data may name, as numpy 1 and 2 and Python 2 and 3 do: each is a line of `_made`, and none is looked up."""

_VALUE = re.compile(r"(SHORT_)?(BIN)?(INT|LONG|FLOAT|STRING|UNICODE|BYTES|BYTEARRAY)[1248]?")
_VALUES = frozenset(opcode.name for opcode in pickletools.opcodes if _VALUE.fullmatch(opcode.name))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Any] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FROM_MARK = frozenset(("TUPLE", "LIST", "DICT", "FROZENSET", "SETITEMS", "APPENDS", "ADDITEMS"))


class _Name(NamedTuple):
    """A class or function that a pickle names."""

    name: str


class _Unfilled:
    """An array whose content has not come yet, and its numbers in the memo."""

    def __init__(self) -> None:
        self.numbers: list[int] = []


class _Dtype:
    """A dtype whose byte order may still come."""

    def __init__(self, text: Any) -> None:
        if not PLAIN_DTYPE.fullmatch(_of(str, text).lstrip("<>=|")):
            kind = "of Python objects" if text in ("O", "O8", "|O") else f"of the type {text[:40]!r}"
            raise _RefusedError(f"it holds an array {kind}, which is not plain data")
        self.dtype = np.dtype(text)


class _RefusedError(Exception):
    """Why a pickle is not read."""


def load_plain_pickle(file: Path) -> Any:
    """What a pickle of plain data holds: dict, list, tuple, set, numbers, texts, bytes and numpy arrays, of protocols 0 to 5.

    Arrays lie in the bytes of the file and cannot be written to. An OrderedDict comes as a dict.

    Raises:
        DataError: One line: no such file, cut or damaged, or anything that is not plain, which is named and not run.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    try:
        return _Reading(data).result()
    except _RefusedError as refused:
        raise DataError(f"{file} cannot be read as plain data: {refused}") from None
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        detail = str(error).partition("\n")[0][:100] or type(error).__name__
        raise DataError(f"{file} cannot be read as plain data: it is cut or damaged, or no pickle ({detail})") from None


class _Reading:
    """A pickle being read: a stack of values, and a memo of those that come again."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def result(self) -> Any:
        for opcode, arg, _ in pickletools.genops(self._data):
            if opcode.name == "STOP":
                return _plain(self._stack.pop())
            self._take(opcode.name, arg)
        raise ValueError("it has no end")

    def _take(self, name: str, arg: Any) -> None:
        stack = self._stack
        if name in _PUTS:
            number = len(self._memo) if arg is None else arg
            self._memo[number] = stack[-1]
            if isinstance(stack[-1], _Unfilled):
                stack[-1].numbers.append(number)
        elif name in _GETS:
            stack.append(self._memo[arg])
        elif name in _VALUES:
            if isinstance(arg, int) and arg.bit_length() > 8 * LARGEST_INT_BYTES:
                raise _RefusedError(f"it holds a whole number of {arg.bit_length()} bits")
            stack.append(arg)
        elif name in _TUPLES:
            _check(len(stack) >= _TUPLES[name], "too few values")
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _FROM_MARK:
            start = self._marks.pop()
            values = stack[start:]
            del stack[start:]
            self._gather(name, values)
        elif name in ("SETITEM", "APPEND"):
            count = 2 if name == "SETITEM" else 1
            values = stack[-count:]
            del stack[-count:]
            self._gather(f"{name}S", values)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name == "POP":
            stack.pop()
        elif name not in ("PROTO", "FRAME"):
            self._call(name, arg)

    def _gather(self, name: str, values: list[Any]) -> None:
        """Make a container of values, or put them into the one on top."""
        stack = self._stack
        if name == "TUPLE":  # may be what a function is called with
            stack.append(tuple(values))
            return
        values = [_plain(value) for value in values]
        if name == "LIST":
            stack.append(values)
        elif name == "DICT":
            stack.append(_pairs(values))
        elif name == "FROZENSET":
            stack.append(frozenset(map(_key, values)))
        elif name == "SETITEMS":
            _of(dict, stack[-1]).update(_pairs(values))
        elif name == "APPENDS":
            _of(list, stack[-1]).extend(values)
        else:
            _of(set, stack[-1]).update(map(_key, values))

    def _call(self, name: str, arg: Any) -> None:
        """What Python's reader would import and call."""
        stack = self._stack
        if name == "GLOBAL":
            stack.append(_named(str(arg).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_named(f"{_of(str, module)}.{_of(str, attribute)}"))
        elif name == "REDUCE":
            values, called = stack.pop(), stack.pop()
            stack.append(self._made(_of(_Name, called).name, _of(tuple, values)))
        elif name == "BUILD":
            self._build(stack.pop())
        elif name == "INST":
            _named(str(arg).replace(" ", ".", 1))
            raise _RefusedError("it builds an object, which is not plain data")
        else:
            raise _RefusedError(f"it asks for {name}, which plain data has no need of; no code in a file is run")

    def _made(self, called: str, values: tuple[Any, ...]) -> Any:
        what = NAMED[called]
        if what == "multiarray._reconstruct":
            return _Unfilled()
        if what == "numpy.dtype":
            return _Dtype(values[0])
        if what == "multiarray.scalar":
            return self._array(values[1], values[0], (), "C").item()
        if what == "numeric._frombuffer":
            return self._array(*values)
        if what == "_codecs.encode":
            _check(values[1] in ("latin1", "latin-1"), "bytes of another encoding")
            return self._bytes(_of(str, values[0]))
        if what == "complex":
            return complex(*(_of(float, value) for value in values))
        content = values[0] if values else []
        if what in ("bytes", "bytearray"):
            return self._bytes(content or b"")
        self._charge(len(_of(list, content)))
        if what == "collections.OrderedDict":
            return _pairs([part for pair in content for part in _of(list | tuple, pair)])
        if what in ("set", "frozenset"):
            return (set if what == "set" else frozenset)(map(_key, content))
        raise _RefusedError(f"it calls {called}, which plain data does not")

    def _build(self, state: Any) -> None:
        built = self._stack[-1]
        if isinstance(built, _Dtype):
            order = _of(tuple, state)[1]
            built.dtype = built.dtype.newbyteorder(order) if order in ("<", ">") else built.dtype
        elif isinstance(built, _Unfilled):
            _, shape, dtype, is_fortran, content = state
            self._stack[-1] = self._array(content, dtype, shape, "F" if is_fortran else "C")
            for number in built.numbers:
                self._memo[number] = self._stack[-1]
        else:
            raise _RefusedError(f"it sets the inside of a {type(built).__name__}, which is not plain data")

    def _array(self, content: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
        """An array in the bytes of the file, which must be just as many as its shape says."""
        kind = _of(_Dtype, dtype).dtype
        content = self._bytes(content) if isinstance(content, str) else _of(bytes | bytearray, content)
        _check(all(isinstance(length, int) and length >= 0 for length in _of(tuple, shape)), "an array of no shape")
        if math.prod(shape) * kind.itemsize != len(content):
            raise _RefusedError(f"it has an array of shape {shape} and type {kind} in {len(content)} bytes")
        return np.frombuffer(content, kind).reshape(shape, order=order)

    def _bytes(self, content: Any) -> bytes:
        self._charge(len(_of(str | bytes | bytearray, content)))
        return content.encode("latin1") if isinstance(content, str) else bytes(content)

    def _charge(self, number: int) -> None:
        """Count what is copied: a bomb asks for the same copy again and again."""
        self._copied += number
        if self._copied > len(self._data):
            raise _RefusedError(f"it asks for more copies of its {len(self._data)} bytes than plain data does")


def _named(name: str) -> _Name:
    if name not in NAMED:
        said = name[:100] if name.isprintable() else repr(name[:100])
        raise _RefusedError(f"it refers to {said}, which is not plain data; no code in a file is run")
    return _Name(name)


def _check(holds: bool, else_said: str) -> None:
    if not holds:
        raise ValueError(else_said)


def _of(kind: Any, value: Any) -> Any:
    _check(isinstance(value, kind), f"a {type(value).__name__} in another's place")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, _Name):
        raise _RefusedError(f"it holds {value.name} itself, which is not plain data")
    _check(not isinstance(value, _Unfilled | _Dtype), "a value without content")
    return value


def _key(value: Any) -> Any:
    """A key of a dict or a set; none in another, whose hash would go as deep as a file likes."""
    for part in value if type(value) is tuple else (value,):
        if not isinstance(part, str | bytes | int | float | complex | None):
            raise _RefusedError(f"it has a {type(part).__name__} in a key, which is not plain data")
    return value


def _pairs(values: list[Any]) -> dict[Any, Any]:
    _check(len(values) % 2 == 0, "a key without a value")
    return dict(zip(map(_key, values[::2]), values[1::2], strict=True))
