"""Canonical correlations and their kin: what of one representation is linear in the other.

All are functions of the overlap of principal directions (`Spectrum`). They need more examples than features, and raise
BadData otherwise: then every correlation is 1, whatever the data. Constant features are left out.
"""

import torch
from torch import Tensor

from reptrans.errors import BadValue
from reptrans.similarity.checks import refuse_full
from reptrans.similarity.pair import Pair, of_moments
from reptrans.similarity.spectrum import Spectrum


@of_moments
def cca_mean(pair: Pair) -> Tensor:
    """Mean canonical correlation of x (n, p) and y (n, q), over min(p, q) of them.

    Range [0, 1], 1 = similar. Invariant to any invertible linear map; symmetric. Raises BadData, as all of this kind,
    without more examples than features: then every correlation is 1, whatever the data.
    Source: Raghu et al. 2017. Their code drops the correlations after 98 % of the sum, which raises the mean.
    """
    return _tall(pair, "cca_mean").correlations.mean()


@of_moments
def cca_r2(pair: Pair) -> Tensor:
    """Mean squared canonical correlation ‖Uxᵀ Uy‖²_F / min(p, q), in [0, 1], 1 = similar (Kornblith et al. 2019).

    Errors as for `cca_mean`.
    """
    return _tall(pair, "cca_r2").correlations.square().mean()


@of_moments
def svcca(pair: Pair, keep: int | float = 0.99) -> Tensor:
    """Mean canonical correlation of the leading principal components.

    `keep`: an int, as many of each side; a float up to 1, the fewest that hold this share of the variance, that is, of
    the squared singular values. Range [0, 1], 1 = similar. Invariant to rotation and to a common scale.
    Source: Raghu et al. 2017. Other code takes the share of the singular values unsquared (anatome), or multiplies the
    threshold by the total variance and so keeps one component nearly always (ReSi).
    """
    if keep <= 0 or (isinstance(keep, float) and keep > 1):
        raise BadValue(f"svcca keeps a number of components (int) or a share of variance in (0, 1]; given {keep}.")
    s = pair.spectrum
    s = s.keep(_leading(s.sx, keep), _leading(s.sy, keep))
    _refuse(s, pair.count, "svcca")
    return s.correlations.mean()


@of_moments
def pwcca(pair: Pair) -> Tensor:
    """Projection-weighted CCA: Σ w_i ρ_i, w_i in proportion to Σ_j |⟨h_i, x_j⟩| with x's canonical variates h_i.

    Range [0, 1], 1 = similar. Not symmetric: x gives the weights. Invariant to any invertible linear map of y, and to
    permutation and a common scale of x.
    Source: Morcos et al. 2018, the paper's formula. Their code adds the means back first and orthonormalises again,
    which gives other values, and fails where y has fewer features than x.
    """
    s = _tall(pair, "pwcca")
    left, correlations, _ = torch.linalg.svd(s.core, full_matrices=False)
    weights = ((left.T * s.sx) @ s.vx.T).abs().sum(1)
    return (weights * correlations).sum() / weights.sum()


@of_moments(absolute=True)
def linear_r2(pair: Pair, ridge: float = 0.0) -> Tensor:
    """Share of x's variance (all features together) that least squares on y explains, on the same examples.

        R² = ‖Uyᵀ X‖²_F / ‖X‖²_F

    Range [0, 1], 1 = x is linear in y. Not symmetric: exchange x and y for the other way. Invariant to rotation of x
    and any invertible linear map of y. With `ridge` λ, n λ I is added to YᵀY.
    Source: Kornblith et al. 2019, table 1. In sample: more features always explain more.
    """
    s = pair.spectrum
    if not ridge:
        refuse_full(len(s.sy), pair.count - 1, "linear_r2")
    h = s.sy.square() / (s.sy.square() + pair.count * ridge)
    fit = (s.core.square() * s.sx.square()[:, None]).sum(0)
    return ((2 * h - h.square()) * fit).sum() / s.sx.square().sum()


@of_moments(absolute=True)
def gulp(pair: Pair, ridge: float = 0.0) -> Tensor:
    """GULP: how far ridge predictions from x and from y can be apart, for the worst-case task; the squared distance.

        tr(Σx^-λ Σx Σx^-λ Σx) + tr(Σy^-λ Σy Σy^-λ Σy) - 2 tr(Σx^-λ Σxy Σy^-λ Σyx),
        Σ^-λ = (Σ + λ I)⁻¹

    Range [0, p + q], 0 = similar; with λ = 0 it is p + q - 2 Σ ρ², invariant to any invertible linear map.
    Source: Boix-Adserà et al. 2022, equation 5, squared.
    """
    s = pair.spectrum
    if not ridge:
        _refuse(s, pair.count, "gulp")
    a, b = (v.square() / (v.square() + pair.count * ridge) for v in (s.sx, s.sy))
    return a.square().sum() + b.square().sum() - 2 * (s.core.square() * a[:, None] * b).sum()


def _tall(pair: Pair, name: str) -> Spectrum:
    _refuse(pair.spectrum, pair.count, name)
    return pair.spectrum


def _refuse(s: Spectrum, n: int, name: str) -> None:
    refuse_full(max(len(s.sx), len(s.sy)), n - 1, name)


def _leading(s: Tensor, keep: int | float) -> int:
    if isinstance(keep, int):
        return min(keep, len(s))
    share = s.square().cumsum(0) / s.square().sum()
    return min(int((share < keep).sum()) + 1, len(s))
