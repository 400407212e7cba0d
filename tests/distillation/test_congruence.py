import math

import pytest
import torch

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.relations import cc, correlations
from reptrans.errors import BadValue
from reptrans.training import Plan

DRAW = torch.Generator().manual_seed(0)
T = torch.randn(6, 5, dtype=torch.float64, generator=DRAW)
S = torch.randn(6, 3, dtype=torch.float64, generator=DRAW)


def value(pair, teacher, student):
    (match,) = cc(pair).stages[0].matches
    return match.distance(match.teacher_transform(teacher), match.student_transform(student))


def test_the_polynomial_by_hand():
    x = torch.tensor([[2.0, 0], [0, 5], [-3, 0]], dtype=torch.float64)
    at = {c: math.exp(-0.8) * (1 + 0.8 * c + 0.32 * c * c) for c in (1, 0, -1)}
    expected = torch.tensor(
        [[at[1], at[0], at[-1]], [at[0], at[1], at[0]], [at[-1], at[0], at[1]]], dtype=torch.float64
    )
    torch.testing.assert_close(correlations()(x), expected)


def test_with_its_order_it_becomes_the_gaussian_kernel():
    directions = T / T.norm(dim=1, keepdim=True)
    kernel = torch.exp(-0.4 * torch.cdist(directions, directions).square())
    far, near = ((correlations(0.4, order)(T) - kernel).abs().max().item() for order in (2, 14))
    assert near < 1e-12 < 1e-3 < far


def test_the_loss_is_the_mean_over_pairs(pair):
    transform = correlations()
    expected = (transform(T) - transform(S)).square().sum() / 36
    assert value(pair, T, S).item() == pytest.approx(expected.item(), rel=1e-12) and expected > 1e-3


def test_scale_and_rotation_do_not_count(pair):
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    other = S @ rotation * torch.arange(1, 7)[:, None]
    assert value(pair, T, other).item() == pytest.approx(value(pair, T, S).item())
    assert value(pair, S, other).item() == pytest.approx(0, abs=1e-15)


def test_gradients_are_finite_and_the_students_alone(pair):
    t = T.clone().requires_grad_()
    for student in (S, torch.zeros_like(S)):
        s = student.clone().requires_grad_()
        value(pair, t, s).backward()
        assert t.grad is None and s.grad.isfinite().all()
    assert torch.autograd.gradcheck(lambda s: value(pair, T, s), S.clone().requires_grad_())


def test_a_short_training(pair):
    (stage,) = cc(pair).stages
    assert stage.matches[0].weight == 100 and stage.matches[0].teacher == "fc:in" and len(stage.losses) == 2
    plan = Plan(epochs=6, lr=0.01, precision="float64")
    method = cc(pair, weight=10_000.0)
    _, rows = distill(pair.student, pair.teachers, method, pair.teachers[0].loader, plan)
    (term,) = [column for column in rows if column.endswith("at fc:in")]
    assert rows[term].iloc[-1] < rows[term].iloc[0]


def test_bad_options_are_refused(pair):
    with pytest.raises(BadValue, match="gamma is 0 and order 2"):
        cc(pair, gamma=0)
    with pytest.raises(BadValue, match="order a whole number from 1"):
        cc(pair, order=0)
