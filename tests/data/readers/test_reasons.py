"""What is said of files that are no video, or none that can be read: what they are, and a way out."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.data.frames import read_frames
from tests.data.odd_videos import ODD_VIDEOS, coloured, encoded
from vmae2_ds.errors import VideoError


def why(path: Path, reader: str = "pyav") -> str:
    with pytest.raises(VideoError) as caught:
        read_frames(path, np.array([0]), reader)
    return str(caught.value)


def write_song(path: Path, codec: str, has_cover: bool) -> Path:
    """Silence, and a picture on its cover."""
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream(codec, rate=44100)
        packets = []
        if has_cover:
            cover: Any = container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt, cover.disposition = 64, 32, "yuvj420p", Disposition.attached_pic
            packets = [*cover.encode(coloured(5, "yuvj420p", 32)), *cover.encode()]
        for packet in packets:
            container.mux(packet)
        for number in range(8):
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            silence.rate, silence.pts = 44100, 1024 * number
            container.mux(sound.encode(silence))
        container.mux(sound.encode())
    return path


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize(("name", "codec"), [("song.mp3", "mp3"), ("song.mp4", "aac")])
def test_sound_is_told_as_sound_with_and_without_a_cover(tmp_path: Path, name: str, codec: str, reader: str) -> None:
    assert why(write_song(tmp_path / name, codec, has_cover=False), reader).startswith("audio only, no picture")
    assert why(write_song(tmp_path / name, codec, has_cover=True), reader).startswith(
        "audio only, with a cover picture"
    )


def element(name: int, *contents: bytes) -> bytes:
    """Of EBML (RFC 8794): a name, its length in eight bytes, its content."""
    content = b"".join(contents)
    return name.to_bytes((name.bit_length() + 7) // 8, "big") + (len(content) | 1 << 56).to_bytes(8, "big") + content


def inside(data: bytes, at: int, name: int) -> tuple[bytes, int]:
    """(content, end) of the element `name` that begins at `at`."""
    width = (name.bit_length() + 7) // 8
    assert int.from_bytes(data[at : at + width], "big") == name
    edge = 9 - data[at + width].bit_length()
    start = at + width + edge
    length = int.from_bytes(data[at + width : start], "big") & ~(1 << 7 * edge)
    return data[start : start + length], start + length


def write_encrypted_webm(folder: Path) -> Path:
    """A WebM whose track says that AES hides its blocks (RFC 9559, 5.1.4.1.31)."""
    fast = {"deadline": "realtime", "cpu-used": "8"}
    data = encoded(folder / "open.webm", codec="libvpx", muxer={"live": "1"}, **fast).read_bytes()
    at = data.rindex(b"\x16\x54\xae\x6b")
    tracks, end = inside(data, at, 0x1654AE6B)
    entry, _ = inside(tracks, 0, 0xAE)
    how = element(0x5035, element(0x47E1, b"\5"), element(0x47E2, b"a key's name"))
    encoding = element(0x6240, element(0x5031, b"\0"), element(0x5032, b"\1"), element(0x5033, b"\1"), how)
    locked = element(0x1654AE6B, element(0xAE, entry, element(0x6D80, encoding)))
    (folder / "locked.webm").write_bytes(data[:at] + locked + data[end:])
    return folder / "locked.webm"


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_an_encrypted_file_is_not_called_damaged(tmp_path: Path, reader: str) -> None:
    assert why(write_encrypted_webm(tmp_path), reader) == "encrypted; decrypt it first, or take it off the list"
    scheme = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "0f" * 16, "encryption_kid": "f0" * 16}
    path = encoded(tmp_path / "locked.mp4", muxer=scheme)
    assert why(path, reader) == "encrypted; decrypt it first, or take it off the list"


def test_a_gif_and_bare_streams_are_read_by_pyav_and_named_by_decord(tmp_path: Path) -> None:
    for name, words in (
        ("moving.gif", "a GIF, which decord does not read"),
        ("raw.h264", "a bare h264 stream, in which decord"),
    ):
        path = ODD_VIDEOS[name](tmp_path)
        assert len(read_frames(path, np.arange(40))) == 40
        told = why(path, "decord")
        assert told.startswith(words)
        assert "--data.reader pyav" in told


def test_archives_and_pages_are_named(tmp_path: Path) -> None:
    content = b"some bytes of a video" * 100
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.mp4"))
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.mp4", content)
    for data, words in (
        (packed.getvalue(), "a tar archive; unpack it"),
        (gzip.compress(packed.getvalue()), "gzip data (.gz, .tar.gz); unpack it"),
        (zipped.getvalue(), "a zip archive; unpack it"),
        (b"7z\xbc\xaf\x27\x1c" + content, "a 7z archive; unpack it"),
        (b"Rar!\x1a\x07\x00" + content, "a rar archive; unpack it"),
        (b"\x28\xb5\x2f\xfd" + content, "zstd data; unpack it"),
        (b"<!DOCTYPE html><html>not found</html>", "a web page, not a video; fetch the video again"),
        ("kein Vidéo, só текст\n".encode(), "text, not a video"),
        (bytes(range(1, 200)), "not a video file, or its header is damaged"),
    ):
        (tmp_path / "x.mp4").write_bytes(data)
        assert why(tmp_path / "x.mp4").startswith(words)
