"""CKA from Gram matrices of batches: for features so many that their moments do not fit into memory."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.similarity.checks import LEAST, largest_of, numbers, power_of_two, refuse_scale
from reptrans.similarity.inputs import Inputs, joined, size_of
from reptrans.similarity.pair import of_rows, u_centred


class Grams:
    """Streamed minibatch CKA of `layers_x` times `layers_y` pairs of layers at once.

    For every batch of b examples the U-centred Grams of all layers are formed once and multiplied with each other in
    one product; the unbiased HSIC estimates ⟨K̃, L̃⟩ / (b (b - 3)) are averaged, weighted with b. The ratio of averages
    is an estimator of its own, which depends on b: one batch of all examples gives `debiased_cka`.
    Memory is that of one batch and its Grams. Source: Nguyen et al. 2021, equation 3, there for equal batches.
    """

    def __init__(self, layers_x: int = 1, layers_y: int = 1, device: torch.device | str = "cpu"):
        self.count = 0
        sizes = (layers_x, layers_y), (layers_x,), (layers_y,)
        self._hsic, self._xx, self._yy = (torch.zeros(size, dtype=torch.float64, device=device) for size in sizes)

    @torch.no_grad()
    def update(self, x: Tensor | Sequence[Tensor], y: Tensor | Sequence[Tensor]) -> "Grams":
        """Add a batch: for each layer (b, features), b at least 4 (join a small last batch to the one before).

        Raises ShapeMismatch, and BadData for NaN, infinity or fewer than 4 examples.
        """
        sides = [v if isinstance(v, (list, tuple)) else [v] for v in (x, y)]
        x, y = ([numbers(v, "a layer's activations") for v in side] for side in sides)
        sizes = {len(v) if v.ndim == 2 else None for v in (*x, *y)}
        if len(sizes) != 1 or None in sizes or (len(x), len(y)) != tuple(self._hsic.shape):
            raise ShapeMismatch(
                f"These Grams are of {tuple(self._hsic.shape)} layers with the same examples, (b, features); given "
                f"{[tuple(v.shape) for v in x]} and {[tuple(v.shape) for v in y]}."
            )
        k = grams_of(x)
        return self.add(k, k if sides[0] is sides[1] else grams_of(y))

    def add(self, k: Tensor, l: Tensor) -> "Grams":  # noqa: E741
        """Add the U-centred Grams of a batch of b examples: k (layers_x, b, b) and l (layers_y, b, b). Raises BadData
        for fewer than 4 examples."""
        b = k.shape[-1]
        if b < LEAST:
            raise BadData(f"A batch needs at least {LEAST} examples; given {b}. Join it to the batch before.")
        k, l = k.flatten(1), l.flatten(1)  # noqa: E741
        weight = 1 / (b - 3)  # b / (b (b - 3))
        self._hsic += weight * (k @ l.T)
        self._xx += weight * k.square().sum(1)
        self._yy += weight * l.square().sum(1)
        self.count += b
        return self

    def values(self) -> Tensor:
        """Minibatch CKA (layers_x, layers_y) in [-1, 1], 1 = similar; NaN for a layer without variance."""
        if not self.count:
            raise BadData("No activations were seen yet; call update first.")
        return self._hsic / torch.outer(self._xx.sqrt(), self._yy.sqrt())

    def value(self, measure: str = "minibatch_cka") -> Tensor:
        """`values()` of the only pair; of all measures Grams give "minibatch_cka" alone."""
        if measure != "minibatch_cka":
            raise BadValue(f"Grams give minibatch_cka; given {measure!r}. Use Moments or the rows.")
        return self.values().squeeze()


@of_rows
def minibatch_cka(x: Tensor, y: Tensor, batch_size: int = 100) -> Tensor:
    """Minibatch CKA of x (n, p) and y (n, q) in batches of consecutive examples; see `Grams`.

    Range [-1, 1], 1 = similar. A last batch of fewer than 4 examples is joined to the one before.
    """
    if batch_size < LEAST:
        raise BadValue(f"batch_size is at least {LEAST}; given {batch_size}.")
    grams = Grams(device=x.device)
    for a, b in zip(*(join_small(v.split(batch_size)) for v in (x, y)), strict=True):
        grams.update(a, b)
    return grams.value()


def join_small(batches: Iterable[Inputs]) -> Iterator[Inputs]:
    """The batches; one of fewer than 4 examples joined to the one before, where their shapes allow it."""
    held = None
    for batch in batches:
        both = joined(held, batch) if held is not None and size_of(batch) < LEAST else None
        if held is not None and both is None:
            yield held
        held = batch if both is None else both
    if held is not None:
        yield held


def grams_of(layers: Sequence[Tensor]) -> Tensor:
    """(layers, b, b): the U-centred Gram of every layer (b, features)."""
    return torch.stack([_gram(v) for v in layers])


def _gram(x: Tensor) -> Tensor:
    """(b, b), U-centred in float64; the product in the precision given, around the first example and of the order of 1:
    U-centring takes any shift, and float32 keeps its digits."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = largest_of(x)
    if not float(largest) < torch.inf:
        raise BadData("Activations hold NaN or infinity; look at the network and its input before comparing them.")
    refuse_scale(float(largest), "these Grams")
    scale = power_of_two(largest)
    x = x / scale
    x = x - x[:1]
    return u_centred((x @ x.T).double()) * scale.double().square()
