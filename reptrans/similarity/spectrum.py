"""Principal directions of two representations and how they overlap: what CCA and its kin are made of."""

from typing import NamedTuple

import torch
from torch import Tensor


class Spectrum(NamedTuple):
    """With X = U diag(s) Vᵀ of centred rows, for both sides; directions without variance are left out.

    `sx` (a,), `vx` (p, a), `core` = Uxᵀ Uy (a, b), `sy` (b,), `vy` (q, b): canonical correlations are the singular
    values of `core`.
    """

    sx: Tensor
    vx: Tensor
    core: Tensor
    sy: Tensor
    vy: Tensor

    @classmethod
    def of_rows(cls, x: Tensor, y: Tensor) -> "Spectrum":
        (ux, sx, vx), (uy, sy, vy) = (_principal(*torch.linalg.svd(v, full_matrices=False), len(v)) for v in (x, y))
        return cls(sx, vx, ux.T @ uy, sy, vy)

    @classmethod
    def of_moments(cls, n: int, xx: Tensor, xy: Tensor, yy: Tensor) -> "Spectrum":
        """From covariances. Directions below 1e-7 of the largest deviation are lost in rounding."""
        (sx, vx), (sy, vy) = (_from_covariance(n * c) for c in (xx, yy))
        return cls(sx, vx, (vx / sx).T @ (n * xy) @ (vy / sy), sy, vy)

    def keep(self, a: int, b: int) -> "Spectrum":
        """The first a and b directions."""
        return Spectrum(self.sx[:a], self.vx[:, :a], self.core[:a, :b], self.sy[:b], self.vy[:, :b])

    @property
    def correlations(self) -> Tensor:
        """Canonical correlations (min(a, b),), largest first."""
        return torch.linalg.svdvals(self.core)


def _principal(u: Tensor, s: Tensor, vt: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    rank = int((s > s[0] * max(n, vt.shape[1]) * torch.finfo(s.dtype).eps).sum())
    return u[:, :rank], s[:rank], vt[:rank].T


def _from_covariance(c: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(c)
    values, vectors = values.flip(0), vectors.flip(1)
    rank = int((values > values[0] * 4 * len(c) * torch.finfo(c.dtype).eps).sum())
    return values[:rank].sqrt(), vectors[:, :rank]
