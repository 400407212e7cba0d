"""What `compare` keeps of all layers from batch to batch, and what it makes of that: values, nulls, halves."""

import math
from itertools import product

import torch
from torch import Tensor

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.progress import progress
from reptrans.similarity.fold import FOLDS, blocks, places
from reptrans.similarity.grams import Grams, grams_of
from reptrans.similarity.measures import ORTHOGONAL, find
from reptrans.similarity.moments import AT_ONCE, PairMoments, Sums
from reptrans.similarity.null import orders, refuse_few_halves, refuse_few_orders

MOST_BYTES = 2**32  # of moments, or of rows and what is prepared of them
_SHUFFLED = 2**24  # numbers of one layer in as many orders as are multiplied at once


class Kept:
    """What is kept of all layers: those of the first side, and from place `second` of the other.

    Of a network with itself the two are the same, and `second` is 0. `names`: of both sides' layers, of which each has
    a tensor of its own. With `rows` the layers themselves are kept too, which `null` and `halves` go back to.
    `shuffles`: how many orders of the examples `null` is to have.
    """

    folds: tuple[str, ...] = ("pool", "flatten")

    def __init__(
        self,
        measure: str,
        how: str,
        options: dict,
        rows: bool = False,
        shuffles: int = 0,
        generator: torch.Generator | None = None,
    ):
        self.measure, self.how, self.options, self.started = measure, how, options, False
        self.shuffles, self.generator = shuffles, generator
        self.rows: list[list[Tensor]] | None = [] if rows else None
        self.bytes = self.examples = 0
        if how not in self.folds:
            raise BadValue(f"{measure} compares whole examples: fold with 'pool' or 'flatten', not with {how!r}.")
        find(measure).check_options(options)

    def add(self, names: tuple[list[str], list[str]], layers: list[Tensor]) -> None:
        """The layers of a batch, `names[0]` of the first side and then those of the second, where it is another."""
        if not self.started:
            self.names, self.second = names, 0 if names[0] is names[1] else len(names[0])
            if self.rows is not None:
                self.rows = [[] for _ in layers]
            self.start(layers)
            self.started = True
        self.examples += len(layers[0])
        if self.rows is not None:
            self._keep(layers)
        self.take(layers)

    def values(self) -> Tensor:
        """(a, b): every layer of the first side with every layer of the second."""
        a, b = map(len, self.names)
        found, mirrored = torch.empty(a, b, dtype=torch.float64), not self.second and find(self.measure).symmetric
        for i, j in product(range(a), range(b)):
            found[i, j] = found[j, i] if mirrored and j < i else self._named(i, j)
        return found

    def null(self) -> Tensor:
        """(shuffles, a, b): the values with the second side's examples in orders drawn at random, for all layers the
        same."""
        refuse_few_orders(self.examples, self.shuffles)
        return self.in_orders(orders(self.examples, self.shuffles, self.generator))

    def in_orders(self, orders: Tensor) -> Tensor:
        """(orders, a, b): the values with the second side's examples in each of the `orders` (…, n)."""
        raise NotImplementedError

    def halves(self, number: int) -> Tensor:
        """(number, a, b): the values of halves of the examples, drawn at random without replacement."""
        refuse_few_halves(self.examples)
        parts = orders(self.examples, number, self.generator)[:, : self.examples // 2]
        return torch.stack([self._part(part).values() for part in progress(parts, "halves")])

    def _named(self, i: int, j: int) -> Tensor:
        try:
            return self.value(i, j)
        except BadData as error:
            raise BadData(f"Layers {self.names[0][i]!r} and {self.names[1][j]!r}: {error}") from None

    def layer(self, k: int) -> Tensor:
        """All rows of a layer, as each batch gave them."""
        if len(self.rows[k]) > 1:
            self.rows[k] = [torch.cat(self.rows[k])]
        return self.rows[k][0]

    def _part(self, part: Tensor) -> "Kept":
        found = type(self)(self.measure, self.how, self.options)
        found.add(self.names, [self.layer(k)[part] for k in range(len(self.rows))])
        return found

    def _keep(self, layers: list[Tensor]) -> None:
        for rows, v in zip(self.rows, layers, strict=True):
            rows.append(v.clone())
            self.bytes += v.nbytes
        if self.bytes > MOST_BYTES:
            why = "" if find(self.measure).needs == "rows" else " with a null"
            raise BadValue(
                f"{self.measure}{why} keeps the rows of all layers, more than {MOST_BYTES / 2**30:.0f} GiB by now. "
                "Name fewer layers, give fewer images, or fold with 'pool'."
            )


class KeptMoments(Kept):
    """Sums of each layer, on each grid that it meets another on (only "pixels" has more than one), and products of
    each pair."""

    folds = FOLDS

    def start(self, layers: list[Tensor]) -> None:
        self.debiased, widths = self.measure == "debiased_cka", [v.shape[1] for v in layers]
        self.grids = {(i, j): self._grid(layers, i, j) for i, j in product(*(range(len(side)) for side in self.names))}
        # Of a network with itself, the product of j with i is that of i with j.
        pairs = [(i, j) for i, j in self.grids if self.second or i <= j]
        keys = {key for (i, j), grid in self.grids.items() for key in ((i, grid), (self.second + j, grid))}
        shapes = {(i, j): (widths[i] + self.debiased, widths[self.second + j] + self.debiased) for i, j in pairs}
        self._refuse_size(sum(widths[k] ** 2 for k, _ in keys) + sum(map(math.prod, shapes.values())), sum(widths))
        self.sums = {key: Sums(self.debiased) for key in keys}
        self.products = {key: layers[0].new_zeros(shape, dtype=torch.float64) for key, shape in shapes.items()}

    def take(self, layers: list[Tensor]) -> None:
        most = max(math.prod(v.shape[2:]) for v in layers)
        for parts in zip(*(v.split(max(1, AT_ONCE // most)) for v in layers), strict=True):
            z = {(k, grid): sums.add(self._fold(parts[k], grid)) for (k, grid), sums in self.sums.items()}
            for i, j in self.products:
                grid = self.grids[i, j]
                self.products[i, j].addmm_(z[i, grid], z[self.second + j, grid].T)

    def value(self, i: int, j: int) -> Tensor:
        product = self.products[i, j] if (i, j) in self.products else self.products[j, i].T
        return self._pair(i, j, product).value(self.measure, **self.options)

    def in_orders(self, orders: Tensor) -> Tensor:
        if smaller := self._rotated():
            return smaller.in_orders(orders)
        found = torch.empty(len(orders), *map(len, self.names), dtype=torch.float64)
        meeting: dict[tuple, list[int]] = {}
        for (i, j), grid in self.grids.items():
            meeting.setdefault((j, grid), []).append(i)
        for (j, grid), fronts in progress(list(meeting.items()), "null"):
            x, y = [self._samples(i, grid) for i in fronts], self._samples(self.second + j, grid)
            stacked = torch.cat(x).flatten(1)
            for some in torch.arange(len(orders)).split(max(1, _SHUFFLED // y.numel())):
                shuffled = y[:, orders[some]].flatten(2).flatten(0, 1)
                products = (stacked @ shuffled.T).unflatten(1, (len(y), len(some))).movedim(2, 0)
                for i, own in zip(fronts, products.split([len(v) for v in x], dim=1), strict=True):
                    found[some, i, j] = self._pair(i, j, own).value(self.measure, **self.options)
        return found

    def _rotated(self) -> "KeptMoments | None":
        """The same with layers of more features than examples rotated into as many features as examples, for measures
        that no rotation changes; None where there is no such layer."""
        wide = [self.layer(k).ndim == 2 and self.layer(k).shape[1] > self.examples for k in range(len(self.rows))]
        if not any(wide) or ORTHOGONAL not in find(self.measure).invariances:
            return None
        layers = [self.layer(k).double() for k in range(len(wide))]
        found = type(self)(self.measure, self.how, self.options, rows=True)
        found.add(self.names, [torch.linalg.qr(v.T).R.T if w else v for v, w in zip(layers, wide, strict=True)])
        return found

    def _pair(self, i: int, j: int, product: Tensor) -> PairMoments:
        x, y = (self.sums[k, self.grids[i, j]].own for k in (i, self.second + j))
        return PairMoments(x, y, product)

    def _samples(self, k: int, grid: tuple[int, ...] | None) -> Tensor:
        """All samples of a layer as its sums saw them, (features, n, places)."""
        rows = self._fold(self.layer(k), grid)
        return self.sums[k, grid].around(rows).unflatten(1, (len(rows), -1))

    def _grid(self, layers: list[Tensor], i: int, j: int) -> tuple[int, ...] | None:
        """The places on which layers i and j meet; None where whole examples are samples."""
        if self.how not in ("pixels", "tokens"):
            return None
        x, y = (places(layers[k], 1) for k in (i, self.second + j))
        if self.how == "tokens" and x != y:
            a, b = self.names
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


class KeptRows(Kept):
    """All rows; at the end each layer is prepared once, as far as memory holds what that makes of the columns."""

    def __init__(self, measure: str, how: str, options: dict, rows: bool = True, **shuffled):
        super().__init__(measure, how, options, rows=True, **shuffled)
        self.function, self.row, self.prepared = find(measure).function, (None, None), {}

    def start(self, layers: list[Tensor]) -> None:
        """Nothing: the rows are all there is."""

    def take(self, layers: list[Tensor]) -> None:
        self.function.refuse_examples(self.examples)

    def value(self, i: int, j: int) -> Tensor:
        if self.row[0] != i:
            self.row = i, self._prepared(i)
        return self.function.combine(self.row[1], self._prepared(self.second + j), **self.options)

    def in_orders(self, orders: Tensor) -> Tensor:
        a, b = (range(len(side)) for side in self.names)
        found = torch.empty(len(orders), len(a), len(b), dtype=torch.float64)
        for j in progress(b, "null"):
            own = self._prepared(self.second + j)
            for place, order in enumerate(orders):
                shuffled = self.function.exchanged(own, order)
                for i in a:
                    found[place, i, j] = self.function.combine(self._prepared(i, True), shuffled, **self.options)
        return found

    def _prepared(self, k: int, keep: bool = False) -> object:
        if k in self.prepared:
            return self.prepared[k]
        own = self.function.prepare(self.layer(k).double(), **self.options)
        size = sum(v.nbytes for v in (own if isinstance(own, tuple) else [own]) if isinstance(v, Tensor))
        if (keep or k >= self.second) and self.bytes + size <= MOST_BYTES:
            self.prepared[k] = own
            self.bytes += size
        return own


class KeptGrams(Kept):
    """Products of the Grams of each batch; the null exchanges the examples within it, so that nothing else is kept."""

    def __init__(self, measure: str, how: str, options: dict, rows: bool = False, **shuffled):
        super().__init__(measure, how, options, **shuffled)
        if options:
            raise BadValue(f"{measure} takes its batches from the loader, not {', '.join(options)}.")

    def start(self, layers: list[Tensor]) -> None:
        sizes = tuple(map(len, self.names))
        self.grams = Grams(*sizes, layers[0].device)
        self.shuffled = [Grams(*sizes, layers[0].device) for _ in range(self.shuffles)]
        self.largest = 0

    def take(self, layers: list[Tensor]) -> None:
        own = grams_of(layers)
        k, l = (own[: self.second], own[self.second :]) if self.second else (own, own)  # noqa: E741
        self.grams.add(k, l)
        self.largest = max(self.largest, len(layers[0]))
        for grams, order in zip(self.shuffled, orders(len(layers[0]), self.shuffles, self.generator), strict=True):
            grams.add(k, l[:, order][:, :, order])

    def null(self) -> Tensor:
        refuse_few_orders(self.largest, self.shuffles)
        return torch.stack([grams.values() for grams in self.shuffled])

    def halves(self, number: int) -> Tensor:
        raise BadValue(
            f"{self.measure} keeps no examples, and so has no intervals. Take debiased_cka, with 'pool' say."
        )

    def value(self, i: int, j: int) -> Tensor:
        return self.grams.values()[i, j]


KEEPERS = {"moments": KeptMoments, "grams": KeptGrams, "rows": KeptRows}
