"""Where a command's words go: terminals of any width and encoding, log files, and pipes whose reader may leave."""

from __future__ import annotations

import codecs
import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator

from vmae2_ds.errors import ConfigError

PLAIN = "vmae2_ds.plain"
"""Name of the way that a character is written which the terminal's encoding does not have."""
_LOOK_ALIKES = {**dict.fromkeys("─━", "-"), **dict.fromkeys("│┃", "|"), **dict.fromkeys("╭╮╰╯├┤┬┴┼", "+"), "•": "*"}


def open_to_any_encoding() -> None:
    """From now on no character can stop a message: rules become - and |, letters (of a path, say) their \\x escapes."""
    codecs.register_error(PLAIN, _in_plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None where it was closed, something else where somebody replaced it
            stream.reconfigure(errors=PLAIN)


def _in_plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_LOOK_ALIKES.get(one) or _escaped(one) for one in lost), error.end


def _escaped(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode("ascii")


def say(text: str) -> None:
    """Print to standard output, now. A reader that has left (`| head`) has seen enough, which is no error.

    Raises ConfigError where standard output cannot be written: a full disk.
    """
    with _to_whoever_reads():
        print(text, flush=True)


def finish_saying() -> None:
    """What was printed goes out now: what fails at the interpreter's end is a traceback. Raises as `say`."""
    with _to_whoever_reads():
        if sys.stdout is not None:
            sys.stdout.flush()


@contextlib.contextmanager
def _to_whoever_reads() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        nobody_reads()
    except OSError as error:
        nobody_reads()
        raise ConfigError(f"standard output: {error.strerror}; what was to be said is lost") from None


def nobody_reads() -> None:
    """Standard output goes nowhere from now on, so that the interpreter can close it at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(text: str) -> None:
    """One line on standard error, where anybody still reads that."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def columns() -> int | None:
    """Width of the terminal that reads standard output, or what COLUMNS says; None in a file or a pipe: no limit."""
    if sys.stdout is None or not (os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty()):
        return None
    return shutil.get_terminal_size((250, 24)).columns


def fitted(text: str) -> str:
    """The text with its lines broken at the terminal's width, but for command lines, which are there to be copied."""
    width = columns()
    if width is None:
        return text
    return "\n".join(line if _is_command(line) else _broken(line, width) for line in text.splitlines())


def _is_command(line: str) -> bool:
    return line.lstrip().startswith(("vmae2 ", "Command: ", "usage: ", "Example: "))


def _broken(line: str, width: int) -> str:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return line if len(line) <= width else textwrap.fill(line, width, subsequent_indent=indent)
