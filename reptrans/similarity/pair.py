"""Two representations of the same examples, checked: what every measure starts from.

One rule for input that cannot be compared: unequal numbers of examples, NaN or infinity, or fewer than four examples
raise an error; a representation without variance (every feature constant) gives NaN. A measure that would be full or
empty whatever the features hold, because they are as many as the examples, raises too (`refuse_full`).

A measure that a common scale leaves as it is sees each side divided by a power of two near its largest value: no digit
is lost, and squares neither overflow nor vanish.
"""

import inspect
from collections.abc import Callable
from functools import cached_property, partial, wraps

import numpy as np
import torch
from torch import Tensor

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.similarity.spectrum import Spectrum

LEAST = 4  # examples: below, U-centred products are undefined and the rest says nothing
MOST_GIB = 8  # of the matrices that one measure makes of its examples or features
_LARGEST = 1e70  # absolute value whose fourth power float64 still sums, and one over the smallest


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
        return self._product(self.x, self.x)

    @cached_property
    def xy(self) -> Tensor:
        return self._product(self.x, self.y)

    @cached_property
    def yy(self) -> Tensor:
        return self._product(self.y, self.y)

    def _product(self, x: Tensor, y: Tensor) -> Tensor:
        p, q = x.shape[1], y.shape[1]
        refuse_memory(p * q * x.element_size(), f"the products of {p} and {q} features", "Pool the features.")
        return x.T @ y / self.count

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
            size = 6 * self.count**2 * self.x.element_size()
            refuse_memory(size, f"the products of {self.count} examples", "Give fewer, or pool the features.")
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


def of_moments(
    function: Callable | None = None, *, dtype: torch.dtype | None = torch.float64, absolute: bool = False
) -> Callable:
    """A measure written for a pair, or for streamed moments, as a function of x (n, p) and y (n, q), in `dtype`.

    `dtype` None: as given, float32 at least. `absolute`: the scale of x and y matters. `.on(pair)` is the same for what
    has been checked and centred already.
    """
    if function is None:
        return partial(of_moments, dtype=dtype, absolute=absolute)

    def on(pair, *args, **options) -> Tensor:
        return torch.tensor(torch.nan, dtype=torch.float64) if pair.constant else function(pair, *args, **options)

    @wraps(function)
    def of_two(x: Tensor, y: Tensor, *args, **options) -> Tensor:
        return on(Pair(*checked(x, y, function.__name__, dtype, absolute)), *args, **options)

    of_two.on, of_two.__signature__ = on, _of_x_and_y(function)
    return of_two


def of_rows(
    function: Callable | None = None, *, directed: bool = False, absolute: bool = False, matrices: int = 0
) -> Callable:
    """A measure written for x (n, p) and y (n, q) with the checks of this file, in float64.

    `directed`: it looks at the direction of each row, so that an example that is zero everywhere gives NaN. `absolute`:
    the scale of x and y matters. `matrices`: so many of n x n numbers it holds at once; refused where that is too much.
    """
    if function is None:
        return partial(of_rows, directed=directed, absolute=absolute, matrices=matrices)

    @wraps(function)
    def guarded(x: Tensor, y: Tensor, *args, **options) -> Tensor:
        x, y = checked(x, y, function.__name__, absolute=absolute)
        guarded.refuse_examples(len(x))
        undefined = any((v == v[:1]).all() or (directed and (v == 0).all(1).any()) for v in (x, y))
        return x.new_tensor(torch.nan) if undefined else function(x, y, *args, **options)

    guarded.refuse_examples = partial(_refuse_examples, function.__name__, matrices)
    return guarded


def _refuse_examples(name: str, matrices: int, examples: int) -> None:
    most = int((MOST_GIB * 2**27 / matrices) ** 0.5) if matrices else examples
    need = f"{name} of {examples} examples: the distances between them"
    refuse_memory(8 * matrices * examples**2, need, f"Give at most {most} examples.")


def _of_x_and_y(function: Callable) -> inspect.Signature:
    """The signature of a measure written for a pair, as it is called."""
    signature = inspect.signature(function)
    sides = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Tensor) for name in "xy"]
    return signature.replace(parameters=[*sides, *list(signature.parameters.values())[1:]])


def checked(
    x: Tensor, y: Tensor, name: str, dtype: torch.dtype | None = torch.float64, absolute: bool = False
) -> tuple[Tensor, Tensor]:
    """x and y, anything that `numbers` takes, in one `dtype` (None: theirs); of the order of 1 unless `absolute`.

    Raises ShapeMismatch unless they are (n, p) and (n, q); BadData for NaN, infinity or fewer than 4 examples.
    """
    x, y = (numbers(v, f"{name}, {which} representation") for v, which in ((x, "first"), (y, "second")))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeMismatch(
            f"{name} needs (n, p) and (n, q) with the same n examples; given {tuple(x.shape)} and {tuple(y.shape)}. "
            "Fold maps and tokens first, with fold(activations, 'pool') say."
        )
    if len(x) < LEAST:
        raise BadData(f"{name} needs at least {LEAST} examples; given {len(x)}.")
    dtype = dtype or torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    x, y = x.to(dtype), y.to(x.device, dtype)
    largest = [largest_of(v) for v in (x, y)]
    for which, size in zip(("first", "second"), map(float, largest), strict=True):
        if not size < torch.inf:
            raise BadData(
                f"{name}: the {which} representation holds NaN or infinity; look at the network and its input."
            )
        if absolute:
            refuse_scale(size, name)
    return (x, y) if absolute else tuple(v / power_of_two(size) for v, size in zip((x, y), largest, strict=True))


def numbers(value: object, what: str) -> Tensor:
    """A tensor of floats, see `tensor_of`; whole numbers become float64."""
    found = tensor_of(value, what)
    return found if found.is_floating_point() else found.double()


def tensor_of(value: object, what: str) -> Tensor:
    """A tensor of real numbers: of a tensor, a NumPy array, nested lists or a table. Else BadData, about `what`."""
    try:
        found = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    except (TypeError, ValueError, RuntimeError):
        given = repr(value) if isinstance(value, (str, bytes, type(None))) else f"a {type(value).__name__}"
        raise BadData(f"{what}: a tensor, a NumPy array or lists of numbers is needed; given {given[:80]}.") from None
    if found.is_complex():
        raise BadData(f"{what}: complex numbers. Take their parts as features: torch.view_as_real(x).flatten(1).")
    return found


def largest_of(x: Tensor) -> Tensor:
    """The largest absolute value, (); 0 of nothing, NaN where there is one."""
    if not x.numel():
        return x.new_zeros(())
    low, high = x.detach().aminmax()
    return torch.maximum(-low, high)


def power_of_two(size: Tensor) -> Tensor:
    """The largest power of two that is at most `size` (), which is 0 or more; 1 for 0."""
    return torch.where(size > 0, size / (2 * torch.frexp(size).mantissa), 1)


def refuse_scale(largest: float, name: str) -> None:
    """Raise BadData for values whose powers float64 cannot sum, or would lose as 0."""
    if largest and not 1 / _LARGEST < largest < _LARGEST:
        raise BadData(
            f"{name}: values of about {largest:.0e} are too {'small' if largest < 1 else 'large'} to be squared and "
            f"summed. Scale them: from {1 / _LARGEST:.0e} to {_LARGEST:.0e} is possible."
        )


def refuse_memory(size: int, what: str, advice: str) -> None:
    """Raise BadValue before more than MOST_GIB of memory are taken."""
    if size > MOST_GIB * 2**30:
        raise BadValue(f"{what} take {size / 2**30:.0f} GiB, more than {MOST_GIB}. {advice}")


def refuse_full(rank: int, examples: int, name: str) -> None:
    """Raise BadData where the features span every direction that the examples have: any data would fit."""
    if rank >= examples:
        raise BadData(
            f"{name} needs more examples than features: {rank} independent features explain anything about "
            f"{examples + 1} examples. Give more examples, or keep fewer dimensions, with svcca(x, y, keep=10) say."
        )
