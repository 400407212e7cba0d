"""How similar the new activations and their approximation are: for each measure, what either side minimises.

z, the new network's activations, and a, their approximation: both (n, c, h, w). Correlations and R² are per channel,
over all n*h*w values, then averaged over channels; a channel without variance has correlation 0. All are free of NaN
at constant features, with finite gradients. Source: Wald et al. 2023 ("Exploring new ways: enforcing representational
dissimilarity to learn new features and reduce error consistency"), authors' code; deviations are named.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from reptrans.matching import unit
from reptrans.similarity import linear_cka

Side = Callable[[Tensor, Tensor], Tensor]


class Loss(NamedTuple):
    """`new(z, a)`: small where they differ. `approximator(z, a)`: small where they agree. Scalars."""

    new: Side
    approximator: Side
    per_channel: bool = True


def correlation(z: Tensor, a: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Pearson's r of each channel (c,), in [-1, 1]; with `chosen` (c, n*h*w), over the chosen values alone."""
    first, second = (unit(_centred(_channels(v), chosen)) for v in (z, a))
    return (first * second).sum(1)


def squared_correlation(z: Tensor, a: Tensor, top: int | None = None) -> Tensor:
    """mean_c r²_c, in [0, 1]; with `top`, over the largest values, see `top_values`."""
    chosen = None if top is None else _channels(top_values(z, a, top))
    return _mean(correlation(z, a, chosen).square(), chosen)


def explained_variance(z: Tensor, a: Tensor, alpha: float = 1.0, top: int | None = None) -> Tensor:
    """mean_c CELU_alpha(R²_c), R²_c = 1 - |z_c - a_c|² / (|z_c - mean|² + 1e-4), in (-alpha, 1]; `top` as above.

    Deviation: the authors' code takes alpha and leaves it out.
    """
    chosen = None if top is None else _channels(top_values(z, a, top))
    return _mean(F.celu(_r2(_channels(z), _channels(a), chosen), alpha), chosen)


def linear_cka_of_pixels(z: Tensor, a: Tensor) -> Tensor:
    """Biased linear CKA, pixels as examples and channels as features, in [0, 1]; 0 at constant features."""
    value = linear_cka(*(v.movedim(1, -1).flatten(0, -2) for v in (z, a)))
    return value if value.requires_grad or not value.isnan() else z.sum() * 0 + a.sum() * 0


def relative_representation_distance(z: Tensor, a: Tensor) -> Tensor:
    """Mean squared difference of the two (n, n) matrices of cosines between examples, in [0, 4]."""
    first, second = (F.normalize(v.flatten(1), eps=1e-8) for v in (z, a))
    return (first @ first.T - second @ second.T).square().mean()


def top_values(z: Tensor, a: Tensor, k: int = 1000) -> Tensor:
    """True at the k largest absolute values of each example of z, and at those of a: (n, c, h, w).

    Deviation: the authors' correlation takes both sides twice when there are as many of each.
    """
    chosen = torch.zeros_like(z, dtype=torch.bool).flatten(1)
    for v in (z, a):
        largest = v.detach().abs().flatten(1).topk(min(k, v[0].numel()), dim=1).indices
        chosen.scatter_(1, largest, True)
    return chosen.view_as(z)


def hidden_losses(alpha: float = 1.0, top: int = 1000) -> dict[str, Loss]:
    """Every loss by name; `alpha` bounds R² from below, `top` is the k of the top-k ones.

    name            s, minimised by the new network       by the approximator       the authors' name
    l1_corr         mean |r|, [0, 1]                      1 - s                     L1Corr
    l2_corr         mean r², [0, 1]                       1 - s                     L2Corr
    wl1_corr        Σ w |r|, w: z's share of deviation    Σ w (1 - |r|)             WL1Corr
    log_corr        mean log clip(r), [-16.1, 0]          mean log clip(1 - r)      LogCorr
    exp_var         mean CELU(R²), (-alpha, 1]            -s                        ExpVar
    topk_exp_var    the same on the largest values        -s                        TopkExpVar
    topk_l2_corr    mean r² on the largest values         1 - s                     TopkL2Corr
    lin_cka         CKA of pixels, [0, 1]                 1 - s                     LinCKA
    l2_rel_rep      -(squared distance of cosines)        -s                        L2RelRep

    log_corr clips to [1e-7, 1 - 1e-7], so that negative r has no gradient. wl1_corr does not differentiate w.
    """
    return {
        "l1_corr": _one_minus(lambda z, a: correlation(z, a).abs().mean()),
        "l2_corr": _one_minus(squared_correlation),
        "wl1_corr": Loss(_weighted, lambda z, a: _share(z).sum() - _weighted(z, a)),
        "log_corr": Loss(
            lambda z, a: _log(correlation(z, a)).mean(), lambda z, a: _log(1 - correlation(z, a)).mean()
        ),
        "exp_var": _minus(partial(explained_variance, alpha=alpha)),
        "topk_exp_var": _minus(partial(explained_variance, alpha=alpha, top=top)),
        "topk_l2_corr": _one_minus(partial(squared_correlation, top=top)),
        "lin_cka": _one_minus(linear_cka_of_pixels)._replace(per_channel=False),
        "l2_rel_rep": Loss(
            lambda z, a: -relative_representation_distance(z, a), relative_representation_distance, False
        ),
    }  # fmt: skip


def _one_minus(s: Side) -> Loss:
    return Loss(s, lambda z, a: 1 - s(z, a))


def _minus(s: Side) -> Loss:
    return Loss(s, lambda z, a: -s(z, a))


def _weighted(z: Tensor, a: Tensor) -> Tensor:
    return (_share(z) * correlation(z, a).abs()).sum()


def _share(z: Tensor) -> Tensor:
    deviation = _centred(_channels(z.detach())).norm(dim=1)
    return deviation / deviation.sum().clamp_min(torch.finfo(z.dtype).tiny)


def _log(r: Tensor) -> Tensor:
    return r.clamp(1e-7, 1 - 1e-7).log()


def _mean(values: Tensor, chosen: Tensor | None) -> Tensor:
    """The mean over channels, those that have a chosen value."""
    there = None if chosen is None else chosen.any(1)
    return values.mean() if there is None else torch.where(there, values, 0).sum() / there.sum()


def _channels(x: Tensor) -> Tensor:
    """(n, c, h, w) -> (c, n*h*w)."""
    return x.transpose(0, 1).flatten(1)


def _centred(x: Tensor, chosen: Tensor | None = None) -> Tensor:
    """Rows without their means; with `chosen`, means over the chosen ones and 0 elsewhere."""
    x = x - x[:, :1].detach()  # so that a constant row becomes exactly 0
    if chosen is None:
        return x - x.mean(1, keepdim=True)
    mean = (x * chosen).sum(1, keepdim=True) / chosen.sum(1, keepdim=True).clamp_min(1)
    return (x - mean) * chosen


def _r2(x: Tensor, y: Tensor, chosen: Tensor | None = None) -> Tensor:
    rest = (x - y).square() if chosen is None else (x - y).square() * chosen
    return 1 - rest.sum(1) / (_centred(x, chosen).square().sum(1) + 1e-4)
