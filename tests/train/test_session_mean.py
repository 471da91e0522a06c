"""The running mean in a real run of one rank, read back from every checkpoint: still at a refused step, loaded at a resume."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.ranks import tiny_finetuning
from vmae2_ds.checkpoint.whole import tag_of
from vmae2_ds.checkpoint.zero_shards import MEAN, ZeroShards
from vmae2_ds.cli.main import main
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.errors import EXIT_OK
from vmae2_ds.objectives import Classify

pytestmark = pytest.mark.slow
STEPS, CUT, REFUSED, DECAY = 6, 4, 2, 0.75


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """After each step: "fp32" and "ema" -> parameter -> tensor. The run is cut after four steps and goes on."""
    folder = tmp_path_factory.mktemp("mean")
    clips = write_synthetic_set(
        SynthArguments(folder=folder / "clips", train_videos=12, val_videos=1, size=48, frames=8)
    )
    run = folder / "run"
    words = [*tiny_finetuning(clips.train, run, STEPS), "--optim.ema-decay", str(DECAY), "--train.save-every", "1"]
    words += ["--train.keep", "9", "--train.ds-config", "zero1", "--model.encoder.depth", "1"]
    forward, calls = Classify.forward, 0

    def poisoned(self: Classify, batch: object) -> object:
        nonlocal calls
        out = forward(self, batch)  # type: ignore[arg-type]
        calls += 1
        return out._replace(loss=out.loss * torch.nan) if calls == REFUSED + 1 else out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classify, "forward", poisoned)
        for more in (["--train.stop-after-steps", str(CUT)], []):
            with pytest.raises(SystemExit) as stop:
                main([*words, *more])
            assert int(stop.value.code or 0) == EXIT_OK
    assert calls == STEPS, "a micro step a step, and none twice"
    found = []
    for step in range(1, STEPS + 1):
        shards = ZeroShards(run / "ckpt" / tag_of(step), 1, 1)
        found.append({state: {name: shards.whole(name, state) for name in shards.shapes} for state in ("fp32", MEAN)})
    return found


@pytest.mark.parametrize("step", range(1, STEPS))
def test_the_mean_after_each_step(step: int, states: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    """mean = decay x mean + (1 - decay) x weights, in float64; nothing moves in the third step, whose loss is no number."""
    before, now = states[step - 1], states[step]
    for name, mean in now[MEAN].items():
        if step == REFUSED:
            assert torch.equal(mean, before[MEAN][name])
            assert torch.equal(now["fp32"][name], before["fp32"][name])
        else:
            expected = DECAY * before[MEAN][name].double() + (1 - DECAY) * now["fp32"][name].double()
            torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-8)
    moved = any(not torch.equal(now["fp32"][name], before["fp32"][name]) for name in now["fp32"])
    assert moved == (step != REFUSED)
    assert any(not torch.equal(now[MEAN][name], now["fp32"][name]) for name in now[MEAN])
