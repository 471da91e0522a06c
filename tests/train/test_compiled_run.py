"""A run whose blocks are compiled goes on from its checkpoint as it would have without a stop, and `auto` is asked once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.ranks import tiny_pretraining
from vmae2_ds.cli.main import main
from vmae2_ds.data.tools.synthetic import SynthArguments, write_synthetic_set
from vmae2_ds.errors import EXIT_OK
from vmae2_ds.train import phases


@pytest.mark.slow
def test_a_compiled_run_resumes_with_the_choice_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(*_: object, **__: object) -> str:
        asked.append(1)
        return "aot_eager"

    monkeypatch.setattr(phases, "choose_compile", choose)
    arguments = SynthArguments(folder=tmp_path / "videos", train_videos=8, val_videos=1, seed=0, size=64, frames=16)
    videos = write_synthetic_set(arguments).train

    def losses(name: str, *stops: str) -> list[float]:
        run = tmp_path / name
        words = [word.replace("zero3", "zero1") for word in tiny_pretraining(videos, run, 4)]
        words += ["--data.workers", "0", "--train.compile", "auto"]
        for stop in stops:
            with pytest.raises(SystemExit) as ended:
                main([*words, "--train.stop-after-steps", stop])
            assert ended.value.code == EXIT_OK
        return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]

    assert losses("cut", "2", "4") == losses("whole", "4")
    assert len(asked) == 2, "once a run"
