"""The distillation loss against torch in float64, a closed gradient, and the supervised loss that it falls back to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vmae2_ds.config.distil import DistilSettings
from vmae2_ds.config.model import ClassifierConfig, TowerConfig
from vmae2_ds.contracts import ClipGeometry, LabelledBatch, TaughtBatch
from vmae2_ds.model.classifier import Classifier
from vmae2_ds.objectives import Classify, Distil, divergence

GEOMETRY = ClipGeometry(4, 16, 16, 2, 8)
MODEL = ClassifierConfig(
    encoder=TowerConfig(width=24, depth=2, heads=2, mlp=48), patch=8, num_classes=5, head_init_scale=10
)
CLIPS, TEACHER_WIDTH, SMOOTHING = 6, 10, 0.1


def taught_batch() -> TaughtBatch:
    """Mixed noise, and answers of a teacher that is sure of itself."""
    rng = torch.Generator().manual_seed(0)
    return TaughtBatch(
        torch.randint(0, 256, (CLIPS, 4, 16, 16, 3), dtype=torch.uint8, generator=rng),
        torch.randint(5, (CLIPS,), generator=rng),
        torch.tensor(0.7),
        torch.tensor(0.7),
        5 * torch.randn(CLIPS, 5, generator=rng),
        torch.randn(CLIPS, TEACHER_WIDTH, generator=rng),
    )


def objective_of(**settings: Any) -> Distil:
    objective = Distil(Classifier(MODEL, GEOMETRY), SMOOTHING, GEOMETRY, DistilSettings(**settings), TEACHER_WIDTH)
    if settings.get("feature_weight"):
        with torch.no_grad():
            for name, parameter in objective.projection.named_parameters():
                objective.model.init_parameter(f"projection.{name}", parameter, seed=1)
    return objective


def answers(objective: Distil, batch: TaughtBatch) -> tuple[Tensor, Tensor]:
    """The student's feature and logits for the mixed clips, in float64."""
    feature_BD = objective.model.features(objective.mixed_cubes(batch))
    return feature_BD.double(), objective.model.head(feature_BD).double()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
def test_divergence_and_its_gradient(temperature: float) -> None:
    """Against the definition in float64; the gradient has a closed form, T (p_student - p_teacher) / B."""
    teacher_BC = taught_batch().teacher_logits_BC
    student_BC = torch.randn(CLIPS, 5, requires_grad=True)
    loss = divergence(student_BC, teacher_BC, temperature)
    loss.backward()
    p_BC, q_BC = ((x.detach().double() / temperature).softmax(-1) for x in (teacher_BC, student_BC))
    expected = temperature**2 * (p_BC * (p_BC / q_BC).log()).sum(-1).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert student_BC.grad is not None
    torch.testing.assert_close(student_BC.grad.double(), temperature * (q_BC - p_BC) / CLIPS, rtol=1e-5, atol=1e-6)


def test_a_student_that_says_the_same_has_loss_zero() -> None:
    teacher_BC = taught_batch().teacher_logits_BC
    assert float(divergence(teacher_BC + 3.0, teacher_BC, 2.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 1.0, "temperature": 2.0},
        {"alpha": 0.3, "temperature": 3.0, "feature_weight": 0.5},
        {"alpha": 0.0, "feature_weight": 2.0},
    ],
)
def test_the_loss_is_the_weighted_sum_of_its_parts(settings: dict[str, float]) -> None:
    batch, objective = taught_batch(), objective_of(**settings)
    alpha, temperature, weight = (settings.get(key, 1.0) for key in ("alpha", "temperature", "feature_weight"))
    weight = settings.get("feature_weight", 0.0)
    feature_BD, logits_BC = answers(objective, batch)
    soft_BC = [(x / temperature).log_softmax(-1) for x in (logits_BC, batch.teacher_logits_BC.double())]
    divergence_ = F.kl_div(soft_BC[0], soft_BC[1], reduction="batchmean", log_target=True) * temperature**2
    # torch's own label smoothing, mixed as losses: the same as mixed targets, because cross entropy is linear in them
    own, other = (
        F.cross_entropy(logits_BC, label_B, label_smoothing=SMOOTHING)
        for label_B in (batch.label_B, batch.label_B.flip(0))
    )
    expected = alpha * divergence_ + (1 - alpha) * (0.7 * own + 0.3 * other)
    if weight:
        projected_BE = objective.projection.double()(feature_BD)
        objective.projection.float()
        target_BE = batch.teacher_feature_BE.double()
        cosine_B = (projected_BE * target_BE).sum(-1) / projected_BE.norm(dim=-1) / target_BE.norm(dim=-1)
        expected = expected + weight * (1 - cosine_B).mean()
    found = objective(batch)
    assert found.loss.dtype == torch.float32
    assert found.num_supervised == CLIPS
    torch.testing.assert_close(found.loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_without_a_teacher_s_part_it_is_the_supervised_loss() -> None:
    batch, objective = taught_batch(), objective_of(alpha=0.0, feature_weight=1.0)
    supervised = Classify(objective.model, SMOOTHING, GEOMETRY)(LabelledBatch(*batch[:4]))
    feature_BD, _ = answers(objective, batch)
    cosine_B = F.cosine_similarity(objective.projection(feature_BD.float()), batch.teacher_feature_BE)
    torch.testing.assert_close(objective(batch).loss - (1 - cosine_B).mean(), supervised.loss)


def test_videos_without_labels_are_learned_from_when_alpha_is_1() -> None:
    """A handful of clips by heart: the student names the teacher's class for every one, and comes near its certainty."""
    batch = taught_batch()._replace(label_B=torch.full((CLIPS,), -1), keep_pixels=torch.tensor(1.0))
    objective = objective_of(alpha=1.0)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(60):
        optimizer.zero_grad()
        out = objective(batch)
        out.loss.backward()
        optimizer.step()
    assert float(out.loss.detach()) < 0.05 * float(out.flat_loss)
    with torch.no_grad():
        assert torch.equal(objective.logits(batch.clip_BTHWC).argmax(-1), batch.teacher_logits_BC.argmax(-1))


def test_knowing_nothing_costs_flat_loss() -> None:
    """Equal chances for every class, and a feature at right angles to the teacher's."""
    batch, objective = taught_batch(), objective_of(alpha=0.4, temperature=2.0, feature_weight=0.5)
    orthogonal_BE = torch.linalg.qr(batch.teacher_feature_BE.T)[0]  # columns; of the first clip's, all but the first
    batch = batch._replace(
        teacher_logits_BC=batch.teacher_logits_BC[:1].expand(CLIPS, -1),
        teacher_feature_BE=orthogonal_BE[:, 0].expand(CLIPS, -1),
    )
    with torch.no_grad():
        objective.model.head.weight.zero_()
        objective.model.head.bias.zero_()
        objective.projection.weight.zero_()
        objective.projection.bias.copy_(orthogonal_BE[:, 1])
    out = objective(batch)
    assert float(out.loss.detach()) == pytest.approx(float(out.flat_loss), rel=1e-5)
