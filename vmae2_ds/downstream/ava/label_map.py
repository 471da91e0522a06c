"""The actions of a set and the numbers that its files know them by: AVA's pbtxt, mmaction2's list, or plain names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vmae2_ds.errors import DataError

ENTRY = re.compile(r"\b(?:item|label)\s*\{([^{}]*)\}")
"""AVA's action lists say `item { name: "..." id: 1 }`, its older ones `label { name: "..." label_id: 1 label_type: ... }`."""
NAME = re.compile(r"""\bname\s*:\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""")
ID = re.compile(r"\b(?:label_)?id\s*:\s*(\d{1,9})\b")
NUMBERED = re.compile(r"(\d{1,9})\s*:\s*(.*\S)\s*")
"""mmaction2's lists: `1: bend/bow (at the waist)`."""

BOX_ROW = re.compile(r"[^,]+, *\d[\d.]*(?:,|$)")


AVA_GROUPS = {"person_movement": range(15), "object_manipulation": range(15, 64), "person_interaction": range(64, 81)}
"""Name -> action ids: mmaction2's groups of AVA's 80 actions (docs/PAPER.md#scorers-of-spatial-detection)."""
AVA_WORDS = {11: "sit", 12: "stand", 14: "walk", 17: "carry", 59: "touch", 74: "listen", 79: "talk", 80: "watch"}
"""How the names of AVA's commonest actions begin: by them its label map, or a part of it, is known."""


@dataclass(frozen=True)
class LabelMap:
    """The C actions that are learnt and scored; rows of others are left out."""

    file: Path
    ids: tuple[int, ...]
    """The number that files name each action by, in the order of the map: column c of a model's scores is `ids[c]`."""
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def class_of(self) -> dict[int, int]:
        """Action id -> class column."""
        return {action: column for column, action in enumerate(self.ids)}

    @cached_property
    def groups(self) -> dict[str, range]:
        """AVA's groups of actions, name -> ids; none for a label map of other actions than AVA's.

        AVA's are known by their names; where names are mere numbers ("action 12"), by ids with gaps up to 80.
        """
        name_of = dict(zip(self.ids, self.names, strict=True))
        known = [name_of[action].lower().startswith(word) for action, word in AVA_WORDS.items() if action in name_of]
        has_mere_numbers = all(re.fullmatch(rf"\D*0*{action}", name) for action, name in name_of.items())
        has_gaps = sorted(self.ids) != list(range(1, len(self.ids) + 1))
        is_avas = max(self.ids) <= 80 and ((any(known) and all(known)) or (has_mere_numbers and has_gaps))
        return AVA_GROUPS if is_avas else {}


def read_label_map(file: Path) -> LabelMap:
    """The actions of a file: pbtxt (`item { name: "sit" id: 11 }`), lines `id: name`, or names alone, whose ids count from 1.

    Raises:
        DataError: It is no text or holds no action; an entry lacks its name or id; an id or a name comes twice.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: {getattr(error, 'strerror', None) or 'this is no text; save it as UTF-8'}") from None
    entries = _from_pbtxt(file, text) if ENTRY.search(text) else _from_lines(file, text)
    if not entries:
        raise DataError(f"{file} holds no action; write a name a line, `id: name` a line, or items of a pbtxt")
    ids, names = zip(*entries, strict=True)
    for what, values in (("id", ids), ("name", names)):
        twice = [value for value, times in Counter(values).items() if times > 1]
        if twice:
            raise DataError(f"{file} has the {what} {twice[0]!r} twice; each action needs its own")
    return LabelMap(file, ids, names)


def _from_pbtxt(file: Path, text: str) -> list[tuple[int, str]]:
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    entries = []
    for number, entry in enumerate(ENTRY.findall(text), 1):
        name, action = NAME.search(entry), ID.search(NAME.sub("", entry))
        if name is None or action is None:
            raise DataError(f"{file}: item {number} has no {'name' if name is None else 'id'}: {entry.split()}")
        entries.append((int(action[1]), re.sub(r"\\(.)", r"\1", name[1] if name[1] is not None else name[2]).strip()))
    left = "".join(ENTRY.sub("", text).split())
    if left:
        raise DataError(f"{file}: {left[:60]!r} belongs to no item; write item {{ name: ... id: ... }}")
    return entries


def _from_lines(file: Path, text: str) -> list[tuple[int, str]]:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    matches = [NUMBERED.fullmatch(line) for _, line in lines]
    if not any(matches):
        for number, line in lines:
            if BOX_ROW.match(line):
                raise DataError(f"{file}, line {number}: {line!r} is a row of a key frame, and no name of an action")
        return [(action, name) for action, (_, name) in enumerate(lines, 1)]
    for (number, line), match in zip(lines, matches, strict=True):
        if match is None:
            raise DataError(f"{file}, line {number}: {line!r} is not `id: name`, which other lines are")
    return [(int(match[1]), match[2]) for match in matches if match]
