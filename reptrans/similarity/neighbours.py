"""Whether two representations give each example the same nearest neighbours.

Neighbours are by cosine, without the example itself, equally close ones in the order of the examples. All values are
means over the examples, 1 = alike; NaN where an example has no activation at all. Memory n².
"""

import torch
from torch import Tensor

from reptrans.errors import BadValue
from reptrans.similarity.pair import of_rows


@of_rows(directed=True)
def knn_jaccard(x: Tensor, y: Tensor, k: int = 10) -> Tensor:
    """|Nx ∩ Ny| / |Nx ∪ Ny| of the k nearest neighbours, in [0, 1]; about k / (2n - k) by chance."""
    common = _ranks(x, y, k)[2].sum(1)
    return (common / (2 * k - common)).mean()


@of_rows(directed=True)
def mutual_knn(x: Tensor, y: Tensor, k: int = 10) -> Tensor:
    """|Nx ∩ Ny| / k of the k nearest neighbours, in [0, 1]; about k / (n - 1) by chance (Huh et al. 2024)."""
    return _ranks(x, y, k)[2].sum(1).div(k).mean()


@of_rows(directed=True)
def rank_similarity(x: Tensor, y: Tensor, k: int = 10) -> Tensor:
    """How alike the common neighbours are ranked: Σ_j 2 / ((1 + |r - r'|)(r + r')) / Σ_{i=1..m} 1/i for m common ones.

    Range [0, 1]; an example without common neighbour counts 0. r, r' are the neighbour's ranks from 1 on.
    Source: Wang et al. 2020; normalised as in Klabunde et al. 2023.
    """
    a, b, common = _ranks(x, y, k)
    each = common * 2 / ((1 + (a - b).abs()) * (a + b))
    harmonic = torch.cat([a.new_ones(1), (1 / torch.arange(1, k + 1, device=a.device, dtype=a.dtype)).cumsum(0)])
    best = harmonic[common.sum(1).long()]
    return (each.sum(1) / best).mean()


@of_rows(directed=True)
def second_order_cosine(x: Tensor, y: Tensor, k: int = 10, distances: bool = False) -> Tensor:
    """Cosine of the two lists of cosines to all that are neighbours in x or y; range [-1, 1].

    Source: Hamilton et al. 2016. ReSi lists the cosine distances, 1 - cosine, which are all near 1 and so give near 1
    for noise: `distances` does as ReSi.
    """
    a, b, _ = _ranks(x, y, k)
    near = (a <= k) | (b <= k)
    s, t = (((1 - _cosines(v)) if distances else _cosines(v)) * near for v in (x, y))
    return ((s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1))).mean()


def _cosines(x: Tensor) -> Tensor:
    x = x / x.norm(dim=1, keepdim=True)
    return x @ x.T


def _ranks(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks (n, n) of the columns as neighbours of the rows, from 1 on, in x and y, and which are among k in both."""
    if not 1 <= k < len(x):
        raise BadValue(f"k lies between 1 and the number of other examples, {len(x) - 1}; given {k}.")
    a, b = (_ranked(v) for v in (x, y))
    return a, b, ((a <= k) & (b <= k)).to(a.dtype)


def _ranked(x: Tensor) -> Tensor:
    cosines = _cosines(x).fill_diagonal_(-torch.inf)
    return cosines.argsort(dim=1, descending=True, stable=True).argsort(dim=1).to(x.dtype) + 1
