"""Principal directions of two representations and how they overlap: what CCA and its kin are made of."""

from typing import NamedTuple

import torch
from torch import Tensor


class Principal(NamedTuple):
    """X = U diag(s) Vᵀ of one side's centred rows; directions without variance are left out.

    `s` (a,), `v` (p, a). `u` is what both sides' products give the core with: U (n, a) of rows, V / s (p, a) of a
    covariance.
    """

    s: Tensor
    v: Tensor
    u: Tensor

    @classmethod
    def of_rows(cls, x: Tensor) -> "Principal":
        u, s, vt = torch.linalg.svd(x, full_matrices=False)
        rank = int((s > s[0] * max(x.shape) * torch.finfo(s.dtype).eps).sum())
        return cls(s[:rank], vt[:rank].T, u[:, :rank])

    @classmethod
    def of_covariance(cls, c: Tensor, n: int) -> "Principal":
        """From a covariance of n rows. Directions below 1e-7 of the largest deviation are lost in rounding."""
        values, vectors = (v.flip(-1) for v in torch.linalg.eigh(n * c))
        rank = int((values > values[0] * 4 * len(c) * torch.finfo(c.dtype).eps).sum())
        s, v = values[:rank].sqrt(), vectors[:, :rank]
        return cls(s, v, v / s)


class Spectrum(NamedTuple):
    """`sx` (a,), `vx` (p, a) and `sy` (b,) of both sides; the singular values of `core` = Uxᵀ Uy (a, b) are the
    canonical correlations."""

    sx: Tensor
    vx: Tensor
    core: Tensor
    sy: Tensor

    def keep(self, a: int, b: int) -> "Spectrum":
        """The first a and b directions."""
        return Spectrum(self.sx[:a], self.vx[:, :a], self.core[:a, :b], self.sy[:b])

    @property
    def correlations(self) -> Tensor:
        """Canonical correlations (min(a, b),), largest first."""
        return torch.linalg.svdvals(self.core)
