"""`vmae2 data index`: a long list of videos as a folder that every rank opens at once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tyro.conf import Positional

from vmae2_ds.console.progress import counted
from vmae2_ds.data.sources.list_formats import list_form
from vmae2_ds.data.sources.manifest import check_index_of, is_index_or_half, write_index
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


def index_manifest(
    manifest: Positional[Path],
    out: Path,
    root: Path | None = None,
    frame_folders: bool = False,
    ignore_columns: tuple[str, ...] | None = None,
    labels: Path | None = None,
) -> IndexedList:
    """Index a list of videos, so that 100 million rows are opened in no time and take no memory.

    A run may go on with the index of the list that it was started with: both have the same content.

    Args:
        manifest: the list, as --data.manifest takes it.
        out: folder to write; give it as the manifest afterwards.
        root: folder that relative paths start from; default: the list's folder.
        frame_folders: the list has the published form of raw frames: folder, first frame, number of frames.
        ignore_columns: columns of the list to leave out; without a name all that are none of ours.
        labels: a file with a class name a line: the list may name classes instead of numbers.
    """
    if manifest.is_dir():
        raise DataError(f"{manifest} is a folder; vmae2 data index takes a list (CSV or published)")
    form = list_form(ignore_columns, labels, frame_folders=frame_folders)
    check_out_folder(out, inputs=[path for path in (manifest, labels) if path is not None], is_ours=is_index_or_half)
    check_index_of(out, manifest)
    with full_disk_is_told(out):
        rows = write_index(manifest, out, root, form=form)
    return IndexedList(out, rows.videos, rows.sources)
