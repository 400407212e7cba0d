"""All pairs of layers of two networks in one pass over the images."""

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.layers import channel_axes, cuttable_layers, front
from reptrans.layers.network import first_examples, unwrap
from reptrans.similarity.checks import largest_of
from reptrans.similarity.fold import FOLDS, blocks, check_fold, fold, laid_out, places, token_mask, without_padding
from reptrans.similarity.grams import Grams, join_small
from reptrans.similarity.inputs import Inputs, batches, explained, moved, refuse_single, size_of
from reptrans.similarity.measures import Measure, find
from reptrans.similarity.moments import AT_ONCE, PairMoments, Sums
from reptrans.training import evaluating

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 2**32  # of moments, or of rows and what is prepared of them


@torch.no_grad()
def compare(
    net_a: nn.Module,
    net_b: nn.Module,
    loader: Iterable,
    layers_a: str | Sequence[str] | None = None,
    layers_b: str | Sequence[str] | None = None,
    measure: str = "debiased_cka",
    fold: str = "pool",
    class_tokens: int | tuple[int, int] = 0,
    **options,
) -> "pd.DataFrame":
    """A measure of MEASURES for every layer of one network (rows) with every layer of the other (columns).

    `loader` gives batches, as a torch DataLoader does: images; tuples or lists that begin with images; mappings with
    "images", "pixel_values" or "x", or of the networks' keywords; what their "attention_mask" leaves out is no token of
    "pool" and "tokens". A tensor of images is one batch. Batches are moved to each network, and floats to its
    precision. Both networks see the same ones, in eval mode, and are afterwards in the mode they were in.
    `layers_a`, `layers_b`: a name, several, or "all" that the network can be cut at and `fold` takes; layers_a alone
    names those of both networks; without any it is all of each. `fold` says what is a sample and what a feature, see
    `fold`; of "pixels" the two maps are averaged down to the smaller grid. Which axis holds channels is found by
    `layers.channel_axes`. `class_tokens`: so many leading tokens are dropped, in both networks or (a, b) in each.
    `options` are the measure's. What is kept depends on what the measure needs: moments of all layers (exact, whatever
    the number of images), Grams of one batch ("minibatch_cka", for "flatten"), or all rows; of layers that give one and
    the same tensor, as a block and its last part do, once.

        figures.heatmap(compare(a, b, loader), "debiased CKA, pooled", limits=(0, 1))

    A layer that does not vary gives NaN. Raises UnknownName, LayerNotFound, CannotCut; BadData for NaN, infinity, too
    few images or batches without any; ShapeMismatch for images that a network does not take and activations that
    cannot be paired; BadValue for what is no network, loader or option, and where memory would not do.
    """
    import pandas as pd

    nets = unwrap(net_a), unwrap(net_b)
    dropped = class_tokens if isinstance(class_tokens, tuple) else (class_tokens, class_tokens)
    if len(dropped) != 2:
        raise BadValue(f"class_tokens is one number for both networks, or a pair (a, b); given {class_tokens}.")
    for tokens in dropped:
        check_fold(fold, tokens)
    names = _asked(layers_a, layers_b)
    kept = _KEEPERS[find(measure).needs](measure, fold, options)
    with evaluating(*nets):
        for batch in join_small(batches(loader)):
            if not kept.sides:
                first, second = zip(nets, names, dropped, strict=True)
                side = _Side(*first, batch, fold)
                kept.sides = side, side if second == first else _Side(*second, batch, fold)
            kept.update(batch)
    if not kept.sides:
        raise BadData("compare was given no images.")
    a, b = kept.sides
    values, mirrored = {}, a is b and find(measure).symmetric
    for i, j in product(range(len(a.distinct)), range(len(b.distinct))):
        values[i, j] = values[j, i] if mirrored and j < i else _value(kept, i, j)
    return pd.DataFrame([[values[i, j] for j in b.places] for i in a.places], pd.Index(a.names), pd.Index(b.names))


def most_similar(table: "pd.DataFrame", measure: str | Measure) -> "pd.Series":
    """For every row of a table of `compare` the most similar column: of the largest value, or the smallest distance.

    NaN for a row that has only NaN. Raises UnknownName.
    """
    measure = find(measure) if isinstance(measure, str) else measure
    values = table if measure.higher_is_better else -table
    return values.fillna(-np.inf).idxmax(axis=1).where(table.notna().any(axis=1))


def _asked(*layers: str | Sequence[str] | None) -> list[list[str] | None]:
    """The names of each side; None for all."""
    a, b = (None if v in (None, "all") else [v] if isinstance(v, str) else list(v) for v in layers)
    if a == [] or b == []:
        raise BadValue("compare needs at least one layer of each network.")
    return [a, a if layers[1] is None else b]


class _Side:
    """One network and the layers of it that are looked at: batch -> their activations, folded as far as each can be.

    `distinct`: the layers that give a tensor of their own, whose activations these are; `places`: each layer's there.
    """

    def __init__(self, net: nn.Module, names: list[str] | None, dropped: int, batch: Inputs, how: str):
        self.net, self.how, self.dropped = net, how, dropped
        few = moved(net, first_examples(batch, 2))
        refuse_single(net, batch)
        with explained(net, few):
            self.names = list(cuttable_layers(net, few)) if names is None else names
            self.axes = channel_axes(net, self.names, few)
            if names is None:
                self.names = self._foldable(few)
            self.front = front(net, self.names)
        self.distinct: list[str] = []
        self.places: list[int] = []

    def __call__(self, batch: Inputs) -> list[Tensor]:
        inputs = moved(self.net, batch)
        with explained(self.net, inputs):
            activations = self.front(inputs)
        self.distinct, places = _distinct(activations, self.names)
        if self.places not in ([], places):
            raise BadData("some layers give one tensor for some images and not for others; compare them one by one.")
        self.places = places
        return [self._checked(activations[name], name, inputs) for name in self.distinct]

    def _foldable(self, few: Inputs) -> list[str]:
        activations, found = front(self.net, self.names)(few), []
        for name in self.names:
            try:
                self._checked(activations[name], name, few)
                found.append(name)
            except (ShapeMismatch, BadData):
                continue
        if not found:
            raise BadValue(f"{type(self.net).__name__} has no layer to cut and to fold with {self.how!r}. Name layers.")
        return found

    def _checked(self, activations: Tensor, name: str, inputs: Inputs) -> Tensor:
        """(n, features), or the maps or tokens themselves, channels first, where their places are samples."""
        examples = size_of(inputs)
        if not activations.ndim or len(activations) != examples:
            raise ShapeMismatch(
                f"layer {name!r} gives {tuple(activations.shape)}, but other layers have {examples} examples, as the "
                "batch has. Batches are (n, …)."
            )
        if not largest_of(activations) < torch.inf:
            raise BadData(f"the activations of layer {name!r} hold NaN or infinity; look at the network and its input.")
        mask = token_mask(inputs, activations)
        if mask is not None and self.how in ("pool", "tokens"):
            return without_padding(activations[:, self.dropped :], mask[:, self.dropped :], self.how)
        form = laid_out if self.how in ("pixels", "tokens") else fold
        return form(activations, self.how, self.axes[name], self.dropped)


def _distinct(activations: dict[str, Tensor], names: list[str]) -> tuple[list[str], list[int]]:
    """The first name of every tensor, and of each layer which of these tensors it gives."""
    first = {}
    for name in names:
        first.setdefault(id(activations[name]), name)
    return list(first.values()), [list(first).index(id(activations[name])) for name in names]


class _Kept:
    """What is kept of all layers from batch to batch: those of the first side, and from place `second` of the other.

    Of a network with itself the two are the same, and `second` is 0.
    """

    folds: tuple[str, ...] = ("pool", "flatten")

    def __init__(self, measure: str, how: str, options: dict):
        self.measure, self.how, self.options, self.sides, self.started = measure, how, options, (), False
        if how not in self.folds:
            raise BadValue(f"{measure} compares whole examples: fold with 'pool' or 'flatten', not with {how!r}.")
        find(measure).check_options(options)

    def update(self, batch: Inputs) -> None:
        first, second = self.sides
        layers = first(batch)
        if second is not first:
            layers = [*layers, *(v.to(layers[0].device) for v in second(batch))]
        if not self.started:
            self.second = 0 if second is first else len(first.distinct)
            self.start(layers)
            self.started = True
        self.add(layers)


class _KeptMoments(_Kept):
    """Sums of each layer, on each grid that it meets another on (only "pixels" has more than one), and products of
    each pair."""

    folds = FOLDS

    def start(self, layers: list[Tensor]) -> None:
        debiased, widths = self.measure == "debiased_cka", [v.shape[1] for v in layers]
        a, b = (range(len(side.distinct)) for side in self.sides)
        # Of a network with itself, the product of j with i is that of i with j.
        self.grids = {(i, j): self._grid(layers, i, j) for i, j in product(a, b) if self.second or i <= j}
        keys = {key for (i, j), grid in self.grids.items() for key in ((i, grid), (self.second + j, grid))}
        shapes = {(i, j): (widths[i] + debiased, widths[self.second + j] + debiased) for i, j in self.grids}
        self._refuse_size(sum(widths[k] ** 2 for k, _ in keys) + sum(map(math.prod, shapes.values())), sum(widths))
        self.sums = {key: Sums(debiased) for key in keys}
        self.products = {key: layers[0].new_zeros(shape, dtype=torch.float64) for key, shape in shapes.items()}

    def add(self, layers: list[Tensor]) -> None:
        most = max(math.prod(v.shape[2:]) for v in layers)
        for parts in zip(*(v.split(max(1, AT_ONCE // most)) for v in layers), strict=True):
            z = {(k, grid): sums.add(self._fold(parts[k], grid)) for (k, grid), sums in self.sums.items()}
            for (i, j), grid in self.grids.items():
                self.products[i, j].addmm_(z[i, grid], z[self.second + j, grid].T)

    def value(self, i: int, j: int) -> Tensor:
        turned = (i, j) not in self.grids
        key = (j, i) if turned else (i, j)
        x, y = (self.sums[k, self.grids[key]].own for k in (i, self.second + j))
        pair = PairMoments(x, y, self.products[key].T if turned else self.products[key])
        return pair.value(self.measure, **self.options)

    def _grid(self, layers: list[Tensor], i: int, j: int) -> tuple[int, ...] | None:
        """The places on which layers i and j meet; None where whole examples are samples."""
        if self.how not in ("pixels", "tokens"):
            return None
        x, y = (places(layers[k], 1) for k in (i, self.second + j))
        if self.how == "tokens" and x != y:
            a, b = (side.distinct for side in self.sides)
            raise ShapeMismatch(
                f"layers {a[i]!r} and {b[j]!r} have {x} and {y} tokens, which cannot be paired; fold with 'pool', or "
                "drop class tokens with class_tokens."
            )
        return tuple(map(min, x, y))

    def _fold(self, activations: Tensor, grid: tuple[int, ...] | None) -> Tensor:
        return activations.unsqueeze(2) if grid is None else blocks(activations, self.how, grid, 1)

    def _refuse_size(self, entries: int, features: int) -> None:
        if 8 * entries > MOST_BYTES:
            raise BadValue(
                f"the moments of {features} features take {8 * entries / 2**30:.0f} GiB, more than "
                f"{MOST_BYTES / 2**30:.0f}. Name fewer layers, fold with 'pool', or take measure='minibatch_cka'."
            )


class _KeptGrams(_Kept):
    def __init__(self, measure: str, how: str, options: dict):
        super().__init__(measure, how, options)
        if options:
            raise BadValue(f"{measure} takes its batches from the loader, not {', '.join(options)}.")

    def start(self, layers: list[Tensor]) -> None:
        self.grams = Grams(*(len(side.distinct) for side in self.sides), layers[0].device)

    def add(self, layers: list[Tensor]) -> None:
        self.grams.update(*(layers[: self.second], layers[self.second :]) if self.second else (layers, layers))

    def value(self, i: int, j: int) -> Tensor:
        return self.grams.values()[i, j]


class _KeptRows(_Kept):
    """All rows; at the end each layer is prepared once, as far as memory holds what that makes of the columns."""

    def start(self, layers: list[Tensor]) -> None:
        self.function, self.rows = find(self.measure).function, [[] for _ in layers]
        self.bytes, self.examples, self.row, self.columns = 0, 0, (None, None), {}

    def add(self, layers: list[Tensor]) -> None:
        for rows, v in zip(self.rows, layers, strict=True):
            rows.append(v.clone())
            self.bytes += v.nbytes
        self.examples += len(layers[0])
        self.function.refuse_examples(self.examples)
        if self.bytes > MOST_BYTES:
            raise BadValue(
                f"{self.measure} keeps the rows of all layers, more than {MOST_BYTES / 2**30:.0f} GiB by now. Name "
                "fewer layers, give fewer images, or fold with 'pool'."
            )

    def value(self, i: int, j: int) -> Tensor:
        if self.row[0] != i:
            self.row = i, self._prepared(i)
        return self.function.combine(self.row[1], self._prepared(self.second + j), **self.options)

    def _prepared(self, k: int) -> object:
        if k in self.columns:
            return self.columns[k]
        own = self.function.prepare(torch.cat(self.rows[k]).double(), **self.options)
        size = sum(v.nbytes for v in (own if isinstance(own, tuple) else [own]) if isinstance(v, Tensor))
        if k >= self.second and self.bytes + size <= MOST_BYTES:
            self.columns[k] = own
            self.bytes += size
        return own


_KEEPERS = {"moments": _KeptMoments, "grams": _KeptGrams, "rows": _KeptRows}


def _value(kept: _Kept, i: int, j: int) -> float:
    try:
        return float(kept.value(i, j))
    except BadData as error:
        x, y = (side.distinct[k] for side, k in zip(kept.sides, (i, j), strict=True))
        raise BadData(f"Layers {x!r} and {y!r}: {error}") from None
