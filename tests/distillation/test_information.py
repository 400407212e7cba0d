import math

import pytest
import torch
from torch import nn

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.translated import mean_surprise, predicted, surprise, vid
from reptrans.errors import BadValue, ShapeMismatch, UnknownName
from reptrans.matching import Seen
from reptrans.training import Plan

DRAW = torch.Generator().manual_seed(0)
T = torch.randn(3, 5, 4, 4, dtype=torch.float64, generator=DRAW)
S = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=DRAW)


def connector(student, target, variance=5.0):
    seen = Seen((student,), (target,), target, lambda: iter(()))
    return predicted(variance).make(seen).to(student.dtype)


def test_it_is_the_gaussians_negative_log_likelihood_without_its_constant():
    mean, variance = T.flip(0), torch.rand(5, 1, 1, dtype=torch.float64, generator=DRAW) + 0.1
    expected = -torch.distributions.Normal(mean, variance.sqrt()).log_prob(T).sum() / 3
    constant = 80 * math.log(2 * math.pi) / 2
    assert surprise(T, (mean, variance)).item() == pytest.approx(expected.item() - constant, rel=1e-12)
    assert mean_surprise(T, (mean, variance)).item() == pytest.approx(surprise(T, (mean, variance)).item() / 80)


def test_a_perfect_prediction_of_variance_1_is_at_0_and_a_surer_one_below():
    one = torch.ones(5, 1, 1, dtype=torch.float64)
    assert surprise(T, (T, one)).item() == 0
    assert mean_surprise(T, (T, one / 4)).item() == pytest.approx(-math.log(2))


def test_the_best_variance_of_a_channel_is_its_mean_squared_error():
    mean = torch.zeros_like(T)
    variance = T.square().mean((0, 2, 3)).reshape(5, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(surprise(T, (mean, variance)), variance)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("variance", [5.0, 0.01, 1000.0])
def test_the_connector_starts_at_its_variance_with_the_teachers_channels(variance):
    module = connector(S, T, variance)
    mean, spread = module(S)
    assert mean.shape == T.shape and spread.shape == (5, 1, 1)
    assert spread.flatten().tolist() == pytest.approx([variance] * 5)
    assert [m.weight.shape[:2] for m in module.mean if isinstance(m, nn.Conv2d)] == [(5, 2), (5, 5), (5, 5)]
    assert all(m.bias is None for m in module.mean if isinstance(m, nn.Conv2d))
    module.alpha.data.fill_(-1e4)
    assert module(S)[1].min().item() == pytest.approx(1e-5)


def test_the_connector_is_what_public_codes_compute():
    module = connector(S, T)
    first, _, second, _, third = module.mean
    mixed = torch.einsum("oc,nchw->nohw", first.weight[:, :, 0, 0], S).relu()
    mixed = torch.einsum("oc,nchw->nohw", second.weight[:, :, 0, 0], mixed).relu()
    mean = torch.einsum("oc,nchw->nohw", third.weight[:, :, 0, 0], mixed)
    expected = 0.5 * ((T - mean).square() / 5 + math.log(5)).mean()
    assert mean_surprise(T, module(S)).item() == pytest.approx(expected.item(), rel=1e-6)


def test_vectors_have_one_variance_per_feature():
    t, s = T.mean((2, 3)), S.mean((2, 3))
    mean, variance = connector(s, t)(s)
    assert mean.shape == (3, 5) and variance.shape == (5,)
    assert surprise(t, (mean, variance)).isfinite()


def test_gradients_reach_student_and_connector_but_not_the_teacher():
    t, s, module = T.clone().requires_grad_(), S.clone().requires_grad_(), connector(S, T)
    surprise(t, module(s)).backward()
    assert t.grad is None and s.grad.abs().max() > 0 and all(p.grad.abs().max() > 0 for p in module.parameters())


@pytest.mark.parametrize("like", ["authors", "paper"])
def test_a_short_training(pair, like):
    names = set(pair.student.state_dict())
    (stage,) = vid(pair, like=like).stages
    assert [m.student for m in stage.matches] == ["relu1", "relu2", "relu3"] and len(stage.losses) == 4
    assert {m.distance for m in stage.matches} == {mean_surprise if like == "authors" else surprise}
    plan = Plan(epochs=4, optimiser="adam", lr=0.05, precision="float64")
    student, rows = distill(pair.student, pair.teachers, vid(pair, like=like), pair.teachers[0].loader, plan)
    terms = rows[[column for column in rows if "ln q" in column]].sum(axis=1)
    assert terms.iloc[-1] < terms.iloc[0] and set(student.state_dict()) == names


def test_bad_options_are_refused(pair):
    with pytest.raises(UnknownName, match="Possible: authors, paper"):
        vid(pair, like="repdistiller")
    with pytest.raises(BadValue, match="variance is 0; it must be a number above 1e-05"):
        vid(pair, variance=0)
    with pytest.raises(ShapeMismatch):
        surprise(T, (S, torch.ones(2, 1, 1)))
