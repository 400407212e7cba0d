"""What the table of measures claims, checked on numbers: every claim, and that nothing is left unclaimed."""

import pytest
import torch

from reptrans.similarity import MEASURES

N, D = 40, 6
KINDS = ("orthogonal", "permutation", "scale", "translation", "linear")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pair():
    """Two related representations with means and spreads of their own, and as many features, so that sides match."""
    x = normal(N, D) * torch.linspace(0.5, 2, D, dtype=torch.float64) + 0.7
    return x, x @ normal(D, D, seed=1) * 0.3 + normal(N, D, seed=2) - 0.4


def changed(x, kind):
    if kind == "orthogonal":
        return x @ torch.linalg.qr(normal(D, D, seed=3)).Q
    if kind == "permutation":
        return x[:, torch.tensor([3, 0, 5, 1, 4, 2])]
    if kind == "scale":
        return 2.5 * x
    if kind == "translation":
        return x + torch.linspace(-3, 4, D, dtype=torch.float64)
    return x @ (normal(D, D, seed=4) + torch.diag(torch.linspace(1, 4, D, dtype=torch.float64)))


records = pytest.mark.parametrize("record", MEASURES.values(), ids=MEASURES)


@records
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [0, 1])
def test_invariances_are_all_and_only_those_claimed(record, kind, side):
    given = list(pair())
    before = record.function(*given).item()
    given[side] = changed(given[side], kind)
    after = record.function(*given).item()
    claimed = kind in record.invariances | (frozenset(), record.y_only)[side]
    assert (abs(after - before) < 1e-8 * max(1, abs(before))) == claimed


@records
def test_range_and_its_best_end(record):
    x, y = pair()
    low, high = record.range
    for a, b in ((x, y), (y, x), (x, -x), (x, normal(N, 3, seed=5)), (normal(N, 3, seed=5), x)):
        assert low - 1e-9 <= record.function(a, b).item() <= high + 1e-9
    end = high if record.higher_is_better else low
    # The square root of a rounding error is 1e-8 of the size.
    assert record.function(x, x.clone()).item() == pytest.approx(end, abs=1e-6)
    assert abs(record.function(x, y).item() - end) > 1e-3


@records
def test_symmetry(record):
    x, y = pair()
    y = y[:, :5]
    there, back = record.function(x, y).item(), record.function(y, x).item()
    assert (abs(there - back) < 1e-9) == record.symmetric


@records
@pytest.mark.parametrize("side", [0, 1])
def test_gradients_are_finite_differences(record, side):
    given = list(pair())
    given[side] = given[side].requires_grad_()
    value = record.function(*given)
    if not record.differentiable:
        assert not value.requires_grad
        return
    (gradient,) = torch.autograd.grad(value, given[side])
    direction = normal(N, D, seed=6)
    step = 1e-5
    values = []
    for sign in (1, -1):
        moved = [v.detach() for v in given]
        moved[side] = moved[side] + sign * step * direction
        values.append(record.function(*moved).item())
    slope = (values[0] - values[1]) / (2 * step)
    assert abs(slope) > 1e-4
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4)


@records
def test_names_and_needs(record):
    assert MEASURES[record.name] is record
    assert record.needs in ("moments", "grams", "rows")
    assert hasattr(record.function, "on") == (record.needs == "moments")
    assert record.invariances | record.y_only <= set(KINDS)
    assert record.function.__doc__
