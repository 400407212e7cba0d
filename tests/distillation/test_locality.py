import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.relations import lp, neighbour_weights, pair_distances, weighted_mean
from reptrans.errors import BadValue
from reptrans.training import Plan

STORED = load_file(Path(__file__).parent.parent / "reference/distillation_batches.safetensors")
DRAW = torch.Generator().manual_seed(0)
T = torch.randn(9, 5, dtype=torch.float64, generator=DRAW)
S = torch.randn(9, 3, dtype=torch.float64, generator=DRAW)


def value(teacher, student, neighbours=3, sigma=None):
    return weighted_mean(neighbour_weights(neighbours, sigma)(teacher), pair_distances(student))


def test_three_images_by_hand():
    t = torch.tensor([[0.0], [1], [3]], dtype=torch.float64)
    s = torch.tensor([[0.0], [2], [5]], dtype=torch.float64, requires_grad=True)
    found = value(t, s, 1, 1.0)
    assert found.item() == pytest.approx((8 * math.exp(-1) + 9 * math.exp(-4)) / 3, rel=1e-12)
    assert found.item() == pytest.approx(1.0359588, abs=5e-8)
    found.backward()
    assert s.grad.flatten().tolist() == pytest.approx([-0.981012, 0.944381, 0.036631], abs=1e-6)


def test_the_nearest_weighs_most():
    (row, *_) = neighbour_weights(2, 1.0)(torch.tensor([[0.0], [1], [2], [9]], dtype=torch.float64)).tolist()
    assert row == pytest.approx([0, math.exp(-1), math.exp(-4), 0])


def test_the_stored_value():
    found = value(STORED["vt"].double(), STORED["vs"].double(), 5, 8.0)
    assert found.item() == pytest.approx(92.66459048249583, rel=1e-9)


def test_it_is_twice_the_trace_with_the_laplacian():
    weights = neighbour_weights(3, 1.5)(T)
    assert not torch.equal(weights, weights.T) and (weights > 0).sum(1).tolist() == [3] * 9
    symmetric = (weights + weights.T) / 2
    laplacian = torch.diag(symmetric.sum(1)) - symmetric
    assert value(T, S, 3, 1.5).item() == pytest.approx(2 / 9 * torch.trace(S.T @ laplacian @ S).item(), rel=1e-12)


def test_moving_and_turning_do_not_count_scale_does_so_squared_and_a_point_is_0():
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
    base = value(T, S).item()
    assert value(T, S @ rotation + 4).item() == pytest.approx(base)
    assert value(T, 3 * S).item() == pytest.approx(9 * base)
    assert value(T, torch.ones_like(S)).item() == 0


def test_the_batchs_own_width_makes_the_teachers_scale_irrelevant():
    assert value(100 * T, S).item() == pytest.approx(value(T, S).item())
    squares = pair_distances(T).fill_diagonal_(torch.inf).sort(1).values[:, :3]
    assert value(T, S).item() == pytest.approx(value(T, S, 3, squares.mean().sqrt().item()).item())


def test_gradients_reach_the_student_alone():
    t, s = T.clone().requires_grad_(), S.clone().requires_grad_()
    value(t, s).backward()
    assert t.grad is None and s.grad.abs().max() > 0
    assert torch.autograd.gradcheck(lambda x: value(T, x), S.clone().requires_grad_())
    for teacher, student in ((torch.zeros_like(T), S), (T, torch.zeros_like(S))):
        s = student.clone().requires_grad_()
        found = value(teacher, s)
        found.backward()
        assert found.isfinite() and s.grad.isfinite().all()


def test_a_short_training_draws_neighbours_together(pair):
    (stage,) = lp(pair).stages
    assert stage.matches[0].weight == 0.3 and stage.matches[0].teacher == "fc:in" and len(stage.losses) == 2
    alone = lp(pair, weight=100.0)
    plan = Plan(epochs=4, lr=0.01, precision="float64")
    _, rows = distill(pair.student, pair.teachers, alone, pair.teachers[0].loader, plan)
    term = rows[[column for column in rows if "inner product" in column][0]]
    assert term.iloc[-1] < 0.7 * term.iloc[0]


def test_bad_options_and_small_batches_are_refused(pair):
    with pytest.raises(BadValue, match="neighbours is 0; it must be a whole number from 1"):
        lp(pair, neighbours=0)
    with pytest.raises(BadValue, match="sigma is -1"):
        lp(pair, sigma=-1)
    with pytest.raises(BadValue, match="20 neighbours need batches of at least 21 images, but there are 20"):
        plan = Plan(epochs=1, precision="float64")
        distill(pair.student, pair.teachers, lp(pair, neighbours=20), pair.teachers[0].loader, plan)
