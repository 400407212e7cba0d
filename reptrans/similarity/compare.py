"""All pairs of layers of two networks in one pass over the images."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.layers import channel_axes, cuttable_layers, front
from reptrans.layers.network import first_examples, unwrap
from reptrans.similarity.fold import FOLDS, blocks, check_fold, fold, laid_out, places, token_mask, without_padding
from reptrans.similarity.grams import Grams, join_small
from reptrans.similarity.inputs import Inputs, batches, explained, moved, refuse_single, size_of
from reptrans.similarity.measures import Measure, find
from reptrans.similarity.moments import Moments
from reptrans.similarity.pair import largest_of

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 2**31  # of moments or rows kept


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
    `options` are the measure's. What is kept depends on what the measure needs: joint moments of all layers (exact,
    whatever the number of images), Grams of one batch ("minibatch_cka", for "flatten"), or all rows.

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
    with _evaluating(*nets):
        for batch in join_small(batches(loader)):
            if not kept.sides:
                sides = zip(nets, names, dropped, strict=True)
                kept.sides = tuple(_Side(net, own, batch, fold, tokens) for net, own, tokens in sides)
            kept.update(batch)
    if not kept.sides:
        raise BadData("compare was given no images.")
    a, b = (side.names for side in kept.sides)
    values = {(x, y): float(_named(kept.value, i, j, x, y)) for (i, x), (j, y) in product(enumerate(a), enumerate(b))}
    return pd.DataFrame([[values[x, y] for y in b] for x in a], pd.Index(a), pd.Index(b))


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
    """One network and the layers of it that are looked at: batch -> their activations, folded as far as each can be."""

    def __init__(self, net: nn.Module, names: list[str] | None, batch: Inputs, how: str, dropped: int):
        self.net, self.how, self.dropped = net, how, dropped
        few = moved(net, first_examples(batch, 2))
        refuse_single(net, batch)
        with explained(net, few):
            self.names = list(cuttable_layers(net, few)) if names is None else names
            self.axes = channel_axes(net, self.names, few)
            if names is None:
                self.names = self._foldable(few)
            self.front = front(net, self.names)

    def __call__(self, batch: Inputs) -> list[Tensor]:
        inputs = moved(self.net, batch)
        with explained(self.net, inputs):
            activations = self.front(inputs)
        return [self._checked(activations[name], name, inputs) for name in self.names]

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


class _Kept:
    """What of all layers is kept from batch to batch by an accumulator."""

    folds: tuple[str, ...] = ("pool", "flatten")

    def __init__(self, measure: str, how: str, options: dict):
        self.measure, self.how, self.options, self.started = measure, how, options, False
        self.sides: tuple[_Side, ...] = ()
        if how not in self.folds:
            raise BadValue(f"{measure} compares whole examples: fold with 'pool' or 'flatten', not with {how!r}.")
        find(measure).check_options(options)

    def update(self, batch: Inputs) -> None:
        first, second = self.sides
        a = first(batch)
        same = first.net is second.net and (first.names, first.dropped) == (second.names, second.dropped)
        b = a if same else [v.to(a[0].device) for v in second(batch)]
        if not self.started:
            self.start(a, b)
            self.started = True
        self.add(a, b)


class _KeptMoments(_Kept):
    """Joint moments, one for each grid on which a pair of layers meets (only "pixels" has more than one)."""

    folds = FOLDS

    def start(self, a: list[Tensor], b: list[Tensor]) -> None:
        grids = [[self._grid(v) for v in side] for side in (a, b)]
        self.meet = {(i, j): self._smaller(grids, i, j) for i, j in product(range(len(a)), range(len(b)))}
        self.moments, self.members = {}, {}
        for grid in set(self.meet.values()):
            pairs = [pair for pair, met in self.meet.items() if met == grid]
            members = [sorted({pair[side] for pair in pairs}) for side in (0, 1)]
            widths = [[self._fold(s[k], grid).shape[1] for k in m] for s, m in zip((a, b), members, strict=True)]
            self._refuse_size(sum(map(sum, widths)))
            self.members[grid] = members
            self.moments[grid] = Moments(*widths, a[0].device, debiased=self.measure == "debiased_cka")

    def add(self, a: list[Tensor], b: list[Tensor]) -> None:
        for grid, moments in self.moments.items():
            chosen = zip((a, b), self.members[grid], strict=True)
            moments.update(*(torch.cat([self._fold(side[k], grid) for k in m], 1) for side, m in chosen))

    def value(self, i: int, j: int) -> Tensor:
        grid = self.meet[i, j]
        places = (members.index(k) for members, k in zip(self.members[grid], (i, j), strict=True))
        return self.moments[grid].pair(*places).value(self.measure, **self.options)

    def _grid(self, activations: Tensor) -> tuple[int, ...] | None:
        return places(activations, 1) if self.how in ("pixels", "tokens") else None

    def _smaller(self, grids: list[list], i: int, j: int) -> tuple[int, ...] | None:
        x, y = grids[0][i], grids[1][j]
        if self.how == "tokens" and x != y:
            raise ShapeMismatch(
                f"layers {self.sides[0].names[i]!r} and {self.sides[1].names[j]!r} have {x} and {y} tokens, which "
                "cannot be paired; fold with 'pool', or drop class tokens with class_tokens."
            )
        return tuple(map(min, x, y)) if self.how == "pixels" else x

    def _fold(self, activations: Tensor, grid: tuple[int, ...] | None) -> Tensor:
        return activations.unsqueeze(2) if grid is None else blocks(activations, self.how, grid, 1)

    def _refuse_size(self, features: int) -> None:
        if 8 * features**2 > MOST_BYTES:
            raise BadValue(
                f"the joint moments of {features} features take {8 * features**2 / 2**30:.0f} GiB, more than "
                f"{MOST_BYTES / 2**30:.0f}. Name fewer layers, fold with 'pool', or take measure='minibatch_cka'."
            )


class _KeptGrams(_Kept):
    def __init__(self, measure: str, how: str, options: dict):
        super().__init__(measure, how, options)
        if options:
            raise BadValue(f"{measure} takes its batches from the loader, not {', '.join(options)}.")

    def start(self, a: list[Tensor], b: list[Tensor]) -> None:
        self.grams = Grams(len(a), len(b), a[0].device)

    def add(self, a: list[Tensor], b: list[Tensor]) -> None:
        self.grams.update(a, b)

    def value(self, i: int, j: int) -> Tensor:
        return self.grams.values()[i, j]


class _KeptRows(_Kept):
    def start(self, a: list[Tensor], b: list[Tensor]) -> None:
        self.rows, self.bytes, self.examples = tuple([[] for _ in side] for side in (a, b)), 0, 0

    def add(self, a: list[Tensor], b: list[Tensor]) -> None:
        for rows, side in zip(self.rows, (a, b), strict=True):
            for chunks, v in zip(rows, side, strict=True):
                chunks.append(v.clone())
                self.bytes += chunks[-1].nbytes
        self.examples += len(a[0])
        find(self.measure).function.refuse_examples(self.examples)
        if self.bytes > MOST_BYTES:
            raise BadValue(
                f"{self.measure} keeps the rows of all layers, more than {MOST_BYTES / 2**30:.0f} GiB by now. Name "
                "fewer layers, give fewer images, or fold with 'pool'."
            )

    def value(self, i: int, j: int) -> Tensor:
        return find(self.measure).function(torch.cat(self.rows[0][i]), torch.cat(self.rows[1][j]), **self.options)


_KEEPERS = {"moments": _KeptMoments, "grams": _KeptGrams, "rows": _KeptRows}


def _named(value, i: int, j: int, x: str, y: str) -> Tensor:
    try:
        return value(i, j)
    except BadData as error:
        raise BadData(f"Layers {x!r} and {y!r}: {error}") from None


def _images(loader: Iterable) -> Iterator[Tensor]:
    for batch in loader:
        yield batch if isinstance(batch, Tensor) else batch[0]


@contextmanager
def _evaluating(*nets: nn.Module) -> Iterator[None]:
    modes = {module: module.training for net in nets for module in net.modules()}
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
