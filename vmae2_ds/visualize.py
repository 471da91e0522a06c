"""`vmae2 visualize`: clips of a run as its model sees and completes them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from vmae2_ds.config import PretrainConfig
from vmae2_ds.contracts import Masks, PretrainBatch
from vmae2_ds.data.mixture import open_mixture
from vmae2_ds.dist import default_device
from vmae2_ds.draw import Reconstruction, animate_reconstruction, draw_curves, draw_reconstruction
from vmae2_ds.errors import ConfigError

if TYPE_CHECKING:  # torch is imported where work begins: `--help` needs the signature below, and nothing else
    from vmae2_ds.data.datasets import PretrainDataset
    from vmae2_ds.objectives import Reconstruct

log = logging.getLogger(__name__)


def visualize(
    source: tyro.conf.Positional[Path],
    /,
    manifest: Path | None = None,
    root: Path | None = None,
    clips: int = 6,
    seed: int = 0,
    out: Path | None = None,
) -> Path:
    """Draw clips of a run as its model sees and completes them, a PNG and an animation each, and its curves.

    Rows: the clip, what the encoder sees, what the decoder has to fill, the reconstruction alone, and with the visible
    cubes pasted in. Returns the folder.

    Args:
        source: A run folder (its newest whole checkpoint), a folder of runs (the newest), or runs/.../ckpt/stepN.
        manifest: Videos to draw; default: the run's own.
        root: Folder that the manifest's relative paths start from.
        clips: Number of videos, spread over the manifest.
        seed: Draws other frames, crops and masks of the same videos.
        out: Folder for the pictures; default: pictures/ in the run folder.
    """
    from vmae2_ds.data.datasets import PretrainDataset
    from vmae2_ds.train.report import read_rows, write_report
    from vmae2_ds.train.runs import find_checkpoint

    config, checkpoint = find_checkpoint(source)
    if not isinstance(config, PretrainConfig):
        raise ConfigError(f"{source} is a {config.stage} run: only a masked autoencoder draws what it does not see")
    run = checkpoint.parent.parent
    if manifest is not None:
        config = config.changed(data={"manifest": manifest, "root": root, "mixture": None, "leave_out": ()})
    elif root is not None:
        config = config.changed(data={"root": root})
    out = out or run / "pictures"
    out.mkdir(parents=True, exist_ok=True)
    objective = load_objective(config, checkpoint)
    pictures = reconstruct(
        objective,
        config,
        PretrainDataset(_for_drawing(config, seed), open_mixture(config.data).with_reader("pyav")),
        clips,
    )
    for number, picture in enumerate(pictures):
        draw_reconstruction(picture, out / f"clip{number:02d}.png")
        animate_reconstruction(picture, out / f"clip{number:02d}.gif")
        log.info("%s: %s", out / f"clip{number:02d}.png", picture.title)
    draw_curves(read_rows(run / "metrics.jsonl"), out / "curves.png")
    write_report(run)
    return out


def load_objective(config: PretrainConfig, checkpoint: Path) -> Reconstruct:
    """The objective with a checkpoint's float32 weights, on this process's device."""
    from vmae2_ds.model.mae import MaskedAutoencoder
    from vmae2_ds.objectives import Reconstruct
    from vmae2_ds.train.zero_weights import read_weights

    shape = config.model.model_copy(update={"attention": "sdpa", "checkpointing": "none"})  # float32, on any machine
    model = MaskedAutoencoder(shape, config.geometry, seed=None)
    model.load_state_dict(read_weights(checkpoint))
    return Reconstruct(model, config.objective, config.geometry).to(default_device()).eval()


def reconstruct(
    objective: Reconstruct, config: PretrainConfig, dataset: PretrainDataset, count: int
) -> Iterator[Reconstruction]:
    """Predictions for `count` videos spread over the data set, one view each, titled with the clip's own loss."""
    import torch

    videos = dataset.mixture.num_videos
    for number in range(min(count, videos)):
        key = dataset.mixture.key_of(videos * number // min(count, videos))
        sample = dataset[key]
        batch = PretrainBatch(*sample[:4]).to(default_device())
        with torch.no_grad():
            predicted_BMP, target_BMP = objective.predict(batch)
        error_BM = (predicted_BMP - target_BMP).square().mean(-1)
        loss = error_BM[batch.is_supervised_BM].mean().item()
        name = (
            Path(dataset.mixture.sources[key.source].manifest[key.row].path).name
            if not sample.failures
            else "a replacement"
        )
        yield Reconstruction(
            clip_THWC=sample.clip_KTHWC[0].numpy(),
            predicted_MP=predicted_BMP[0].float().cpu().numpy(),
            masks=Masks(*(tensor[0].numpy() for tensor in sample[1:4])),
            geometry=config.geometry,
            target=config.objective.target,
            title=f"{name}, loss {loss:.3f}",
        )


def _for_drawing(config: PretrainConfig, seed: int) -> PretrainConfig:
    """One view per video, drawn from another seed than training's epoch 0 unless that is asked for."""
    data = config.data.model_copy(update={"views": 1, "crop_on": "workers"})
    return config.model_copy(update={"data": data, "train": config.train.model_copy(update={"seed": seed})})
