"""Two representations of the same examples, checked: what every measure starts from.

One rule for input that cannot be compared: unequal numbers of examples, NaN or infinity, or fewer than four examples
raise an error; a representation without variance (every feature constant) gives NaN. A measure that would be full or
empty whatever the features hold, because they are as many as the examples, raises too (`refuse_full`).
"""

from collections.abc import Callable
from functools import cached_property, partial, wraps

import torch
from torch import Tensor

from reptrans.errors import BadData, ShapeMismatch
from reptrans.similarity.spectrum import Spectrum

LEAST = 4  # examples: below, U-centred products are undefined and the rest says nothing


class Pair:
    """x (n, p) and y (n, q), centred, with the faces that `Moments` has too; differentiable.

    `xx` (p, p), `xy` (p, q), `yy` (q, q): covariances, divided by n.
    """

    def __init__(self, x: Tensor, y: Tensor):
        self.count, self.x, self.y = len(x), centred(x), centred(y)

    @property
    def constant(self) -> bool:
        return not (self.x.any() and self.y.any())

    @cached_property
    def xx(self) -> Tensor:
        return self.x.T @ self.x / self.count

    @cached_property
    def xy(self) -> Tensor:
        return self.x.T @ self.y / self.count

    @cached_property
    def yy(self) -> Tensor:
        return self.y.T @ self.y / self.count

    @property
    def nuclear(self) -> Tensor:
        """‖xy‖_*, the sum of singular values; features beyond the number of examples cost nothing."""
        x, y = (v if len(v) >= v.shape[1] else torch.linalg.qr(v.T).R.T for v in (self.x, self.y))
        return torch.linalg.svdvals(x.T @ y).sum() / self.count

    @cached_property
    def spectrum(self) -> Spectrum:
        return Spectrum.of_rows(self.x, self.y)

    def alignment(self, debiased: bool) -> tuple[Tensor, Tensor, Tensor]:
        """⟨K, L⟩, ⟨K, K⟩, ⟨L, L⟩ of the linear Grams up to a common factor, centred or U-centred.

        By examples or by features, whichever is fewer.
        """
        if self.count <= max(self.x.shape[1], self.y.shape[1]):
            k, l = (v @ v.T for v in (self.x, self.y))  # noqa: E741  K and L are the field's names
            return products(u_centred(k), u_centred(l)) if debiased else products(k, l)
        squares = [m.square().sum() * self.count**2 for m in (self.xy, self.xx, self.yy)]
        if not debiased:
            return tuple(squares)
        a, b = self.x.square().sum(1), self.y.square().sum(1)
        return tuple(unbiased(self.count, s, u, v) for s, u, v in zip(squares, (a, a, b), (b, a, b), strict=True))


def unbiased(n: int, square: Tensor, a: Tensor, b: Tensor, ab: Tensor | None = None) -> Tensor:
    """⟨K̃, L̃⟩ of U-centred linear Grams from ‖XᵀY‖² and the squared row norms a, b (or their sums and that of a·b)."""
    ab = (a * b).sum() if ab is None else ab
    return square - n / (n - 2) * ab + a.sum() * b.sum() / ((n - 1) * (n - 2))


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


def of_moments(function: Callable | None = None, *, dtype: torch.dtype | None = torch.float64) -> Callable:
    """A measure written for a pair, or for streamed moments, as a function of x (n, p) and y (n, q), in `dtype`.

    `dtype` None: as given, float32 at least. `.on(pair)` is the same for what has been checked and centred already.
    """
    if function is None:
        return partial(of_moments, dtype=dtype)

    def on(pair, *args, **options) -> Tensor:
        return torch.tensor(torch.nan, dtype=torch.float64) if pair.constant else function(pair, *args, **options)

    @wraps(function)
    def of_two(x: Tensor, y: Tensor, *args, **options) -> Tensor:
        return on(Pair(*checked(x, y, function.__name__, dtype)), *args, **options)

    of_two.on = on
    return of_two


def of_rows(function: Callable | None = None, *, directed: bool = False) -> Callable:
    """A measure written for x (n, p) and y (n, q) with the checks of this file, in float64.

    `directed`: it looks at the direction of each row, so that an example that is zero everywhere gives NaN.
    """
    if function is None:
        return partial(of_rows, directed=directed)

    @wraps(function)
    def guarded(x: Tensor, y: Tensor, *args, **options) -> Tensor:
        x, y = checked(x, y, function.__name__)
        undefined = any((v == v[:1]).all() or (directed and (v == 0).all(1).any()) for v in (x, y))
        return x.new_tensor(torch.nan) if undefined else function(x, y, *args, **options)

    return guarded


def checked(x: Tensor, y: Tensor, name: str, dtype: torch.dtype | None = torch.float64) -> tuple[Tensor, Tensor]:
    """x and y in one `dtype` (None: theirs).

    Raises ShapeMismatch unless they are (n, p) and (n, q); BadData for NaN, infinity or fewer than 4 examples.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeMismatch(
            f"{name} needs (n, p) and (n, q) with the same n examples; given {tuple(x.shape)} and {tuple(y.shape)}. "
            "Fold maps and tokens first, with fold(activations, 'pool') say."
        )
    if len(x) < LEAST:
        raise BadData(f"{name} needs at least {LEAST} examples; given {len(x)}.")
    dtype = dtype or torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(dtype)
    for which, v in (("first", x), ("second", y)):
        if not torch.isfinite(v.sum()):
            raise BadData(
                f"{name}: the {which} representation holds NaN or infinity; look at the network and its input."
            )
    return x, y


def refuse_full(rank: int, examples: int, name: str) -> None:
    """Raise BadData where the features span every direction that the examples have: any data would fit."""
    if rank >= examples:
        raise BadData(
            f"{name} needs more examples than features: {rank} independent features explain anything about "
            f"{examples + 1} examples. Give more examples, or keep fewer dimensions, with svcca(x, y, keep=10) say."
        )
