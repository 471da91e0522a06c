"""What a test asks the model: boxes that are extended end where their own picture does."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.downstream.ava.made_up_set import made_up_ava, write_made_up_set
from vmae2_ds.config.ava_head import RoiHeadConfig
from vmae2_ds.dist import Ranks
from vmae2_ds.downstream.ava.dataset import KeyFrameClips
from vmae2_ds.downstream.ava.detector import chunks_of, name_actions
from vmae2_ds.downstream.ava.objective import ava_objective
from vmae2_ds.downstream.ava.videos import validation_list


def test_the_model_is_told_how_much_of_a_clip_is_picture(tmp_path: Path) -> None:
    """Pictures of 28 x 42 in clips of 32 x 48: as clip by clip, with the picture's size said by hand, and not without."""
    config = made_up_ava(tmp_path, write_made_up_set(tmp_path / "set", videos=1)).changed(
        model={"head": RoiHeadConfig(init_scale=50, box_extension=(0.9, 0.9))}, data={"test_short_side": 28}
    )
    objective = ava_objective(config).eval()
    objective.model.init_weights(0)
    clips = KeyFrameClips(config, validation_list(config))
    found = {one.row: one.probability_GC for one in name_actions(objective, clips, chunks_of(range(6), 4), Ranks())}
    assert all(answer is not None and answer.base is None for answer in found.values()), "no batch is kept for them"
    differs = 0
    for clip in clips.iterate(range(6)):
        assert clip.clip_THWC is not None
        assert clip.clip_THWC.shape == (4, 32, 48, 3)
        seen = clip.clip_THWC[None], clip.box_G4[None]
        with torch.no_grad():
            by_hand_GC, whole_GC = (
                objective.probabilities(*seen, *size)[0] for size in ([torch.tensor([[28, 42]])], [])
            )
        torch.testing.assert_close(torch.from_numpy(found[clip.row]), by_hand_GC)
        differs += not torch.allclose(by_hand_GC, whole_GC)
    assert differs
