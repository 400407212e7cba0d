"""Count, means and second moments of two sets of features, streamed in float64: from one pass over the data come all
closed forms of the project (least squares, Procrustes, assignment, R², CKA of channels, …)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reptrans.errors import BadData, ShapeMismatch


def channel_axis(shape: Sequence[int]) -> int:
    """The axis of the channels in activations of `shape` (n, …).

    (n, d) and tokens (n, t, d): the last. Maps: axis 1 as in (n, c, h, w), unless the axes 1 and 2 are equal and the
    last is not, as in (n, h, w, c) of Swin transformers.
    """
    if len(shape) == 4 and not (shape[1] == shape[2] != shape[3]):
        return 1
    return len(shape) - 1


def channel_blocks(activations: Tensor, axis: int | None = None) -> Tensor:
    """Activations (n, …) as (n, c, l): c channels, l places in each example (1 for plain feature vectors).

    Every place of every example is one sample of the channels. A view where the layout allows it.
    """
    axis = channel_axis(activations.shape) if axis is None else axis % activations.ndim
    return activations.movedim(axis, 1).flatten(2) if activations.ndim > 2 else activations.unsqueeze(2)


# Places in one product: their float64 copies stay in a processor's cache, and small beside the activations.
_AT_ONCE = 8192


class Moments:
    """Streamed moments of x (p features) and y (q features), seen together.

    With N samples in all: `mean_x` (p,), `mean_y` (q,), and the centred covariances (divided by N)
    `xx` (p, p), `xy` (p, q), `yy` (q, q). Exact: sums run in float64 around the first samples' mean, so that no digits
    are lost to large means; the order and size of batches do not matter beyond rounding.
    Memory is (p + q)² numbers, whatever N is.
    """

    def __init__(self, p: int, q: int, device: torch.device | str = "cpu"):
        self.p, self.q, self.count = p, q, 0
        self._shift: Tensor | None = None
        self._sum = torch.zeros(p + q, dtype=torch.float64, device=device)
        self._product = torch.zeros(p + q, p + q, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> "Moments":
        """Add a batch: x (n, p) with y (n, q), or x (n, p, l) with y (n, q, l).

        Raises ShapeMismatch where examples, places or features disagree; BadData for NaN or infinity.
        """
        x, y = (v if v.ndim == 3 else v.unsqueeze(2) for v in (x, y))
        self._check(x, y)
        examples = max(1, _AT_ONCE // x.shape[2])
        for part in zip(x.split(examples), y.split(examples), strict=True):
            self._add(*part)
        return self

    def _add(self, x: Tensor, y: Tensor) -> None:
        z = torch.empty(self.p + self.q, x.shape[0], x.shape[2], dtype=torch.float64, device=self._sum.device)
        z[: self.p].copy_(x.transpose(0, 1))
        z[self.p :].copy_(y.transpose(0, 1))
        z = z.flatten(1)
        if self._shift is None:
            self._shift = z.mean(1)
        z -= self._shift[:, None]
        total = z.sum(1)
        if not torch.isfinite(total).all():
            raise BadData("Activations hold NaN or infinity; look at the network and its input before comparing them.")
        self._sum += total
        self._product.addmm_(z, z.T)
        self.count += z.shape[1]

    def merge(self, other: "Moments") -> "Moments":
        """Add all that `other` has seen; as if its batches had been given here."""
        if (self.p, self.q) != (other.p, other.q):
            raise ShapeMismatch(
                f"Moments of ({self.p}, {self.q}) and of ({other.p}, {other.q}) features cannot be merged."
            )
        if other._shift is None:
            return self
        if self._shift is None:
            self._shift = other._shift.clone()
        d, n = other._shift - self._shift, other.count
        cross = torch.outer(other._sum, d)
        self._product += other._product + cross + cross.T + n * torch.outer(d, d)
        self._sum += other._sum + n * d
        self.count += n
        return self

    @property
    def _mean(self) -> Tensor:
        if self.count == 0:
            raise BadData("No activations were seen yet; call update first.")
        return self._sum / self.count

    @property
    def _covariance(self) -> Tensor:
        return self._product / self.count - torch.outer(self._mean, self._mean)

    @property
    def mean_x(self) -> Tensor:
        return (self._mean + self._shift)[: self.p]

    @property
    def mean_y(self) -> Tensor:
        return (self._mean + self._shift)[self.p :]

    @property
    def xx(self) -> Tensor:
        return self._covariance[: self.p, : self.p]

    @property
    def xy(self) -> Tensor:
        return self._covariance[: self.p, self.p :]

    @property
    def yy(self) -> Tensor:
        return self._covariance[self.p :, self.p :]

    @property
    def correlation(self) -> Tensor:
        """Pearson correlation (p, q) of every x feature with every y feature; 0 where one of them is constant."""
        scale = torch.outer(self.xx.diagonal().clamp_min(0).sqrt(), self.yy.diagonal().clamp_min(0).sqrt())
        return torch.where(scale > 0, self.xy / scale, torch.zeros_like(scale))

    @property
    def linear_cka(self) -> Tensor:
        """Linear CKA ‖xy‖² / (‖xx‖ ‖yy‖) of the channels, in [0, 1], 1 = alike (Kornblith et al. 2019, biased)."""
        return self.xy.square().sum() / (self.xx.norm() * self.yy.norm())

    def _check(self, x: Tensor, y: Tensor) -> None:
        if x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
            raise ShapeMismatch(
                f"Activations of the same examples and places are needed: {tuple(x.shape)} has {x.shape[0]} examples "
                f"of {x.shape[2]} places, {tuple(y.shape)} has {y.shape[0]} of {y.shape[2]}. Resize one of them."
            )
        if (x.shape[1], y.shape[1]) != (self.p, self.q):
            raise ShapeMismatch(
                f"These moments are of ({self.p}, {self.q}) features; a batch of ({x.shape[1]}, {y.shape[1]}) came."
            )
