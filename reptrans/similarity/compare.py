"""All pairs of layers of two networks in one pass over the images."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from reptrans.errors import BadData, BadValue, LayerNotFound, ShapeMismatch, choose
from reptrans.layers import channel_axes, cuttable_layers, front
from reptrans.layers.network import first_examples, unwrap
from reptrans.randomness import generator_of
from reptrans.similarity.checks import checked, largest_of, numbers
from reptrans.similarity.fold import check_fold, fold, laid_out, token_mask, without_padding
from reptrans.similarity.grams import join_small
from reptrans.similarity.inputs import Inputs, batches, explained, moved, refuse_single, size_of
from reptrans.similarity.kept import KEEPERS, Kept
from reptrans.similarity.measures import Measure, find
from reptrans.similarity.null import Calibrated, calibrated, check_null
from reptrans.similarity.stored import Features, refuse_other_examples
from reptrans.training import evaluating

if TYPE_CHECKING:
    import pandas as pd


@torch.no_grad()
def compare(
    net_a: nn.Module | Features,
    net_b: nn.Module | Features,
    loader: Iterable | None = None,
    layers_a: str | Sequence[str] | None = None,
    layers_b: str | Sequence[str] | None = None,
    measure: str | Measure = "debiased_cka",
    fold: str = "pool",
    class_tokens: int | tuple[int, int] = 0,
    null: int = 0,
    intervals: int = 0,
    seed: int = 0,
    **options,
) -> "pd.DataFrame | Calibrated":
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

    In place of two networks and a loader, two `Features`: what they gave, stored, matched by ids.

    With `null`, a number of random orders (from 20 on, 200 say), the values come with what chance gives: the same
    activations, the second network's examples exchanged, drawn from `seed`; see `Calibrated`. Rows of all layers are
    kept for it. `intervals`: so many random halves of the examples, for the 95 % interval of every value; with a null
    alone.

    A layer that does not vary gives NaN. Raises UnknownName, LayerNotFound, CannotCut; BadData for NaN, infinity, too
    few images or batches without any; ShapeMismatch for images that a network does not take and activations that
    cannot be paired; BadValue for what is no network, loader or option, and where memory would not do.
    """

    dropped = class_tokens if isinstance(class_tokens, tuple) else (class_tokens, class_tokens)
    if len(dropped) != 2:
        raise BadValue(f"class_tokens is one number for both networks, or a pair (a, b); given {class_tokens}.")
    for tokens in dropped:
        check_fold(fold, tokens)
    names = _asked(layers_a, layers_b)
    kept, sides = _keeper(measure, fold, options, null, intervals, seed), ()
    if isinstance(net_a, Features) or isinstance(net_b, Features):
        stored = _stored_sides((net_a, net_b), loader, names, dropped, fold)
        kept.add(*_both(*stored))
        return _finished(kept, intervals, *((list(side), range(len(side))) for side in stored))
    nets = unwrap(net_a), unwrap(net_b)
    with evaluating(*nets):
        for batch in join_small(batches(loader)):
            if not sides:
                first, second = zip(nets, names, dropped, strict=True)
                side = _Side(*first, batch, fold)
                sides = side, side if second == first else _Side(*second, batch, fold)
            first, second = sides
            layers = first.look(batch)
            looked, layers = _both(layers, layers if second is first else second.look(batch))
            if null and any(len(v) != size_of(batch) for v in layers):
                raise BadValue(
                    "tokens of texts with padding have no null: a text of one length cannot stand for one of another. "
                    "Fold with 'pool', or leave null at 0."
                )
            kept.add(looked, layers)
    if not sides:
        raise BadData("compare was given no images.")
    return _finished(kept, intervals, *((side.names, side.places) for side in sides))


@torch.no_grad()
def calibrate(
    x: Tensor,
    y: Tensor,
    measure: str | Measure = "debiased_cka",
    null: int = 200,
    intervals: int = 0,
    seed: int = 0,
    **options,
) -> dict[str, float]:
    """A measure of x (n, p) and y (n, q), tensors, arrays or lists, with what chance gives: value, mean, sd, effect,
    score, z, p, and low and high with `intervals`; see `Calibrated`. Raises as `compare` does.

        calibrate(x, y, "rsa", null=200)["effect"]
    """
    if not null:
        raise BadValue("calibrate needs a null, of 200 orders say; without one, call the measure.")
    name = find(measure).name
    x, y = checked(x, y, name)
    for side, rows in (("x", x), ("y", y)):
        refuse_infinite(rows, side)
    kept = _keeper(name, "flatten" if name == "minibatch_cka" else "pool", options, null, intervals, seed)
    kept.add((["x"], ["y"]), [x, y.to(x.device)])
    row = _finished(kept, intervals, (["x"], [0]), (["y"], [0])).rows().iloc[0]
    return {name: float(row[name]) for name in row.index if name not in ("front_layer", "end_layer", "p_searched")}


def _keeper(measure: str | Measure, how: str, options: dict, null: int, intervals: int, seed: int) -> Kept:
    """What keeps for this measure what it needs, and for its null and its intervals. Raises UnknownName, BadValue."""
    check_null(null, intervals)
    if intervals and not null:
        raise BadValue("intervals stand beside a null; give null=200 say.")
    generator, found = generator_of(seed), find(measure)
    return KEEPERS[found.needs](found.name, how, options, bool(null), shuffles=null, generator=generator)


def _finished(kept: Kept, intervals: int, *sides: tuple[list[str], list[int]]) -> "pd.DataFrame | Calibrated":
    """The table of what was kept, or all tables with a null; of each side its layers' names, and each one's place
    among what was kept."""
    import pandas as pd

    (rows, i), (columns, j) = sides
    table = pd.DataFrame(kept.values()[i][:, j].numpy(), pd.Index(rows), pd.Index(columns))
    if not kept.shuffles:
        return table
    null, halves = kept.null(), kept.halves(intervals) if intervals else None
    null, halves = (v if v is None else v[:, i][:, :, j] for v in (null, halves))
    return calibrated(table, null, find(kept.measure), halves)


def most_similar(table: "pd.DataFrame", measure: str | Measure) -> "pd.Series":
    """For every row of a table of `compare` the most similar column: of the largest value, or the smallest distance.

    NaN for a row that has only NaN. Raises UnknownName.
    """
    measure = find(measure)
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

    def look(self, batch: Inputs) -> dict[str, Tensor]:
        """The distinct layers' activations for a batch."""
        inputs = moved(self.net, batch)
        with explained(self.net, inputs):
            activations = self.front(inputs)
        self.distinct, places = _distinct(activations, self.names)
        if self.places not in ([], places):
            raise BadData("some layers give one tensor for some images and not for others; compare them one by one.")
        self.places = places
        return {name: self._checked(activations[name], name, inputs) for name in self.distinct}

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
        mask = token_mask(inputs, activations)
        if mask is not None and self.how in ("pool", "tokens"):
            refuse_infinite(activations, name)
            return without_padding(activations[:, self.dropped :], mask[:, self.dropped :], self.how)
        return _folded(activations, name, self.how, self.axes[name], self.dropped)


def _folded(activations: Tensor, name: str, how: str, axis: int | None, dropped: int) -> Tensor:
    refuse_infinite(activations, name)
    form = laid_out if how in ("pixels", "tokens") else fold
    return form(activations, how, axis, dropped)


def refuse_infinite(activations: Tensor, name: str) -> None:
    """Raise BadData for NaN or infinity in the activations of a layer, or in what is given as such."""
    if not largest_of(numbers(activations, f"the activations of layer {name!r}")) < torch.inf:
        raise BadData(f"the activations of layer {name!r} hold NaN or infinity; look at the network and its input.")


def _both(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[tuple[list[str], list[str]], list[Tensor]]:
    """Names and tensors of both sides, on one device; where both are the same, once."""
    layers, first, second = list(a.values()), list(a), list(b)
    if a is b:
        return (first, first), layers
    return (first, second), [*layers, *(v.to(layers[0].device) for v in b.values())]


def _stored_sides(sides: tuple, loader: object, names: list, dropped: tuple[int, int], how: str) -> list[dict]:
    """The layers of two `Features`, checked and folded; one and the same twice where both sides are."""
    if loader is not None or not all(isinstance(side, Features) for side in sides):
        raise BadValue(
            "compare takes two networks and a loader, or two Features and none. Features.of(net, loader, layers) are "
            "those of a network."
        )
    refuse_other_examples(*sides)
    found = []
    for side, own, leading in zip(sides, names, dropped, strict=True):
        chosen = list(side.layers) if own is None else own
        layers = {name: choose(name, side.layers, "no layer {} is stored", LayerNotFound) for name in chosen}
        found.append({name: _folded(v, name, how, None, leading) for name, v in layers.items()})
    same = sides[0] is sides[1] and names[0] == names[1] and dropped[0] == dropped[1]
    return [found[0], found[0]] if same else found


def _distinct(activations: dict[str, Tensor], names: list[str]) -> tuple[list[str], list[int]]:
    """The first name of every tensor, and of each layer which of these tensors it gives."""
    first = {}
    for name in names:
        first.setdefault(id(activations[name]), name)
    return list(first.values()), [list(first).index(id(activations[name])) for name in names]
