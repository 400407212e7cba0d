"""Activations of any shape as a matrix of samples by features: which is which is the caller's choice, never guessed.

The choice decides the result: on the same maps CKA is .88 flattened (biased), .26 with pixels as samples.
"""

import math
from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from reptrans.errors import BadValue, ShapeMismatch, choose
from reptrans.similarity.checks import numbers
from reptrans.similarity.moments import channel_axis

FOLDS = ("pixels", "flatten", "pool", "tokens")


def fold(activations: Tensor, how: str, axis: int | None = None, class_tokens: int = 0) -> Tensor:
    """Activations as (samples, features).

    - "pixels": every pixel of every map a sample, channels the features: (n, c, h, w) → (n h w, c). Tokens of a square
      grid of patches are a map: (n, t, d) → (n t, d).
    - "flatten": (n, …) → (n, all the rest).
    - "pool": the mean over pixels or tokens: (n, c, h, w) → (n, c), (n, t, d) → (n, d).
    - "tokens": every token a sample: (n, t, d) → (n t, d).
    Vectors (n, d) stay as they are under each. `axis`: of the channels, by default 1 of maps and the last of others; -1
    for maps (n, h, w, c), as in Swin. `class_tokens`: so many leading tokens, which stand for no patch, are dropped.
    Raises UnknownName; BadValue; ShapeMismatch for "pixels" of tokens that are no square grid, "tokens" of maps, or
    fewer than two axes.
    """
    laid = laid_out(activations, how, axis, class_tokens)
    if how == "flatten":
        return laid.flatten(1)
    blocked = laid.flatten(2) if laid.ndim > 2 else laid.unsqueeze(2)
    return blocked.mean(2) if how == "pool" else blocked.transpose(1, 2).flatten(0, 1)


def laid_out(activations: Tensor, how: str, axis: int | None = None, class_tokens: int = 0) -> Tensor:
    """Activations checked, and for all but "flatten" channels first: (n, c, h, w), (n, c, t) or (n, c)."""
    check_fold(how, class_tokens)
    activations = numbers(activations, "the activations")
    _check_shape(activations, how)
    axis = (channel_axis(activations.shape) if axis is None else axis) % activations.ndim
    if axis not in (1, activations.ndim - 1):
        raise BadValue(f"the channels are at axis 1 or -1 of activations; given {axis}.")
    if activations.ndim == 3 and axis == 1 and how == "pixels":
        raise ShapeMismatch(f"signals {tuple(activations.shape)}, (n, c, t), are no maps; fold them by 'tokens'.")
    if activations.ndim == 3 and axis == 2:
        activations = activations[:, class_tokens:]
    if how == "flatten":
        return activations
    laid = activations.movedim(axis, 1)
    return laid.unflatten(2, _grid(laid.shape[2], class_tokens)) if laid.ndim == 3 and how == "pixels" else laid


def check_fold(how: str, class_tokens: int = 0) -> None:
    """Raise UnknownName for a way that is none; BadValue for a number of class tokens that is none."""
    choose(how, FOLDS, "there is no way {} to fold")
    if not isinstance(class_tokens, int) or class_tokens < 0:
        raise BadValue(f"class_tokens is a whole number from 0, of leading tokens to drop; given {class_tokens!r}.")


def blocks(activations: Tensor, how: str, grid: tuple[int, ...] | None = None, axis: int | None = None) -> Tensor:
    """Activations as (n, c, places), maps averaged down to a `grid` (h, w) first; `axis` as for `fold`."""
    laid = laid_out(activations, how, axis)
    if grid is not None and laid.ndim == 4:
        laid = adaptive_avg_pool2d(laid, grid)
    return laid.flatten(2) if laid.ndim > 2 else laid.unsqueeze(2)


def places(activations: Tensor, axis: int | None = None) -> tuple[int, ...]:
    """The grid (h, w) of maps, (t,) of tokens, (1, 1) of vectors; `axis` as for `fold`."""
    if activations.ndim == 2:
        return (1, 1)
    return tuple(activations.movedim(channel_axis(activations.shape) if axis is None else axis, 1).shape[2:])


def token_mask(inputs: object, activations: Tensor) -> Tensor | None:
    """Which tokens of activations (n, t, d) are text, not padding, (n, t), as the inputs' mask says; None for all."""
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask.bool() if mask is not None and activations.shape[:-1] == mask.shape else None


def without_padding(activations: Tensor, mask: Tensor, how: str) -> Tensor:
    """Of tokens (n, t, d) those in mask (n, t): the mean of each example's, (n, d), or all of them, (tokens, d)."""
    if how == "tokens":
        return activations[mask]
    own = mask.unsqueeze(2).to(activations.dtype)
    return (activations * own).sum(1) / own.sum(1).clamp_min(1)


def _check_shape(activations: Tensor, how: str) -> None:
    shape = tuple(activations.shape)
    most = activations.ndim if how == "flatten" else 3 if how == "tokens" else 4
    if not 2 <= activations.ndim <= most:
        raise ShapeMismatch(
            f"activations of the shape {shape} cannot be folded by {how!r}: it is for "
            + {"pixels": "maps (n, c, h, w), tokens (n, t, d)", "tokens": "tokens (n, t, d)"}.get(how, "maps, tokens")
            + " and vectors (n, d). 'pool' and 'flatten' take all."
        )


def _grid(tokens: int, dropped: int) -> tuple[int, int]:
    """The sides of a square grid of patches."""
    side = math.isqrt(tokens)
    if side**2 != tokens or not side:
        leading = tokens - side**2
        raise ShapeMismatch(
            f"{tokens} tokens are no square grid of patches, as 'pixels' needs it. If tokens stand before the patches, "
            f"as a class token does, drop them: class_tokens={dropped + leading} leaves {side} x {side}. 'pool' and "
            "'tokens' take any number."
        )
    return side, side
