import copy

import pytest
import torch
from torch import nn

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.values import fitnets, regressor
from reptrans.errors import ShapeMismatch, UnknownName
from reptrans.matching import Seen, half_l2
from reptrans.training import Plan

PLAN = Plan(epochs=4, lr=0.05, precision="float64")


def seen(student, target):
    return Seen((student,), (target,), target, lambda: iter(()))


def test_the_hint_loss_is_half_the_sum_of_squares():
    one, zero = torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    assert half_l2(one, zero).item() == 4
    a, b = torch.randn(2, 3, 4, 5, 5).unbind(0)
    assert half_l2(a, b).item() == pytest.approx(0.5 * 4 * 25 * nn.functional.mse_loss(a, b).item(), rel=1e-5)


@pytest.mark.parametrize("shapes", [((3, 9, 8), (5, 6, 8)), ((3, 4, 4), (2, 4, 4)), ((7,), (4,))])
def test_the_regressor_takes_one_shape_to_the_other_without_padding(shapes):
    student, target = (torch.randn(2, *shape) for shape in shapes)
    module = regressor().make(seen(student, target))
    assert module(student).shape == target.shape
    if len(shapes[0]) == 3:
        sides = zip(shapes[0][1:], shapes[1][1:], strict=True)
        assert module[0].kernel_size == tuple(a - b + 1 for a, b in sides) and module[0].padding == (0, 0)


def test_it_ends_with_the_hints_own_activation():
    maps = torch.randn(2, 3, 4, 4)
    assert isinstance(regressor().make(seen(maps, maps.relu()))[1], nn.ReLU)
    assert isinstance(regressor().make(seen(maps, maps))[1], nn.Identity)


def test_a_map_smaller_than_the_hint_is_refused():
    with pytest.raises(ShapeMismatch, match=r"\(3, 4, 4\), smaller than the hint \(5, 6, 4\).*earlier student layer"):
        regressor().make(seen(torch.randn(2, 3, 4, 4), torch.randn(2, 5, 6, 4)))


def test_the_first_stage_moves_nothing_behind_the_guided_layer(pair):
    before = copy.deepcopy(pair.student.state_dict())
    hint = fitnets(pair)
    only_hint = type(hint)("hint", hint.stages[:1])
    student, rows = distill(pair.student, pair.teachers, only_hint, pair.teachers[0].loader, PLAN)
    for name, value in student.state_dict().items():
        # The middle of three groups ends with relu2.
        behind = name.split(".")[0] in ("conv3", "bn3", "fc")
        assert torch.equal(value, before[name]) == behind, name
    assert rows["hint"].iloc[-1] < rows["hint"].iloc[0] or len(rows) == 1


def test_the_second_stage_anneals_from_4_to_1_and_does_without_the_regressor(pair):
    first, second = fitnets(pair).stages
    (match,) = second.matches
    # The weight that stands before the KL divergence itself.
    assert match.weight_at(0.0) == pytest.approx(4) and match.weight_at(1.0) == pytest.approx(1)
    assert (match.teacher, match.student) == ("out", "out") and (first.share, second.share) == (0.3, 1)
    assert first.train == "reached" and second.train == "all"


def test_the_joint_variant_is_cross_entropy_plus_100_mean_squares(pair):
    (stage,) = fitnets(pair, like="joint").stages
    (match,) = stage.matches
    t, s = torch.randn(2, 3, 4, 5, 5).unbind(0)
    assert match.weight == 100
    assert match.distance(t, s).item() == pytest.approx(nn.functional.mse_loss(s, t).item(), rel=1e-5)
    with pytest.raises(UnknownName, match="Possible: paper, joint"):
        fitnets(pair, like="authors")
