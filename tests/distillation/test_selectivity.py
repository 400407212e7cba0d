import math

import pytest
import torch

from reptrans.distillation.methods.layers import mmd, nst
from reptrans.errors import ShapeMismatch, UnknownName
from reptrans.matching import unit_channels

KERNELS = ("linear", "polynomial", "gaussian")
DRAW = torch.Generator().manual_seed(0)
P = unit_channels(torch.randn(3, 7, 4, 4, dtype=torch.float64, generator=DRAW).relu())
Q = unit_channels(torch.randn(3, 5, 4, 4, dtype=torch.float64, generator=DRAW).relu())


def by_definition(p, q, kernel):
    """The double sums of one image, written out."""
    width = 2 * torch.stack([(a - b).square().sum() for a in p for b in q]).mean()
    k = {
        "linear": lambda a, b: a @ b,
        "polynomial": lambda a, b: (a @ b) ** 2,
        "gaussian": lambda a, b: torch.exp(-(a - b).square().sum() / width),
    }[kernel]
    mean = lambda x, y: sum(k(a, b) for a in x for b in y) / (len(x) * len(y))  # noqa: E731
    return mean(p, p) + mean(q, q) - 2 * mean(p, q)


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_is_the_definition_image_by_image(kernel):
    expected = sum(by_definition(p, q, kernel) for p, q in zip(P, Q, strict=True)) / 3
    assert mmd(kernel)(P, Q).item() == pytest.approx(expected.item(), rel=1e-12)


def test_linear_is_the_distance_of_means_and_polynomial_of_second_moments():
    assert mmd("linear")(P, Q).item() == pytest.approx((P.mean(1) - Q.mean(1)).square().sum(1).mean().item())
    difference = P.mT @ P / 7 - Q.mT @ Q / 5
    assert mmd("polynomial")(P, Q).item() == pytest.approx(difference.square().sum((1, 2)).mean().item())


def test_both_ways_of_computing_the_polynomial_agree():
    # 16 positions and 5 or 7 channels take the kernel's way, 30 channels the way over second moments.
    many = unit_channels(torch.randn(3, 30, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    expected = sum(by_definition(p, q, "polynomial") for p, q in zip(many, Q, strict=True)) / 3
    assert mmd("polynomial")(many, Q).item() == pytest.approx(expected.item(), rel=1e-12)
    # An offset takes the kernel's way whatever the sizes.
    shifted = mmd("polynomial", degree=3, offset=0.5)(many, Q)
    pairs = [((a @ b.mT + 0.5) ** 3).mean((1, 2)) for a, b in ((many, many), (Q, Q), (many, Q))]
    assert shifted.item() == pytest.approx((pairs[0] + pairs[1] - 2 * pairs[2]).mean().item())


def test_disjoint_single_channels_are_2_2_and_2_minus_2_over_root_e():
    p = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    q = torch.tensor([[[0.0, 1.0]]], dtype=torch.float64)
    for kernel, expected in (("linear", 2), ("polynomial", 2), ("gaussian", 2 - 2 * math.exp(-0.5))):
        assert mmd(kernel)(p, q).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_order_and_scale_of_channels_do_not_count(kernel):
    maps = torch.rand(3, 5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    shuffled = maps[:, [3, 1, 4, 0, 2]] * torch.tensor([1.0, 2, 3, 4, 5])[:, None, None]
    distance = mmd(kernel)
    assert distance(unit_channels(maps), unit_channels(shuffled)).item() == pytest.approx(0, abs=1e-14)
    assert distance(P, unit_channels(shuffled)).item() == pytest.approx(distance(P, unit_channels(maps)).item())
    assert distance(P, Q).item() >= 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_silent_channels_and_equal_sets_have_finite_gradients(kernel):
    maps = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    maps[:, 0] = 1.0
    for teacher in (maps, torch.zeros_like(maps)):
        s = maps.clone().requires_grad_()
        value = mmd(kernel)(unit_channels(teacher), unit_channels(s))
        value.backward()
        assert value.isfinite() and s.grad.isfinite().all()
    zeros = torch.zeros(2, 3, 2, 2, requires_grad=True)
    mmd(kernel)(unit_channels(zeros.detach()), unit_channels(zeros)).backward()
    assert zeros.grad.isfinite().all()


def test_the_polynomial_is_that_of_a_public_implementation(maps):
    students = [maps[f"s{k}"].requires_grad_() for k in (1, 2, 3)]
    distance = mmd("polynomial")
    parts = [distance(unit_channels(maps[f"t{k}"]), unit_channels(s)) for k, s in enumerate(students, start=1)]
    assert [p.item() for p in parts] == pytest.approx([0.2895, 0.1419, 0.0720], abs=5e-5)
    assert sum(parts).item() == pytest.approx(0.5034627914428711, rel=1e-5)
    gradients = torch.autograd.grad(sum(parts), students)
    for k, gradient in enumerate(gradients, start=1):
        torch.testing.assert_close(gradient, maps[f"grad repdistiller.NST s{k}"], rtol=1e-4, atol=1e-8)


def test_the_other_kernels_at_the_second_layer(maps):
    p, q = (unit_channels(maps[name].double()) for name in ("t2", "s2"))
    assert mmd("linear")(p, q).item() == pytest.approx(0.1423641, rel=1e-5)
    assert mmd("gaussian")(p, q).item() == pytest.approx(0.0560008, rel=1e-5)


def test_the_recipe_takes_the_last_group_with_half_the_weight(pair):
    (stage,) = nst(pair).stages
    assert [(m.teacher, m.student, m.weight) for m in stage.matches] == [("relu3", "relu3", 25.0)]
    assert nst(pair, kernel="gaussian").stages[0].matches[0].weight == 50.0
    assert [m.student for m in nst(pair, everywhere=True, weight=2.0).stages[0].matches] == ["relu1", "relu2", "relu3"]


def test_unknown_kernels_and_other_sizes_are_refused():
    with pytest.raises(UnknownName, match="Did you mean 'gaussian'"):
        mmd("gausian")
    with pytest.raises(ShapeMismatch, match="16 positions and the student's 9.*resize=True"):
        mmd()(P, torch.rand(3, 5, 9, dtype=torch.float64))
