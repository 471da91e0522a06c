"""The videos of one tar shard and the labels beside them, by webdataset's rules.

A sample is what shares a key: the folders and the name up to its first dot (webdataset/tariterators.py, base_plus_ext). Its
members stand together, and a repeated suffix begins another sample of the same key. Suffixes may be in capitals. Left out are
links, names that begin with a dot, and webdataset's own `__name__` members.
Here a label may also stand elsewhere in the shard, where only one video can be meant.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from vmae2_ds.data.sources.class_names import ClassNames, is_whole_number
from vmae2_ds.data.sources.list_formats import LARGEST_LABEL
from vmae2_ds.data.sources.list_header import VIDEO_SUFFIXES

LABELS = ("cls", "class", "json", "txt")
"""Suffixes of members that may hold a label, the first that does is taken."""
JSON_KEYS = ("label", "cls", "class")
"""Keys under which a JSON member may hold the label."""
MOST_LABEL_BYTES = 2**20
_META = re.compile(r"__[^/]*__($|/)")  # webdataset/tariterators.py: skip_meta


class Member(NamedTuple):
    """A video inside a shard."""

    name: str
    offset: int
    size: int
    label: int | None


class ShardContent(NamedTuple):
    """What a shard holds."""

    videos: list[Member]
    """The shard's videos, in order."""
    left_out: Counter[str]
    """Members with the suffix of a video that are none of use, by why."""
    no_labels: Counter[str]
    """What stands for a label and is no class, as it is written."""


class _KeyedMembers:
    """Members of one key that stand together."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.suffixes: set[str] = set()
        self.videos: list[int] = []
        """Numbers of the key's videos in the shard."""
        self.labels: dict[str, int] = {}
        """Labels by kind of member."""

    @property
    def label(self) -> int | None:
        """The label, from the first kind of member that has one."""
        return next((self.labels[kind] for kind in LABELS if kind in self.labels), None)


def videos_in(tar: tarfile.TarFile, names: ClassNames | None = None) -> ShardContent:
    """Read through a shard. Raises tarfile's and the file's errors."""
    places: list[tuple[str, int, int]] = []
    samples: list[_KeyedMembers] = []
    found = ShardContent([], Counter(), Counter())
    for member in tar:
        key, suffix = split_name(member.name)
        kind = suffix.rpartition(".")[2]
        is_video = f".{kind}" in VIDEO_SUFFIXES
        why = _why_left_out(member, key) if is_video else ""
        if why:
            found.left_out[why] += 1
        if not member.isreg() or not key or _META.match(member.name):
            continue
        if not samples or samples[-1].key != key or suffix in samples[-1].suffixes:
            samples.append(_KeyedMembers(key))
        samples[-1].suffixes.add(suffix)
        if is_video and not why:
            samples[-1].videos.append(len(places))
            places.append((member.name, member.offset_data, member.size))
        elif kind in LABELS and member.size <= MOST_LABEL_BYTES and (held := tar.extractfile(member)) is not None:
            label = _label_in(kind, held.read(), names)
            if isinstance(label, int):
                samples[-1].labels[kind] = label
            elif label is not None:
                found.no_labels[label] += 1
    labels = _labels_of(samples)
    found.videos.extend(Member(*place, labels.get(number)) for number, place in enumerate(places))
    return found


def split_name(name: str) -> tuple[str, str]:
    """(key, suffix in small letters) of a member; empty where webdataset has none.

    In folders webdataset takes `d/.a.mp4` for the suffix `a.mp4` of the key `d/`; here it is a hidden file, as `.a.mp4` is.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return (folder + slash + stem, suffix.lower()) if stem else ("", suffix.lower())


def _why_left_out(member: tarfile.TarInfo, key: str) -> str:
    if member.islnk() or member.issym():
        return "links to other members"
    if not member.isreg():
        return ""  # a folder of that name
    if not key:
        return "hidden files"
    if member.issparse():
        return "sparse files, which do not lie in one piece"
    return "" if member.size else "empty members"


def _label_in(kind: str, content: bytes, names: ClassNames | None) -> int | str | None:
    """A class; what is written where that is none; None where nothing is said of one."""
    text = content.decode("utf-8-sig", "replace").strip()
    if kind == "json":
        try:
            told = json.loads(text)
        except ValueError:
            return None
        value = next((told[key] for key in JSON_KEYS if key in told), None) if isinstance(told, dict) else None
        text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    elif kind == "txt" and not is_whole_number(text) and (names is None or text not in names.numbers):
        return None  # a caption
    if not text:
        return None
    if names is not None:
        label = names.label_of(text)
    elif is_whole_number(text):
        label = int(text)
    else:
        label = None
    return text[:80] if label is None or label > LARGEST_LABEL else label


def _labels_of(samples: list[_KeyedMembers]) -> dict[int, int]:
    """Label by the video's number in the shard."""
    labels = {video: sample.label for sample in samples for video in sample.videos if sample.label is not None}
    for without, alone in _apart(samples):
        if len(without) == len(alone):
            pairs = list(zip(without, alone, strict=True))
        else:
            pairs = [(without[0], alone[0])] if len(without) == 1 else []
        labels |= {
            video: label for sample, other in pairs for video in sample.videos if (label := other.label) is not None
        }
    return {video: label for video, label in labels.items() if label is not None}


def _apart(samples: list[_KeyedMembers]) -> Iterator[tuple[list[_KeyedMembers], list[_KeyedMembers]]]:
    """Samples by key: those with videos and no label, and those with a label and no video."""
    by_key: dict[str, tuple[list[_KeyedMembers], list[_KeyedMembers]]] = defaultdict(lambda: ([], []))
    for sample in samples:
        if sample.videos and sample.label is None:
            by_key[sample.key][0].append(sample)
        elif sample.label is not None and not sample.videos:
            by_key[sample.key][1].append(sample)
    return (pair for pair in by_key.values() if all(pair))
