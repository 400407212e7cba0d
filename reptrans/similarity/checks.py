"""What can be compared at all, and what is said of the rest; every measure starts here.

One rule for all: unequal numbers of examples, NaN or infinity, or fewer than four examples raise an error; a
representation without variance (every feature constant) gives NaN. A measure that would be full or empty whatever the
features hold, because they are as many as the examples, raises too (`refuse_full`).

A measure that a common scale leaves as it is sees each side divided by a power of two near its largest value: no digit
is lost, and squares neither overflow nor vanish.
"""

import numpy as np
import torch
from torch import Tensor

from reptrans.errors import BadData, BadValue, ShapeMismatch

LEAST = 4  # examples: below, U-centred products are undefined and the rest says nothing
MOST_GIB = 8  # of the matrices that one measure makes of its examples or features
_LARGEST = 1e70  # absolute value whose fourth power float64 still sums, and one over the smallest


def checked(x: Tensor, y: Tensor, name: str, dtype: torch.dtype | None = torch.float64) -> tuple[Tensor, Tensor]:
    """x and y, anything that `numbers` takes, in one `dtype`; None: theirs, float32 at least.

    Raises ShapeMismatch unless they are (n, p) and (n, q); BadData for fewer than 4 examples.
    """
    x, y = (numbers(v, f"{name}, {which} representation") for v, which in ((x, "first"), (y, "second")))
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeMismatch(
            f"{name} needs (n, p) and (n, q) with the same n examples; given {tuple(x.shape)} and {tuple(y.shape)}. "
            "Fold maps and tokens first, with fold(activations, 'pool') say."
        )
    refuse_few(name, len(x))
    dtype = dtype or torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.to(dtype), y.to(x.device, dtype)


def scaled(x: Tensor, name: str, which: str, absolute: bool) -> Tensor:
    """x of the order of 1, or as it is if `absolute`. BadData for NaN, infinity and scales that are out of range."""
    size = largest_of(x)
    if not float(size) < torch.inf:
        raise BadData(f"{name}: the {which} representation holds NaN or infinity; look at the network and its input.")
    if absolute:
        refuse_scale(float(size), name)
    return x if absolute else x / power_of_two(size)


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


def refuse_few(name: str, examples: int) -> None:
    """Raise BadData for fewer examples than any measure needs."""
    if examples < LEAST:
        raise BadData(f"{name} needs at least {LEAST} examples; given {examples}.")


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


def refuse_examples(name: str, matrices: int, examples: int) -> None:
    """Raise BadValue before so many matrices of n x n numbers take more than MOST_GIB."""
    most = int((MOST_GIB * 2**27 / matrices) ** 0.5) if matrices else examples
    need = f"{name} of {examples} examples: the distances between them"
    refuse_memory(8 * matrices * examples**2, need, f"Give at most {most} examples.")


def refuse_full(rank: int, examples: int, name: str) -> None:
    """Raise BadData where the features span every direction that the examples have: any data would fit."""
    if rank >= examples:
        raise BadData(
            f"{name} needs more examples than features: {rank} independent features explain anything about "
            f"{examples + 1} examples. Give more examples, or keep fewer dimensions, with svcca(x, y, keep=10) say."
        )
