"""Whether pre-training goes on with the encoder of a trained run of any stage, as DeepSpeed itself reads that run."""

from __future__ import annotations

from pathlib import Path

import torch

from vmae2_ds.config.model import ModelConfig, TowerConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.runs.first_weights import initial_weights
from vmae2_ds.runs.folder import find_checkpoint


def assert_pretraining_takes_the_encoder_of(run: Path) -> None:
    """All of it bit for bit, and nothing else: adapters, heads and a norm behind a pooling stay out."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    before, checkpoint = find_checkpoint(run)
    saved = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    for file in checkpoint.glob("mp_rank_00_model_states.pt"):  # below stage 3 what is frozen is only there
        saved = torch.load(file, weights_only=False)["module"] | saved
    expected = {name.removeprefix("model."): x for name, x in saved.items() if name.startswith("model.encoder.")}
    decoder = TowerConfig(width=16, depth=1, heads=1, mlp=16)
    model = ModelConfig(
        encoder=before.model.encoder, decoder=decoder, patch=before.model.patch, tubelet=before.model.tubelet
    )
    clips = {"num_frames": 2 * model.tubelet, "size": 2 * model.patch}
    found = initial_weights(PretrainConfig(model=model).changed(data=clips, train={"init": run}))
    assert len(expected) > 5 * before.model.encoder.depth
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].to(found[name].dtype)) for name in expected)
