"""What a plan says of a detector, against the modules themselves: parameters, the order of calls, work, operations."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.cost.parameter_counts import pyramid_parameters
from tests.cost.test_traffic import CountBytes
from vmae2_ds.config.adapters import AdapterConfig
from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.config.tad_head import HeadConfig
from vmae2_ds.contracts import ClipGeometry
from vmae2_ds.cost.adapters import AdaptedShape
from vmae2_ds.cost.comm import comm_bytes
from vmae2_ds.cost.detection import DetectorShape, detector_activations, detector_macs, detector_parameters
from vmae2_ds.cost.detection_work import detector_work
from vmae2_ds.cost.parameters import all_shapes
from vmae2_ds.cost.pyramid import pyramid_macs
from vmae2_ds.cost.states import state_bytes
from vmae2_ds.cost.zero import ZeroPolicy
from vmae2_ds.downstream.tad.pyramid import ActionPyramid
from vmae2_ds.model.adapters import AdaptedEncoder

TOWER = TowerConfig(width=48, depth=5, heads=3, mlp=192)
GEOMETRY, CLIPS = ClipGeometry(8, 16, 16, 2, 8), 4
HEAD = HeadConfig(width=32, ranges=(4, 8), windows=(7,), head_convs=1)
LENGTH = 16


class Detector(AdaptedEncoder):
    """An encoder with adapters and a pyramid on top, as end-to-end detection has them."""

    def __init__(self, adapters: AdapterConfig) -> None:
        config = ClassifierConfig(encoder=TOWER, patch=8, attention="math")
        super().__init__(config, GEOMETRY, adapters, seed=None)
        self.pyramid = ActionPyramid(TOWER.width, 20, HEAD, LENGTH)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)

    def loss(self) -> torch.Tensor:
        window = torch.zeros(1, CLIPS * 8, 16, 16, 3, dtype=torch.uint8)
        output = self.pyramid(self(window, LENGTH), torch.ones(1, LENGTH, dtype=torch.bool))
        return torch.stack([x.sum() for x in (*output.logits_LBTC, *output.offsets_LBT2)]).sum()


def shape_of(adapters: AdapterConfig) -> DetectorShape:
    hidden = adapters.hidden(TOWER.width)
    encoder = AdaptedShape(TOWER, GEOMETRY, adapters.numbers(TOWER.depth), hidden, adapters.clips_at_once)
    return DetectorShape(HEAD, TOWER.width, 20, LENGTH, encoder, CLIPS)


SOME = [AdapterConfig(blocks="all", clips_at_once=3), AdapterConfig(blocks=(1, 3), clips_at_once=1)]


@pytest.mark.parametrize("adapters", SOME)
def test_parameters_are_those_of_the_modules_in_their_order(adapters: AdapterConfig) -> None:
    found = detector_parameters(shape_of(adapters))
    named = dict(Detector(adapters).named_parameters())
    of_module = {name: tuple(each.shape) for name, each in named.items()}
    learns = [name for name, each in named.items() if each.requires_grad]
    assert dict(all_shapes(found)) == of_module
    assert list(found.learning) == learns
    assert found.num_learning == sum(prod(of_module[name]) for name in learns)


def test_a_pyramid_alone_has_the_parameters_of_its_own_closed_form() -> None:
    for head in (HEAD, HeadConfig(), HeadConfig(layer_scale=0, embed_convs=1, stem=0)):
        found = detector_parameters(DetectorShape(head, 1408, 20, 2304))
        assert found.num_learning == pyramid_parameters(head, 1408, 20)
        assert found.num_frozen == 0


@pytest.mark.parametrize("adapters", SOME)
def test_modules_are_called_in_the_order_that_zero_3_is_replayed_in(adapters: AdapterConfig) -> None:
    """Forward, and what is computed again backward, as torch's own hooks see it."""
    model, called = Detector(adapters), list[str]()
    for name, module in model.named_modules():
        if name and not isinstance(module, nn.ModuleList | nn.Sequential):
            module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    loss = model.loss()
    forward = len(called)
    loss.backward()
    tree = detector_parameters(shape_of(adapters)).tree
    others = {"objective", "model"}
    assert called[:forward] == [call.module for call in tree.forward() if call.enters and call.module not in others]
    again = [call.module for call in tree.backward() if call.enters and not call.is_backward]
    assert called[forward:] == again


@pytest.mark.parametrize("adapters", SOME)
def test_work_is_what_torch_counts(adapters: AdapterConfig) -> None:
    shape, model = shape_of(adapters), Detector(adapters)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, CLIPS * 8, 16, 16, 3, dtype=torch.uint8)).sum().backward()
    assert shape.encoder is not None
    work = detector_work(shape, 1, attention="math", precision="fp32")
    head = 2 * 3 * pyramid_macs(HEAD, TOWER.width, 20, LENGTH)
    # torch takes the gradient of a depth-wise convolution for that of a whole one: one of its two products
    of_one_channel = 2 * CLIPS * len(shape.encoder.numbers) * GEOMETRY.num_cubes * 3 * shape.encoder.hidden
    too_many = of_one_channel * (shape.encoder.hidden - 1)
    assert work.linear_flops + work.attention_flops - head == counter.get_total_flops() - too_many
    macs = detector_macs(shape)
    assert work.linear_flops + work.attention_flops == 2 * (macs.forward + macs.backward + macs.recomputed)


@pytest.mark.parametrize("adapters", SOME)
def test_operations_and_bytes_are_about_those_of_a_step(adapters: AdapterConfig) -> None:
    model = Detector(adapters)
    with CountBytes() as counter:
        model.loss().backward()
    work = detector_work(shape_of(adapters), 1, attention="math", precision="fp32")
    assert work.kernels == pytest.approx(counter.counted.kernels, rel=0.15)
    assert work.memory_bytes + work.score_bytes == pytest.approx(counter.counted.num_bytes, rel=0.15)


def test_frozen_weights_have_two_bytes_and_no_states() -> None:
    """16 bytes for what learns at stage 1 on one GPU, and at stage 3 all weights are divided; nothing frozen is reduced."""
    found = detector_parameters(shape_of(SOME[0]))
    learns, frozen, ranks = found.num_learning, found.num_frozen, 2
    stage1 = ZeroPolicy(stage=1, reduce_bucket=10**6, overlap_comm=False)
    one = state_bytes(found, stage1, 1, precision="bf16")
    assert one.weights == pytest.approx(2 * (learns + frozen), abs=100)
    assert one.master + one.moments + one.gradients == pytest.approx((4 + 8 + 2) * learns, rel=0.01)
    stage3 = state_bytes(found, ZeroPolicy(stage=3, reduce_bucket=10**6), ranks, precision="bf16")
    shards = len(all_shapes(found))  # each is rounded up
    assert stage3.weights == pytest.approx((learns + frozen) * 2 / ranks, abs=2 * shards)
    assert stage3.master + stage3.moments == pytest.approx(12 * learns / ranks, abs=12 * shards)
    comm = comm_bytes(found, stage1, world_size=2, num_nodes=1, accumulation=1, precision="bf16")
    assert [each.payload for each in comm.collectives if each.what == "gradients"] == [2 * learns]


def test_features_from_files_keep_the_pyramid_alone() -> None:
    shape = DetectorShape(HeadConfig(), 1408, 20, 2304)
    found = detector_activations(shape, 2, attention="flash", precision="bf16")
    assert found.encoder == found.transient == 0
    assert found.peak == found.head > 0
    macs = detector_macs(shape)
    assert macs.forward < macs.backward < 2 * macs.forward
