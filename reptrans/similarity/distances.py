"""Whether two representations hold the same examples close together: comparisons of distances between rows.

All hold n x n distances in memory; take a few thousand examples. More than memory would hold are refused.
"""

import torch
from torch import Tensor

from reptrans.errors import UnknownName, suggest
from reptrans.similarity.cka import squared_distances
from reptrans.similarity.pair import of_rows


@of_rows(matrices=8)
def rsa(x: Tensor, y: Tensor, distance: str = "correlation", compare: str = "spearman") -> Tensor:
    """Representational similarity analysis: how the distances between examples agree, over all pairs of examples.

    `distance`: correlation (1 - Pearson of two rows; changes under rotation and translation of the features),
    euclidean, or sqeuclidean. `compare`: spearman, pearson, or kendall (tau-a: ties count as neither).
    Range [-1, 1], 1 = alike. Only pearson is differentiable. NaN where an example has no variation over its features.
    Source: Kriegeskorte et al. 2008; tau-a by Nili et al. 2014.
    """
    for name, table in ((distance, _DISTANCES), (compare, _COMPARISONS)):
        if name not in table:
            raise UnknownName(f"rsa knows no {name!r}. {suggest(name, table)}")
    upper = torch.triu_indices(len(x), len(x), 1, device=x.device)
    a, b = (_DISTANCES[distance](v)[upper[0], upper[1]] for v in (x, y))
    return (a + b).sum() * torch.nan if (a + b).isnan().any() else _COMPARISONS[compare](a, b)


@of_rows(absolute=True, matrices=4)
def rsm_frobenius(x: Tensor, y: Tensor) -> Tensor:
    """‖Dx - Dy‖_F of the two matrices (n, n) of Euclidean distances between rows; range [0, ∞), 0 = alike."""
    return (euclidean(x) - euclidean(y)).norm()


@of_rows(absolute=True, matrices=4)
def rsm_spectral(x: Tensor, y: Tensor) -> Tensor:
    """‖Dx - Dy‖₂, the largest absolute eigenvalue of the difference of distances; range [0, ∞), 0 = alike."""
    return torch.linalg.eigvalsh(euclidean(x) - euclidean(y)).abs().max()


@of_rows(matrices=6)
def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(dCov² / sqrt(dVar²x dVar²y)) of doubly centred Euclidean distances; biased, as CKA is.

    Range [0, 1], 1 = alike. Invariant to rotation and a common scale. Source: Székely et al. 2007.
    """
    a, b = (d - d.mean(0) - d.mean(1, keepdim=True) + d.mean() for d in (euclidean(x), euclidean(y)))
    return ((a * b).sum() / (a.norm() * b.norm())).clamp_min(0).sqrt()


def euclidean(x: Tensor) -> Tensor:
    """(n, n) distances between rows; without the cancellation of the product form, and with a gradient at 0."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _correlation_distances(x: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    x = x / x.norm(dim=1, keepdim=True)
    return 1 - x @ x.T


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.norm() * b.norm())


def _spearman(a: Tensor, b: Tensor) -> Tensor:
    from scipy.stats import rankdata

    return _pearson(*(torch.from_numpy(rankdata(v.detach().cpu().numpy())) for v in (a, b)))


def _kendall(a: Tensor, b: Tensor) -> Tensor:
    """tau-a from scipy's tau-b, which divides by the pairs that are not tied."""
    from scipy.stats import kendalltau

    pairs = len(a) * (len(a) - 1) / 2
    untied = [pairs - sum(c * (c - 1) / 2 for c in v.unique(return_counts=True)[1].tolist()) for v in (a, b)]
    tau = kendalltau(*(v.detach().cpu().numpy() for v in (a, b))).statistic
    return torch.tensor(tau * (untied[0] * untied[1]) ** 0.5 / pairs, dtype=torch.float64)


_DISTANCES = {"correlation": _correlation_distances, "euclidean": euclidean, "sqeuclidean": squared_distances}
_COMPARISONS = {"spearman": _spearman, "pearson": _pearson, "kendall": _kendall}
