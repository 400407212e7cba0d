"""Whether two representations give each example the same nearest neighbours.

Neighbours are by cosine, without the example itself, equally close ones in the order of the examples. All values but
`cknna` are means over the examples, 1 = similar; NaN where an example has no activation at all. Many examples are taken
in blocks, each with its cosines to all.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reptrans.errors import BadValue
from reptrans.similarity.pair import of_rows

_AT_ONCE = 2**24  # cosines, or numbers of the neighbours' rows


class _Nearest(NamedTuple):
    """One side: its rows of length 1, (n, p), and the k nearest others of each, nearest first, (n, k)."""

    rows: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, x: Tensor, k: int, **_) -> "_Nearest":
        if not (isinstance(k, int) and 1 <= k < len(x)):
            raise BadValue(f"k lies between 1 and the number of other examples, {len(x) - 1}; given {k!r}.")
        x = x / x.norm(dim=1, keepdim=True)
        return cls(x, torch.cat([_order(x.detach(), block)[:, :k] for block in _blocks(len(x), len(x))]))

    def exchanged(self, order: Tensor) -> "_Nearest":
        order = order.to(self.rows.device)
        return _Nearest(self.rows[order], order.argsort()[self.nearest[order]])

    def cosines(self, block: slice, others: Tensor) -> Tensor:
        """(b, m): of the examples of a block, each with `others` (b, m) of its own."""
        return (self.rows[block][:, None] * self.rows[others]).sum(2)


_measure_of_neighbours = of_rows(prepare=_Nearest.of, directed=True, exchanged=_Nearest.exchanged)


def _blocks(examples: int, numbers: int) -> list[slice]:
    """The examples in parts, where each of them takes so many numbers."""
    size = max(1, _AT_ONCE // numbers)
    return [slice(start, min(start + size, examples)) for start in range(0, examples, size)]


def _order(x: Tensor, block: slice) -> Tensor:
    """All examples by their cosine to those of a block, each of which is its own last."""
    own = torch.arange(block.start, block.stop, device=x.device)[:, None]
    return (x[block] @ x.T).scatter(1, own, -torch.inf).argsort(dim=1, descending=True, stable=True)


@_measure_of_neighbours
def knn_jaccard(x: _Nearest, y: _Nearest, k: int = 10) -> Tensor:
    """|Nx ∩ Ny| / |Nx ∪ Ny| of the k nearest neighbours, mean over examples, in [0, 1]; about k / (2n - k) by chance.

    Neighbours are by cosine, here and in all measures of neighbours. NaN where an example has no activation at all.
    Raises BadValue for a `k` outside 1 to n - 1.
    """

    def jaccard(same: Tensor, _: slice) -> Tensor:
        common = same.sum((1, 2)).to(x.rows.dtype)
        return common / (2 * k - common)

    return _mean(x, y, jaccard)


@_measure_of_neighbours
def mutual_knn(x: _Nearest, y: _Nearest, k: int = 10) -> Tensor:
    """|Nx ∩ Ny| / k of the k nearest neighbours, mean over examples, in [0, 1]; k / (n - 1) by chance (Huh et al.
    2024).

    Neighbours and errors as for `knn_jaccard`.
    """
    return _mean(x, y, lambda same, _: same.sum((1, 2)).to(x.rows.dtype) / k)


@_measure_of_neighbours
def rank_similarity(x: _Nearest, y: _Nearest, k: int = 10) -> Tensor:
    """How similarly common neighbours are ranked: Σ_j 2 / ((1 + |r - r'|)(r + r')) / Σ_{i=1..m} 1/i for m common ones.

    Range [0, 1]; an example without common neighbour counts 0. r, r' are the neighbour's ranks from 1 on.
    Source: Wang et al. 2020; normalised as in Klabunde et al. 2023.
    """
    ranks = torch.arange(1, k + 1, device=x.rows.device, dtype=x.rows.dtype)
    weights = 2 / ((1 + (ranks[:, None] - ranks).abs()) * (ranks[:, None] + ranks))
    harmonic = (1 / ranks).cumsum(0)
    harmonic = torch.cat([harmonic[:1], harmonic])
    return _mean(x, y, lambda same, _: (same * weights).sum((1, 2)) / harmonic[same.sum((1, 2))])


@_measure_of_neighbours
def second_order_cosine(x: _Nearest, y: _Nearest, k: int = 10, distances: bool = False) -> Tensor:
    """Cosine of the two lists of cosines to all that are neighbours in x or y; range [-1, 1].

    Source: Hamilton et al. 2016. ReSi lists the cosine distances, 1 - cosine, which are all near 1 and so give near 1
    for noise: `distances` does as ReSi.
    """

    def cosine(same: Tensor, block: slice) -> Tensor:
        either = torch.cat([x.nearest[block], y.nearest[block]], 1)
        once = torch.cat([torch.ones_like(x.nearest[block], dtype=torch.bool), ~same.any(1)], 1)
        cosines = (side.cosines(block, either) for side in (x, y))
        s, t = ((1 - c if distances else c) * once for c in cosines)
        return (s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1))

    return _mean(x, y, cosine)


@_measure_of_neighbours
def cknna(x: _Nearest, y: _Nearest, k: int = 10) -> Tensor:
    """Centred kernel nearest-neighbour alignment: CKA that looks at common nearest neighbours only.

        HSIC(m ∘ K, m ∘ L) / sqrt(HSIC(mx ∘ K, mx ∘ K) HSIC(my ∘ L, my ∘ L))

    K, L: cosines; mx[i, j] = 1 where j is among the k nearest of i, and m = mx ∘ my; HSIC by the unbiased estimate of
    Song et al. 2012. Range about [-1, 1], 1 = similar; NaN where a denominator is not positive. `k` is at least 2.
    Source: Huh et al. 2024, as their code computes it (the published figures are its): it multiplies m ∘ K with the
    transpose of m ∘ L, which is not symmetric, where the paper's equation does not. Rows are given length 1 here; their
    scripts do that before they call it. Their 1e-6 in the denominator is left out.
    """
    if k < 2:
        raise BadValue(f"cknna takes k of 2 or more neighbours; given {k}.")
    everything = slice(0, len(x.rows))
    own = [side.cosines(everything, side.nearest) for side in (x, y)]
    pairs = [(side.nearest, c) for side, c in zip((x, y), own, strict=True)]
    same = x.nearest[:, :, None] == y.nearest[:, None, :]
    common = (x.nearest, own[0] * same.any(2)), (x.nearest, (own[1][:, None, :] * same).sum(2))
    hsic = [_masked_hsic(*both) for both in (common, (pairs[0], pairs[0]), (pairs[1], pairs[1]))]
    return hsic[0] / (hsic[1] * hsic[2]).sqrt()


def _masked_hsic(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """The unbiased HSIC, up to a common factor, of two matrices (n, n) of zeros but for k values in each row: each as
    (n, k) columns and (n, k) values, the columns the same in both."""
    columns, n = first[0], len(first[0])
    (rows_k, down_k), (rows_l, _) = ((v.sum(1), v.new_zeros(n).index_add(0, columns.flatten(), v.flatten()))
                                     for _, v in (first, second))  # fmt: skip
    # Where j is a neighbour of i and i one of j: at which place of j's row.
    back = columns[columns] == torch.arange(n, device=columns.device)[:, None, None]
    turned = (second[1][columns] * back).sum(2)
    product = (first[1] * turned).sum()
    return product + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 * (down_k @ rows_l) / (n - 2)


def _mean(x: _Nearest, y: _Nearest, of: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """The mean over all examples of what `of` makes (b,) of a block of them, from which neighbour in x (by its rank)
    is which one in y, (b, k, k)."""
    n, k = x.nearest.shape
    parts = []
    for block in _blocks(n, k * max(k, 2 * x.rows.shape[1], 2 * y.rows.shape[1])):
        parts.append(of(x.nearest[block][:, :, None] == y.nearest[block][:, None, :], block))
    return torch.cat(parts).mean()
