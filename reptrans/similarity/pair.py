"""How a measure is written: what each side gives by itself, made once, and what a pair of sides gives then.

A measure of second moments is a function of a `Pair`: of rows, or of streamed moments (`moments.PairMoments`), whose
sides keep what is theirs alone. A measure of rows is a function of what its `prepare` makes of each side.
"""

import inspect
from collections.abc import Callable
from functools import cached_property, partial, wraps
from typing import Any

import torch
from torch import Tensor

from reptrans.similarity.checks import checked, refuse_examples, refuse_few, refuse_memory, scaled
from reptrans.similarity.spectrum import Principal, Spectrum


class Rows:
    """One side as centred rows `x` (n, p); differentiable."""

    def __init__(self, x: Tensor):
        self.count, self.x = len(x), centred(x)

    @property
    def constant(self) -> bool:
        return not self.x.any()

    @cached_property
    def covariance(self) -> Tensor:
        return product(self, self)

    @property
    def square(self) -> Tensor:
        """Squared Frobenius norm of the covariance."""
        return self.covariance.square().sum()

    @cached_property
    def principal(self) -> Principal:
        return Principal.of_rows(self.x)


def product(a: Rows, b: Rows) -> Tensor:
    """Covariance (p, q) of two sides, divided by n."""
    p, q = a.x.shape[1], b.x.shape[1]
    refuse_memory(p * q * a.x.element_size(), f"the products of {p} and {q} features", "Pool the features.")
    return a.x.T @ b.x / a.count


class Pair:
    """Two sides of the same n examples: all that a measure of second moments asks for.

    `xx` (p, p), `xy` (p, q), `yy` (q, q): covariances, divided by n.
    """

    def __init__(self, a: Rows, b: Rows):
        self.a, self.b, self.count = a, b, a.count

    @property
    def constant(self) -> bool:
        return self.a.constant or self.b.constant

    @property
    def xx(self) -> Tensor:
        return self.a.covariance

    @cached_property
    def xy(self) -> Tensor:
        return product(self.a, self.b)

    @property
    def yy(self) -> Tensor:
        return self.b.covariance

    @property
    def correlation(self) -> Tensor:
        """Pearson correlation (p, q) of every x feature with every y feature; 0 where one of them is constant."""
        scale = torch.outer(*(c.diagonal().clamp_min(0).sqrt() for c in (self.xx, self.yy)))
        return torch.where(scale > 0, self.xy / torch.where(scale > 0, scale, 1.0), 0.0)

    @property
    def nuclear(self) -> Tensor:
        """‖xy‖_*, the sum of singular values; features beyond the number of examples cost nothing."""
        x, y = (v if len(v) >= v.shape[1] else torch.linalg.qr(v.T).R.T for v in (self.a.x, self.b.x))
        return torch.linalg.svdvals(x.T @ y).sum() / self.count

    @cached_property
    def spectrum(self) -> Spectrum:
        a, b = self.a.principal, self.b.principal
        return Spectrum(a.s, a.v, self._core(a.u, b.u), b.s)

    def _core(self, u: Tensor, v: Tensor) -> Tensor:
        return u.T @ v

    def alignment(self, debiased: bool) -> tuple[Tensor, Tensor, Tensor]:
        """⟨K, L⟩, ⟨K, K⟩, ⟨L, L⟩ of the linear Grams up to a common factor, centred or U-centred.

        By examples or by features, whichever is fewer.
        """
        x, y = self.a.x, self.b.x
        if self.count > max(x.shape[1], y.shape[1]):
            return self._by_features(debiased)
        size = 6 * self.count**2 * x.element_size()
        refuse_memory(size, f"the products of {self.count} examples", "Give fewer, or pool the features.")
        k, l = (v @ v.T for v in (x, y))  # noqa: E741  K and L are the field's names
        return products(u_centred(k), u_centred(l)) if debiased else products(k, l)

    def _by_features(self, debiased: bool) -> tuple[Tensor, Tensor, Tensor]:
        n = self.count
        squares = [square * n**2 for square in (self.xy.square().sum((-2, -1)), self.a.square, self.b.square)]
        if not debiased:
            return tuple(squares)
        u, v = (n * c.trace() for c in (self.xx, self.yy))
        sums = zip(squares, self._products_of_norms(), (u * v, u * u, v * v), strict=True)
        # ⟨K̃, L̃⟩ from ‖XᵀY‖² and the squared norms of the rows, of which `rows` is Σ a b and `whole` is Σ a Σ b.
        return tuple(s - n / (n - 2) * rows + whole / ((n - 1) * (n - 2)) for s, rows, whole in sums)

    def _products_of_norms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Σ a b, Σ a², Σ b² of the squared norms a, b of both sides' rows."""
        return products(*(side.x.square().sum(1) for side in (self.a, self.b)))


def u_centred(k: Tensor) -> Tensor:
    """A Gram matrix (…, n, n) with zero diagonal and zero row sums (Székely and Rizzo 2014); any common shift of the
    features drops out."""
    n = k.shape[-1]
    k = k - torch.diag_embed(k.diagonal(dim1=-2, dim2=-1))
    rows = k.sum(-1, keepdim=True) / (n - 2)
    k = k - rows - rows.mT + rows.sum(-2, keepdim=True) / (n - 1)
    return k - torch.diag_embed(k.diagonal(dim1=-2, dim2=-1))


def products(k: Tensor, l: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: E741
    return (k * l).sum(), k.square().sum(), l.square().sum()


def centred(x: Tensor) -> Tensor:
    """x (n, p) without its column means; a constant column becomes exactly 0, which its rounded mean would not give."""
    x = x - x[:1].detach()
    return x - x.mean(0)


def _as_it_is(x: Tensor, **_) -> Tensor:
    return x


def of_rows(
    function: Callable | None = None,
    *,
    prepare: Callable = _as_it_is,
    dtype: torch.dtype | None = torch.float64,
    directed: bool = False,
    absolute: bool = False,
    matrices: int = 0,
    exchanged: Callable | None = None,
) -> Callable:
    """A measure of what `prepare(x, **options)` makes of each side, as a function of x (n, p) and y (n, q) in `dtype`.

    `dtype` None: as given, float32 at least. `directed`: it looks at the direction of each row, so that an example that
    is zero everywhere gives NaN. `absolute`: the scale of x and y matters. `matrices`: so many of n x n numbers it
    holds at once; refused where that is too much. `.prepare(x, **options)` checks and prepares one side, to None where
    no measure has a value; `.combine(own_x, own_y, **options)` is the value. `exchanged(own, order)`: what `prepare`
    would make of the rows in another order (n,); by default they are rows still.
    """
    if function is None:
        given = {"directed": directed, "absolute": absolute, "matrices": matrices, "exchanged": exchanged}
        return partial(of_rows, prepare=prepare, dtype=dtype, **given)
    name, signature = function.__name__, inspect.signature(function)
    defaults = {option: p.default for option, p in list(signature.parameters.items())[2:]}

    def prepare_one(x: Tensor, which: str = "given", **options) -> Any:
        refuse_few(name, len(x))
        x = scaled(x, name, which, absolute)
        undefined = (x == x[:1]).all() or (directed and (x == 0).all(1).any())
        return None if undefined else prepare(x, **defaults | options)

    def combine(a: Any, b: Any, **options) -> Tensor:
        return _undefined() if a is None or b is None else function(a, b, **options)

    @wraps(function)
    def of_two(x: Tensor, y: Tensor, *args, **options) -> Tensor:
        x, y = checked(x, y, name, dtype)
        of_two.refuse_examples(len(x))
        options = dict(list(signature.bind(x, y, *args, **options).arguments.items())[2:])
        sides = (prepare_one(v, which, **options) for v, which in ((x, "first"), (y, "second")))
        return combine(*sides, **options).to(x.device)

    def exchange(own: Any, order: Tensor) -> Any:
        return None if own is None else (exchanged or _rows_exchanged)(own, order)

    of_two.prepare, of_two.combine, of_two.exchanged = prepare_one, combine, exchange
    of_two.refuse_examples = partial(refuse_examples, name, matrices)
    x, y, *rest = signature.parameters.values()
    shown = [side.replace(annotation=Tensor) for side in (x, y)]  # not what has been prepared of them
    of_two.__signature__ = signature.replace(parameters=[*shown, *rest])
    return of_two


def _rows_exchanged(x: Tensor, order: Tensor) -> Tensor:
    return x[order]


def both_exchanged(k: Tensor, order: Tensor) -> Tensor:
    """A matrix (n, n) of pairs of examples, rows and columns in another order."""
    return k[order][:, order]


def of_moments(
    function: Callable | None = None,
    *,
    dtype: torch.dtype | None = torch.float64,
    absolute: bool = False,
    several: bool = False,
) -> Callable:
    """A measure written for a `Pair` as a function of x (n, p) and y (n, q); see `of_rows`, whose sides are `Rows`.

    `.on(pair)` is the same for streamed moments, or for what has been checked and centred already. `several`: the
    function takes moments with several products at once, (…, p, q), as they are; else it sees one after the other.
    """
    if function is None:
        return partial(of_moments, dtype=dtype, absolute=absolute, several=several)

    @wraps(function)
    def of_sides(x: Rows, y: Rows, **options) -> Tensor:
        return function(Pair(x, y), **options)

    signature = inspect.signature(function)
    sides = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Tensor) for name in "xy"]
    of_sides.__signature__ = signature.replace(parameters=[*sides, *list(signature.parameters.values())[1:]])
    measure = of_rows(of_sides, prepare=lambda x, **_: Rows(x), dtype=dtype, absolute=absolute)

    def on(pair: Pair, **options) -> Tensor:
        if pair.constant:
            return _undefined()
        if pair.xy.ndim > 2 and not several:
            return torch.stack([function(one, **options) for one in pair.each()])
        return function(pair, **options)

    measure.on = on
    return measure


def _undefined() -> Tensor:
    return torch.tensor(torch.nan, dtype=torch.float64)
