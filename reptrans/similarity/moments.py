"""Count, means and second moments of two sets of features, streamed in float64: from one pass over the data come all
closed forms of the project (least squares, Procrustes, assignment, R², CKA of channels, …)."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.similarity.pair import LEAST, numbers, refuse_memory, refuse_scale, unbiased
from reptrans.similarity.spectrum import Spectrum


def channel_axis(shape: Sequence[int]) -> int:
    """The usual axis of the channels in activations of `shape` (n, …): 1 in maps (n, c, h, w), else the last.

    Sizes cannot tell (n, h, w, c) from (n, c, h, w): where a network has its channels, `layers.channel_axes` knows.
    """
    return 1 if len(shape) > 3 else len(shape) - 1


def channel_blocks(activations: Tensor, axis: int | None = None) -> Tensor:
    """Activations (n, …) as (n, c, l): c channels, l places in each example (1 for plain feature vectors).

    Every place of every example is one sample of the channels, which are at `axis`, by default the usual one, see
    `channel_axis`. A view where the layout allows it.
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

    With lists of widths for p and q, features are those of several layers side by side; `pair(i, j)` has the moments
    of two of them. `debiased` also keeps sums of squared norms times features, of fourth order, for the exact
    debiased CKA. Raises BadValue for more features than memory would hold.
    """

    def __init__(
        self, p: int | Sequence[int], q: int | Sequence[int], device: torch.device | str = "cpu", debiased: bool = False
    ):
        self._widths = [[w] if isinstance(w, int) else list(w) for w in (p, q)]
        self.p, self.q = (sum(widths) for widths in self._widths)
        p, q, self.count = self.p, self.q, 0
        refuse_memory(8 * (p + q) ** 2, f"the moments of {p} and {q} features", "Pool the features, or take fewer.")
        self._shift: Tensor | None = None
        self._sum = torch.zeros(p + q, dtype=torch.float64, device=device)
        self._product = torch.zeros(p + q, p + q, dtype=torch.float64, device=device)
        layers = sum(map(len, self._widths))
        # Σ r zᵀ and Σ r rᵀ with the squared norms r of each layer's part of z.
        self._third = torch.zeros(layers, p + q, dtype=torch.float64, device=device) if debiased else None
        self._fourth = torch.zeros(layers, layers, dtype=torch.float64, device=device) if debiased else None

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> "Moments":
        """Add a batch: x (n, p) with y (n, q), or x (n, p, l) with y (n, q, l).

        Raises ShapeMismatch where examples, places or features disagree; BadData for NaN or infinity.
        """
        x, y = (numbers(v, f"the batch of {name}") for v, name in ((x, "x"), (y, "y")))
        x, y = (v.unsqueeze(2) if v.ndim == 2 else v for v in (x, y))
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
        if self._third is not None:
            norms = torch.stack([part.square().sum(0) for part in z.split(sum(self._widths, []))])
            self._third.addmm_(norms, z.T)
            self._fourth.addmm_(norms, norms.T)

    def merge(self, other: "Moments") -> "Moments":
        """Add all that `other` has seen; as if its batches had been given here."""
        if self._widths != other._widths:
            raise ShapeMismatch(
                f"Moments of ({self.p}, {self.q}) and of ({other.p}, {other.q}) features cannot be merged."
            )
        if other._shift is None:
            return self
        if self._shift is None:
            self._shift = other._shift.clone()
        moved = other._moved(other._shift - self._shift)
        if self._third is not None:
            if other._third is None:
                raise BadValue("Moments without debiased=True cannot be merged into some with it.")
            self._third += moved[2]
            self._fourth += moved[3]
        self._sum += moved[0]
        self._product += moved[1]
        self.count += other.count
        return self

    def _moved(self, d: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """The sums of first to fourth order if `d` (p + q,) were added to all samples."""
        n, s, product = self.count, self._sum, self._product
        cross = torch.outer(s, d)
        second = product + cross + cross.T + n * torch.outer(d, d)
        if self._third is None:
            return s + n * d, second, None, None
        each = torch.block_diag(*[v[None] for v in d.split(sum(self._widths, []))])
        squared, norms = each.square().sum(1), self._norms(product)
        shifted = norms + 2 * each @ s + n * squared
        third = self._third + 2 * each @ product + torch.outer(squared, s) + torch.outer(shifted, d)
        # r becomes r + 2 each z + squared
        half = 2 * self._third @ each.T + torch.outer(norms + 2 * each @ s, squared)
        fourth = self._fourth + half + half.T + 4 * each @ product @ each.T + n * torch.outer(squared, squared)
        return s + n * d, second, third, fourth

    def _norms(self, product: Tensor) -> Tensor:
        """Σ r, for each layer."""
        return torch.stack([part.sum() for part in product.diagonal().split(sum(self._widths, []))])

    def pair(self, i: int, j: int) -> "Moments":
        """The moments of layer i of x and layer j of y alone."""
        layers = [i, len(self._widths[0]) + j]
        places = torch.arange(self.p + self.q, device=self._sum.device).split(sum(self._widths, []))
        index = torch.cat([places[layer] for layer in layers])
        chosen = Moments(len(places[layers[0]]), len(places[layers[1]]), self._sum.device)
        chosen.count, chosen._sum, chosen._product = self.count, self._sum[index], self._product[index[:, None], index]
        chosen._shift = None if self._shift is None else self._shift[index]
        if self._third is not None:
            chosen._third, chosen._fourth = self._third[layers][:, index], self._fourth[layers][:, layers]
        return chosen

    def value(self, measure: str, **options) -> Tensor:
        """A measure of MEASURES that needs no more than moments, such as "cca_mean" or "debiased_cka".

        As the function of that name gives for all samples at once; `options` are the function's. NaN where one side
        does not vary. Raises UnknownName; BadValue for a measure that needs the rows; BadData for fewer than 4 samples.
        """
        from reptrans.similarity.measures import find

        record = find(measure)
        if record.needs != "moments":
            raise BadValue(f"{measure} cannot be told from moments, it needs {record.needs}; call it on the rows.")
        if self.count < LEAST:
            raise BadData(f"{measure} needs at least {LEAST} examples; given {self.count}.")
        return record.function.on(_Centred(self), **options)

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
        if not x.ndim == y.ndim == 3:
            raise ShapeMismatch(
                f"Moments take (n, features), or (n, channels, places); given {tuple(x.shape)} and {tuple(y.shape)}. "
                "Give maps as channel_blocks(maps)."
            )
        if x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
            raise ShapeMismatch(
                f"Activations of the same examples and places are needed: {tuple(x.shape)} has {x.shape[0]} examples "
                f"of {x.shape[2]} places, {tuple(y.shape)} has {y.shape[0]} of {y.shape[2]}. Resize one of them."
            )
        if (x.shape[1], y.shape[1]) != (self.p, self.q):
            raise ShapeMismatch(
                f"These moments are of ({self.p}, {self.q}) features; a batch of ({x.shape[1]}, {y.shape[1]}) came."
            )


class _Centred:
    """What measures ask of a pair, computed once from moments."""

    def __init__(self, moments: Moments):
        p, self.count, self._moments = moments.p, moments.count, moments
        covariance = moments._covariance
        for spread in covariance.diagonal().split([p, moments.q]):
            refuse_scale(float(spread.abs().sum().sqrt()), "these moments")
        # What a constant feature leaves of its rounded mean is no variance.
        varies = covariance.diagonal() > (8 * torch.finfo(torch.float64).eps * moments._shift).square()
        covariance = covariance * torch.outer(varies, varies)
        self.xx, self.xy, self.yy = covariance[:p, :p], covariance[:p, p:], covariance[p:, p:]
        self.constant = not (varies[:p].any() and varies[p:].any())

    @property
    def nuclear(self) -> Tensor:
        return torch.linalg.svdvals(self.xy).sum()

    @cached_property
    def spectrum(self) -> Spectrum:
        return Spectrum.of_moments(self.count, self.xx, self.xy, self.yy)

    def alignment(self, debiased: bool) -> tuple[Tensor, Tensor, Tensor]:
        n, blocks = self.count, (self.xy, self.xx, self.yy)
        squares = [block.square().sum() * n**2 for block in blocks]
        if not debiased:
            return tuple(squares)
        if self._moments._fourth is None:
            raise BadValue("Debiased CKA needs Moments(..., debiased=True), which keeps what it takes.")
        fourth = self._moments._moved(-self._moments._mean)[3]
        norms = n * self.xx.trace(), n * self.yy.trace()
        return tuple(
            unbiased(n, square, norms[i], norms[j], fourth[i, j])
            for square, (i, j) in zip(squares, ((0, 1), (0, 0), (1, 1)), strict=True)
        )
