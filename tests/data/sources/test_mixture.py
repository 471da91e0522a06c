"""Mixture files: what is read and refused, how sources reach the samples, and exactness over ranks, workers and resumes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae2_ds.config.pretrain import PretrainConfig, PretrainDataConfig
from vmae2_ds.contracts import ReadFailure
from vmae2_ds.data.entry import VideoEntry
from vmae2_ds.data.feed.loader import make_loader
from vmae2_ds.data.feed.pretrain import PretrainDataset, PretrainSample
from vmae2_ds.data.readers.choice import ReaderChoice
from vmae2_ds.data.sources import mixture as mixtures
from vmae2_ds.data.sources.mixture import Mixture, open_mixture, ready_mixtures
from vmae2_ds.data.sources.order import SampleKey
from vmae2_ds.data.tools.synthetic import SyntheticSet, write_video
from vmae2_ds.errors import ConfigError, DataError

MakeConfig = Callable[..., PretrainConfig]

FIVE = """
name = "five"
[[source]]
name = "k710"
manifest = "k710.csv"
weight = 658
[[source]]
name = "ssv2"
manifest = "ssv2.csv"
weight = 169
stride = 2
[[source]]
name = "ava"
manifest = "ava.csv"
weight = 21
max_epochs = 2.5
[[source]]
name = "webvid"
manifest = "webvid.csv"
weight = 250
[[source]]
name = "instagram"
manifest = "instagram.csv"
weight = 250
"""
ROWS = {"k710": 3000, "ssv2": 900, "ava": 40, "webvid": 1100, "instagram": 1500}


@pytest.fixture
def five(tmp_path: Path) -> Path:
    """The five sources of UnlabeledHybrid, as lists alone."""
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.csv").write_text("path\n" + "".join(f"x://{name}/{row}.mp4\n" for row in range(rows)))
    (tmp_path / "five.toml").write_text(FIVE)
    return tmp_path / "five.toml"


def opened(path: Path | str, **data: object) -> Mixture:
    return open_mixture(PretrainDataConfig.model_validate({"mixture": str(path), **data}))


def test_weights_strides_limits_and_names(five: Path) -> None:
    mixture = opened(five, reader="decord")
    assert mixture.names == tuple(ROWS)
    assert mixture.num_videos == sum(ROWS.values())
    assert [source.share for source in mixture.sources] == pytest.approx([w / 1348 for w in (658, 169, 21, 250, 250)])
    assert [source.stride for source in mixture.sources] == [None, 2, None, None, None]
    assert [source.max_videos for source in mixture.sources] == [None, None, 100, None, None]
    assert {source.how.reader for source in mixture.sources} == {"decord"}
    assert [mixture.key_of(video) for video in (0, 3000, 3899, 6539)] == [
        SampleKey(0, 0, 0),
        SampleKey(0, 0, 1),
        SampleKey(0, 899, 1),
        SampleKey(0, 1499, 4),
    ]
    # 21 / 1348 of 6540 samples are 101.9, of 40 videos
    line = "source ava: 40 videos, 1.56% of the samples, 2.55 passes in an epoch, at most 2.5 epochs"
    assert mixture.describe()[2] == line


def test_shares_that_lack_a_ten_thousandth_are_refused(five: Path) -> None:
    for lacking, is_refused in ((1e-4, True), (1e-9, False)):
        text = FIVE
        for number, share in zip((658, 169, 21, 250, 250), (0.5, 0.2, 0.1, 0.1, 0.1 - lacking), strict=True):
            text = text.replace(f"weight = {number}\n", f"share = {share}\n", 1)
        five.write_text(text)
        if is_refused:
            with pytest.raises(ConfigError, match=r"the shares sum to 0\.9999, not to 1"):
                opened(five)
        else:
            shares = [source.share for source in opened(five).sources]
            assert shares == pytest.approx([0.5, 0.2, 0.1, 0.1, 0.1], abs=1e-8)


def test_json_says_the_same(five: Path) -> None:
    try:
        import tomllib
    except ImportError:
        import tomli as tomllib
    same = five.with_suffix(".json")
    same.write_text(json.dumps(tomllib.loads(FIVE)))
    assert [s[:1] + s[2:] for s in opened(same).sources] == [s[:1] + s[2:] for s in opened(five).sources]


def test_without_weights_every_video_counts_the_same(five: Path) -> None:
    five.write_text("\n".join(line for line in FIVE.splitlines() if not line.startswith("weight")))
    shares = [source.share for source in opened(five).sources]
    assert shares == pytest.approx([rows / sum(ROWS.values()) for rows in ROWS.values()])


def test_a_source_can_be_left_out(five: Path) -> None:
    mixture = opened(five, leave_out=("instagram", "ava"))
    assert mixture.names == ("k710", "ssv2", "webvid")
    assert sum(source.share for source in mixture.sources) == pytest.approx(1)
    with pytest.raises(ConfigError, match=r"no source 'insta'; it has k710, ssv2, ava, webvid, instagram"):
        opened(five, leave_out=("insta",))
    with pytest.raises(ConfigError, match="leaves no source"):
        opened(five, leave_out=tuple(ROWS))


REFUSED = {
    # name: (what is replaced, by what, what the line must say)
    "not toml": ("[[source]]", "[[source", r"five\.toml: not TOML"),
    "unknown field": ("stride = 2", "strid = 2", r"source\.1\.strid: .*did you mean 'stride'\?"),
    "far field": ("stride = 2", "colour = 2", r"known are name, manifest, root, weight"),
    "both rates": ("stride = 2", "stride = 2\nfps = 6", "stride and fps say the same thing twice"),
    "share and weight": ("weight = 21\n", "weight = 21\nshare = 0.2\n", "weight and share say the same thing twice"),
    "one weight missing": ("weight = 21\n", "", "'k710' has a weight and 'ava' has none"),
    "negative": ("weight = 21\n", "weight = -21\n", r"source\.2\.weight: Input should be greater than 0"),
    "twice": ('name = "ssv2"', 'name = "k710"', "source 'k710' given twice"),
    "shares": ("weight = ", "share = 0.000", r"the shares sum to 0\.\d+, not to 1"),
    "kind": ("stride = 2", 'kind = "film"', "'video', 'frames' or 'shards'"),
    "template": ("stride = 2", 'kind = "frames"\ntemplate = "img.jpg"', "gives every frame one name"),
    "fps of frames": ("stride = 2", 'kind = "frames"\nfps = 6', "give a stride instead of fps"),
    "reader": ("stride = 2", 'reader = "opencv"', r"source\.1\.reader"),
    "shards": ("stride = 2", 'kind = "shards"', r"ssv2\.csv has no columns shard, offset, bytes"),
    "no source": (FIVE, "name = 'x'", "source: Field required"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_that_names_the_place(five: Path, case: str) -> None:
    old, new, message = REFUSED[case]
    assert old in FIVE
    five.write_text(FIVE.replace(old, new))
    with pytest.raises(ConfigError, match=message) as refusal:
        opened(five)
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_opened(five: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*did you mean 'unlabeled_hybrid'\?"):
        opened("unlabelled_hybrid")
    with pytest.raises(ConfigError, match=r"needs --data\.root"):
        opened("unlabeled_hybrid")
    (tmp_path / "ava.csv").unlink()
    with pytest.raises(DataError, match=r"ava\.csv: cannot read the manifest"):
        opened(five)
    with pytest.raises(ConfigError, match="no videos named"):
        open_mixture(PretrainDataConfig())
    with pytest.raises(ValueError, match="both name the videos"):
        PretrainDataConfig(mixture="a.toml", manifest=Path("a.csv"))


def test_the_papers_mixtures(tmp_path: Path) -> None:
    """docs/PAPER.md#data: 1.348 M clips of five sources; SSv2 at stride 2, the others at 4; LabeledHybrid is K710 alone."""
    assert set(ready_mixtures()) == {"unlabeled_hybrid", "labeled_hybrid"}
    for name in ("k710", "webvid2m", "instagram"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text("path\nx://a.mp4\n")
    for name in ("ssv2", "ava"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text("x://folder 1 60\n")
    mixture = opened("unlabeled_hybrid", root=tmp_path)
    assert mixture.names == ("k710", "ssv2", "ava", "webvid2m", "instagram")
    shares = [658, 169, 21, 250, 250]
    assert [source.share for source in mixture.sources] == pytest.approx([share / 1348 for share in shares], rel=2e-3)
    assert [source.stride for source in mixture.sources] == [4, 2, 4, 4, 4]
    assert [source.how.kind for source in mixture.sources] == ["video", "frames", "frames", "video", "video"]
    assert mixture.sources[2].how.template.format(7) == "image_000007.jpg"
    assert opened("labeled_hybrid", root=tmp_path).names == ("k710",)


def test_identity_sees_lists_shares_and_order(five: Path, tmp_path: Path) -> None:
    data = PretrainDataConfig(mixture=str(five))
    before = open_mixture(data).identity()
    assert open_mixture(data).identity() == before
    (tmp_path / "ssv2.csv").write_text("path\nx://other.mp4\n")
    after = open_mixture(data).identity()
    assert [name for name in before if before[name] != after[name]] == ["source 'ssv2'"]
    five.write_text(FIVE.replace("weight = 21\n", "weight = 22\n"))
    assert open_mixture(data).identity()["source 'ava'"] != after["source 'ava'"]


def test_identity_is_of_what_is_read_not_of_where_it_lies(five: Path, tmp_path: Path) -> None:
    data = PretrainDataConfig(mixture=str(five))
    before = open_mixture(data).identity()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ROWS:
        (elsewhere / f"{name}.csv").write_bytes((tmp_path / f"{name}.csv").read_bytes())
    assert open_mixture(PretrainDataConfig(mixture=str(five), root=elsewhere)).identity() == before
    head, *tables = FIVE.split("[[source]]")
    five.write_text("[[source]]".join([head, *reversed(tables)]))
    assert list(open_mixture(data).identity()) != list(before)
    assert open_mixture(data).identity()["the sources' order"] != before["the sources' order"]
    five.write_text(FIVE.replace("stride = 2", "stride = 3"))
    assert open_mixture(data).identity()["source 'ssv2'"] != before["source 'ssv2'"]


def test_auto_measures_videos_from_all_over_each_list_that_needs_it(
    five: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each source the first video of every quarter; none of a source that names its reader, or is folders of frames."""
    text = FIVE.replace('name = "webvid"', 'name = "webvid"\nreader = "pyav"')
    five.write_text(text.replace('name = "ava"', 'name = "ava"\nkind = "frames"'))
    (five.parent / "ava.csv").write_text("x://folder 1 60\n" * 40)
    asked: list[str] = []

    def chosen(videos: list[VideoEntry], *_: object) -> ReaderChoice:
        asked.extend(video.path for video in videos)
        return ReaderChoice("decord", 4, ())

    monkeypatch.setattr(mixtures, "choose_reader", chosen)
    assert opened(five, reader="auto").choose_reader(0) == "decord"
    assert asked == [
        f"x://{name}/{rows * quarter // 4}.mp4"
        for name, rows in ROWS.items()
        if name not in ("ava", "webvid")
        for quarter in range(4)
    ]


def sample_of_key(self: PretrainDataset, key: SampleKey) -> PretrainSample:
    """No video: the key itself, and every third of the tiny source as a failure."""
    tensor = torch.tensor([[key.epoch, key.row, key.source]])
    failures = [ReadFailure("x", "y")] if key.source == 2 and key.row % 3 == 0 else []
    return PretrainSample(tensor, tensor, tensor, tensor, failures, self.mixture.names[key.source], [])


def sequence(config: PretrainConfig, mixture: Mixture, ranks: int, first_step: int, num_steps: int) -> np.ndarray:
    """Keys of steps first_step .. num_steps-1 in global order: (positions, 3)."""
    split = {"world_size": ranks, "accumulation": 1, "first_step": first_step, "num_steps": num_steps}
    loaded = [list(make_loader(config, PretrainDataset(config, mixture), rank=rank, **split)) for rank in range(ranks)]
    by_step = [loaded[rank][step].batch.clip_BTHWC for step in range(num_steps - first_step) for rank in range(ranks)]
    return torch.cat(by_step).numpy()


VIDEOS_PER_STEP = 24
STEPS = 10_000 // VIDEOS_PER_STEP + 1


@pytest.fixture
def keys_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretrainDataset, "__getitem__", sample_of_key)


def test_the_first_10000_samples_are_the_same_for_any_ranks_and_workers(
    five: Path, make_config: MakeConfig, keys_only: None
) -> None:
    mixture = opened(five)
    order = mixture.order(seed=5)
    expected = np.array([order.key_at(position) for position in range(STEPS * VIDEOS_PER_STEP)])
    assert len(expected) >= 10_000
    for ranks, workers in ((1, 4), (3, 2), (8, 0)):  # one rank without workers: below
        config = make_config(micro_batch=VIDEOS_PER_STEP // ranks, seed=5, workers=workers)
        assert np.array_equal(sequence(config, mixture, ranks, 0, STEPS), expected), (ranks, workers)
    shares = [source.share for source in mixture.sources]
    seen = np.stack([expected[:, 2] == source for source in range(5)], axis=1).cumsum(axis=0)
    used_up = int(np.flatnonzero(seen[:, 2] == 100)[0])  # then the others take ava's share
    in_windows = (seen[2000:used_up] - seen[: used_up - 2000]) / 2000
    assert np.abs(in_windows - shares).max() < 0.005


def test_resuming_anywhere_with_other_ranks_goes_on_exactly(
    five: Path, make_config: MakeConfig, keys_only: None
) -> None:
    mixture = opened(five)
    draw = random.Random(11)
    cuts = [0, *sorted(draw.sample(range(1, STEPS), 5)), STEPS]
    whole = sequence(make_config(micro_batch=VIDEOS_PER_STEP, seed=5), mixture, 1, 0, STEPS)
    order = mixture.order(seed=5)
    assert [tuple(key) for key in whole] == [order.key_at(position) for position in range(len(whole))]
    parts = []
    for begin, end in pairwise(cuts):
        ranks = draw.choice([1, 2, 3, 8])
        config = make_config(micro_batch=VIDEOS_PER_STEP // ranks, seed=5, workers=draw.choice([0, 1]))
        parts.append(sequence(config, mixture, ranks, begin, end))
    assert np.array_equal(np.concatenate(parts), whole)


def test_a_mixture_that_ends_is_refused_before_it_is_used_up(five: Path, make_config: MakeConfig) -> None:
    mixture = opened(five, leave_out=("k710", "ssv2", "webvid", "instagram"))
    usual = {"rank": 0, "world_size": 1, "accumulation": 1, "first_step": 0}
    make_loader(
        make_config(micro_batch=10), PretrainDataset(make_config(micro_batch=10), mixture), num_steps=10, **usual
    )
    with pytest.raises(ConfigError, match=r"used up after 100 samples .* the run wants 110"):
        make_loader(
            make_config(micro_batch=10), PretrainDataset(make_config(micro_batch=10), mixture), num_steps=11, **usual
        )


@pytest.fixture
def two_kinds(synthetic_set: SyntheticSet, tmp_path: Path) -> Path:
    """A slow source by rate and a fast one by stride, of the same synthetic videos, and a bad file in the first."""
    videos = sorted((synthetic_set.train.parent / "train").glob("*.mp4"))
    (tmp_path / "bad.mp4").write_text("no video\n")
    (tmp_path / "one.csv").write_text("path\n" + "".join(f"{path}\n" for path in videos[:6]) + f"{tmp_path}/bad.mp4\n")
    (tmp_path / "two.csv").write_text("path\n" + "".join(f"{path}\n" for path in videos[6:]))
    (tmp_path / "mix.toml").write_text(
        '[[source]]\nname = "one"\nmanifest = "one.csv"\nshare = 0.75\nfps = 8\n'
        '[[source]]\nname = "two"\nmanifest = "two.csv"\nshare = 0.25\nstride = 1\n'
    )
    return tmp_path / "mix.toml"


def test_samples_of_a_mixture_come_from_their_source_at_its_rate(two_kinds: Path, make_config: MakeConfig) -> None:
    config = make_config(views=1, stride=5)
    mixture = opened(two_kinds)
    dataset = PretrainDataset(config, mixture)
    by_rate = PretrainDataset(make_config(views=1, stride=2), mixture)
    one = dataset[SampleKey(3, 1, 0)]
    assert one.source == "one"
    plain = by_rate.mixture.sources[0]._replace(fps=None)
    by_stride = PretrainDataset(make_config(views=1, stride=2), Mixture("x", (plain,)))
    assert torch.equal(one.clip_KTHWC, by_stride[SampleKey(3, 1, 0)].clip_KTHWC)
    two = dataset[SampleKey(3, 1, 1)]
    assert two.source == "two"
    assert not torch.equal(two.visible_KV, one.visible_KV)  # the same epoch and row of another source draws otherwise
    bad = dataset[SampleKey(0, 6, 0)]
    assert list({Path(failure.path).name for failure in bad.failures}) == ["bad.mp4"]
    assert bad.source == "one"


def test_shares_reach_the_batches(two_kinds: Path, make_config: MakeConfig) -> None:
    config = make_config(micro_batch=4, views=1)
    batches = make_loader(
        config,
        PretrainDataset(config, opened(two_kinds)),
        rank=0,
        world_size=1,
        accumulation=1,
        first_step=0,
        num_steps=5,
    )
    assert sum((Counter(loaded.sources) for loaded in batches), Counter()) == {"one": 15, "two": 5}


def test_a_source_whose_videos_tell_no_rate_names_them(tmp_path: Path, make_config: MakeConfig) -> None:
    write_video(tmp_path / "a.mp4", np.zeros((12, 32, 32, 3), np.uint8), fps=24)
    (tmp_path / "a.csv").write_text("path\na.mp4\n")
    (tmp_path / "mix.toml").write_text('[[source]]\nname = "a"\nmanifest = "a.csv"\nfps = 6\n')
    source = opened(tmp_path / "mix.toml").sources[0]
    stride = PretrainDataset(make_config(), opened(tmp_path / "mix.toml"))._stride
    assert stride(source, "a", 24.0) == 4
    assert stride(source, "a", 3.0) == 1
    with pytest.raises(Exception, match="does not tell its frame rate"):
        stride(source, "a", float("nan"))
