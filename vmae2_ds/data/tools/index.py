"""`vmae2 data index`: a long list of videos as a folder that every rank opens at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tyro.conf import Positional

from vmae2_ds.config.strict import PartOf, StrictModel
from vmae2_ds.console.progress import counted
from vmae2_ds.data.sources.list_formats import list_form
from vmae2_ds.data.sources.manifest import check_index_of, is_index_or_half, write_index
from vmae2_ds.data.tools.job_folder import PartDone
from vmae2_ds.data.tools.parts import here, part_here
from vmae2_ds.data.tools.work_folder import full_disk_is_told
from vmae2_ds.disk import check_out_folder
from vmae2_ds.errors import DataError


class IndexedList(NamedTuple):
    """What was written."""

    folder: Path
    videos: int
    sources: tuple[str, ...]

    def __str__(self) -> str:
        of = f" of {len(self.sources)} sources" if len(self.sources) > 1 else ""
        return f"indexed {counted(self.videos, 'video')}{of}: give {self.folder} as the manifest"


class IndexArguments(StrictModel):
    """Index a list of videos, so that 100 million rows are opened in no time and take no memory.

    A run may go on with the index of the list that it was started with: both have the same content.
    """

    manifest: Positional[Path]
    """The list of videos (CSV or published form), as --data.manifest takes it."""
    out: Path
    """Folder to write; name it as the manifest afterwards."""
    root: Path | None = None
    """Folder that relative paths in the list start from; default: the list's own folder."""
    frame_folders: bool = False
    """The list has the published form for folders of frames: folder, first frame, number of frames."""
    ignore_columns: tuple[str, ...] | None = None
    """Names of extra columns to ignore in the list; the option without a name ignores every column that is not used
    here. Default: a list with an unknown column is refused."""
    labels: Path | None = None
    """Text file with one class name per line, in the order of the label numbers: the list may then give class names
    instead of numbers."""
    part: PartOf | None = None
    """For array jobs, as i/N: the first part writes the index, and the others have nothing to do. Under a launcher (srun,
    mpirun, deepspeed, torchrun) rank 0 does so without it."""


def index_manifest(asked: IndexArguments) -> IndexedList | PartDone:
    """Write the list as a folder that is opened at once; of several ranks or parts the first does, in one pass."""
    part = part_here(asked.part)
    if part.number:
        return PartDone(part, here(), f"{part.named(0)} reads the list, once, and writes the index", kind="")
    if asked.manifest.is_dir():
        raise DataError(f"{asked.manifest} is a folder; vmae2 data index takes a list (CSV or published)")
    form = list_form(asked.ignore_columns, asked.labels, frame_folders=asked.frame_folders)
    inputs = [path for path in (asked.manifest, asked.labels) if path is not None]
    check_out_folder(asked.out, inputs=inputs, is_ours=is_index_or_half)
    check_index_of(asked.out, asked.manifest)
    with full_disk_is_told(asked.out):
        rows = write_index(asked.manifest, asked.out, asked.root, form=form)
    return IndexedList(asked.out, rows.videos, rows.sources)
