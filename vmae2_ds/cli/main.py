"""The command line: find the verb, call it, and turn what goes wrong into one line and an exit code. Nothing else.

The same line works plain, or after `deepspeed --module vmae2_ds`, `torchrun -m vmae2_ds`, `mpirun` and `srun`.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import textwrap
import traceback
from collections.abc import Iterable, Iterator

from vmae2_ds import __version__
from vmae2_ds.cli.usage import EXIT_CODES, EXIT_INTERRUPTED, GROUPS
from vmae2_ds.cli.verbs import VERBS, Verb
from vmae2_ds.console.one_voice import may_say, rank_here
from vmae2_ds.console.spelling import did_you_mean
from vmae2_ds.console.terminal import columns, complain, finish_saying, nobody_reads, open_to_any_encoding, say
from vmae2_ds.errors import EXIT_OK, EXIT_USER_ERROR, ConfigError, Vmae2Error

_HELP = ("-h", "--help")

_FOOTER = (
    "--debug shows the traceback behind an error. Exit codes: "
    + ", ".join(f"{code} {what}" for code, what in EXIT_CODES.items())
    + ". After 75 and 78 the same command goes on."
)

WAYS_OUT = {
    errno.ENOSPC: "free some space, or name another disk",
    errno.EDQUOT: "free some space, or name another disk",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "fix its permissions, or name another place",
    errno.EPERM: "fix its permissions, or name another place",
    errno.ENOENT: "name one that is there",
    errno.ENOTDIR: "a part of this path is a file; name another",
    errno.EISDIR: "name a file in it",
    errno.EEXIST: "name another",
    errno.ENOTEMPTY: "name another",
    errno.ENAMETOOLONG: "shorten it",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or take fewer workers",
    errno.ENFILE: "raise the machine's limit of open files",
    errno.ENOMEM: "take fewer workers or smaller batches",
    errno.EIO: "the disk or its server fails; look there",
    errno.ESTALE: "the file server has lost it; look there, then start again",
}
"""Errors of the operating system, which may come from anywhere in a verb, and what to do about them."""


def main(argv: list[str] | None = None) -> None:
    """Run one verb and exit: 0 on success, 2 for what a user can fix, 74 to 78 as in errors.py, 1 for a defect."""
    args = [arg for arg in (sys.argv[1:] if argv is None else argv) if not arg.startswith("--local_rank")]
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    open_to_any_encoding()
    logging.basicConfig(
        level=logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    sys.exit(_run(args, debug))


def _run(args: list[str], debug: bool) -> int:
    try:
        try:
            _do(args)
        except SystemExit as stop:
            if stop.code:
                raise
        finish_saying()  # of a help text, which ends with 0
    except Vmae2Error as error:
        return _tell(str(error), error.exit_code, debug)
    except BrokenPipeError:
        nobody_reads()  # of standard output: every other pipe is looked after where it is used
    except OSError as error:
        return _tell(describe_os_error(error), EXIT_USER_ERROR, debug)
    except KeyboardInterrupt:
        complain("vmae2: interrupted")
        return EXIT_INTERRUPTED
    return EXIT_OK if args else EXIT_USER_ERROR


def _do(args: list[str]) -> None:
    if not args or args in (["help"], *([word] for word in _HELP)):
        return say(_help(VERBS))
    if args in (["-V"], ["--version"]):
        return say(__version__)
    if args[0] == "help":
        args = [*args[1:], "--help"]
    group = {name: verb for name, verb in VERBS.items() if name.startswith(f"{args[0]} ")}
    if group and (not args[1:] or args[1] in _HELP):
        say(_help(group, args[0]))
        if args[0] not in VERBS:
            return None
        say("")
        args = [args[0], "--help"]  # a stage with verbs of its own: its recipes follow
    verb, rest = _find_verb(args)
    return verb(rest)


def _tell(line: str, code: int, debug: bool) -> int:
    """Say what went wrong, once for all ranks of this host that would say the same."""
    if debug:
        traceback.print_exc()
    rank = rank_here()
    if may_say(line, rank):
        complain(f"vmae2: {f'rank {rank}: ' if rank else ''}{line}")
    return code


def describe_os_error(error: OSError) -> str:
    """`PATH: what the system says; what to do`, whatever is known of it."""
    places = " -> ".join(
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    )
    reason = error.strerror or str(error) or type(error).__name__
    way_out = WAYS_OUT.get(error.errno or 0, "--debug shows where it happened")
    return f"{places + ': ' if places else ''}{reason}; {way_out}"


def _find_verb(args: list[str]) -> tuple[Verb, list[str]]:
    for words in (2, 1):
        verb = VERBS.get(" ".join(args[:words]))
        if verb is not None:
            return verb, args[words:]
    asked = " ".join(args[:2] if args[0] in ("data", "launch") else args[:1])
    guess = did_you_mean(asked, VERBS)
    raise ConfigError(f"unknown verb {asked!r}; {guess}vmae2 --help lists all {len(VERBS)} verbs")


def _help(verbs: dict[str, Verb], group: str = "") -> str:
    some, width = f"{group} " if group else "", columns() or 1000
    return "\n".join(
        [
            f"usage: vmae2 {some}VERB ...    (vmae2 {some}VERB --help, or vmae2 help {some}VERB, for its options)",
            *_listed(verbs, width),
            "",
            textwrap.fill(_FOOTER, min(width, 118)),
        ]
    )


def _listed(verbs: dict[str, Verb], width: int) -> Iterator[str]:
    """The verbs under the headings of GROUPS, a line each; last those that it does not name."""
    indent, left = " " * (22 if width >= 80 else 4), dict(verbs)
    groups: dict[str, Iterable[str]] = {**GROUPS, "More": tuple(verbs)}
    for heading, names in groups.items():
        lines = [f"  {name:<19} {first_line(left.pop(name))}" for name in names if name in left]
        if lines:
            yield f"\n{heading}:"
            yield from (textwrap.fill(line, width, subsequent_indent=indent) for line in lines)


def first_line(verb: Verb) -> str:
    """What a verb does, in a sentence."""
    return (verb.__doc__ or "").partition("\n")[0]


if __name__ == "__main__":
    main()
