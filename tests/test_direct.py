"""Direct matching against brute force and closed-form values."""

import itertools

import numpy as np
import pytest
import torch

from reptrans.errors import BadValue, ShapeMismatch, UnknownName
from reptrans.similarity import Moments
from reptrans.stitching import direct
from reptrans.stitching.direct import (
    AffineMap,
    assignment,
    assignment_mask,
    departure,
    direct_matching,
    identity,
    least_squares,
    masked,
    procrustes,
    random_permutation_mask,
    reduced_rank,
    semi_match_mask,
    sparse,
)


def rotation(n, seed):
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q


def linear_data(w, b, noise=0.0, n=300, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(n, w.shape[1], generator=g, dtype=torch.float64)
        @ torch.diag(torch.linspace(0.5, 2, w.shape[1], dtype=torch.float64))
        + 3
    )
    return x, x @ w.T + b + noise * torch.randn(n, w.shape[0], generator=g, dtype=torch.float64)


def moments(x, y):
    return Moments(x.shape[1], y.shape[1]).update(x, y)


@pytest.fixture
def noisy():
    g = torch.Generator().manual_seed(5)
    w, b = torch.randn(3, 5, generator=g, dtype=torch.float64), torch.randn(3, generator=g, dtype=torch.float64)
    return linear_data(w, b, noise=0.7)


def squared_error(x, y, a: AffineMap):
    return (y - x @ a.weight.T - a.bias).square().sum(1).mean().item()


def test_least_squares_is_numpys(noisy):
    x, y = noisy
    found = least_squares(moments(x, y))
    true = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0].T
    np.testing.assert_allclose(found.weight, true[:, :-1], rtol=1e-9)
    np.testing.assert_allclose(found.bias, true[:, -1], rtol=1e-9)


def test_r2_and_squared_error_are_those_of_the_samples(noisy):
    x, y = noisy
    m = moments(x, y)
    for kind in ("least squares", "ridge", "procrustes", "rotation", "reduced rank", "assignment", "sparse"):
        found = direct_matching(m, kind, rank=2, ridge=0.1)
        error = squared_error(x, y, found)
        assert found.squared_error(m).item() == pytest.approx(error, rel=1e-9)
        assert found.r2(m) == pytest.approx(1 - error / (y - y.mean(0)).square().sum(1).mean().item(), rel=1e-9)


def test_dead_channel_gets_no_weight(noisy):
    x, y = noisy
    x = torch.cat([x, torch.full((len(x), 1), 2.5, dtype=torch.float64)], 1)
    found = least_squares(moments(x, y))
    assert found.weight[:, -1].abs().max() == 0
    torch.testing.assert_close(found.weight[:, :-1], least_squares(moments(x[:, :-1], y)).weight)


def test_ridge_solves_its_own_normal_equations_and_shrinks(noisy):
    x, y = noisy
    m = moments(x, y)
    found, size = least_squares(m, 0.3), 0.3 * m.xx.trace() / 5
    torch.testing.assert_close(found.weight @ m.xx + size * found.weight, m.xy.T)
    assert found.weight.norm() < least_squares(m).weight.norm()
    torch.testing.assert_close(least_squares(m, 0.0).weight, least_squares(m, 1e-15).weight)


def test_procrustes_finds_rotation_and_scale():
    w = 1.7 * rotation(4, 1)
    found = procrustes(moments(*linear_data(w, torch.arange(4.0, dtype=torch.float64))))
    torch.testing.assert_close(found.weight, w)
    torch.testing.assert_close(found.bias, torch.arange(4.0, dtype=torch.float64))


@pytest.mark.parametrize(("p", "q"), [(4, 4), (3, 5), (5, 3)])
def test_procrustes_is_a_scaled_semi_orthogonal_matrix(p, q):
    x, y = linear_data(torch.randn(q, p, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), 0.0, 0.5)
    w = procrustes(moments(x, y)).weight
    gram = w @ w.T if q <= p else w.T @ w
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(min(p, q), dtype=torch.float64))


def test_procrustes_beats_other_rotations_and_scales(noisy):
    x, y = linear_data(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(8)), 1.0, 0.5)
    m = moments(x, y)
    best = procrustes(m)
    for seed, change in itertools.product(range(20), (0.9, 1.0, 1.1)):
        near = torch.linalg.qr(best.weight + 0.3 * rotation(3, seed))
        q = near.Q * near.R.diagonal().sign()
        other = change * best.weight.norm() / 3**0.5 * q
        assert best.squared_error(m) <= AffineMap(other, m.mean_y - other @ m.mean_x).squared_error(m) + 1e-12


@pytest.mark.parametrize(("p", "q"), [(4, 4), (3, 5), (5, 3)])
def test_rotation_keeps_the_spread(p, q):
    x, y = linear_data(torch.randn(q, p, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), 0.0, 2.0)
    m = moments(x, y)
    kept, best = procrustes(m, keep_spread=True), procrustes(m)
    mapped = x @ kept.weight.T + kept.bias
    assert mapped.var(0, correction=0).sum().item() == pytest.approx(y.var(0, correction=0).sum().item())
    torch.testing.assert_close(kept.weight / kept.weight.norm(), best.weight / best.weight.norm())
    assert kept.squared_error(m) > best.squared_error(m)


def test_reduced_rank_has_its_rank_and_is_best(noisy):
    x, y = noisy
    m = moments(x, y)
    found = reduced_rank(m, 2)
    assert torch.linalg.matrix_rank(found.weight) == 2
    assert found.r2(m) < reduced_rank(m, 3).r2(m) == pytest.approx(least_squares(m).r2(m), rel=1e-12)
    full = least_squares(m).weight
    u, s, vh = torch.linalg.svd((x - x.mean(0)) @ full.T, full_matrices=False)  # Eckart-Young on the fitted values
    lost = s[2:].square().sum() / len(x)
    assert found.squared_error(m).item() == pytest.approx((least_squares(m).squared_error(m) + lost).item(), rel=1e-10)


def test_assignment_is_the_best_pairing_and_not_the_greedy_one():
    # Channel 0 of y is nearest to channel 0 of x, but pairing it so leaves channel 1 of y nearly nothing.
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4000, dtype=torch.float64, generator=g)
    x, y = torch.stack([a, b], 1), torch.stack([a + 0.9 * b, a + 0.1 * b], 1)
    m = moments(x, y)
    assert semi_match_mask(m).tolist() == [[True, False], [True, False]]
    assert assignment_mask(m).tolist() == [[False, True], [True, False]]


def test_assignment_matches_exhaustive_search(noisy):
    m = moments(
        *linear_data(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), 0.0, 1)
    )
    worth = m.correlation.abs().T
    best = max(sum(worth[i, p[i]].item() for i in range(4)) for p in itertools.permutations(range(4)))
    assert worth[assignment_mask(m)].sum().item() == pytest.approx(best)


def test_assignment_recovers_a_permutation_with_signs_and_scales():
    order, scale = torch.tensor([2, 0, 3, 1]), torch.tensor([1.5, -2.0, 0.5, 1.0], dtype=torch.float64)
    w = torch.zeros(4, 4, dtype=torch.float64)
    w[torch.arange(4), order] = scale
    torch.testing.assert_close(assignment(moments(*linear_data(w, 0.25))).weight, w)


def test_absolute_semi_match_sees_negative_correlation():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1000, dtype=torch.float64, generator=g)
    m = moments(torch.stack([a, b], 1), (0.2 * a - b)[:, None])
    assert semi_match_mask(m).tolist() == [[True, False]]
    assert semi_match_mask(m, absolute=True).tolist() == [[False, True]]


def test_masked_least_squares_row_by_row(noisy):
    x, y = noisy
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    found = masked(moments(x, y), mask)
    assert (found.weight[~mask] == 0).all()
    torch.testing.assert_close(found.weight[0, [0, 2]], least_squares(moments(x[:, [0, 2]], y[:, :1])).weight[0])
    torch.testing.assert_close(found.weight[2], least_squares(moments(x, y)).weight[2])
    assert found.bias[1].item() == pytest.approx(y[:, 1].mean().item())


@pytest.mark.parametrize("at_once", [1, 40, 2**24])
def test_rows_solved_together_are_rows_solved_alone(at_once, monkeypatch):
    g = torch.Generator().manual_seed(2)
    x, y = linear_data(torch.randn(12, 6, generator=g, dtype=torch.float64), 1.0, 0.5)
    x[:, 3] = 0.25  # a dead channel, among the inputs of some rows and alone in the last
    mask = torch.rand(12, 6, generator=g) < 0.5
    mask[-1] = torch.arange(6) == 3
    monkeypatch.setattr(direct, "_AT_ONCE", at_once)
    found = masked(moments(x, y), mask)
    for row in range(12):
        alone = least_squares(moments(x[:, mask[row]], y[:, row : row + 1]))
        torch.testing.assert_close(found.weight[row, mask[row]], alone.weight[0], rtol=1e-10, atol=1e-12)
    assert (found.weight[~mask] == 0).all() and found.weight[:, 3].abs().max() < 1e-14


def test_sparse_finds_the_inputs_that_matter():
    w = torch.zeros(2, 6, dtype=torch.float64)
    w[0, 1], w[0, 4], w[1, 3] = 2.0, -1.0, 1.0
    torch.testing.assert_close(sparse(moments(*linear_data(w, 0.0)), 2).weight, w)


def test_random_permutation_uses_no_channel_twice():
    square = random_permutation_mask(6, 6, torch.Generator().manual_seed(0))
    assert (square.sum(0) == 1).all() and (square.sum(1) == 1).all()
    wide = random_permutation_mask(6, 4, torch.Generator().manual_seed(0))
    assert (wide.sum(1) == 1).all() and wide.sum(0).max() == 1
    tall = random_permutation_mask(3, 7, torch.Generator().manual_seed(0))
    assert (tall.sum(1) == 1).all() and sorted(tall.sum(0).tolist()) == [2, 2, 3]


def test_departure_in_closed_form(noisy):
    x, y = noisy
    m = moments(y, y)
    own = identity(m)
    assert departure(m, own) == pytest.approx(1.0)
    assert departure(m, AffineMap(2 * own.weight, -m.mean_y)) == pytest.approx(4.0)
    assert departure(m, AffineMap(0 * own.weight, m.mean_y)) == pytest.approx(0.0)
    z = torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    white = moments(z, z)
    shifted = AffineMap(torch.eye(2, dtype=torch.float64), torch.tensor([3.0, 0.0], dtype=torch.float64))
    assert departure(white, shifted) == pytest.approx(1 + 9 / 2, rel=0.05)


def test_messages(noisy):
    m = moments(*noisy)
    with pytest.raises(UnknownName, match=r"Unknown direct matching 'procustes'. Did you mean 'procrustes'\?"):
        direct_matching(m, "procustes")
    with pytest.raises(BadValue, match="rank must lie between 1 and 3 for 5 → 3 channels; given 4."):
        reduced_rank(m, 4)
    with pytest.raises(BadValue, match="inputs must lie between 1 and 5; given 6."):
        sparse(m, 6)
    with pytest.raises(BadValue, match="ridge must be 0 or more; given -1."):
        least_squares(m, -1)
    with pytest.raises(ShapeMismatch, match="front has 5, end has 3"):
        identity(m)
