"""What a run asks of a GPU and of the cores beside it, by its stage: all that plans need to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from vmae2_ds.config.ava import AvaConfig
from vmae2_ds.config.finetune import FinetuneConfig
from vmae2_ds.config.model import ModelConfig
from vmae2_ds.config.pretrain import PretrainConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.config.tad import TadConfig
from vmae2_ds.console.progress import counted
from vmae2_ds.cost.activations import mae_activations
from vmae2_ds.cost.assumptions import Assumptions
from vmae2_ds.cost.compute_time import Work, micro_step_work
from vmae2_ds.cost.detection import detector_activations, detector_macs, detector_parameters, detector_shape
from vmae2_ds.cost.detection_work import detector_work
from vmae2_ds.cost.finetuning import tuned_activations, tuned_macs, tuned_parameters, tuned_shape, tuned_work
from vmae2_ds.cost.flops import count_parameters, inference_flops, mae_macs, recomputed_by_tower, training_flops
from vmae2_ds.cost.parameters import Model, with_muon
from vmae2_ds.cost.person_actions import action_activations, action_macs, action_parameters, action_shape, action_work
from vmae2_ds.cost.states import MASTER_BYTES
from vmae2_ds.cost.traffic import AttentionKind
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.masking import count_masks

Planned = PretrainConfig | FinetuneConfig | TadConfig | AvaConfig
"""Configs of the stages that can be planned: those of PLANNED."""
PLANNED = ("pretrain", "finetune", "tad", "ava")
FEATURE_BYTES_S = 1e9
"""Bytes of features in files that a core reads and pads in a second; a guess that never binds."""


@dataclass(frozen=True)
class Workload:
    """A run, as far as plans tell runs apart. A clip is what `train.global_batch` counts: of detection a whole window."""

    zero_model: Model
    """What ZeRO divides and gathers; below stage 3 recomputation makes no difference to it."""
    num_parameters: int
    """All of the model's."""
    num_learning: int
    """The parameters that an optimizer updates."""
    tokens: int
    """Tokens of a clip that go through the encoder: what fills a GPU's products."""
    flops: tuple[int, int]
    """FLOPs of a clip, forward and backward: without recomputation (MFU) and with it (HFU)."""
    activations: Callable[[int], float]
    """Bytes at the worst moment of a micro step with so many clips."""
    work: Callable[[int], Work]
    """What a micro step with so many clips has to do."""
    core_s: Callable[[Assumptions], float]
    """Seconds of a CPU core for one video."""
    unit: str
    """The word for a clip."""
    way_out: str
    """What helps where memory does not do."""
    about: str
    """What goes through the model, in words."""
    counts: dict[str, int]
    """The same in numbers, of a clip."""
    encoder_backward: tuple[int, int] = (0, 0)
    """What of `flops` a step with a frozen encoder does not do, where it may be frozen: the encoder's backward pass."""
    keeps_mean: bool = False
    """Whether a running mean of what learns is kept."""
    waiting_bytes: int = 0
    """Bytes of a clip that waits on the GPU for its micro step: detection counts all of a step's before the first
    (train/normaliser.py)."""

    def mean_bytes(self, num_ranks: int, policy: ZeroPolicy) -> float:
        """The running mean in float32, divided as the optimizer's states are (train/ema.py)."""
        return self.keeps_mean * MASTER_BYTES * self.num_learning / (num_ranks if policy.stage else 1)


def planned(config: RunConfig) -> Planned:
    """The config where it is of one of PLANNED, as its recipe was asked for."""
    assert isinstance(config, Planned), f"{config.stage} is none of {PLANNED}"
    return config


def workload_of(config: Planned, attention: AttentionKind, *, zero_stage: int = 3) -> Workload:
    """What a run with this config asks, whose attention is of this kind."""
    if isinstance(config, PretrainConfig):
        asked = _pretraining(config, attention, zero_stage)
    elif isinstance(config, FinetuneConfig):
        asked = _finetuning(config, attention)
    else:
        asked = _detection(config, attention) if isinstance(config, TadConfig) else _actions(config, attention)
    return replace(asked, zero_model=with_muon(asked.zero_model)) if config.optim.optimizer == "muon" else asked


def _pretraining(config: PretrainConfig, attention: AttentionKind, zero_stage: int) -> Workload:
    counts, precision = count_masks(config.mask, config.geometry), config.train.precision
    visible, decode = counts.visible, counts.decode
    macs = mae_macs(config.model, config.geometry, visible, decode)
    recomputed = recomputed_by_tower(config.model, visible, decode)
    backward = training_flops(macs.embed + macs.encoder) - inference_flops(macs.embed + macs.encoder)
    total = count_parameters(config.model).total
    size, frames = config.data.size, config.data.num_frames

    def activations(clips: int) -> float:
        one = _activations(config.model, config.geometry, visible, decode, attention=attention, precision=precision)
        return clips * one.peak

    def work(clips: int) -> Work:
        return _work(config.model, config.geometry, visible, decode, clips, attention=attention, precision=precision)

    return Workload(
        zero_model=config.model if zero_stage == 3 else _without_recomputation(config.model),
        num_parameters=total,
        num_learning=total,
        tokens=visible,
        flops=(training_flops(macs.total), training_flops(macs.total, sum(recomputed))),
        activations=activations,
        work=work,
        core_s=lambda assumed: _reading_core_s(frames, size, config.data.views, assumed),
        unit="clip",
        way_out=f"vmae2 tune {config.recipe} with the same options finds what does",
        about=f"clip of {frames}x{size}x{size}: the encoder sees {visible} tokens, the decoder {visible + decode}; mask "
        f"{config.mask.encoder} + {config.mask.decoder}, {config.mask.decoder_tokens} tokens",
        counts={"encoder": visible, "decoder": visible + decode},
        encoder_backward=(backward, backward + inference_flops(recomputed[0])),
    )


def _finetuning(config: FinetuneConfig, attention: AttentionKind) -> Workload:
    shape, precision, data = tuned_shape(config), config.train.precision, config.data
    parameters, macs, tokens = tuned_parameters(shape), tuned_macs(shape), shape.clip.num_cubes
    without, learning = 2 * (macs.forward + macs.backward), len(shape.learning_blocks)
    learns = f"{learning} of {counted(shape.tower.depth, 'block')} and the head learn"
    if shape.frozen is None:
        learns = "everything learns"
    elif shape.adapted is not None:
        lora = config.model.lora
        learns = f"adapters of rank {lora.rank} beside {' '.join(lora.targets)} and the head learn"
    elif not learning:
        learns = "only the head learns"

    def activations(clips: int) -> float:
        return tuned_activations(shape, clips, attention=attention, precision=precision).peak

    return Workload(
        zero_model=parameters,
        num_parameters=parameters.num_learning + parameters.num_frozen,
        num_learning=parameters.num_learning,
        tokens=tokens,
        flops=(without, without + 2 * macs.recomputed),
        activations=activations,
        work=lambda clips: tuned_work(shape, clips, attention=attention, precision=precision),
        core_s=lambda assumed: _reading_core_s(data.num_frames, data.size, data.views, assumed, data.stride / 4),
        unit="clip",
        way_out="--model.checkpointing all, a lower --train.micro-batch, --optim.last-blocks or --model.lora.rank takes less",
        about=f"clip of {data.num_frames}x{data.size}x{data.size}: the encoder sees {tokens} tokens; "
        f"{counted(shape.num_classes, 'class', 'classes')}; {learns}",
        counts={"encoder": tokens},
        keeps_mean=config.optim.ema_decay > 0,
    )


def _reading_core_s(frames: float, size: int, views: int, assumed: Assumptions, spread: float = 1.0) -> float:
    """CPU core seconds to read frames and cut them to size. `spread`: the video that is decoded for them, in that of a clip of
    pre-training, which takes every 4th frame."""
    clips = frames / 16
    transforms = views * clips * size**2 / 224**2 * assumed.transform_core_s.value
    return spread * clips * assumed.decode_core_s.value + transforms


def _detection(config: TadConfig, attention: AttentionKind) -> Workload:
    shape, precision, data = detector_shape(config), config.train.precision, config.data
    parameters, macs = detector_parameters(shape), detector_macs(shape)
    without = 2 * (macs.forward + macs.backward)
    encoder = shape.encoder
    counts = {"positions": shape.length}
    if encoder is None:
        waiting = shape.length * shape.width * 4
        tokens, about = shape.length, f"features of width {shape.width} from files"
        way_out = "--train.micro-batch or --data.length lower takes less"
    else:
        counts |= {"frames": data.window_frames, "clips": shape.clips, "encoder": shape.clips * encoder.clip.num_cubes}
        tokens, waiting = counts["encoder"], data.window_frames * data.size**2 * 3
        way_out = (
            "--model.adapters.blocks last_half, --model.adapters.clips-at-once or --train.micro-batch lower takes less"
        )
        about = (
            f"{data.window_frames} frames of {data.size}x{data.size}, {data.stride} apart in the video, as {shape.clips} clips "
            f"of {encoder.clip.num_cubes} tokens, {encoder.clips_at_once} at once; adapters behind {len(encoder.numbers)} of "
            f"{encoder.tower.depth} blocks"
        )

    def core_s(assumed: Assumptions) -> float:
        if encoder is None:
            return shape.length * shape.width * 4 / FEATURE_BYTES_S
        return _reading_core_s(data.window_frames, data.size, 1, assumed, data.stride / 4)

    def activations(windows: int) -> float:
        return detector_activations(shape, windows, attention=attention, precision=precision).peak

    return Workload(
        zero_model=parameters,
        num_parameters=parameters.num_learning + parameters.num_frozen,
        num_learning=parameters.num_learning,
        tokens=tokens,
        flops=(without, without + 2 * macs.recomputed),
        activations=activations,
        work=lambda windows: detector_work(shape, windows, attention=attention, precision=precision),
        core_s=core_s,
        unit="window",
        way_out=way_out,
        about=f"window of {shape.length} positions: {about}; {shape.num_classes} classes",
        counts=counts,
        keeps_mean=config.optim.ema_decay > 0,
        waiting_bytes=waiting,
    )


def _actions(config: AvaConfig, attention: AttentionKind) -> Workload:
    shape, precision, data = action_shape(config), config.train.precision, config.data
    parameters, macs = action_parameters(shape), action_macs(shape)
    without, tokens, clip = 2 * (macs.forward + macs.backward), shape.clip.num_cubes, shape.clip
    waits = config.loss.mean_over == "boxes"

    def activations(clips: int) -> float:
        return action_activations(shape, clips, attention=attention, precision=precision).peak

    return Workload(
        zero_model=parameters,
        num_parameters=parameters.num_learning + parameters.num_frozen,
        num_learning=parameters.num_learning,
        tokens=tokens,
        flops=(without, without + 2 * macs.recomputed),
        activations=activations,
        work=lambda clips: action_work(shape, clips, attention=attention, precision=precision),
        core_s=lambda assumed: _reading_core_s(data.num_frames, data.size, 1, assumed, data.stride / 4),
        unit="clip",
        way_out="--model.checkpointing all, a --train.ds-config of a higher ZeRO stage or --train.micro-batch lower takes less",
        about=f"clip of {data.num_frames} frames of {data.size}x{data.size}, {data.stride} apart in the video, around a key "
        f"frame, for which {data.num_frames * data.stride} are decoded: {tokens} tokens; up to "
        f"{counted(shape.boxes, 'box', 'boxes')}, {shape.num_classes} classes"
        + "; only the head learns"
        * shape.is_frozen,
        counts={"frames": data.num_frames, "encoder": tokens, "boxes": shape.boxes},
        keeps_mean=config.optim.ema_decay > 0,
        waiting_bytes=clip.num_frames * clip.height * clip.width * 3 if waits else 0,
    )


@lru_cache(maxsize=64)
def _without_recomputation(model: ModelConfig) -> ModelConfig:
    return model.model_copy(update={"checkpointing": "none", "checkpoint_every": 2})


# One layout is priced with hundreds of micro batches and buckets: each closed form is evaluated once per argument.
_work = lru_cache(maxsize=4096)(micro_step_work)
_activations = lru_cache(maxsize=4096)(mae_activations)
