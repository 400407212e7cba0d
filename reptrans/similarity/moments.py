"""Count, means and second moments of two sets of features, streamed in float64: from one pass over the data come all
closed forms of the project (least squares, Procrustes, assignment, R², CKA of channels, …)."""

from collections.abc import Iterator, Sequence
from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from reptrans.errors import BadData, BadValue, ShapeMismatch, check_whole
from reptrans.similarity.checks import largest_of, numbers, refuse_few, refuse_memory, refuse_scale
from reptrans.similarity.pair import Pair
from reptrans.similarity.spectrum import Principal


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
AT_ONCE = 8192


class Sums:
    """Running sums of one layer in float64: `total` (p,) and `product` (p, p) of samples z around the first ones' mean.

    Debiased CKA takes sums of squared norms too: with `debiased` each sample's is one feature more, and so in both.
    """

    def __init__(self, debiased: bool = False):
        self.debiased, self.count = debiased, 0

    @torch.no_grad()
    def add(self, x: Tensor) -> Tensor:
        """Add x (n, p, l), every place a sample; gives z (features, n l), for the product with other layers' z."""
        if not self.count:
            size = x.shape[1] + self.debiased
            self.shift = _samples(x).mean(1)
            self.total, self.product = self.shift.new_zeros(size), self.shift.new_zeros(size, size)
        z = self.around(x)
        self.total += z.sum(1)
        self.product.addmm_(z, z.T)
        self.count += z.shape[1]
        self._own = None
        return z

    def around(self, x: Tensor) -> Tensor:
        """z (features, n l) of x (n, p, l): around the first samples' mean, with the squared norm where it is taken."""
        z = _samples(x)
        z -= self.shift[:, None]
        return torch.cat([z, z.square().sum(0, keepdim=True)]) if self.debiased else z

    @property
    def own(self) -> "Own":
        """What all pairs with this layer share, made once."""
        if not self.count:
            raise BadData("No activations were seen yet; call update first.")
        if self._own is None:
            self._own = Own(self)
        return self._own


def _samples(x: Tensor) -> Tensor:
    """x (n, p, l) as (p, n l), a float64 copy."""
    n, p, places = x.shape
    return x.new_empty(p, n, places, dtype=torch.float64).copy_(x.transpose(0, 1)).flatten(1)


class Own:
    """One layer's moments, finished, on the CPU: `mean` (p,), `covariance` (p, p).

    `offset`: the mean of z. `varies`: which z do; what a constant feature leaves of its rounded mean is no variance.
    The squared norm of a centred sample is norm · z plus a constant.
    """

    def __init__(self, sums: Sums):
        shift, total, product = (v.cpu() for v in (sums.shift, sums.total, sums.product))
        p, self.count, self.offset = len(shift), sums.count, total / sums.count
        self.mean = self.offset[:p] + shift
        c = (product / self.count).addr_(self.offset, self.offset, alpha=-1)
        least = torch.zeros_like(total)
        least[:p] = (8 * torch.finfo(torch.float64).eps * shift).square()
        self.varies = c.diagonal() > least
        c[~self.varies], c[:, ~self.varies] = 0, 0
        self.covariance, self.constant = c[:p, :p], not self.varies[:p].any()
        self.norm = torch.cat([-2 * self.offset[:p], torch.ones_like(total[p:])])
        self.variance_of_norm = self.norm @ c @ self.norm

    @cached_property
    def square(self) -> Tensor:
        return self.covariance.square().sum()

    @cached_property
    def principal(self) -> Principal:
        return Principal.of_covariance(self.covariance, self.count)


class PairMoments(Pair):
    """The moments of two layers, finished, on the CPU: `count` samples, `mean_x` (p,), `mean_y` (q,), and centred
    covariances, divided by the count, `xx` (p, p), `xy` (p, q), `yy` (q, q).

    A feature that does not vary beyond the rounding of its mean has covariances 0. `product` may be several, (…, p, q),
    and so are the values then.
    """

    def __init__(self, a: Own, b: Own, product: Tensor):
        super().__init__(a, b)
        self.mean_x, self.mean_y, self.p, self.q = a.mean, b.mean, len(a.mean), len(b.mean)
        c = product.cpu() / self.count - torch.outer(a.offset, b.offset)
        c *= torch.outer(a.varies, b.varies)
        self.xy = c[..., : self.p, : self.q]
        self._covariance_of_norms = a.norm @ c @ b.norm if len(a.norm) > self.p else None

    def each(self) -> Iterator["PairMoments"]:
        """Where the products are several, (n, p, q): the moments of one after the other."""
        for place, xy in enumerate(self.xy):
            one = copy(self)
            one.xy = xy
            if self._covariance_of_norms is not None:
                one._covariance_of_norms = self._covariance_of_norms[place]
            yield one

    @property
    def linear_cka(self) -> Tensor:
        """Linear CKA ‖xy‖² / (‖xx‖ ‖yy‖) of the channels, in [0, 1], 1 = similar (Kornblith et al. 2019, biased)."""
        return self.xy.square().sum((-2, -1)) / (self.xx.norm() * self.yy.norm())

    @property
    def nuclear(self) -> Tensor:
        return torch.linalg.svdvals(self.xy).sum(-1)

    def _core(self, u: Tensor, v: Tensor) -> Tensor:
        return u.T @ (self.count * self.xy) @ v

    def alignment(self, debiased: bool) -> tuple[Tensor, Tensor, Tensor]:
        if debiased and self._covariance_of_norms is None:
            raise BadValue("Debiased CKA needs Moments(..., debiased=True), which keeps what it takes.")
        return self._by_features(debiased)

    def _products_of_norms(self) -> tuple[Tensor, Tensor, Tensor]:
        u, v = self.xx.trace(), self.yy.trace()
        spreads = self._covariance_of_norms, self.a.variance_of_norm, self.b.variance_of_norm
        return tuple(self.count * (c + means) for c, means in zip(spreads, (u * v, u * u, v * v), strict=True))

    def value(self, measure: str, **options) -> Tensor:
        """A measure of MEASURES that needs no more than moments, such as "cca_mean" or "debiased_cka".

        As the function of that name gives for all samples at once; `options` are the function's. NaN where one side
        does not vary. Raises UnknownName; BadValue for a measure that needs the rows; BadData for fewer than 4 samples.
        """
        from reptrans.similarity.measures import find

        record = find(measure)
        if record.needs != "moments":
            raise BadValue(f"{measure} cannot be told from moments, it needs {record.needs}; call it on the rows.")
        refuse_few(measure, self.count)
        for covariance in (self.xx, self.yy):
            refuse_scale(float(covariance.trace().sqrt()), "these moments")
        return record.function.on(self, **options)


_SAID = {
    "mean_x": "The mean (p,) of x.",
    "mean_y": "The mean (q,) of y.",
    "xx": "The covariance (p, p) of x, divided by the number of samples; 0 for what varies by rounding alone.",
    "xy": "The covariance (p, q) of x and y, likewise.",
    "yy": "The covariance (q, q) of y, likewise.",
    "correlation": Pair.correlation.__doc__,
    "linear_cka": PairMoments.linear_cka.__doc__,
    "value": f"value(measure, **options): {PairMoments.value.__doc__}",
}


def _finished(name: str) -> property:
    return property(lambda self: getattr(self.pair, name), doc=_SAID[name])


class Moments:
    """Streamed moments of x (p features) and y (q features), seen together.

    With N samples in all: `mean_x` (p,), `mean_y` (q,), and the centred covariances (divided by N)
    `xx` (p, p), `xy` (p, q), `yy` (q, q), on the CPU, made when they are first asked for. Exact: sums run in float64
    around the first samples' mean, so that no digits are lost to large means; the order and size of batches do not
    matter beyond rounding. Memory is that of the three matrices, whatever N is.

    `debiased` also keeps sums of squared norms times features, of fourth order, for the exact debiased CKA. Raises
    BadValue for more features than memory would hold.
    """

    def __init__(self, p: int, q: int, device: torch.device | str = "cpu", debiased: bool = False):
        for name, features in (("p", p), ("q", q)):
            check_whole(name, features, 1, more=": the number of features.")
        size = 8 * (p**2 + p * q + q**2)
        refuse_memory(size, f"the moments of {p} and {q} features", "Pool the features, or take fewer.")
        self.p, self.q, self._sums, self._pair = p, q, (Sums(debiased), Sums(debiased)), None
        self._product = torch.zeros(p + debiased, q + debiased, dtype=torch.float64, device=device)

    @property
    def count(self) -> int:
        return self._sums[0].count

    def update(self, x: Tensor, y: Tensor) -> "Moments":
        """Add a batch: x (n, p) with y (n, q), or x (n, p, l) with y (n, q, l).

        Raises ShapeMismatch where examples, places or features disagree; BadData for NaN or infinity.
        """
        x, y = (numbers(v, f"the batch of {name}") for v, name in ((x, "x"), (y, "y")))
        x, y = ((v.unsqueeze(2) if v.ndim == 2 else v).to(self._product.device) for v in (x, y))
        self._check(x, y)
        self._pair, examples = None, max(1, AT_ONCE // x.shape[2])
        for parts in zip(x.split(examples), y.split(examples), strict=True):
            a, b = (sums.add(part) for sums, part in zip(self._sums, parts, strict=True))
            self._product.addmm_(a, b.T)
        return self

    @property
    def pair(self) -> PairMoments:
        """The moments of all samples seen so far. Raises BadData if there were none."""
        if self._pair is None:
            self._pair = PairMoments(*(sums.own for sums in self._sums), self._product)
        return self._pair

    mean_x, mean_y, xx, xy, yy, correlation, linear_cka, value = map(_finished, _SAID)

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
        if not all(largest_of(v) < torch.inf for v in (x, y)):
            raise BadData("Activations hold NaN or infinity; look at the network and its input before comparing them.")
