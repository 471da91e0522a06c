"""Heads against torch's own attention, and what a trained probe may and may not look at."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.downstream.probe.test_probe import clusters
from vmae2_ds.downstream.probe import trained as trained
from vmae2_ds.downstream.probe.fit import PROBES
from vmae2_ds.downstream.probe.folds import Features, probe_accuracy
from vmae2_ds.downstream.probe.heads import HEADS, AttentiveHead, attentive_logits, draw_weights
from vmae2_ds.downstream.probe.trained import TrainedProbe, hold_out
from vmae2_ds.errors import ConfigError


def test_attentive_pooling_is_multi_head_cross_attention() -> None:
    """Keys and values projected token by token, as nn.MultiheadAttention does it; two heads at once equal one by one."""
    width, classes = 128, 5
    heads = [AttentiveHead(width, classes), AttentiveHead(width, classes)]
    for number, head in enumerate(heads):
        draw_weights(head, torch.Generator().manual_seed(number))
        for parameter in head.parameters():  # biases and norms too: one that is left out then shows
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)), alpha=0.3)
    assert heads[0].num_heads == 2
    x_BND = torch.randn(3, 17, width)
    expected = []
    for head in heads:
        attention = nn.MultiheadAttention(width, 2, batch_first=True)
        with torch.no_grad():
            key_bias = torch.randn(width)  # whatever it is: it moves every score alike
            attention.in_proj_weight.copy_(torch.cat([torch.eye(width), head.key, head.value.weight]))
            attention.in_proj_bias.copy_(torch.cat([torch.zeros(width), key_bias, head.value.bias]))
            attention.out_proj.weight.copy_(torch.eye(width))
            attention.out_proj.bias.zero_()
            pooled_BD = attention(head.query.expand(3, 1, width), x_BND, x_BND, need_weights=False)[0][:, 0]
            x_BD = head.query + pooled_BD
            hidden = F.gelu(F.linear(F.layer_norm(x_BD, [width], head.norm.weight, head.norm.bias, 1e-6),
                                     head.mlp.fc1.weight, head.mlp.fc1.bias))  # fmt: skip
            x_BD = x_BD + F.linear(hidden, head.mlp.fc2.weight, head.mlp.fc2.bias)
            expected.append(F.linear(x_BD, head.head.weight, head.head.bias))
    torch.testing.assert_close(attentive_logits(heads, x_BND), torch.stack(expected), rtol=1e-4, atol=1e-4)


def one_token_tells(videos: int, seed: int) -> Features:
    """Twelve tokens a video: noise, the sign of its class at a random place, and at another its opposite, so that the mean
    says nothing."""
    rng = np.random.default_rng(seed)
    signs = np.random.default_rng(7).standard_normal((4, 32))
    label_V = np.arange(videos) % 4
    tokens_VND = rng.standard_normal((videos, 12, 32))
    places_V2 = rng.permuted(np.tile(np.arange(12), (videos, 1)), axis=1)[:, :2]
    for place_V, factor in zip(places_V2.T, (3, -3), strict=True):
        tokens_VND[np.arange(videos), place_V] = factor * signs[label_V]
    names = np.array([f"{number}.mp4" for number in range(videos)])
    return Features(tokens_VND.astype(np.float16), label_V, np.array(["all"] * videos), names)


def test_an_attentive_probe_finds_the_one_token_that_tells() -> None:
    train, test = one_token_tells(160, 1), one_token_tells(100, 2)
    probe = TrainedProbe("attentive", epochs=10)
    attentive, _ = probe_accuracy(train, test, probe)
    means = [part._replace(feature_VF=part.feature_VF.astype(float).mean(axis=1)) for part in (train, test)]
    ridge, _ = probe_accuracy(*means, PROBES["ridge"])
    assert attentive > 0.9
    assert ridge < 0.45
    assert probe_accuracy(train, test, probe)[0] == attentive


def test_what_all_tokens_share_hides_nothing() -> None:
    """Trained encoders give every token of a clip nearly the same vector; on it alone the probe would learn nothing."""
    shared = 30 * np.random.default_rng(5).standard_normal(32)
    train, test = (
        part._replace(feature_VF=(part.feature_VF + shared).astype(np.float32))
        for part in (one_token_tells(160, 1), one_token_tells(100, 2))
    )
    assert probe_accuracy(train, test, TrainedProbe("attentive", epochs=10))[0] > 0.9


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_features_of_the_wrong_kind_are_refused(kind: str) -> None:
    wrong = {"linear": one_token_tells(8, 1), "attentive": clusters(8, 0.3)}[kind]
    with pytest.raises(ConfigError, match=f"the {kind} probe needs .*, not features of shape"):
        TrainedProbe(kind)(wrong, wrong.feature_VF, 4)


def test_whole_sources_are_held_out_where_the_others_have_every_class() -> None:
    train = clusters(60, 0.3)
    is_held_V = hold_out(train, seed=0)
    assert len(set(train.source_V[is_held_V])) == 1
    assert is_held_V.sum() == 20
    alone = train._replace(source_V=np.array(["all"] * 60))
    assert np.bincount(train.label_V[hold_out(alone, seed=0)]).tolist() == [3, 3, 3, 3]
    by_class = train._replace(source_V=train.label_V.astype(str))
    assert np.bincount(train.label_V[hold_out(by_class, seed=0)]).tolist() == [3, 3, 3, 3]
    with pytest.raises(ConfigError, match="4 training videos, one of each class, leave none to choose by"):
        hold_out(clusters(4, 0.3), seed=0)


def test_the_setting_is_chosen_without_the_test_videos(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the test features are, the same setting is chosen and the same head learnt; every video has a prediction."""
    caplog.set_level(logging.INFO)
    train, probe = clusters(60, 1.0), replace(PROBES["linear"], epochs=5)
    first = probe(train, train.feature_VF, 4)
    second = probe(train, np.concatenate([train.feature_VF, np.full((40, 10), 1e3)]), 4)
    np.testing.assert_array_equal(second[:60], first)
    assert len(second) == 100
    assert len(set(caplog.messages)) == 1
    assert "of 9 settings" in caplog.text


def test_the_setting_is_chosen_on_videos_that_it_did_not_learn_from(caplog: pytest.LogCaptureFixture) -> None:
    """What fits best is worst there: the held-out source has its labels turned round, and 60 channels of noise let a head
    learn any video by heart (nine in ten of these, where it may see them). The gentlest setting is the least wrong."""
    caplog.set_level(logging.INFO)
    videos, rng = 50, np.random.default_rng(3)
    made = clusters(videos, 0.2)
    train = made._replace(
        feature_VF=np.concatenate([made.feature_VF, rng.standard_normal((videos, 60))], axis=1),
        source_V=np.array([f"s{number // 10}" for number in range(videos)]),
    )
    is_held_V = hold_out(train, seed=0)
    assert is_held_V.sum() == 10
    train = train._replace(label_V=np.where(is_held_V, (train.label_V + 1) % 4, train.label_V))
    assert (hold_out(train, seed=0) == is_held_V).all()
    replace(PROBES["linear"], epochs=10)(train, train.feature_VF, 4)
    said = re.search(r"of 9 settings lr 0\.001 with weight decay 1 names (\d+)\.0 % of 10 held-out", caplog.text)
    assert said is not None, caplog.text
    assert int(said[1]) <= 40


def test_the_chosen_setting_learns_on_every_training_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine settings on what is not held out, then one on all; of equally right ones that of the lower loss is taken."""
    train, fitted = clusters(60, 1.0), []
    held = np.flatnonzero(hold_out(train, seed=0))
    fit = TrainedProbe._fit

    def recorded(self: TrainedProbe, train: Features, rows: np.ndarray, *more: object) -> list[nn.Module]:
        fitted.append((sorted(rows.tolist()), more[1]))
        return fit(self, train, rows, *more)  # type: ignore[arg-type]

    right, loud = np.array([3, 9, 9, 5, 9, 0, 1, 2, 4]), np.array([1, 9, 3, 1, 5, 1, 1, 1, 1])
    wanted_V = train.label_V[held]

    def predicted(_about: object, heads: list[nn.Module], _x: object, rows: np.ndarray, _scale: object) -> torch.Tensor:
        """Setting m names right[m] videos right, and of the others it is the surer the larger loud[m] is."""
        logits_MVC = torch.zeros(len(heads), len(rows), 4)
        if len(heads) == 9:
            assert rows.tolist() == held.tolist()
            for number in range(9):
                is_right = np.arange(len(rows)) < right[number]
                logits_MVC[number, np.arange(len(rows)), np.where(is_right, wanted_V, (wanted_V + 1) % 4)] = float(
                    loud[number]
                )
        return logits_MVC

    monkeypatch.setattr(TrainedProbe, "_fit", recorded)
    monkeypatch.setattr(trained, "_predict", predicted)
    replace(PROBES["linear"], epochs=1)(train, train.feature_VF, 4)
    (first, tried), (second, chosen) = fitted
    assert first == sorted(set(range(60)) - set(held.tolist()))
    assert second == list(range(60))
    assert len(set(tried)) == 9
    assert list(chosen) == [tried[2]], "nine right as the second and the fifth, and the least sure where it is wrong"


def test_every_setting_has_its_rate_and_its_decay() -> None:
    """One step of AdamW: each weight is shrunk by rate x decay, and moved by the rate, whatever the size of its gradient."""
    train = clusters(12, 1.0)
    settings = [(lr, decay) for lr in (1e-3, 1e-2) for decay in (0.0, 5.0)]
    scale = trained.FeatureScale(np.zeros(10, np.float32), np.ones(10, np.float32))
    heads = TrainedProbe("linear", epochs=1, batch=12, seed=3)._fit(train, np.arange(12), 4, settings, scale)
    drawn = draw_weights(HEADS["linear"].make(10, 4), torch.Generator().manual_seed(3)).state_dict()["head.weight"]
    for head, (lr, decay) in zip(heads, settings, strict=True):
        moved = head.state_dict()["head.weight"] - (1 - lr * decay) * drawn
        torch.testing.assert_close(moved.abs(), torch.full((4, 10), lr), rtol=1e-3, atol=0)
