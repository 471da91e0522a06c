"""Where the paths of a mixture file start, and which of its settings reach the sources."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.data.sources.test_mixture import opened


@pytest.mark.parametrize("moved", [False, True])
def test_lists_and_roots_start_from_the_file_s_folder_or_from_data_root(tmp_path: Path, moved: bool) -> None:
    """`moved`: the mixture file lies elsewhere, and --data.root says where its paths start."""
    base = tmp_path / "base"
    for folder in ("lists", "videos"):
        (base / folder).mkdir(parents=True)
        (base / folder / "a.mp4").touch()
    (base / "lists/one.csv").write_text("path,source\na.mp4,own\n")
    text = (
        '[[source]]\nname = "one"\nmanifest = "lists/one.csv"\nroot = "videos"\nreader = "decord"\n'
        '[[source]]\nname = "two"\nmanifest = "lists/one.csv"\nfps = 5\nmax_epochs = 2\n'
    )
    file = (tmp_path if moved else base) / "mix.toml"
    file.write_text(text)
    where = {"root": base} if moved else {}
    mixture = opened(file, reader="auto", **where)
    assert [source.manifest[0].path for source in mixture.sources] == [
        str(base / "videos/a.mp4"),
        str(base / "lists/a.mp4"),
    ]
    assert [source.fps for source in mixture.sources] == [None, 5]
    assert mixture.names == ("one", "two"), "not what the list calls its videos"
    assert [source.how.reader for source in mixture.sources] == ["decord", "auto"]
    assert [source.how.reader for source in mixture.with_reader("pyav").sources] == ["decord", "pyav"]
    order = mixture.order(0)
    assert Counter(order.key_at(position).source for position in range(4)) == {0: 2, 1: 2}
    assert Counter(order.key_at(position).source for position in range(4, 20)) == {0: 16}, "two passes of the second"
