"""Whether two representations hold the same examples close together: comparisons of distances between rows.

All hold n x n distances in memory; take a few thousand examples. More than memory would hold are refused.
"""

import torch
from torch import Tensor

from reptrans.errors import BadData, choose
from reptrans.similarity.checks import checked, refuse_examples, scaled
from reptrans.similarity.cka import squared_distances
from reptrans.similarity.pair import both_exchanged, of_rows


def _pairs_of_examples(x: Tensor, distance: str, compare: str) -> Tensor | None:
    """(n (n - 1) / 2,): the distances of all pairs of examples as `compare` wants them; None where one has none."""
    upper = torch.triu_indices(len(x), len(x), 1, device=x.device)
    of, form = (choose(n, t, "rsa knows no {}") for n, t in ((distance, _DISTANCES), (compare, _COMPARISONS)))
    found = of(x)[upper[0], upper[1]]
    return None if found.isnan().any() else form[0](found)


def dissimilarities(x: Tensor, distance: str = "correlation") -> Tensor:
    """The representational dissimilarity matrix (n, n) of x (n, p): how far apart a layer holds each pair of examples.

    `distance` as for `rsa`, which compares two of them; 0 on the diagonal, and for correlation in [0, 2]. x is a
    tensor, an array or lists. Raises UnknownName; ShapeMismatch; BadData for NaN and infinity, fewer than 4 examples,
    and for correlation an example without variation over its features. Source: Kriegeskorte et al. 2008.
    """
    of = choose(distance, _DISTANCES, "there is no distance {} of examples")
    x, _ = checked(x, x, "dissimilarities")
    refuse_examples("dissimilarities", 4, len(x))
    found = of(scaled(x, "dissimilarities", "given", absolute=True))
    if found.isnan().any():
        raise BadData("an example is the same in all features, so that it correlates with nothing; take 'euclidean'.")
    return found.fill_diagonal_(0)


def _pairs_exchanged(pairs: Tensor, order: Tensor) -> Tensor:
    """What stands for the pairs of examples above the diagonal, row after row, with the examples in another order."""
    n = len(order)
    a, b = order[torch.triu_indices(n, n, 1, device=order.device)]
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    return pairs[a * (2 * n - a - 3) // 2 + b - 1]


@of_rows(prepare=_pairs_of_examples, matrices=8, exchanged=_pairs_exchanged)
def rsa(x: Tensor, y: Tensor, distance: str = "correlation", compare: str = "spearman") -> Tensor:
    """Representational similarity analysis: how the distances between examples agree, over all pairs of examples.

    `distance`: correlation (1 - Pearson of two rows; changes under rotation and translation of the features),
    euclidean, or sqeuclidean. `compare`: spearman, pearson, or kendall (tau-a: ties count as neither).
    Range [-1, 1], 1 = similar. Only pearson is differentiable. NaN where an example has no variation over its features.
    Source: Kriegeskorte et al. 2008; tau-a by Nili et al. 2014.
    """
    return _COMPARISONS[compare][1](x, y)


def euclidean(x: Tensor) -> Tensor:
    """(n, n) distances between rows; without the cancellation of the product form, and with a gradient at 0."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


@of_rows(prepare=euclidean, absolute=True, matrices=4, exchanged=both_exchanged)
def rsm_frobenius(x: Tensor, y: Tensor) -> Tensor:
    """‖Dx - Dy‖_F of the two matrices (n, n) of Euclidean distances between rows; range [0, ∞), 0 = similar."""
    return (x - y).norm()


@of_rows(prepare=euclidean, absolute=True, matrices=4, exchanged=both_exchanged)
def rsm_spectral(x: Tensor, y: Tensor) -> Tensor:
    """‖Dx - Dy‖₂, the largest absolute eigenvalue of the difference of distances; range [0, ∞), 0 = similar."""
    return torch.linalg.eigvalsh(x - y).abs().max()


def _doubly_centred(x: Tensor) -> Tensor:
    d = euclidean(x)
    d = d - d.mean(0) - d.mean(1, keepdim=True) + d.mean()
    return d / d.norm()


@of_rows(prepare=_doubly_centred, matrices=6, exchanged=both_exchanged)
def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(dCov² / sqrt(dVar²x dVar²y)) of doubly centred Euclidean distances; biased, as CKA is.

    Range [0, 1], 1 = similar. Invariant to rotation and a common scale. Source: Székely et al. 2007.
    """
    return (x * y).sum().clamp_min(0).sqrt()


def _correlation_distances(x: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    x = x / x.norm(dim=1, keepdim=True)
    return 1 - x @ x.T


def _standardised(v: Tensor) -> Tensor:
    v = v - v.mean()
    return v / v.norm()


def _ranks(v: Tensor) -> Tensor:
    from scipy.stats import rankdata

    return _standardised(torch.from_numpy(rankdata(v.detach().cpu().numpy())))


def _kendall(a: Tensor, b: Tensor) -> Tensor:
    """tau-a from scipy's tau-b, which divides by the pairs that are not tied."""
    from scipy.stats import kendalltau

    pairs = len(a) * (len(a) - 1) / 2
    untied = [pairs - sum(c * (c - 1) / 2 for c in v.unique(return_counts=True)[1].tolist()) for v in (a, b)]
    tau = kendalltau(*(v.detach().cpu().numpy() for v in (a, b))).statistic
    return torch.tensor(tau * (untied[0] * untied[1]) ** 0.5 / pairs, dtype=torch.float64)


_DISTANCES = {"correlation": _correlation_distances, "euclidean": euclidean, "sqeuclidean": squared_distances}
# By name: what becomes of one side's distances, and the value of two sides.
_COMPARISONS = {
    "spearman": (_ranks, torch.dot),
    "pearson": (_standardised, torch.dot),
    "kendall": (lambda v: v, _kendall),
}
