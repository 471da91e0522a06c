"""Distillation: a supervised run whose student learns what a frozen teacher says of the same clips."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from vmae2_ds.config.distil import DistilConfig
from vmae2_ds.config.run import RunConfig
from vmae2_ds.contracts import LabelledBatch, Movable
from vmae2_ds.cost.flops import inference_flops, training_flops
from vmae2_ds.data.feed.labelled import LabelledDataset
from vmae2_ds.data.sources.mixture import Mixture
from vmae2_ds.dist import Ranks
from vmae2_ds.objectives import Distil
from vmae2_ds.train.distil.answers import AnsweredDataset, CachedAnswers, read_index
from vmae2_ds.train.distil.cache import open_answers
from vmae2_ds.train.distil.teacher import Teacher, TeacherCard
from vmae2_ds.train.finetune import classification, groups, supervised_stage
from vmae2_ds.train.stage import Extras, LossWords, Stage, Training


def distil_stage(config: DistilConfig) -> Stage:
    """What distillation brings to a session; errors as `open_teacher`, once the ranks have met."""
    stage = supervised_stage(config)

    def online(mixture: Mixture, ranks: Ranks) -> Extras:
        del mixture
        teacher = Teacher.of(config, ranks)

        def ask(batch: Movable) -> Movable:
            assert isinstance(batch, LabelledBatch), "what a LabelledDataset collates"
            return teacher(batch)

        return Extras(
            make_objective=partial(distil_objective, teacher_width=teacher.card.config.model.encoder.width),
            prepare=ask,
            identity={"teacher": teacher.card.identity(), "answers": "asked as it goes"},
            frozen_macs=teacher.card.macs,
            about=(describe_teacher(teacher.card, stage.forward_macs),),
        )

    def cached(mixture: Mixture, ranks: Ranks) -> Extras:
        index = ranks.from_first(lambda: open_answers(config, mixture))
        return Extras(
            make_objective=partial(distil_objective, teacher_width=index.feature_width),
            identity={"teacher": index.teacher, "answers": f"kept as {index.dtype}"},
            about=(f"no teacher: its answers are those of {config.distil.cache}, kept as {index.dtype}",),
        )

    def dataset(mixture: Mixture) -> LabelledDataset:
        folder, needs_labels = config.distil.cache, config.distil.alpha < 1
        if folder is None:
            return LabelledDataset(config, mixture, needs_labels=needs_labels)
        answers = CachedAnswers(folder, read_index(folder))
        return AnsweredDataset(config, mixture, answers, needs_labels=needs_labels)

    return replace(stage, dataset=dataset, extras=online if config.distil.cache is None else cached)


def distil_objective(config: RunConfig, teacher_width: int) -> Distil:
    """The objective on a student whose weights are not drawn yet."""
    assert isinstance(config, DistilConfig), "a distillation run"
    return Distil(
        classification(config).model, config.augment.label_smoothing, config.geometry, config.distil, teacher_width
    )


def describe_teacher(card: TeacherCard, student_macs: int) -> str:
    """The teacher's size, its clip and what asking it costs."""
    model, data = card.config.model, card.config.data
    share = inference_flops(card.macs) / training_flops(student_macs)
    return (
        f"teacher {card.source}: encoder {model.encoder.width}x{model.encoder.depth}, {model.num_classes} classes, "
        f"{card.config.train.precision}, clip {data.num_frames}x{data.size}x{data.size}, {card.macs / 1e9:.2f} forward GMACs: "
        f"{share:.2g} times what the student's forward and backward pass cost; weights {card.digest[:12]}"
    )


def loss_words(config: DistilConfig) -> LossWords:
    """What a report calls the loss."""
    settings = config.distil
    parts = ["divergence from the teacher"] if settings.alpha else []
    parts += ["cross-entropy"] if settings.alpha < 1 else []
    parts += ["distance of features"] if settings.feature_weight else []
    nothing = "equal chances" + (", features at right angles" if settings.feature_weight else "")
    return LossWords(" + ".join(parts), nothing, nothing)


DISTILLATION = Training(distil_stage, classification, groups, loss_words)
"""Training of a student: its objective is that of fine-tuning until `Extras.make_objective` knows the teacher's width."""
