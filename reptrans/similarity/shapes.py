"""Distances after the best alignment: rotation, or exchange of features."""

import torch
from torch import Tensor

from reptrans.errors import BadValue
from reptrans.similarity.checks import refuse_full
from reptrans.similarity.pair import Pair, of_moments, of_rows


@of_moments(absolute=True)
def procrustes_angular(pair: Pair, alpha: float = 1.0) -> Tensor:
    """Angle between x and y after the best rotation: arccos(‖XᵀY‖_* / (‖X‖_F ‖Y‖_F)).

    Range [0, π/2], 0 = similar; a metric. Invariant to rotation and a common scale. With `alpha` below 1 both sides are
    whitened in part first, X (αI + (1-α)(XᵀX)^-1/2); at 0 it is invariant to any invertible linear map.
    The gradient is infinite at 0: as a loss take minus its cosine.
    Source: Williams et al. 2021, equations 4 and 8.
    """
    if not 0 <= alpha <= 1:
        raise BadValue(f"alpha lies between 0 (whitened) and 1 (as they are); given {alpha}.")
    if alpha == 1:
        return _arccos(pair.nuclear / (_deviation(pair.xx) * _deviation(pair.yy)))
    s = pair.spectrum
    refuse_full(max(len(s.sx), len(s.sy)), pair.count - 1, "procrustes_angular with alpha < 1")
    a, b = (alpha * v + 1 - alpha for v in (s.sx, s.sy))
    return _arccos(torch.linalg.svdvals(a[:, None] * s.core * b).sum() / (a.norm() * b.norm()))


@of_moments(absolute=True, several=True)
def procrustes_size_shape(pair: Pair) -> Tensor:
    """Frobenius distance after the best rotation: sqrt(‖X‖² + ‖Y‖² - 2 ‖XᵀY‖_*).

    Range [0, ∞), 0 = similar; a metric; grows with √n and with the features' scale (Williams et al. 2021).
    """
    squared = pair.xx.trace() + pair.yy.trace() - 2 * pair.nuclear
    return (pair.count * squared.clamp_min(0)).sqrt()


@of_moments
def permutation_angular(pair: Pair) -> Tensor:
    """Angle between x and y after the best exchange of features: arccos(max_P tr(Pᵀ XᵀY) / (‖X‖_F ‖Y‖_F)).

    Range [0, π/2], 0 = similar; a metric. Invariant to permutation and a common scale. Features without partner, where
    the numbers differ, stand against zeros. Source: Williams et al. 2021.
    """
    return _arccos(_assigned(pair.xy).sum() / (_deviation(pair.xx) * _deviation(pair.yy)))


@of_moments(absolute=True)
def permutation_euclid(pair: Pair) -> Tensor:
    """Frobenius distance after the best exchange of features, sqrt(‖X‖² + ‖Y‖² - 2 max_P tr(Pᵀ XᵀY)), 0 = similar."""
    squared = pair.xx.trace() + pair.yy.trace() - 2 * _assigned(pair.xy).sum()
    return (pair.count * squared.clamp_min(0)).sqrt()


@of_moments
def hard_correlation_match(pair: Pair) -> Tensor:
    """Mean correlation of x's features, each with its own partner in y: the best one-to-one match.

    Range [-1, 1], 1 = similar; over min(p, q) matched features. A constant feature correlates with nothing.
    Source: Li et al. 2016.
    """
    return _assigned(pair.correlation).mean()


@of_moments(several=True)
def soft_correlation_match(pair: Pair) -> Tensor:
    """Mean, over all features of both sides, of the correlation with the best partner, which others may share.

    Range [-1, 1], 1 = similar: the mean of x's mean and y's mean. Source: Li et al. 2016; Khosla and Williams 2024.
    """
    correlation = pair.correlation
    return (correlation.amax(-2).mean(-1) + correlation.amax(-1).mean(-1)) / 2


def _own_space(x: Tensor) -> Tensor:
    """The rows (n, p) turned into the space that they span, (n, min(n, p)): no rotation is lost."""
    return x if x.shape[1] <= len(x) else torch.linalg.qr(x.T).R.T


@of_rows(prepare=_own_space, directed=True)
def aligned_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Mean cosine of corresponding rows after the best rotation of x (n, p) to y (n, q), not centred.

    Range [-1, 1], 1 = similar. Invariant to rotation and a common scale. The smaller side is padded with zeros; NaN
    where an example has no activation at all. Source: Hamilton et al. 2016, as a mean over rows.
    """
    width = max(x.shape[1], y.shape[1])
    x, y = (torch.nn.functional.pad(v, (0, width - v.shape[1])) for v in (x, y))
    u, _, vt = torch.linalg.svd(x.T @ y)
    return ((x @ (u @ vt)) * y).sum(1).div(x.norm(dim=1) * y.norm(dim=1)).mean()


def _basis(x: Tensor) -> Tensor:
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    return u[:, s > s[0] * max(x.shape) * torch.finfo(x.dtype).eps]


@of_rows(prepare=_basis)
def eigenspace_overlap(x: Tensor, y: Tensor) -> Tensor:
    """‖Uxᵀ Uy‖²_F / max(p, q) with orthonormal bases of the column spaces, not centred.

    Range [0, 1], 1 = similar. Invariant to any invertible linear map. Needs more examples than features.
    Source: May et al. 2019.
    """
    widest = max(x.shape[1], y.shape[1])
    refuse_full(widest, len(x), "eigenspace_overlap")
    return (x.T @ y).square().sum() / widest


def _assigned(gain: Tensor) -> Tensor:
    """The entries of gain (p, q) that the best one-to-one assignment picks, (min(p, q),)."""
    from scipy.optimize import linear_sum_assignment

    return gain[linear_sum_assignment(gain.detach().cpu().numpy(), maximize=True)]


def _deviation(covariance: Tensor) -> Tensor:
    return covariance.trace().sqrt()


def _arccos(cosine: Tensor) -> Tensor:
    return torch.arccos(cosine.clamp(-1, 1))
