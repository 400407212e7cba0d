"""Activations of any shape as a matrix of samples by features: which is which is the caller's choice, never guessed.

The choice decides the result: on the same maps CKA is .88 flattened (biased), .26 with pixels as samples.
"""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from reptrans.errors import ShapeMismatch, UnknownName, suggest
from reptrans.similarity.moments import channel_axis, channel_blocks

FOLDS = ("pixels", "flatten", "pool", "tokens")


def fold(activations: Tensor, how: str) -> Tensor:
    """Activations as (samples, features).

    - "pixels": every pixel of every map a sample, channels the features: (n, c, h, w) → (n h w, c).
    - "flatten": (n, …) → (n, all the rest).
    - "pool": the mean over pixels or tokens: (n, c, h, w) → (n, c), (n, t, d) → (n, d).
    - "tokens": every token a sample: (n, t, d) → (n t, d).
    Vectors (n, d) stay as they are under each. Maps with channels last, as in Swin, are recognised.
    Raises UnknownName; ShapeMismatch for "pixels" of tokens, "tokens" of maps, or fewer than two axes.
    """
    if how == "flatten":
        return activations.flatten(1) if activations.ndim > 1 else blocks(activations, how)
    blocked = blocks(activations, how)
    return blocked.mean(2) if how == "pool" else blocked.transpose(1, 2).flatten(0, 1)


def blocks(activations: Tensor, how: str, grid: tuple[int, ...] | None = None) -> Tensor:
    """Activations as (n, c, places), maps averaged down to a `grid` (h, w) first."""
    if how not in FOLDS:
        raise UnknownName(f"there is no way {how!r} to fold. {suggest(how, FOLDS)}")
    refused = {"pixels": (3,), "tokens": (4,)}.get(how, ())
    if activations.ndim not in (2, 3, 4) or activations.ndim in refused:
        raise ShapeMismatch(
            f"activations of the shape {tuple(activations.shape)} cannot be folded by {how!r}: it is for "
            + {"pixels": "maps (n, c, h, w)", "tokens": "tokens (n, t, d)"}.get(how, "maps, tokens or vectors")
            + " and vectors (n, d). 'pool' and 'flatten' take all."
        )
    axis = channel_axis(activations.shape)
    if grid is not None and activations.ndim == 4:
        activations, axis = adaptive_avg_pool2d(activations.movedim(axis, 1), grid), 1
    return channel_blocks(activations, axis)


def places(activations: Tensor) -> tuple[int, ...]:
    """The grid (h, w) of maps, (t,) of tokens, (1, 1) of vectors."""
    if activations.ndim == 2:
        return (1, 1)
    return tuple(activations.movedim(channel_axis(activations.shape), 1).shape[2:])
