"""Direct matching against brute force and closed-form values."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from reptrans.errors import BadValue, ShapeMismatch, UnknownName
from reptrans.similarity import Moments
from reptrans.stitching import direct
from reptrans.stitching.direct import (
    AffineMap,
    assignment,
    assignment_mask,
    departure,
    direct_matching,
    doubly_stochastic,
    identity,
    least_squares,
    masked,
    procrustes,
    random_permutation_mask,
    reduced_rank,
    scaled_permutation,
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
    for kind in direct.DIRECT.keys() - {"identity"}:
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


@pytest.mark.parametrize(("p", "q"), [(4, 4), (3, 5), (5, 3)])
def test_permutation_with_scales_is_recovered(p, q):
    w = torch.zeros(q, p, dtype=torch.float64)
    g = torch.Generator().manual_seed(6)
    rows, columns = (torch.randperm(size, generator=g)[: min(p, q)] for size in (q, p))
    w[rows, columns] = torch.linspace(0.2, 2, min(p, q), dtype=torch.float64)
    torch.testing.assert_close(scaled_permutation(moments(*linear_data(w, 0.25))).weight, w)


def pairings(p, q):
    """All (q, p) matrices of zeros and ones that pair as many channels as there are on the narrower side."""
    few, many = sorted((p, q))
    found = [torch.eye(many, dtype=torch.float64)[list(chosen)] for chosen in itertools.permutations(range(many), few)]
    return [w if q <= p else w.T for w in found]


def mixed(p, q, noise=0.5):
    return linear_data(torch.rand(q, p, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), 1.0, noise)


@pytest.mark.parametrize(("p", "q"), [(4, 4), (3, 5), (5, 3)])
def test_permutation_with_scales_is_the_best_of_all(p, q):
    w = torch.randn(q, p, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, y = linear_data(w, 1.0, 0.5)
    a, b = x - x.mean(0), y - y.mean(0)

    def error(pairing):
        lost = b.clone()
        for j, i in pairing.nonzero().tolist():
            lost[:, j] -= nnls(a[:, [i]].numpy(), b[:, j].numpy())[0].item() * a[:, i]
        return lost.square().sum(1).mean().item()

    found = scaled_permutation(moments(x, y))
    assert squared_error(x, y, found) == pytest.approx(min(map(error, pairings(p, q))), rel=1e-10)
    assert (found.weight >= 0).all()


def test_permutation_with_scales_leaves_out_what_runs_against_it_and_dead_channels():
    x, _ = mixed(2, 2)
    x = torch.cat([x, torch.full((len(x), 1), 2.5, dtype=torch.float64)], 1)
    found = scaled_permutation(moments(x, torch.stack([-x[:, 0], 3 * x[:, 1], x[:, 2]], 1)))
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[1, 1] = 3
    torch.testing.assert_close(found.weight, expected)
    torch.testing.assert_close(found.bias, torch.stack([-x[:, 0].mean(), torch.tensor(0.0), x[0, 2]]).double())


@pytest.mark.parametrize(("p", "q"), [(4, 4), (3, 5), (5, 3)])
def test_doubly_stochastic_is_the_best_mixture_of_all_pairings(p, q):
    x, y = mixed(p, q)
    m, a = moments(x, y), x - x.mean(0)
    design = torch.stack([(a @ w.T).flatten() for w in pairings(p, q)], 1)
    weights, distance = nnls(design.numpy(), (y - y.mean(0)).flatten().numpy())
    assert (weights > 1e-9).sum() > 2, "one permutation would do"
    found = doubly_stochastic(m, 1e-10)
    assert found.squared_error(m).item() == pytest.approx(distance**2 / len(x), rel=1e-8)


@pytest.mark.parametrize(("p", "q"), [(6, 6), (4, 7), (7, 4)])
def test_doubly_stochastic_has_equal_sums(p, q):
    w = doubly_stochastic(moments(*mixed(p, q))).weight
    over, whole = (w.sum(0), w.sum(1)) if p >= q else (w.sum(1), w.sum(0))
    torch.testing.assert_close(whole, whole[:1].expand_as(whole))
    assert (w >= 0).all() and (over <= whole[0] * (1 + 1e-12)).all()


def test_doubly_stochastic_lies_between_permutations_and_least_squares():
    m = moments(*mixed(4, 4))
    whole = m.xx.trace()
    best = max((w * m.xy.T).sum() for w in pairings(4, 4))
    one = m.yy.trace() - best**2 / whole  # of a permutation the best common factor is ⟨C_yx, Π⟩ / trace(C_xx)
    torch.testing.assert_close(doubly_stochastic(m, most=1).squared_error(m), one)
    errors = [doubly_stochastic(m, most=most).squared_error(m).item() for most in range(1, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.9 * errors[0]
    assert least_squares(m).squared_error(m) < errors[-1]


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_doubly_stochastic_closes_the_gap(tolerance):
    m = moments(*mixed(4, 4))
    w, before = (doubly_stochastic(m, t).weight for t in (tolerance, 10 * tolerance))

    def gap(w):
        slope = 2 * (w @ m.xx - m.xy.T)
        least = min((slope * other).sum().item() for other in pairings(4, 4))
        return ((slope * w).sum().item() - w[0].sum().item() * least) / m.yy.trace().item()

    assert -1e-12 < gap(w) <= tolerance
    assert gap(before) > gap(w) or torch.equal(before, w)


def test_rounding_errors_do_not_choose_the_mixture():
    x, y = mixed(6, 6)
    plain = doubly_stochastic(moments(x, y), 1e-2).weight
    for seed in range(10):  # the same samples, summed up in another order
        rows = torch.randperm(300, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(doubly_stochastic(moments(x[rows], y[rows]), 1e-2).weight, plain)


def test_doubly_stochastic_recovers_what_it_holds():
    order = torch.tensor([2, 0, 3, 1])
    exact = 1.7 * torch.eye(4, dtype=torch.float64)[order]
    torch.testing.assert_close(doubly_stochastic(moments(*linear_data(exact, 0.25))).weight, exact)
    half = 0.5 * exact + 0.3 * torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(doubly_stochastic(moments(*linear_data(half, 0.25)), 1e-14).weight, half)
    against = doubly_stochastic(moments(*linear_data(-torch.ones(3, 3, dtype=torch.float64), 0.0)))
    assert against.weight.abs().max() == 0


@pytest.mark.parametrize("solve", [scaled_permutation, doubly_stochastic])
def test_maps_of_symmetries_follow_the_order_and_unit_of_channels(solve):
    solve = partial(solve, tolerance=1e-12) if solve is doubly_stochastic else solve
    x, y = mixed(4, 4)
    plain, order = solve(moments(x, y)).weight, torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(solve(moments(x[:, order], y)).weight, plain[:, order])
    torch.testing.assert_close(solve(moments(x, y[:, order])).weight, plain[order])
    torch.testing.assert_close(solve(moments(4 * x - 3, 0.5 * y + 1)).weight, plain / 8)
    turned = solve(moments(x @ rotation(4, 2), y))
    assert turned.r2(moments(x @ rotation(4, 2), y)) != pytest.approx(solve(moments(x, y)).r2(moments(x, y)), rel=0.01)


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
    with pytest.raises(BadValue, match="tolerance is a share of the variance of y, above 0, such as 0.001; given 0."):
        doubly_stochastic(m, 0)
    with pytest.raises(BadValue, match="most is 0; it must be a whole number of pairings from 1 on."):
        doubly_stochastic(m, most=0)
    with pytest.raises(BadValue, match="ridge must be a number of 0 or more; given -1."):
        least_squares(m, -1)
    with pytest.raises(ShapeMismatch, match="front has 5, end has 3"):
        identity(m)
