"""Relative representations: activations as angles to anchors, and a stitch from paired anchors, without training."""

import torch
from torch import Tensor
from torch.nn import functional as F

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.similarity import channel_blocks
from reptrans.similarity.checks import numbers
from reptrans.stitching.direct import AffineMap


def relative(x: Tensor, anchors: Tensor, centre: bool = False) -> Tensor:
    """The cosine of every row to every anchor, in [-1, 1]: x (n, p) and anchors (k, p) give (n, k).

        r_ij = ⟨x_i, a_j⟩ / (‖x_i‖ ‖a_j‖)

    Both are normalised, rows and anchors; the cosines are not normalised again. A row of zeros has cosine 0 to all.
    With `centre` the anchors' mean is subtracted from both first. Rotations and positive scales of both change
    nothing, and with `centre` shifts do not either. Raises ShapeMismatch; BadValue without anchors; BadData for NaN
    and infinity.
    Source: Moschella et al. 2023, who do not centre.
    """
    x, anchors = (_finite(v, what) for v, what in ((x, "x"), (anchors, "anchors")))
    if not len(anchors):
        raise BadValue("there are no anchors; give one row or more.")
    if not x.ndim == anchors.ndim == 2 or x.shape[1] != anchors.shape[1]:
        raise ShapeMismatch(
            f"x (n, p) and anchors (k, p) are rows of the same features; given {tuple(x.shape)} and "
            f"{tuple(anchors.shape)}. Anchors are the same layer's activations of chosen examples."
        )
    if centre:
        x, anchors = x - anchors.mean(0), anchors - anchors.mean(0)
    return F.normalize(x) @ F.normalize(anchors).T


def inverse_relative(front_anchors: Tensor, end_anchors: Tensor, rtol: float = 0.1) -> AffineMap:
    """The map into the end network's space that keeps the cosines to k anchors known in both spaces.

    With A (k, p) and B (k, q) the anchors, centred and normalised, the cosines of x are r = A (x − μ_a) / ‖x − μ_a‖. A
    direction y' with B y' = r is solved for by the pseudo-inverse, and given the length of x, in the end's unit s:

        y = μ_b + s ‖x − μ_a‖ B⁺ r = μ_b + s B⁺ A (x − μ_a),
        s² = Σ‖b − μ_b‖² / Σ‖a − μ_a‖²

    Anchors are activations of the same examples in the same order: rows, or maps (k, c, h, w) and tokens (k, t, d),
    each of whose places is an anchor. Singular values of B below `rtol` of the largest count as 0: where the spaces
    differ, dividing by small ones would enlarge the difference.
    Exact where the end's space is the front's rotated, scaled and shifted, p + 1 anchors or more span it, and no
    singular value is left out. Otherwise what of x is orthogonal to all anchors, or lies in a direction that is left
    out, is lost, and whatever changes angles between the spaces is an error.
    Raises ShapeMismatch; BadData for NaN and infinity; BadValue for fewer than two anchors, anchors that are all the
    same, and an `rtol` outside [0, 1).
    Source: Maiorca et al. 2024, who leave out the length, since many decoders do not mind it; `rtol` is an addition.

        from reptrans.layers import end, front
        from reptrans.stitching import Stitch, StitchedNetwork, inverse_relative

        f, g = front(net_1, "bn3"), front(net_2, "bn3")  # of networks in eval mode
        a, b = f(images), g(images)  # a few hundred places are enough
        found = inverse_relative(a, b)
        stitch = Stitch(a.shape[1:], b.shape[1:]).set(found.weight, found.bias)
        stitched = StitchedNetwork(f, stitch, end(net_2, "bn3"))
    """
    given = [_finite(v, f"the {side}'s anchors") for v, side in ((front_anchors, "front"), (end_anchors, "end"))]
    a, b = map(_rows, given)
    if len(a) != len(b):
        raise ShapeMismatch(
            f"Anchors are pairs: {tuple(given[0].shape)} has {len(a)} of them, {tuple(given[1].shape)} has "
            f"{len(b)}. Give activations of the same examples, at as many places."
        )
    if len(a) < 2 or not 0 <= rtol < 1:
        raise BadValue(f"At least 2 anchors and an rtol of 0 or more, below 1, are needed; given {len(a)} and {rtol}.")
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = a - mean_a, b - mean_b
    if not (a.any() and b.any()):
        raise BadValue(f"All {len(a)} anchors are the same on one side, so there are no angles. Choose other examples.")
    weight = b.norm() / a.norm() * torch.linalg.pinv(F.normalize(b), rtol=rtol) @ F.normalize(a)
    return AffineMap(weight, mean_b - weight @ mean_a)


def _finite(value: object, what: str) -> Tensor:
    found = numbers(value, what)
    if not found.isfinite().all():
        raise BadData(f"{what}: NaN or infinity. Look at the network and its input.")
    return found


def _rows(activations: Tensor) -> Tensor:
    return channel_blocks(activations.detach()).movedim(1, 2).flatten(0, 1).double().cpu()
