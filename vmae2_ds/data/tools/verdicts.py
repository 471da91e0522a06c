"""The verdict on each row of a manifest, judged by what a scan found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from vmae2_ds.console.progress import counted
from vmae2_ds.data.entry import ReadAs
from vmae2_ds.data.sources.list_formats import ListedVideo
from vmae2_ds.data.sources.manifest import Manifest
from vmae2_ds.data.tools.scan import Scanned, key_of

Verdict = Literal["missing", "unreadable", "too short", "wrong label", "duplicate", "two labels"]


class JudgedRow(NamedTuple):
    """One row."""

    row: int
    video: ListedVideo
    verdict: Verdict | None
    """What is wrong; None for a good row."""
    reason: str


class CheckedManifest(NamedTuple):
    """What was found and written."""

    out: Path
    rows: int
    files: int
    verdicts: dict[str, int]
    """Rows by verdict; good ones are left out."""
    warnings: list[str]
    readers: str = ""
    """The table of readers, where one was asked for."""
    advice: str = ""
    """What to do before a long run, if anything."""

    @property
    def bad(self) -> int:
        """Rows left out of the clean manifest."""
        return sum(self.verdicts.values())

    def __str__(self) -> str:
        counts = f"{counted(self.rows, 'row')}, {counted(self.files, 'file')}"
        lines = [f"{counts}: {counted(self.rows - self.bad, 'row')} good, {self.bad} bad"]
        lines += [
            f"  {count:>8}  {verdict}" for verdict, count in sorted(self.verdicts.items(), key=lambda item: -item[1])
        ]
        lines += [f"  note: {warning}" for warning in self.warnings]
        if self.readers:
            lines.append(self.readers)
        if self.advice:
            lines.append(self.advice)
        return "\n".join([*lines, f"clean.csv, bad.csv, report.html and report.json are in {self.out}"])


def judge(
    manifest: Manifest, found: dict[str, Scanned], how: ReadAs, min_frames: int, classes: int | None
) -> Iterator[JudgedRow]:
    """A verdict a row, in their order. Of rows with the same content the first is good, unless their labels differ."""
    contents = _contents(manifest, found, how, classes)
    for row in range(len(manifest)):
        entry, video = manifest[row], manifest.listed(row)
        scanned = found[key_of(entry, how)]
        verdict, reason = _judge_file(scanned, video, how, min_frames)
        if verdict is None and _is_outside(video, classes):
            verdict, reason = (
                "wrong label",
                f"label {video.label} of {classes} classes, which are 0 to {(classes or 0) - 1}",
            )
        if verdict is None:
            first, labels = contents[_content_of(scanned, video)]
            if len(labels) > 1:
                said = " and ".join(str(label) for label in sorted(labels, key=str))
                verdict, reason = "two labels", f"the same content is listed with the labels {said}"
            elif first != row:
                verdict, reason = "duplicate", f"the same content as row {first}, {manifest.listed(first).path}"
        yield JudgedRow(row, video, verdict, reason)


def _judge_file(scanned: Scanned, video: ListedVideo, how: ReadAs, min_frames: int) -> tuple[Verdict | None, str]:
    if scanned.facts is None:
        return ("missing" if scanned.is_missing else "unreadable"), scanned.reason
    part = scanned.frames
    if how.kind == "video":
        left = max(0, scanned.frames - video.start)
        part = left if video.frames is None else min(left, video.frames)
    if part < min_frames:
        of = "" if part == scanned.frames else f" from frame {video.start} of {scanned.frames}"
        return "too short", f"{counted(part, 'frame')}{of}; at least {min_frames} are wanted"
    return None, ""


Content = tuple[str, int, int | None]


def _content_of(scanned: Scanned, video: ListedVideo) -> Content:
    assert scanned.facts is not None, "only files that can be read have content"
    return scanned.facts.digest, video.start, video.frames


def _is_outside(video: ListedVideo, classes: int | None) -> bool:
    return classes is not None and video.label is not None and video.label >= classes


def _contents(
    manifest: Manifest, found: dict[str, Scanned], how: ReadAs, classes: int | None
) -> dict[Content, tuple[int, set[int | None]]]:
    """Content -> its first row and all labels it is listed with."""
    contents: dict[Content, tuple[int, set[int | None]]] = {}
    for row in range(len(manifest)):
        scanned, video = found[key_of(manifest[row], how)], manifest.listed(row)
        if scanned.facts is not None and not _is_outside(video, classes):
            contents.setdefault(_content_of(scanned, video), (row, set()))[1].add(video.label)
    return contents
