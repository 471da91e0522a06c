"""`vmae2 tad` on one and on two ranks equals plain PyTorch on the samples of its order: stretches, stochastic depth, batches in
parts, the running number of the whole batch, clipping, weight decay, EMA. test_tad_equals_plain.py has every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.distributed.ranks import rank_environment
from tests.distributed.zygote import Zygote
from tests.downstream.tad.made_up import write_set
from vmae2_ds.checkpoint.zero_weights import read_weights
from vmae2_ds.cli.parse import recipe
from vmae2_ds.config.run_plan import plan_run
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.downstream.tad.features_data import FeaturesDataset
from vmae2_ds.downstream.tad.losses import loss_sums
from vmae2_ds.downstream.tad.objective import FeatureDetector
from vmae2_ds.downstream.tad.videos import open_videos
from vmae2_ds.host import free_port
from vmae2_ds.json_lines import rows_of
from vmae2_ds.runs.folder import find_checkpoint
from vmae2_ds.train.loop import seed_of
from vmae2_ds.train.optim import learning_rate
from vmae2_ds.weights.layouts import StateDict

STEPS, MICRO_BATCH, MICRO_STEPS, DECAY = 4, 2, 4, 0.7
TOLERANCE = 1e-6
VALIDATED = 3  # on two ranks one has a pass less
WORDS = (
    "tad_desk --model.encoder.width 16 --model.num-classes 3 --model.head.width 16 --model.head.heads 2 "
    "--model.head.ranges 4 8 --model.head.drop-path 0.2 --data.length 48 --data.val-subset validation "
    f"--train.global-batch {MICRO_BATCH * MICRO_STEPS} --train.micro-batch {MICRO_BATCH} --train.max-steps {STEPS} "
    f"--train.log-every 1 --train.no-tensorboard --optim.ema-decay {DECAY} --optim.warmup-epochs 1"
)


class Steps(NamedTuple):
    """What came of some steps."""

    losses: list[float]
    last: StateDict
    mean: StateDict


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    annotations, features = write_set(tmp_path_factory.mktemp("set"), videos=10, validation=VALIDATED)
    return [*WORDS.split(), "--data.annotations", str(annotations), "--data.features", str(features)]


@pytest.fixture(scope="module")
def plain(words: list[str]) -> Steps:
    """Micro batch by micro batch on one process, in the order of the run's samples."""
    _, config = recipe("vmae2 tad", words, ["tad"])
    assert isinstance(config, TadConfig)
    mixture: Mixture = open_videos(config)[0]
    dataset, order, plan = FeaturesDataset(config, mixture), mixture.order(0), plan_run(config, mixture.num_videos, 1)
    model = FeatureDetector(config.model, config.geometry, config.data.length, seed=0)
    named = dict(model.named_parameters())
    spared = [
        p
        for name, p in named.items()
        if name.endswith(("bias", "gain1_D", "gain2_D", "offset_scale_L")) or "norm" in name
    ]
    others = [p for p in named.values() if all(p is not one for one in spared)]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.05}, {"params": spared, "weight_decay": 0.0}],
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    mean = {name: p.detach().clone() for name, p in named.items()}
    normaliser, losses = 20.0, []
    for step in range(STEPS):
        sums = []
        for number in range(MICRO_STEPS):
            first = (step * MICRO_STEPS + number) * MICRO_BATCH
            batch = dataset.collate([dataset[order.key_at(at)] for at in range(first, first + MICRO_BATCH)])
            torch.manual_seed(seed_of(0, step, number))
            output = model(batch.feature_BTD, batch.is_real_BT)
            sums.append(loss_sums(output, batch.segment_BG2, batch.label_BG, config.model.head, config.loss))
        positive = sum(int(one.num_positive) for one in sums)
        normaliser = 0.9 * normaliser + 0.1 * max(1, positive)
        loss = sum(one.classes + one.ends for one in sums) / normaliser
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, plan)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = {name: DECAY * mean[name] + (1 - DECAY) * p.detach() for name, p in named.items()}
        losses.append(loss.item())
    return Steps(losses, {name: p.detach() for name, p in named.items()}, mean)


def run(zygote: Zygote, words: list[str], folder: Path, ranks: int) -> Steps:
    """The same by `vmae2 tad`."""
    port, logs = free_port(), [folder / f"rank{rank}.log" for rank in range(ranks)]
    line = ["tad", *words, "--train.run", str(folder / "run")]
    started = [zygote.start(line, rank_environment(rank, ranks, port), log) for rank, log in enumerate(logs)]
    codes = [rank.wait() for rank in started]
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)
    checkpoint = find_checkpoint(folder / "run")[1]
    losses = [row["loss"] for row in rows_of(folder / "run" / "metrics.jsonl")]
    return Steps(losses, read_weights(checkpoint), read_weights(checkpoint, mean=True))


@pytest.fixture(scope="module")
def two_ranks(words: list[str], zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Steps]:
    """A run at ZeRO-3 and what came of it."""
    folder = tmp_path_factory.mktemp("two")
    return folder / "run", run(zygote, [*words, "--train.ds-config", "zero3"], folder, 2)


def check_equal(found: Steps, plain: Steps, folder: Path) -> None:
    assert found.losses == pytest.approx(plain.losses, abs=TOLERANCE, rel=0)
    for name in plain.last:
        torch.testing.assert_close(found.last[name], plain.last[name], rtol=0, atol=TOLERANCE, msg=name)
        torch.testing.assert_close(found.mean[name], plain.mean[name], rtol=0, atol=TOLERANCE, msg=name)
    (row,) = rows_of(folder / "validation.jsonl")
    assert row["val_videos"] == VALIDATED


@pytest.mark.slow
def test_losses_weights_and_their_mean_are_equal_on_one_rank(
    words: list[str], plain: Steps, zygote: Zygote, tmp_path: Path
) -> None:
    check_equal(run(zygote, [*words, "--train.ds-config", "zero0"], tmp_path, 1), plain, tmp_path / "run")


@pytest.mark.slow
def test_losses_weights_and_their_mean_are_equal_on_two_ranks(plain: Steps, two_ranks: tuple[Path, Steps]) -> None:
    folder, found = two_ranks
    check_equal(found, plain, folder)


def test_the_reference_moves(plain: Steps) -> None:
    """Otherwise equality would prove nothing."""
    assert max(float((plain.last[name] - plain.mean[name]).abs().max()) for name in plain.last) > 1e-4
    assert plain.losses[-1] < plain.losses[0]


def detected(zygote: Zygote, run: Path, out: Path, ranks: int) -> Any:
    """What `vmae2 tad detect` writes."""
    port, logs = free_port(), [out.with_suffix(f".{rank}.log") for rank in range(ranks)]
    line = ["tad", "detect", str(run), "--out", str(out)]
    codes = [
        rank.wait()
        for rank in [zygote.start(line, rank_environment(rank, ranks, port), log) for rank, log in enumerate(logs)]
    ]
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)
    return out.read_text()


@pytest.mark.slow
def test_detections_do_not_depend_on_the_number_of_ranks(
    two_ranks: tuple[Path, Steps], zygote: Zygote, tmp_path: Path
) -> None:
    one, two = (detected(zygote, two_ranks[0], tmp_path / f"{ranks}.json", ranks) for ranks in (1, 2))
    assert one == two
