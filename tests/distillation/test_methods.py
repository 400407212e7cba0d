"""What holds for every method: 0 at equality, the teacher untouched, scales that do not count, gradients where due."""

import copy

import pytest
import torch
from torch import nn

from reptrans.distillation.distill import distill
from reptrans.distillation.losses import Losses, look, moving, resolve
from reptrans.distillation.methods import METHODS
from reptrans.matching import Learned, Match
from reptrans.training import Plan, evaluating

PLAN = Plan(epochs=3, lr=0.01, precision="float64", clip=1.0, schedule="constant")


def objectives(method, pair, student=None):
    """The objective of every stage, as `distill` would set it up, and a batch."""
    student = student or pair.student
    if method.prepare is not None:
        student = method.prepare(student, pair.teacher)
    batch, built, moved = next(iter(pair.teachers[0].loader.plain())), {}, set()
    for stage in method.stages:
        objective = resolve(stage, student, pair.teachers, batch, built).double()
        built, objective.moves = objective.built, set(moving(objective, batch, moved))
        moved |= objective.moves
        yield objective, batch


def sides(objective: Losses, match: Match, batch) -> tuple:
    """(transformed teacher, untransformed student's values, student's transform) of one match."""
    taught, seen = look(objective.stage, objective.student, objective.teachers, batch)
    teacher, student = match.values(taught[match.who], seen)
    target = objective.module(match.teacher_transform)(*teacher)
    return target, student, objective.module(match.student_transform)


@pytest.mark.parametrize("name", METHODS)
def test_it_says_what_it_is(name, pair):
    method = METHODS[name](pair)
    row = method.row()
    assert method.name == name and method.stages
    assert row["entry"] in ("", *map(str, range(1, 18)))
    assert row["stages"] and "<" not in str(row)  # no <lambda>, no <function at 0x…>


@pytest.mark.parametrize("name", METHODS)
def test_equal_networks_are_at_0(name, twins):
    """Every match without a learned transform is 0, unless the method says that its matches have another minimum."""
    method = METHODS[name](twins)
    for objective, batch in objectives(method, twins):
        with evaluating(objective):
            for match in objective.stage.matches:
                if isinstance(match.student_transform, Learned) or not method.zero:
                    continue
                target, student, transform = sides(objective, match, batch)
                if match.teacher_taps != match.student_taps or isinstance(match.teacher_transform, Learned):
                    continue
                assert abs(match.distance(target, transform(*student)).item()) < 1e-9, match.title


@pytest.mark.parametrize("name", METHODS)
def test_a_transformed_student_equal_to_the_transformed_teacher_is_at_0(name, pair):
    method = METHODS[name](pair)
    for objective, batch in objectives(method, pair):
        for match in objective.stage.matches:
            target, student, transform = sides(objective, match, batch)
            if method.zero and len(match.student_taps) == 1 and transform(*student).shape == target.shape:
                assert abs(match.distance(target, target.clone()).item()) < 1e-9, match.title


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_is_untouched_and_the_student_and_its_connectors_move(name, pair):
    teachers = [copy.deepcopy(t.net.state_dict()) for t in pair.teachers]
    before = copy.deepcopy(pair.student.state_dict())
    method = METHODS[name](pair)
    student, rows = distill(pair.student, pair.teachers, method, pair.teachers[0].loader, PLAN)
    for teacher, kept in zip(pair.teachers, teachers, strict=True):
        assert all(torch.equal(value, kept[n]) for n, value in teacher.net.state_dict().items())
        assert all(p.grad is None for p in teacher.net.parameters()) and not teacher.net.training
    if method.prepare is None and method.rounds == 1:
        assert any(not torch.equal(value, before[n]) for n, value in student.state_dict().items())
    terms = rows.drop(columns=["method", "round", "stage", "epoch", "step", "lr"]).to_numpy()
    assert (torch.tensor(terms).isfinite() | torch.tensor(terms).isnan()).all()


@pytest.mark.parametrize("name", METHODS)
def test_gradients_reach_the_student_and_connectors_alone(name, pair):
    for objective, batch in objectives(METHODS[name](pair), pair):
        objective.train()
        terms, _ = objective(batch)
        sum(terms.values()).backward()
        for teacher in pair.teachers:
            assert all(p.grad is None for p in teacher.net.parameters())
        trained = {p for p in objective.moves if isinstance(p, nn.Parameter)}
        reached = {p for p in objective.parameters() if p.grad is not None}
        if objective.stage.train == "connectors":
            assert reached and not reached & set(objective.student.parameters())
        assert trained <= reached, "a parameter is to be trained that no term depends on"
        objective.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", [n for n in METHODS])
def test_scales_that_do_not_count_have_no_gradient_along_the_feature(name, pair):
    """Euler: where L(a s) = L(s) for all a > 0, the inner product of s and dL/ds is 0."""
    method = METHODS[name](pair)
    if not method.scale_free:
        return
    for objective, batch in objectives(method, pair):
        for match in objective.stage.matches:
            if match.student_taps == ("out",) or objective.stage.train == "connectors":
                continue  # the softened logits beside the method; what is learned of the teacher alone
            target, student, transform = sides(objective, match, batch)
            if isinstance(match.student_transform, Learned):
                # What a connector makes of the feature is what may be scaled.
                student, transform = [transform(*student)], lambda made: made
            leaves = [s.detach().requires_grad_() for s in student]
            value = match.distance(target, transform(*leaves))
            gradients = torch.autograd.grad(value, leaves)
            for s, g in zip(leaves, gradients, strict=True):
                assert abs((s * g).sum().item()) < 1e-8 * max(1.0, (s.norm() * g.norm()).item()), match.title
                assert g.abs().max() > 0, match.title


@pytest.mark.parametrize("name", METHODS)
def test_silent_features_give_finite_gradients(name, pair):
    """A student whose last convolution is dead: all its maps and its embedding are 0."""
    with torch.no_grad():
        for module in pair.student.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.zero_(), module.bias.fill_(-1.0)
    for objective, batch in objectives(METHODS[name](pair), pair):
        terms, _ = objective(batch)
        total = sum(terms.values())
        total.backward()
        assert total.isfinite()
        for p in objective.parameters():
            assert p.grad is None or p.grad.isfinite().all()
        objective.zero_grad(set_to_none=True)
