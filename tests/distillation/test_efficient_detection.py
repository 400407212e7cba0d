"""Entry 14: its four parts against numbers by hand, the reference values, and the plain losses they reduce to."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from reptrans.distillation.methods.efficient_detection import (
    bounded_errors,
    classification,
    hint_connector,
    hint_loss,
    regression,
    soft_cross_entropy,
)
from reptrans.errors import BadValue, ShapeMismatch

REFERENCE = Path(__file__).parent.parent / "reference" / "detection.safetensors"


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_uniform_predictions_of_three_classes():
    # (1.5 + 1 + 1) / 3 * ln 3
    uniform = torch.zeros(5, 3, dtype=torch.float64)
    assert soft_cross_entropy(uniform, uniform).item() == pytest.approx(3.5 / 3 * math.log(3), rel=1e-12)
    assert soft_cross_entropy(uniform, uniform).item() == pytest.approx(1.281714, abs=1e-6)


def test_the_weight_is_the_backgrounds_alone():
    # A teacher sure of the background: 1.5 times -ln P; sure of class 1: once.
    student = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    background, first = torch.tensor([[99.0, -99.0]]).double(), torch.tensor([[-99.0, 99.0]]).double()
    assert soft_cross_entropy(student, background).item() == pytest.approx(1.5 * math.log(4))
    assert soft_cross_entropy(student, first).item() == pytest.approx(math.log(4 / 3))


def test_with_equal_weights_it_is_divergence_plus_entropy():
    student, teacher = normal(6, 4), normal(6, 4, seed=1)
    log_s, log_t = student.log_softmax(1), teacher.log_softmax(1)
    divergence = F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")
    entropy = -(log_t.exp() * log_t).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(student, teacher, 1.0), divergence + entropy)


def test_a_weighted_teacher_is_the_best_student():
    teacher = normal(6, 4)
    best = (teacher + torch.tensor([1.5, 1, 1, 1]).double().log()).requires_grad_()
    soft_cross_entropy(best, teacher).backward()
    assert best.grad.abs().max() < 1e-15


def one(error):
    """A box whose squared error is `error` against a target of zeros."""
    return torch.tensor([[error, 0, 0, 0]], dtype=torch.float64).sqrt()


@pytest.mark.parametrize(("student", "margin", "expected"), [(1, 0, 0), (1, 3.5, 1), (9, 0, 9), (1, 3.0, 0)])
def test_bound_by_hand(student, margin, expected):
    found = bounded_errors(one(student), one(4), torch.zeros(1, 4).double(), margin)
    assert found.tolist() == [pytest.approx(expected)]


def test_each_box_has_its_own_bound():
    student, teacher = torch.cat([one(1), one(9)]), torch.cat([one(4), one(4)])
    assert bounded_errors(student, teacher, torch.zeros(2, 4).double(), 0).tolist() == [0, pytest.approx(9)]


def test_bounded_errors_agree_with_the_reference():
    reference = {name: value.double() for name, value in load_file(REFERENCE).items()}
    names = ("student_offsets", "teacher_offsets", "true_offsets")
    found = bounded_errors(*(reference[name] for name in names), margin=0.01)
    torch.testing.assert_close(0.5 * found.mean(), reference["bounded"], rtol=1e-6, atol=0)


def test_gradient_of_the_bound_is_the_squared_errors_or_zero():
    student, teacher, target = (
        normal(8, 4).requires_grad_(),
        normal(8, 4, seed=1).requires_grad_(),
        normal(8, 4, seed=2),
    )
    errors = bounded_errors(student, teacher, target)
    errors.sum().backward()
    active = (errors > 0).double()[:, None]
    assert 0 < active.sum() < 8
    torch.testing.assert_close(student.grad, 2 * (student - target).detach() * active)
    assert teacher.grad is None


def test_the_teacher_gets_no_gradient():
    teacher, offsets, maps = (normal(*s).requires_grad_() for s in ((5, 3), (5, 4), (2, 3, 4, 4)))
    labels, objects = torch.tensor([0, 1, 2, 0, 1]), torch.ones(5, dtype=torch.bool)
    own = [normal(*s, seed=1).requires_grad_() for s in ((5, 3), (5, 4), (2, 3, 4, 4))]
    total = classification(own[0], labels, teacher) + regression(own[1], normal(5, 4, seed=2), objects, offsets)
    (total + hint_loss(own[2], maps)).backward()
    assert [value.grad is None for value in (teacher, offsets, maps)] == [True] * 3
    assert all(value.grad.abs().sum() > 0 for value in own)


def test_hint_sums_inside_an_image_and_averages_over_images():
    # Two images of 3 * 4 * 5 entries, 2 apart in the first, equal in the second.
    teacher = normal(2, 3, 4, 5)
    student = teacher + torch.tensor([2.0, 0.0]).double().view(2, 1, 1, 1)
    assert hint_loss(student, teacher).item() == pytest.approx(60 * 4 / 2)
    assert hint_loss(student, teacher, "l1").item() == pytest.approx(60 * 2 / 2)
    assert hint_loss(teacher, teacher.clone()).item() == 0


def test_hint_connector_is_a_convolution_even_between_equal_shapes():
    state = torch.get_rng_state()
    connector = hint_connector(6, 6, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert connector.kernel_size == (1, 1)
    assert connector(torch.zeros(2, 6, 3, 5)).shape == (2, 6, 3, 5)
    assert torch.equal(connector.weight, hint_connector(6, 6, seed=1).weight)


def test_classification_mixes_hard_and_soft():
    student, teacher, labels = normal(5, 3), normal(5, 3, seed=1), torch.tensor([0, 1, 2, 0, 1])
    hard, soft = F.cross_entropy(student, labels), soft_cross_entropy(student, teacher)
    torch.testing.assert_close(classification(student, labels, soft=0.0), hard)
    torch.testing.assert_close(classification(student, labels, teacher, soft=0.3), 0.7 * hard + 0.3 * soft)


def test_regression_counts_objects_and_divides_by_all():
    student, target = normal(5, 4), normal(5, 4, seed=1)
    objects = torch.tensor([True, False, True, False, False])
    plain = F.smooth_l1_loss(student[objects], target[objects], beta=1 / 9, reduction="sum") / 5
    torch.testing.assert_close(regression(student, target, objects, bounded=0.0), plain)
    # Against a perfect teacher every box is penalised.
    squares = (student - target)[objects].square().sum() / 5
    with_bound = regression(student, target, objects, target, bounded=0.5)
    torch.testing.assert_close(with_bound, plain + 0.5 * squares)


def test_nothing_sampled_gives_zero_and_finite_gradients():
    logits, offsets = torch.zeros(0, 3, requires_grad=True), torch.zeros(4, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    objects = torch.zeros(4, dtype=torch.bool)
    total = classification(logits, none, logits) + regression(offsets, offsets.detach(), objects, offsets)
    total.backward()
    assert total.item() == 0 and offsets.grad.abs().max() == 0


def test_other_shapes_are_refused():
    with pytest.raises(ShapeMismatch, match=r"student \(5, 3\), teacher \(4, 3\): all must have one shape. Do both"):
        soft_cross_entropy(normal(5, 3), normal(4, 3))
    with pytest.raises(ShapeMismatch, match=r"target \(1, 4\): all must have one shape"):
        bounded_errors(normal(5, 4), normal(5, 4), normal(1, 4))
    with pytest.raises(ShapeMismatch, match="all must have one shape"):
        hint_loss(normal(1, 2, 3, 3), normal(1, 3, 3, 3))
    with pytest.raises(BadValue, match=r"there is no norm 'L2'. .*l2, l1"):
        hint_loss(normal(1, 2, 3, 3), normal(1, 2, 3, 3), "L2")
