"""Where a stitch starts, and which entries a masked stitch may use: the source's choices and the closed forms."""

import torch
from torch import Tensor

from reptrans.errors import BadValue, ShapeMismatch, choose
from reptrans.similarity import Moments
from reptrans.stitching.direct import (
    AffineMap,
    assignment,
    assignment_mask,
    least_squares,
    masked,
    procrustes,
    random_permutation_mask,
    reduced_rank,
    semi_match_mask,
    sparse,
)

BY_CHANCE = ("random", "perm", "eye", "ones-zeros")
SOLVED = ("ps_inv", "ridge", "procrustes", "reduced-rank", "assignment", "sparse")
INITS = BY_CHANCE + SOLVED
MASKS = ("identity", "semi-match", "abs-semi-match", "assignment", "random-permutation")


def mask_matrix(kind: str, p: int, q: int, moments: Moments | None, generator: torch.Generator) -> Tensor | None:
    """The 0/1 matrix (q, p) named `kind`, or None for "identity" (every entry may be used).

    semi-match, abs-semi-match (many-to-one) and assignment (one-to-one) come from the correlations in `moments`;
    random-permutation is drawn from `generator`.
    """
    choose(kind, MASKS, "Unknown mask {}")
    if kind == "identity":
        return None
    if kind == "random-permutation":
        return random_permutation_mask(p, q, generator)
    if kind == "assignment":
        return assignment_mask(moments)
    return semi_match_mask(moments, absolute=kind == "abs-semi-match")


def initial_map(
    kind: str,
    p: int,
    q: int,
    *,
    moments: Moments | None = None,
    generator: torch.Generator,
    rank: int | None = None,
    ridge: float = 1e-3,
    mask: Tensor | None = None,
    form: str = "free",
) -> AffineMap:
    """The map of p to q channels that a stitch of this form starts from; float64.

    random: torch's default for a 1x1 convolution, uniform in ±1/√p (low rank: orthogonal factors, bias 0; orthogonal:
    a random rotation); perm: one random permutation; eye: identity; ones-zeros: weights 1, bias 0; ps_inv: least
    squares, in the best member of the form (low rank: reduced-rank regression; orthogonal: Procrustes; masked: least
    squares within the mask); the others as in `direct`.
    Raises UnknownName; ShapeMismatch for perm and eye with p ≠ q; BadValue for an init that the form cannot hold.
    """
    check_init(kind, p, q, mask is not None, form)
    if kind in BY_CHANCE:
        return _unsolved(kind, p, q, generator, rank, form)
    return _solved(kind, moments, rank, ridge, mask, form)


def check_init(kind: str, p: int, q: int, has_mask: bool, form: str) -> None:
    """Raise what `initial_map` does for a start that does not fit the channels, the mask or the form."""
    choose(kind, INITS, "Unknown init {}")
    if kind in ("perm", "eye") and p != q:
        raise ShapeMismatch(f"init {kind!r} needs equal numbers of channels; front has {p}, end has {q}. Try 'ps_inv'.")
    if has_mask and kind not in ("ps_inv", "random", "ones-zeros"):
        raise BadValue(
            f"init {kind!r} puts weights where the mask has none. With a mask choose 'ps_inv' (least squares within "
            "the mask), 'random' or 'ones-zeros'."
        )
    if form == "low rank" and kind in ("eye", "perm", "assignment", "sparse"):
        raise BadValue(
            f"init {kind!r} has full rank. A low-rank stitch starts from 'ps_inv', 'reduced-rank' or 'random'."
        )
    if form == "orthogonal" and kind not in ("random", "eye", "perm", "procrustes", "ps_inv"):
        raise BadValue(f"init {kind!r} is not orthogonal. Choose 'ps_inv' or 'procrustes', 'random', 'eye' or 'perm'.")


def _unsolved(kind: str, p: int, q: int, generator: torch.Generator, rank: int | None, form: str) -> AffineMap:
    zeros = torch.zeros(q, dtype=torch.float64)
    if kind == "eye":
        return AffineMap(torch.eye(p, dtype=torch.float64), zeros)
    if kind == "perm":
        return AffineMap(torch.eye(p, dtype=torch.float64)[torch.randperm(p, generator=generator)], zeros)
    if kind == "ones-zeros":
        return AffineMap(torch.ones(q, p, dtype=torch.float64), zeros)
    if form == "low rank":
        return AffineMap(_orthogonal(q, rank, generator) @ _orthogonal(rank, p, generator), zeros)
    if form == "orthogonal":
        return AffineMap(_orthogonal(q, p, generator), zeros)
    bound = p**-0.5
    weight = torch.empty(q, p, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
    return AffineMap(weight, zeros.uniform_(-bound, bound, generator=generator))


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    empty = torch.empty(rows, columns, dtype=torch.float64)
    return torch.nn.init.orthogonal_(empty, generator=generator)


def _solved(kind: str, m: Moments, rank: int | None, ridge: float, mask: Tensor | None, form: str) -> AffineMap:
    if mask is not None:
        return masked(m, mask)
    if kind == "reduced-rank" or form == "low rank":
        return reduced_rank(m, rank if rank else min(m.p, m.q, 4))
    if kind == "procrustes" or form == "orthogonal":
        return procrustes(m)
    if kind == "assignment":
        return assignment(m)
    if kind == "sparse":
        return sparse(m, rank if rank else min(m.p, 4))
    return least_squares(m, ridge if kind == "ridge" else 0.0)
