import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.relations import angles, distances, huber, rkd
from reptrans.training import Plan

STORED = load_file(Path(__file__).parent.parent / "reference/distillation_batches.safetensors")
DRAW = torch.Generator().manual_seed(0)
T = torch.randn(6, 5, dtype=torch.float64, generator=DRAW)
S = torch.randn(6, 3, dtype=torch.float64, generator=DRAW)


def value(pair, teacher, student):
    matches = rkd(pair).stages[0].matches
    return sum(m.weight * m.distance(m.teacher_transform(teacher), m.student_transform(student)) for m in matches)


def test_it_is_that_of_a_public_implementation(pair):
    s = STORED["vs"].clone().requires_grad_()
    found = value(pair, STORED["vt"], s)
    assert found.item() == pytest.approx(1.0123474597930908, rel=1e-4)
    (gradient,) = torch.autograd.grad(found, s)
    torch.testing.assert_close(gradient, STORED["grad repdistiller.RKD(25,50) vs"], rtol=1e-4, atol=1e-6)


def test_a_right_triangle_by_hand():
    x = torch.tensor([[0.0, 0], [3, 0], [0, 4]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 3, 4], [3, 0, 5], [4, 5, 0]], dtype=torch.float64) / 4
    torch.testing.assert_close(distances(x), expected)
    cosines = angles(x)
    assert cosines[0, 1, 2].item() == 0  # the right angle is at the origin
    assert cosines[1, 0, 2].item() == pytest.approx(3 / 5) and cosines[2, 0, 1].item() == pytest.approx(4 / 5)
    assert cosines[1, 2, 2].item() == pytest.approx(1) and cosines[1, 1, 2].item() == 0


def test_the_loss_is_hubers_over_all_tuples():
    t, s = torch.zeros(2, 2), torch.tensor([[0.0, 0.5], [-1.0, 3.0]])
    assert huber(t, s).item() == pytest.approx((0.125 + 0.5 + 2.5) / 4)
    apart = sum((T[i] - T[j]).norm() for i in range(6) for j in range(6)) / 30
    assert distances(T)[2, 4].item() == pytest.approx(((T[2] - T[4]).norm() / apart).item())


def test_moving_turning_and_scale_do_not_count(pair):
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    moved = 4 * S @ rotation + 7
    assert value(pair, T, moved).item() == pytest.approx(value(pair, T, S).item()) and value(pair, T, S).item() > 0.1
    assert value(pair, S, moved).item() == pytest.approx(0, abs=1e-12)


def test_gradients_are_finite_where_features_meet_and_the_students_alone(pair):
    t = T.clone().requires_grad_()
    for student in (S, torch.zeros_like(S), S[[0, 1, 2, 0, 1, 2]]):
        s = student.clone().requires_grad_()
        found = value(pair, t, s)
        found.backward()
        assert found.isfinite() and t.grad is None and s.grad.isfinite().all() and s.grad.abs().max() < 1e3
    assert torch.autograd.gradcheck(lambda s: value(pair, T, s), S.clone().requires_grad_())


def test_a_weight_of_0_leaves_its_term_out(pair):
    names = [match.name for match in rkd(pair).stages[0].matches]
    assert names == ["rkd distances", "rkd angles"]
    assert [m.name for m in rkd(pair, angle=0).stages[0].matches] == ["rkd distances"]
    assert math.isclose(rkd(pair, distance=0, angle=3.0).stages[0].matches[0].weight, 3)


def test_the_student_takes_on_the_teachers_relations(pair):
    plan = Plan(epochs=8, lr=0.01, precision="float64")
    _, rows = distill(pair.student, pair.teachers, rkd(pair), pair.teachers[0].loader, plan)
    terms = rows["rkd distances"] + rows["rkd angles"]
    assert terms.iloc[-1] < 0.9 * terms.iloc[0]
