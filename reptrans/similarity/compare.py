"""All pairs of layers of two networks in one pass over the images."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import pandas as pd
import torch
from torch import Tensor, nn

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.layers import front
from reptrans.similarity.fold import FOLDS, blocks, fold, places
from reptrans.similarity.grams import Grams, join_small
from reptrans.similarity.measures import find
from reptrans.similarity.moments import Moments

MOST_BYTES = 2**31  # of moments or rows kept


@torch.no_grad()
def compare(
    net_a: nn.Module,
    net_b: nn.Module,
    loader: Iterable,
    layers_a: Sequence[str],
    layers_b: Sequence[str] | None = None,
    measure: str = "debiased_cka",
    fold: str = "pool",
    **options,
) -> pd.DataFrame:
    """A measure of MEASURES for every layer of one network (rows) with every layer of the other (columns).

    `loader` gives batches of images, or tuples that begin with images, in the shape both networks take; both see the
    same ones, in eval mode, and are afterwards in the mode they were in. `layers_b` None: the same names. `fold` says
    what is a sample and what a feature, see `fold`; of "pixels" the two maps are averaged down to the smaller grid.
    `options` are the measure's. What is kept depends on what the measure needs: joint moments of all layers (exact,
    whatever the number of images), Grams of one batch ("minibatch_cka", for "flatten"), or all rows.

        figures.heatmap(compare(a, b, loader, layers), "debiased CKA, pooled", limits=(0, 1))

    A layer that does not vary gives NaN. Raises UnknownName, LayerNotFound, CannotCut; BadData for NaN, infinity or too
    few images; ShapeMismatch for activations that cannot be paired; BadValue where memory would not do.
    """
    names = list(layers_a), list(layers_a if layers_b is None else layers_b)
    if not all(names):
        raise BadValue("compare needs at least one layer of each network.")
    kept = _KEEPERS[find(measure).needs](measure, fold, *names, options)
    with _evaluating(net_a, net_b):
        fronts = front(net_a, names[0]), front(net_b, names[1])
        for images in join_small(_images(loader)):
            a = fronts[0](images)
            kept.update(a, a if net_a is net_b and names[0] == names[1] else fronts[1](images))
    if not kept.started:
        raise BadData("compare was given no images.")
    values = {(x, y): float(_named(kept.value, i, j, x, y)) for (i, x), (j, y) in product(*map(enumerate, names))}
    return pd.DataFrame([[values[x, y] for y in names[1]] for x in names[0]], *map(pd.Index, names))


class _Kept:
    """What of all layers is kept from batch to batch: folded, checked, and handed to an accumulator."""

    folds: tuple[str, ...] = ("pool", "flatten")

    def __init__(self, measure: str, how: str, names_a: list[str], names_b: list[str], options: dict):
        self.measure, self.how, self.names, self.options = measure, how, (names_a, names_b), options
        self.started = False
        if how in FOLDS and how not in self.folds:
            raise BadValue(f"{measure} compares whole examples: fold with 'pool' or 'flatten', not with {how!r}.")

    def update(self, a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
        examples = len(a[self.names[0][0]])
        acts = zip(self.names, (a, b), strict=True)
        sides = [[self._checked(side[name], name, examples) for name in names] for names, side in acts]
        if not self.started:
            self.start(*sides)
            self.started = True
        self.add(*sides)

    def _checked(self, activations: Tensor, name: str, examples: int) -> Tensor:
        """(n, features), or the maps or tokens themselves where their places are samples."""
        if len(activations) != examples:
            raise ShapeMismatch(
                f"layer {name!r} gives {tuple(activations.shape)}, but other layers have {examples} examples."
            )
        activations = activations if self.how in ("pixels", "tokens") else fold(activations, self.how)
        if not torch.isfinite(activations.sum()):
            raise BadData(f"the activations of layer {name!r} hold NaN or infinity; look at the network and its input.")
        return activations


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
        return places(activations) if self.how in ("pixels", "tokens") else None

    def _smaller(self, grids: list[list], i: int, j: int) -> tuple[int, ...] | None:
        x, y = grids[0][i], grids[1][j]
        if self.how == "tokens" and x != y:
            raise ShapeMismatch(
                f"layers {self.names[0][i]!r} and {self.names[1][j]!r} have {x} and {y} tokens, which cannot be "
                "paired; fold with 'pool'."
            )
        return tuple(map(min, x, y)) if self.how == "pixels" else x

    def _fold(self, activations: Tensor, grid: tuple[int, ...] | None) -> Tensor:
        return activations.unsqueeze(2) if grid is None else blocks(activations, self.how, grid)

    def _refuse_size(self, features: int) -> None:
        if 8 * features**2 > MOST_BYTES:
            raise BadValue(
                f"the joint moments of {features} features take {8 * features**2 / 2**30:.0f} GiB, more than "
                f"{MOST_BYTES / 2**30:.0f}. Name fewer layers, fold with 'pool', or take measure='minibatch_cka'."
            )


class _KeptGrams(_Kept):
    def start(self, a: list[Tensor], b: list[Tensor]) -> None:
        if self.options:
            raise BadValue(f"{self.measure} takes its batches from the loader, not {', '.join(self.options)}.")
        self.grams = Grams(len(a), len(b), a[0].device)

    def add(self, a: list[Tensor], b: list[Tensor]) -> None:
        self.grams.update(a, b)

    def value(self, i: int, j: int) -> Tensor:
        return self.grams.values()[i, j]


class _KeptRows(_Kept):
    def start(self, a: list[Tensor], b: list[Tensor]) -> None:
        self.rows, self.bytes = tuple([[] for _ in side] for side in (a, b)), 0

    def add(self, a: list[Tensor], b: list[Tensor]) -> None:
        for rows, side in zip(self.rows, (a, b), strict=True):
            for chunks, v in zip(rows, side, strict=True):
                chunks.append(v.clone())
                self.bytes += chunks[-1].nbytes
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
