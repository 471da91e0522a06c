"""Archives are read where they lie: whatever their members are called, nothing is unpacked beside or outside of them."""

from __future__ import annotations

import ast
import io
import tarfile
from pathlib import Path

import vmae2_ds
from vmae2_ds.data.tools.shards import IndexShardsArguments, index_shards


def test_members_that_point_elsewhere_write_nothing(tmp_path: Path) -> None:
    inside, out = tmp_path / "inside", tmp_path / "inside" / "list.csv"
    inside.mkdir()
    secret = tmp_path / "secret.cls"
    secret.write_text("7")
    with tarfile.open(inside / "evil.tar", "w") as tar:
        for name in ("../../above.mp4", str(tmp_path / "absolute.mp4"), "plain.mp4"):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b"video"))
        link = tarfile.TarInfo("plain.cls")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    found = index_shards(IndexShardsArguments(shards=str(inside / "evil.tar"), out=out))
    assert found.videos == 3
    assert found.labelled == 0, "a link out of the archive is not followed"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "inside",
        "inside/evil.tar",
        "inside/list.csv",
        "secret.cls",
    ]


def test_no_code_unpacks_an_archive() -> None:
    calls = {
        f"{path.name}:{node.lineno}"
        for path in Path(vmae2_ds.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("extract", "extractall", "unpack_archive")
    }
    assert not calls
