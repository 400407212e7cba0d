"""Transforms without parameters: what is made of a feature before two are compared.

A norm is never divided by as it is: a ReLU channel that is silent for an image has norm 0. Features with a norm below
1e-12 (float64: 1e-24) become zeros, and get no gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from reptrans.errors import BadValue, ShapeMismatch

Transform = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """x itself."""
    return x


def unit(x: Tensor) -> Tensor:
    """Each image's whole feature as a unit vector x_i / ||x_i||_2, over all but the batch: (n, ...) -> (n, d)."""
    return _normalised(x.flatten(1))


def unit_channels(x: Tensor) -> Tensor:
    """Each channel's map as a unit vector: (n, c, h, w) -> (n, c, h*w), rows of norm 1, or 0 for a silent channel."""
    if x.ndim != 4:
        raise ShapeMismatch(f"channels as samples need maps (n, c, h, w), but the layer gives {tuple(x.shape)}.")
    return _normalised(x.flatten(2))


def attention(power: float = 2, reduce: str = "sum") -> Transform:
    """The spatial attention map as a unit vector: n(F(A)), F = sum_c |A_c|^p or max_c |A_c|^p, (n, c, h, w) -> (n, hw).

    Zagoruyko and Komodakis 2017. `power` p > 0; `reduce` "sum" or "max". The authors' code takes the mean over channels
    for the sum, which the unit norm makes the same.
    """
    if power <= 0 or reduce not in ("sum", "max"):
        raise BadValue(f"attention(power={power}, reduce={reduce!r}): the power is above 0, reduce is 'sum' or 'max'.")

    def transform(x: Tensor) -> Tensor:
        return unit(attention_map(x, power, reduce))

    transform.label = f"unit {reduce} |A|^{power:g}"
    return transform


def attention_map(x: Tensor, power: float, reduce: str) -> Tensor:
    """F(A), (n, h, w) of maps (n, c, h, w): the sum or the largest of |A_c|^power over channels."""
    if x.ndim != 4:
        raise ShapeMismatch(f"an attention map is of maps (n, c, h, w), but the layer gives {tuple(x.shape)}.")
    powers = x.abs() if power == 1 else x.abs().pow(power)
    return powers.sum(1) if reduce == "sum" else powers.amax(1)


def _normalised(x: Tensor) -> Tensor:
    """x over its norm along the last axis; zeros where there is none."""
    norm, least = x.norm(dim=-1, keepdim=True), 1e-24 if x.dtype == torch.float64 else 1e-12
    # Both branches are finite, for a NaN in the one not taken would reach the gradient.
    return x * torch.where(norm > least, 1 / norm.clamp_min(least), 0.0)


identity.label, unit.label, unit_channels.label = "identity", "unit", "unit channel maps"
