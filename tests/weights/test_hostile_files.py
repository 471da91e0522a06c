"""Files that are damaged, mislabelled, foreign or made to harm: each is refused in one line, and nothing in it is run."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save

from vmae2_ds.config.model import SIZES, ClassifierConfig
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.runs.export import ImportArguments, import_weights
from vmae2_ds.runs.open import load_for, open_classifier
from vmae2_ds.weights.layouts import StateDict, layout_shapes

CLASSIFIER = ClassifierConfig(encoder=SIZES["tiny"][0].model_copy(update={"depth": 1}), num_classes=5)


def good() -> StateDict:
    return {name: torch.zeros(shape) for name, shape in layout_shapes(CLASSIFIER).items()}


class Harmful:
    """Makes a file where something unpickles it as pickle does."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def tampered(change: Callable[[dict], None]) -> bytes:
    """A good safetensors file whose header is changed; the body stays."""
    whole = save(good())
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:end])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[end:]


def set_shape(header: dict) -> None:
    header["head.weight"]["shape"] = [1 << 33, 1 << 10]


def set_end(header: dict) -> None:
    header["head.weight"]["data_offsets"][1] = 1 << 40


def overlap(header: dict) -> None:
    header["norm1"] = dict(header["blocks.0.norm1.weight"])


def torch_file(content: object, *, old: bool = False) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path, _use_new_zipfile_serialization=not old)


def with_member(name: str) -> Callable[[Path], None]:
    """A good file of torch.save, and a member that an unpacker would put elsewhere."""

    def write(path: Path) -> None:
        torch.save({"model": good()}, path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, "x")

    return write


def cut(path: Path) -> None:
    torch.save({"model": good()}, path)
    path.write_bytes(path.read_bytes()[:20_000])


def torch_bytes() -> bytes:
    path = Path("whole.pt")
    torch.save({"model": good()}, path)
    return path.read_bytes()


CODE = r"it refers to (posix|nt)\.system, which is not plain data; no code in a file is run"
HUGE = {"head.weight": torch.zeros(1).expand(1 << 40, 192)}
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "code.pth": (torch_file({"model": good() | {"more": Harmful()}}), CODE),
    "code.bin": (torch_file({"model": good(), "args": Harmful()}), CODE),
    "code_of_old_torch.pt": (torch_file({"model": Harmful()}, old=True), CODE),
    "pickle.pth": (lambda path: path.write_bytes(pickle.dumps(Harmful())), "a pickle with more than plain data"),
    "slip.pth": (with_member("../../slipped"), "cut or damaged .*not in a subdirectory"),
    "absolute.pth": (with_member("/slipped"), "cut or damaged .*not in a subdirectory"),
    "long_header.safetensors": (
        lambda path: path.write_bytes(struct.pack("<Q", 1 << 40) + save(good())[8:]),
        r"cut or damaged \(.*header too large",
    ),
    "large_shape.safetensors": (
        lambda path: path.write_bytes(tampered(set_shape)),
        "invalid shape, data type, or offset",
    ),
    "beyond.safetensors": (lambda path: path.write_bytes(tampered(set_end)), "invalid shape, data type, or offset"),
    "overlap.safetensors": (lambda path: path.write_bytes(tampered(overlap)), "invalid offset for tensor"),
    "short.safetensors": (lambda path: path.write_bytes(save(good())[:50_000]), "cut or damaged .*not fully covered"),
    "short.pth": (cut, "cut or damaged"),
    "empty.pth": (lambda path: path.write_bytes(b""), "it is empty"),
    "empty.safetensors": (lambda path: path.write_bytes(b""), "it is empty"),
    "missing.pth": (lambda path: None, "[Nn]o such file or"),
    "renamed.pth": (
        lambda path: path.write_bytes(save(good())),
        r"its content is safetensors; .* end in \.safetensors",
    ),
    "renamed.safetensors": (lambda path: path.write_bytes(torch_bytes()), r"is a file of torch\.save; .* end in \.pth"),
    "page.safetensors": (lambda path: path.write_text("<html>404</html>"), "of neither format .*<html>"),
    "pointer.pth": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "it is a pointer of git-lfs",
    ),
    "no_state.pth": (torch_file({"epoch": 3}), "holds no state dict"),
    "list.pth": (torch_file({"model": [torch.zeros(1)]}), "holds no state dict"),
    "number.pth": (torch_file(good() | {7: torch.zeros(1)}), "7 is not the name of a plain, dense tensor"),
    "sparse.pth": (
        torch_file({name: x.to_sparse() for name, x in good().items()}),
        "not the name of a plain, dense tensor",
    ),
    "expanded.pth": (torch_file(good() | HUGE), r"claims \(1099511627776, 192\) values, more than the file holds"),
    "whole_numbers.pth": (
        torch_file({name: x.int() for name, x in good().items()}),
        r"holds torch\.int32, and weights are",
    ),
    "resnet.pth": (
        torch_file(torchvision.models.resnet18().state_dict()),
        r"nearest key layout: published, classifier; missing there: patch_embed.*without a place: conv1\.weight, bn1",
    ),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_it_is_refused_in_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By import, as a run's first weights, and for evaluation; the line names the file."""
    monkeypatch.chdir(tmp_path)
    write, expected = CASES[name]
    path = tmp_path / "given" / name
    path.parent.mkdir()
    write(path)
    there = set(tmp_path.rglob("*"))
    readers: list[Callable[[], object]] = [
        lambda: import_weights(ImportArguments(source=path, out=tmp_path / "out.safetensors")),
        lambda: load_for(path, CLASSIFIER),
        lambda: open_classifier(path),
    ]
    for read in readers:
        with pytest.raises((CheckpointError, ConfigError)) as refused:
            read()
        message = str(refused.value)
        assert "\n" not in message
        assert re.search(expected, message), message
        assert message.startswith(str(path))
    assert set(tmp_path.rglob("*")) == there, "something in the file was run or unpacked"
    assert not Path("/slipped").exists()


def test_the_harmful_object_does_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    torch_file({"model": Harmful()})(tmp_path / "code.pth")
    torch.load(tmp_path / "code.pth", weights_only=False)
    assert (tmp_path / "ran").exists()
