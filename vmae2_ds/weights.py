"""Weights that travel: published checkpoints in, runs out, as one file under the published key names."""

from __future__ import annotations

from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file

from vmae2_ds.config import SIZES, ModelConfig, RunConfig
from vmae2_ds.errors import CheckpointError, ConfigError
from vmae2_ds.model.official import from_official, infer_model_config, read_published, to_official
from vmae2_ds.train.checkpoint import find_newest_whole, read_weights
from vmae2_ds.train.runs import read_run_config


def import_published(source: tyro.conf.Positional[Path], /, out: Path, size: str | None = None) -> str:
    """Check a published pre-training checkpoint against the key map and write it as .safetensors for --train.init.

    Args:
        source: A published .pth, .pt or .safetensors file; wrappers and prefixes of DDP, DeepSpeed and torch.compile
            are taken off. No code in it is run.
        out: The .safetensors file to write.
        size: Expected model size (tiny, small, base, large, huge, giant, 6b); default: read from the shapes.
    """
    if size is not None and size not in SIZES:
        raise ConfigError(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
    state = read_published(source)
    config = ModelConfig.of_size(size) if size else infer_model_config(state)
    ours = from_official(state, config)
    write_weights(to_official(ours, config), out, config)
    return f"{source}: {len(ours)} tensors, none missing, none extra; {_describe(config)}; wrote {out}"


def export_published(source: tyro.conf.Positional[Path], /, out: Path) -> str:
    """Write the weights of a run or of one checkpoint under the published key names, in float32.

    Args:
        source: A run folder (its newest whole checkpoint), a folder of runs (the newest), or runs/.../ckpt/stepN.
        out: The file to write: .safetensors, or .pth with the published wrapper {"model": ...}.
    """
    run, checkpoint = find_checkpoint(source)
    config = run.model
    state = to_official(read_weights(checkpoint), config)
    write_weights(state, out, config)
    return f"{checkpoint}: {len(state)} tensors; {_describe(config)}; wrote {out}"


def find_checkpoint(source: Path) -> tuple[RunConfig, Path]:
    """The run's config and the checkpoint that `source` means: a run, the newest run in a folder, or a checkpoint."""
    newest = sorted(source.glob("*/run.json"))[-1:]
    candidates = (source, source.parent.parent, *(file.parent for file in newest))
    run = next((folder for folder in candidates if (folder / "run.json").is_file()), None)
    if run is None:
        raise ConfigError(
            f"{source} is neither a run folder (with a run.json), nor a folder of runs, nor a runs/.../ckpt/stepN"
        )
    config = read_run_config(run)
    checkpoint = source if run == source.parent.parent else find_newest_whole(run / "ckpt")
    if checkpoint is None:
        raise CheckpointError(f"{run} holds no whole checkpoint yet")
    return config, checkpoint


def write_weights(state: dict[str, torch.Tensor], out: Path, config: ModelConfig) -> None:
    """Write published tensors to `out`; its ending decides the format."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".safetensors":
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()}, out, {"model": config.model_dump_json()}
        )
    elif out.suffix in (".pth", ".pt"):
        torch.save({"model": state}, out)
    else:
        raise ConfigError(f"--out {out}: the name must end in .safetensors, .pth or .pt")


def _describe(config: ModelConfig) -> str:
    encoder, decoder = config.encoder, config.decoder
    return f"encoder {encoder.width}x{encoder.depth}, decoder {decoder.width}x{decoder.depth}, patch {config.patch}"
