"""Whether two representations give each example the same nearest neighbours.

Neighbours are by cosine, without the example itself, equally close ones in the order of the examples. All values are
means over the examples, 1 = alike; NaN where an example has no activation at all. Many examples are taken in blocks,
each with its cosines to all.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reptrans.errors import BadValue
from reptrans.similarity.pair import of_rows

_AT_ONCE = 2**24  # cosines


@of_rows(directed=True)
def knn_jaccard(x: Tensor, y: Tensor, k: int = 10) -> Tensor:
    """|Nx ∩ Ny| / |Nx ∪ Ny| of the k nearest neighbours, in [0, 1]; about k / (2n - k) by chance."""
    return _mean(x, y, k, lambda near: near.both.sum(1) / (2 * k - near.both.sum(1)))


@of_rows(directed=True)
def mutual_knn(x: Tensor, y: Tensor, k: int = 10) -> Tensor:
    """|Nx ∩ Ny| / k of the k nearest neighbours, in [0, 1]; about k / (n - 1) by chance (Huh et al. 2024)."""
    return _mean(x, y, k, lambda near: near.both.sum(1).div(k))


@of_rows(directed=True)
def rank_similarity(x: Tensor, y: Tensor, k: int = 10) -> Tensor:
    """How alike the common neighbours are ranked: Σ_j 2 / ((1 + |r - r'|)(r + r')) / Σ_{i=1..m} 1/i for m common ones.

    Range [0, 1]; an example without common neighbour counts 0. r, r' are the neighbour's ranks from 1 on.
    Source: Wang et al. 2020; normalised as in Klabunde et al. 2023.
    """

    def similarity(near: _Near) -> Tensor:
        a, b = near.ranks
        harmonic = torch.cat([a.new_ones(1), (1 / torch.arange(1, k + 1, device=a.device, dtype=a.dtype)).cumsum(0)])
        each = near.both * 2 / ((1 + (a - b).abs()) * (a + b))
        return each.sum(1) / harmonic[near.both.sum(1).long()]

    return _mean(x, y, k, similarity)


@of_rows(directed=True)
def second_order_cosine(x: Tensor, y: Tensor, k: int = 10, distances: bool = False) -> Tensor:
    """Cosine of the two lists of cosines to all that are neighbours in x or y; range [-1, 1].

    Source: Hamilton et al. 2016. ReSi lists the cosine distances, 1 - cosine, which are all near 1 and so give near 1
    for noise: `distances` does as ReSi.
    """

    def cosine(near: _Near) -> Tensor:
        either = (near.ranks[0] <= k) | (near.ranks[1] <= k)
        s, t = ((1 - c if distances else c) * either for c in near.cosines)
        return (s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1))

    return _mean(x, y, k, cosine)


class _Near(NamedTuple):
    """Some of the examples (b) beside all (n), in x and in y: cosines and ranks as neighbours, from 1 on, (b, n) each;
    `both` is 1 where one is among the nearest k in x and in y."""

    cosines: tuple[Tensor, Tensor]
    ranks: tuple[Tensor, Tensor]
    both: Tensor


def _mean(x: Tensor, y: Tensor, k: int, of: Callable[[_Near], Tensor]) -> Tensor:
    """The mean over all examples of what `of` makes (b,) of some of them."""
    if not (isinstance(k, int) and 1 <= k < len(x)):
        raise BadValue(f"k lies between 1 and the number of other examples, {len(x) - 1}; given {k!r}.")
    x, y = (v / v.norm(dim=1, keepdim=True) for v in (x, y))
    size = max(1, _AT_ONCE // len(x))
    return torch.cat([of(_near(x, y, k, start, start + size)) for start in range(0, len(x), size)]).mean()


def _near(x: Tensor, y: Tensor, k: int, start: int, stop: int) -> _Near:
    cosines = tuple(v[start:stop] @ v.T for v in (x, y))
    a, b = ranks = tuple(_ranked(c, start) for c in cosines)
    return _Near(cosines, ranks, ((a <= k) & (b <= k)).to(a.dtype))


def _ranked(cosines: Tensor, start: int) -> Tensor:
    own = torch.arange(start, start + len(cosines), device=cosines.device)[:, None]
    order = cosines.detach().scatter(1, own, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(1, cosines.shape[1] + 1, device=cosines.device, dtype=cosines.dtype)
    return torch.empty_like(cosines, requires_grad=False).scatter_(1, order, ranks.expand_as(order))
