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


class _Nearest(NamedTuple):
    """One side: its rows of length 1, (n, p), and the k nearest others of each, nearest first, (n, k)."""

    rows: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, x: Tensor, k: int, **_) -> "_Nearest":
        if not (isinstance(k, int) and 1 <= k < len(x)):
            raise BadValue(f"k lies between 1 and the number of other examples, {len(x) - 1}; given {k!r}.")
        x = x / x.norm(dim=1, keepdim=True)
        return cls(x, torch.cat([_order(x.detach(), block)[:, :k] for block in _blocks(x)]))


def _blocks(x: Tensor) -> list[slice]:
    size = max(1, _AT_ONCE // len(x))
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


def _order(x: Tensor, block: slice) -> Tensor:
    """All examples by their cosine to those of a block, each of which is its own last."""
    own = torch.arange(block.start, block.stop, device=x.device)[:, None]
    return (x[block] @ x.T).scatter(1, own, -torch.inf).argsort(dim=1, descending=True, stable=True)


@of_rows(prepare=_Nearest.of, directed=True)
def knn_jaccard(x: _Nearest, y: _Nearest, k: int = 10) -> Tensor:
    """|Nx ∩ Ny| / |Nx ∪ Ny| of the k nearest neighbours, in [0, 1]; about k / (2n - k) by chance."""
    return _mean(x, y, lambda a, b, _: _common(a, b) / (2 * k - _common(a, b)))


@of_rows(prepare=_Nearest.of, directed=True)
def mutual_knn(x: _Nearest, y: _Nearest, k: int = 10) -> Tensor:
    """|Nx ∩ Ny| / k of the k nearest neighbours, in [0, 1]; about k / (n - 1) by chance (Huh et al. 2024)."""
    return _mean(x, y, lambda a, b, _: _common(a, b) / k)


@of_rows(prepare=_Nearest.of, directed=True)
def rank_similarity(x: _Nearest, y: _Nearest, k: int = 10) -> Tensor:
    """How alike the common neighbours are ranked: Σ_j 2 / ((1 + |r - r'|)(r + r')) / Σ_{i=1..m} 1/i for m common ones.

    Range [0, 1]; an example without common neighbour counts 0. r, r' are the neighbour's ranks from 1 on.
    Source: Wang et al. 2020; normalised as in Klabunde et al. 2023.
    """
    harmonic = (1 / torch.arange(1, k + 1, device=x.rows.device, dtype=x.rows.dtype)).cumsum(0)
    harmonic = torch.cat([harmonic[:1], harmonic])

    def similarity(a: Tensor, b: Tensor, _: slice) -> Tensor:
        each = ((a > 0) & (b > 0)) * 2 / ((1 + (a - b).abs()) * (a + b).clamp_min(1))
        return each.sum(1) / harmonic[_common(a, b).long()]

    return _mean(x, y, similarity)


@of_rows(prepare=_Nearest.of, directed=True)
def second_order_cosine(x: _Nearest, y: _Nearest, k: int = 10, distances: bool = False) -> Tensor:
    """Cosine of the two lists of cosines to all that are neighbours in x or y; range [-1, 1].

    Source: Hamilton et al. 2016. ReSi lists the cosine distances, 1 - cosine, which are all near 1 and so give near 1
    for noise: `distances` does as ReSi.
    """

    def cosine(a: Tensor, b: Tensor, block: slice) -> Tensor:
        cosines = (side.rows[block] @ side.rows.T for side in (x, y))
        s, t = ((1 - c if distances else c) * (a + b > 0) for c in cosines)
        return (s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1))

    return _mean(x, y, cosine)


def _mean(x: _Nearest, y: _Nearest, of: Callable[[Tensor, Tensor, slice], Tensor]) -> Tensor:
    """The mean over all examples of what `of` makes (b,) of a block of them, from all examples' ranks in x and in y as
    their neighbours, (b, n): from 1 to k, 0 for what is none."""
    parts = (of(*(_ranks(side, block) for side in (x, y)), block) for block in _blocks(x.rows))
    return torch.cat(list(parts)).mean()


def _ranks(side: _Nearest, block: slice) -> Tensor:
    nearest = side.nearest[block]
    ranks = torch.arange(1, nearest.shape[1] + 1, device=nearest.device, dtype=side.rows.dtype)
    return ranks.new_zeros(len(nearest), len(side.rows)).scatter_(1, nearest, ranks.expand_as(nearest))


def _common(a: Tensor, b: Tensor) -> Tensor:
    """How many are neighbours in both, (b,)."""
    return ((a > 0) & (b > 0)).to(a.dtype).sum(1)
