"""Direct matching: affine maps y ≈ W x + b that are solved, not trained, from one pass of streamed moments.

x are the channels of the front's activations, y those of the end network at the same places of the same images; every
place is one sample. C_xx, C_yx, … are centred covariances. Rows of W belong to y: W is (q, p).
Sources: Csiszárik et al. 2021 (least squares, orthogonal and low-rank direct matching; uncentred and without scale in
their code), Schönemann 1966 (Procrustes), Izenman 1975 (reduced rank), Li et al. 2016 (matching by assignment),
Godfrey et al. 2022 (the symmetries of the ReLU and their convex hull).

Where a trained stitch starts, and which entries a masked one may use, are the source's choices and these closed forms.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch, check_whole, choose
from reptrans.similarity import Moments


@dataclass(frozen=True)
class AffineMap:
    """y = weight x + bias: weight (q, p), bias (q,), both float64."""

    weight: Tensor
    bias: Tensor

    def r2(self, moments: Moments) -> float:
        """Share of the variance of y that the map explains, 1 − E‖y − Wx − b‖² / E‖y − E y‖²; at most 1."""
        return 1.0 - (self.squared_error(moments) / moments.yy.trace()).item()

    def squared_error(self, moments: Moments) -> Tensor:
        """E‖y − Wx − b‖² per sample, summed over channels."""
        w, gap = self.weight, self.weight @ moments.mean_x + self.bias - moments.mean_y
        spread = moments.yy.trace() - 2 * (w * moments.xy.T).sum() + (w @ moments.xx * w).sum()
        return spread + gap.square().sum()


def _with_mean(weight: Tensor, m: Moments) -> AffineMap:
    """The map with this weight whose bias makes the means agree: the best bias for squared error."""
    return AffineMap(weight, m.mean_y - weight @ m.mean_x)


def _solve(xx: Tensor, xy: Tensor) -> Tensor:
    """xy.T xx⁺ for covariances xx (…, p, p) and xy (…, p, q): the null space (dead channels) gets weight 0."""
    # Sums over samples leave rounding in the null space that a bound for one matrix alone would let through.
    return xy.mT @ torch.linalg.pinv(xx, hermitian=True, rtol=100 * xx.shape[-1] * torch.finfo(xx.dtype).eps)


def least_squares(m: Moments, ridge: float = 0.0) -> AffineMap:
    """min E‖y − Wx − b‖² + λ ‖W‖²,  W = C_yx (C_xx + λ I)⁻¹,  λ = ridge · trace(C_xx) / p; ridge 0 is plain least
    squares. The bias is not penalised. A unitless ridge ≥ 0 means the same at every layer."""
    if not 0 <= ridge < math.inf:
        raise BadValue(f"ridge must be a number of 0 or more; given {ridge}.")
    size = ridge * m.xx.trace() / m.p
    return _with_mean(_solve(m.xx + size * torch.eye(m.p, dtype=m.xx.dtype), m.xy), m)


def procrustes(m: Moments, keep_spread: bool = False) -> AffineMap:
    """W = s Q with Q (semi-)orthogonal: Q = U Vᵀ from C_yx = U S Vᵀ,  s = trace(S) / trace(Q C_xx Qᵀ).

    The best rotation with scale for squared error where q ≥ p; for q < p no closed form of that is known, and Q is the
    one of largest trace(Q C_xy), with the best scale for it. Centred and scaled, which the source's is not.
    That scale shrinks what cannot be predicted. `keep_spread` takes s² = trace(C_yy) / trace(Q C_xx Qᵀ) instead: the
    mapped activations vary as much as the end network's own, at the price of a larger squared error.
    """
    u, s, vh = torch.linalg.svd(m.xy.T, full_matrices=False)
    q = u @ vh
    spread = ((q @ m.xx) * q).sum()
    return _with_mean((torch.sqrt(m.yy.trace() / spread) if keep_spread else s.sum() / spread) * q, m)


def reduced_rank(m: Moments, rank: int) -> AffineMap:
    """The best W of at most this rank for squared error: V Vᵀ C_yx C_xx⁻¹ with V the top `rank` eigenvectors of
    C_yx C_xx⁻¹ C_xy (Izenman 1975, identity weighting)."""
    if not 1 <= rank <= min(m.p, m.q):
        raise BadValue(f"rank must lie between 1 and {min(m.p, m.q)} for {m.p} → {m.q} channels; given {rank}.")
    full = _solve(m.xx, m.xy)
    top = torch.linalg.eigh(full @ m.xy).eigenvectors[:, -rank:]
    return _with_mean(top @ top.T @ full, m)


_AT_ONCE = 2**24  # entries of the covariances that are inverted together


def masked(m: Moments, mask: Tensor) -> AffineMap:
    """Least squares where only the entries of `mask` (q, p; bool) may differ from 0: each row over its own inputs."""
    mask = mask.cpu()
    weight, counts = torch.zeros(m.q, m.p, dtype=m.xx.dtype), mask.sum(1)
    for count in counts.unique().tolist():
        equal = (counts == count).nonzero().flatten()
        for rows in equal.split(max(1, _AT_ONCE // max(1, count) ** 2)):
            inputs = mask[rows].int().argsort(dim=1, descending=True, stable=True)[:, :count]
            xx, xy = m.xx[inputs[:, :, None], inputs[:, None, :]], m.xy[inputs, rows[:, None]]
            weight[rows[:, None], inputs] = _solve(xx, xy[:, :, None])[:, 0]
    return _with_mean(weight, m)


def sparse(m: Moments, inputs: int) -> AffineMap:
    """At most `inputs` channels of x for each channel of y, chosen greedily (orthogonal matching pursuit)."""
    from sklearn.linear_model import orthogonal_mp_gram

    if not 1 <= inputs <= m.p:
        raise BadValue(f"inputs must lie between 1 and {m.p}; given {inputs}.")
    live = m.xx.diagonal() > 0
    scale = m.xx.diagonal()[live].sqrt()
    gram = (m.xx[live][:, live] / torch.outer(scale, scale)).numpy()
    target = (m.xy[live] / scale[:, None]).numpy()
    with warnings.catch_warnings():
        # Said when fewer channels already explain everything; then there is nothing left to choose.
        warnings.filterwarnings("ignore", "Orthogonal matching pursuit ended prematurely", RuntimeWarning)
        chosen = orthogonal_mp_gram(gram, target, n_nonzero_coefs=min(inputs, len(gram))).reshape(len(gram), m.q)
    mask = torch.zeros(m.q, m.p, dtype=torch.bool)
    mask[:, live] = torch.from_numpy(np.ascontiguousarray(chosen.T != 0))
    return masked(m, mask)


def assignment(m: Moments) -> AffineMap:
    """Every channel of y gets one channel of x of its own, with slope and intercept: the pairing of largest total
    |correlation| (Hungarian method). With q > p the channels of y left over get weight 0."""
    return masked(m, assignment_mask(m))


def assignment_mask(m: Moments) -> Tensor:
    """(q, p) bool with at most one entry in each row and column: the pairing of largest total |correlation|."""
    return _pairing(m.correlation.abs().T)


def _pairing(worth: Tensor) -> Tensor:
    """(q, p) bool with min(p, q) entries, at most one in each row and column: those of largest total `worth` (q, p)."""
    from scipy.optimize import linear_sum_assignment

    mask = torch.zeros(worth.shape, dtype=torch.bool)
    mask[linear_sum_assignment(worth.numpy(), maximize=True)] = True
    return mask


def scaled_permutation(m: Moments) -> AffineMap:
    """min E‖y − Wx − b‖² where every channel of y takes one channel of x of its own, times a factor of 0 or more.

        W_ji = s_ji Π_ji,  s_ji = max(0, c_ji) / c_ii,
        Π the pairing of largest total gain max(0, c_ji)² / c_ii

    with c_ji = cov(y_j, x_i), c_ii = var(x_i). The square maps of this kind, with factors above 0, are those that may
    stand before a ReLU as well as after it. Unlike in `assignment` no channel is negated, and what a pair explains
    counts by its variance. With q > p the channels of y left over get weight 0.
    Source: Godfrey et al. 2022; their stitches of this kind are trained on the task, this one is solved.
    """
    useful = m.xy.T.clamp(min=0)
    scale = torch.where(m.xx.diagonal() > 0, useful / m.xx.diagonal(), 0)
    return _with_mean(scale * _pairing(scale * useful), m)


def doubly_stochastic(m: Moments, tolerance: float = 1e-3, most: int = 500) -> AffineMap:
    """min E‖y − s D x − b‖² over factors s ≥ 0 and doubly stochastic D, the convex hull of all permutations.

    For p ≠ q it is the hull of all pairings of min(p, q) channels: D ≥ 0, where the sums of rows and columns are 1 on
    the narrower side and at most 1 on the wider.
    By the method of Frank and Wolfe: the pairing of largest inner product with C_yx − s D C_xx joins those found
    before, and the weights ≥ 0 of all of them, whose sum is s, are solved anew. It ends where the duality gap, a bound
    on the error above the least with this s, is at most `tolerance` · trace(C_yy), or after `most` pairings, as it may
    with more than a hundred channels.
    Sources: Godfrey et al. 2022, who relax permutations likewise in stitches that are trained on the task (s is an
    addition); Frank and Wolfe 1956, with all weights corrected in every step.
    """
    if not tolerance > 0:
        raise BadValue(f"tolerance is a share of the variance of y, above 0, such as 0.001; given {tolerance}.")
    check_whole("most", most, 1, of=" of pairings")
    xx, yx = F.pad(m.xx, (0, 1, 0, 1)), F.pad(m.xy.T, (0, 1))  # the last channel of x is none, for rows left over
    weight, rows = torch.zeros_like(yx), torch.arange(m.q)
    found, scales, gram = torch.empty(0, m.q, dtype=torch.long), yx.new_empty(0), yx.new_empty(0, 0)
    for _ in range(most):
        residual = yx - weight @ xx
        pairing = F.pad(_pairing(_rounded(residual[:, :-1])), (0, 1))
        gain = residual[pairing].sum()
        pairing[:, -1] = ~pairing.any(1)
        inputs = pairing.int().argmax(1)
        closed = len(found) and 2 * scales.sum() * gain <= tolerance * m.yy.trace()
        if gain <= 0 or closed or (found == inputs).all(1).any():
            break
        found = torch.cat([found, inputs[None]])
        gram = F.pad(gram, (0, 1, 0, 1))
        gram[-1] = gram[:, -1] = xx[found, inputs].sum(1)
        scales = _non_negative(gram, yx[rows, found].sum(1), F.pad(scales, (0, 1)))
        live = scales > 0
        found, scales, gram = found[live], scales[live], gram[live][:, live]
        weight = torch.zeros_like(yx).scatter_add_(1, found.T, scales.expand(m.q, -1))
    return _with_mean(weight[:, :-1], m)


def _rounded(residual: Tensor) -> Tensor:
    """Whole numbers of up to 2³⁰: many pairings are worth the same, and rounding errors shall not choose among them."""
    return (residual / residual.abs().max().clamp(min=torch.finfo(residual.dtype).tiny) * 2**30).round()


def _non_negative(gram: Tensor, worth: Tensor, weights: Tensor) -> Tensor:
    """min wᵀ G w − 2 cᵀ w over w ≥ 0, from the best `weights` without the last, which is 0 (Lawson and Hanson 1974)."""
    live = torch.ones(len(worth), dtype=torch.bool)
    while True:
        best = torch.zeros_like(worth)
        best[live] = torch.linalg.solve(gram[live][:, live], worth[live])
        low = live & (best <= 0)
        if not low.any():
            return best
        reach = torch.where(low, weights / (weights - best), torch.inf)
        weights = weights + reach.min() * (best - weights)
        live &= reach > reach.min()


def semi_match_mask(m: Moments, absolute: bool = False) -> Tensor:
    """(q, p) bool: for every channel of y the one channel of x of highest (absolute) correlation; many-to-one."""
    correlation = m.correlation.abs() if absolute else m.correlation
    mask = torch.zeros(m.q, m.p, dtype=torch.bool)
    mask[torch.arange(m.q), correlation.argmax(0)] = True
    return mask


def random_permutation_mask(p: int, q: int, generator: torch.Generator) -> Tensor:
    """(q, p) bool: one random channel of x for every channel of y, none twice while any is unused.

    The source draws each row by itself, so that columns repeat: not a permutation.
    """
    rounds = [torch.randperm(p, generator=generator) for _ in range(-(-q // p))]
    mask = torch.zeros(q, p, dtype=torch.bool)
    mask[torch.arange(q), torch.cat(rounds)[:q]] = True
    return mask


def identity(m: Moments) -> AffineMap:
    """W = I, b = 0: no matching at all; what stitching without a stitch would give. Needs p = q."""
    if m.p != m.q:
        raise ShapeMismatch(f"The identity needs equal numbers of channels; front has {m.p}, end has {m.q}.")
    return AffineMap(torch.eye(m.p, dtype=torch.float64), torch.zeros(m.p, dtype=torch.float64))


DIRECT = {
    "identity": lambda m, rank, ridge: identity(m),
    "least squares": lambda m, rank, ridge: least_squares(m),
    "ridge": lambda m, rank, ridge: least_squares(m, ridge),
    "procrustes": lambda m, rank, ridge: procrustes(m),
    "rotation": lambda m, rank, ridge: procrustes(m, keep_spread=True),
    "reduced rank": lambda m, rank, ridge: reduced_rank(m, rank),
    "assignment": lambda m, rank, ridge: assignment(m),
    "permutation with scales": lambda m, rank, ridge: scaled_permutation(m),
    "doubly stochastic": lambda m, rank, ridge: doubly_stochastic(m),
    "sparse": lambda m, rank, ridge: sparse(m, rank),
}


def direct_matching(m: Moments, kind: str, *, rank: int = 4, ridge: float = 1e-3) -> AffineMap:
    """W and b of y ≈ W x + b in closed form, from streamed moments of x (n, p) and y (n, q).

        "identity"                 W = I, b = 0; p = q
        "least squares"            min E‖y − Wx − b‖²
        "ridge"                    min E‖y − Wx − b‖² + ρ trace(C_xx)/p ‖W‖²
        "procrustes"               W = s Q: a rotation, and the best scale for it
        "rotation"                 the same Q, and the scale with y's variance
        "reduced rank"             least squares with W of at most this `rank`
        "assignment"               for each y one x of its own, by |correlation|
        "permutation with scales"  for each y one x, times a factor from 0 on
        "doubly stochastic"        W = s D, D in the hull of all permutations
        "sparse"                   for each y at most `rank` x, chosen greedily

    `m`: the moments. `ridge`: ρ ≥ 0, relative to the mean variance of x. All but "identity" have the bias that makes
    the means agree. Returns an AffineMap in float64.
    Raises UnknownName; ShapeMismatch for "identity" with p ≠ q; BadValue for a rank or a ridge out of range and what is
    no Moments; BadData for moments of no samples.
    Sources: Csiszárik et al. 2021 (least squares, rotations, low rank; uncentred and without scale in their code),
    Schönemann 1966, Izenman 1975, Li et al. 2016 (assignment), Godfrey et al. 2022 (permutations and their hull).
    """
    if not isinstance(m, Moments):
        raise BadValue(f"direct matching takes Moments(p, q).update(x, y); given a {type(m).__name__}.")
    return choose(kind, DIRECT, "Unknown direct matching {}")(m, rank, ridge)


def departure(m: Moments, matched: AffineMap) -> float:
    """How far mapped activations leave the end network's own distribution: mean squared Mahalanobis distance per
    channel, in units of the own activations' (which have 1).

        E[(z − μ)ᵀ (C_yy + ε I)⁻¹ (z − μ)] / E[(y − μ)ᵀ (C_yy + ε I)⁻¹ (y − μ)],
        z = Wx + b,  ε = 10⁻³ trace(C_yy)/q

    Near 1: as spread out as its own; well above 1: the end network sees inputs that its own front never makes, the
    criticism of task-trained stitches by Balogh and Jelasity (2025). Below 1: shrunk, as least squares does.
    NaN where the end network's activations never vary.
    """
    if m.yy.trace() <= 0:
        return float("nan")
    scaled = m.yy + 1e-3 * m.yy.trace() / m.q * torch.eye(m.q, dtype=m.yy.dtype)
    gap = matched.weight @ m.mean_x + matched.bias - m.mean_y
    mapped = matched.weight @ m.xx @ matched.weight.T + torch.outer(gap, gap)
    inverse = torch.linalg.inv(scaled)
    return ((inverse * mapped).sum() / (inverse * m.yy).sum()).item()


BY_CHANCE = ("random", "perm", "eye", "ones-zeros")
SOLVED = {name: name for name in ("ridge", "procrustes", "assignment", "sparse")} | {
    "ps_inv": "least squares", "reduced-rank": "reduced rank",
}  # fmt: skip
#: What a stitch starts from, see `initial_map`.
INITS = (*BY_CHANCE, "ps_inv", "ridge", "procrustes", "reduced-rank", "assignment", "sparse")
#: Which entries a masked stitch may use, see `mask_matrix`.
MASKS = ("identity", "semi-match", "abs-semi-match", "assignment", "random-permutation")


def mask_matrix(kind: str, p: int, q: int, moments: Moments | None, generator: torch.Generator) -> Tensor | None:
    """The 0/1 matrix (q, p) named `kind`, or None for "identity" (every entry may be used).

    semi-match, abs-semi-match (many-to-one) and assignment (one-to-one) come from the correlations in `moments`;
    random-permutation is drawn from `generator`. Raises UnknownName.
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
    squares within the mask); ridge, procrustes, reduced-rank, assignment, sparse: as in `direct_matching`.
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
    solved = {"low rank": "reduced rank", "orthogonal": "procrustes"}.get(form, SOLVED[kind])
    usual = min(m.p, 4) if solved == "sparse" else min(m.p, m.q, 4)
    return direct_matching(m, solved, rank=rank or usual, ridge=ridge)
