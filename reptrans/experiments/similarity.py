"""The experiment of the similarity notebook: the layers of pairs of networks measured, and stitched beside it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from reptrans.data import Dataset, Loader, TextDataset
from reptrans.data.split import balanced
from reptrans.errors import BadData
from reptrans.experiments.parameters import (
    Count,
    DatasetParameters,
    Exact,
    Names,
    NotNegative,
    Place,
    Thousand,
    TwoNetworks,
)
from reptrans.experiments.stitching import StitchingRun, network_pairs
from reptrans.layers import channel_axes, cuttable_layers, front
from reptrans.layers.network import run
from reptrans.notebook import listed, names, some_names
from reptrans.similarity import (
    MEASURES,
    Calibrated,
    Measure,
    agreement,
    calibrate,
    compare,
    debiased_cka,
    fold,
    linear_cka,
)
from reptrans.similarity.fold import token_mask, without_padding
from reptrans.similarity.measures import find
from reptrans.similarity.null import check_null, refuse_few_halves, refuse_few_orders
from reptrans.stitching.frozen import logits_of, recognised
from reptrans.training import predict

CELL = ["seed", "front_layer", "end_layer"]  # what one stitch of one pair of networks is known by

# By data set: the runs, with heat maps or without, of which a rehearsal has shown that everything fits.
_REHEARSED: WeakKeyDictionary[Dataset, list[tuple["LayersCompared", bool]]] = WeakKeyDictionary()


class LayersCompared(TwoNetworks, Place, DatasetParameters):
    """Two networks, or several pairs of them, and how their layers are compared.

    Networks and data as in StitchingRun. `layers`: names joined by commas, or all that both networks can be cut at.
    `measures`: names in MEASURES; the first is the heat map's. `fold`: see `similarity.fold`. `images`: test images to
    compare on. `epochs`: of the stitches trained beside it, 0 for least squares alone.
    """

    dtype: Exact = "auto"
    layers: Names = "bn1,bn2,bn3,bn4,bn5,bn6,bn7,bn8"
    measures: str = "debiased_cka,linear_cka,procrustes_angular,cca_mean,linear_r2,rsa,mutual_knn"
    fold: Literal["pixels", "flatten", "pool", "tokens"] = "pool"
    images: int = Field(500, ge=4)
    seeds: Thousand = 3
    epochs: NotNegative = 0
    train_epochs: Count = 4

    @field_validator("measures")
    @classmethod
    def _are_known(cls, text: str) -> str:
        for name in some_names(text):
            find(name)
        return text

    def stitching(self, layer: str) -> StitchingRun:
        """These networks and data, to be stitched at `layer` by least squares, and trained if `epochs` says so."""
        same = self.model_dump(exclude={"layers", "measures", "fold", "images", "orders"})
        return StitchingRun(**same, layer=layer, direct="least squares", cka_images=self.images)


class SimilarityRun(LayersCompared):
    """See LayersCompared. `orders`: of the examples, at random, that say what chance gives the heat map, 0 for none; as
    many random halves give its intervals."""

    orders: int = Field(200, ge=0)

    @field_validator("orders")
    @classmethod
    def _is_enough(cls, number: int) -> int:
        check_null(number, 0)
        return number


def each_pair(
    p: LayersCompared, dataset: Dataset, maps: bool = False
) -> Iterator[tuple[int, nn.Module, nn.Module, list[str], Loader]]:
    """(seed, front network, end network, layers, loader of the test images) for every pair of networks.

    Raises what of layers, fold and measures, with `maps` also of heat maps, does not fit before a network is trained.
    """
    loader = dataset.loader("test", 100, **p.place)
    pairs = network_pairs(p.stitching(listed(names(p.layers)[:1])), dataset)
    done = _REHEARSED.setdefault(dataset, [])
    if (p, True) not in done and (p, maps) not in done:
        rehearse(p, [side.untrained().to(**p.place).eval() for side in pairs[0][1:]], loader, maps)
        done.append((p, maps))
    for seed, *sides in pairs:
        nets = [side.get().to(**p.place).eval() for side in sides]
        few = dataset.test.select(balanced(dataset.test.labels, p.images))
        yield seed, *nets, _layers(p, *nets, loader), loader.over(few)


def rehearse(p: LayersCompared, nets: list[nn.Module], loader: Loader, maps: bool = False) -> None:
    """Every measure at every layer of two untrained networks, with `maps` also the heat map, on few images."""
    few = loader.over(loader.split.select(torch.arange(min(32, len(loader.split)))))
    layers = _layers(p, *nets, few)
    sides = [_folded(net, layers, few, p.fold) for net in nets]
    if p.fold == "pool":  # so many examples as there will be, of noise: enough for the measure and its features?
        widths = (max(v.shape[1] for v in side.values()) for side in sides)
        rows, g = min(p.images, len(loader.split)), torch.Generator().manual_seed(0)
        noise = [torch.randn(rows, width, dtype=torch.float64, generator=g) for width in widths]
        for measure in names(p.measures):
            MEASURES[measure].function(*noise)
    if maps and p.orders:  # heat maps are of a SimilarityRun
        refuse_few_orders(min(p.images, len(loader.split)), p.orders)
        refuse_few_halves(min(p.images, len(loader.split)))
    # What is said of these networks' own values, or of so few images, need not hold for the trained ones.
    if maps:
        with suppress(BadData):
            compare(*nets, few, layers, layers, names(p.measures)[0], p.fold, null=min(p.orders, 20))
    for measure in names(p.measures):
        for name in layers:
            with suppress(BadData):
                MEASURES[measure].function(sides[0][name], sides[1][name])


def _layers(p: LayersCompared, front_net: nn.Module, end_net: nn.Module, loader: Loader) -> list[str]:
    if p.layers != "all":
        return names(p.layers)
    example = next(iter(loader)).images
    ends = set(cuttable_layers(end_net, example))
    return some_names("all", [name for name in cuttable_layers(front_net, example) if name in ends])


def heat_maps(p: SimilarityRun, dataset: Dataset) -> tuple[Calibrated, Calibrated] | tuple[pd.DataFrame, pd.DataFrame]:
    """The first measure for all pairs of layers: within the first front network, and between the first pair; with what
    chance gives if `p.orders` asks for it."""
    _, front_net, end_net, layers, loader = next(each_pair(p, dataset, maps=True))
    measure = names(p.measures)[0]
    null = {"null": p.orders, "intervals": p.orders if MEASURES[measure].needs != "grams" else 0}
    return tuple(compare(front_net, v, loader, layers, layers, measure, p.fold, **null) for v in (front_net, end_net))


def before_training(p: SimilarityRun, dataset: Dataset) -> pd.Series:
    """The first measure between the same layer of two untrained networks, of the first pair's architectures: by layer.

    Networks share what they see: two that have learned nothing are similar already, beyond what chance gives.
    """
    loader = dataset.loader("test", 100, **p.place)
    loader = loader.over(dataset.test.select(balanced(dataset.test.labels, p.images)))
    pair = network_pairs(p.stitching(listed(names(p.layers)[:1])), dataset)[0]
    nets = [side.untrained().to(**p.place).eval() for side in pair[1:]]
    layers = _layers(p, *nets, loader)
    found = compare(*nets, loader, layers, layers, names(p.measures)[0], p.fold)
    return pd.Series(found.to_numpy().diagonal(), layers)


def headline(found: Calibrated | pd.DataFrame, measure: str) -> tuple[pd.DataFrame, dict]:
    """What a heat map of `heat_maps` shows, and how: the effect beyond chance, from 0 to 1, pale where chance gives as
    much; without a null the values themselves."""
    if isinstance(found, Calibrated):
        return found.effect, {"limits": (0, 1), "pale": ~found.beyond()}
    most = MEASURES[measure].range[1]
    return found, {"limits": (0, most if most < 2 else found.max(axis=None))}


def same_layers(p: LayersCompared, dataset: Dataset) -> pd.DataFrame:
    """Every measure between the same layer of both networks: rows of seed, layer, measure, value, higher_is_better."""
    return measured(p, dataset).drop(columns="end_layer").rename(columns={"front_layer": "layer"})


def measured(p: LayersCompared, dataset: Dataset, cells: Sequence[tuple[str, str]] = ()) -> pd.DataFrame:
    """Every measure between pairs of layers: rows of seed, front_layer, end_layer, measure, value, higher_is_better.

    `cells`: pairs (front layer, end layer) of the run's layers; without any, every layer with the same of the other.
    """
    rows = []
    for seed, front_net, end_net, layers, loader in each_pair(p, dataset):
        sides = [_folded(net, layers, loader, p.fold) for net in (front_net, end_net)]
        for measure in (MEASURES[name] for name in names(p.measures)):
            for f, e in cells or zip(layers, layers, strict=True):
                value = float(measure.function(sides[0][f], sides[1][e]))
                rows.append((seed, f, e, measure.name, value, measure.higher_is_better))
    return pd.DataFrame(rows, columns=[*CELL, "measure", "value", "higher_is_better"])


def depth_distance(cells: pd.DataFrame) -> pd.DataFrame:
    """How many layers lie between front and end layer, as a measure that looks at no activation: see `measured`.

    `cells`: rows of seed, front_layer and end_layer, the layers of each side in their order.
    """
    return cells[CELL].assign(measure="distance in depth", value=_later(cells).abs(), higher_is_better=False)


def order_of(cells: pd.DataFrame) -> pd.Series:
    """Which of the two layers of each row comes later in its network, in words."""
    return np.sign(_later(cells)).map({-1: "front earlier", 0: "same place", 1: "front later"})


def _later(cells: pd.DataFrame) -> pd.Series:
    """By how many places the front layer is later than the end layer."""
    fronts, ends = (cells[side].map({name: i for i, name in enumerate(pd.unique(cells[side]))}) for side in CELL[1:])
    return fronts - ends


@torch.no_grad()
def _folded(net: nn.Module, layers: list[str], loader: Loader, how: str) -> dict[str, Tensor]:
    """The activations of every layer for all of the loader's images, folded into rows."""
    part, axes, found = front(net, layers), {}, {name: [] for name in layers}
    for batch in loader:
        axes = axes or channel_axes(net, layers, batch.images)
        for name, activations in part(batch.images).items():
            mask = token_mask(batch.images, activations) if how in ("pool", "tokens") else None
            rows = fold(activations, how, axes[name]) if mask is None else without_padding(activations, mask, how)
            found[name].append(rows.double())
    return {name: torch.cat(pieces) for name, pieces in found.items()}


def predictions(p: LayersCompared, dataset: Dataset) -> pd.DataFrame:
    """How similarly the pairs of networks answer, on all test images: see `similarity.agreement`.

    Networks of text name no classes; their `disagreement` is the share of test texts whose nearest other text, by the
    cosine of the mean over tokens, is not the same in both networks.
    """
    rows = []
    for seed, front_net, end_net, _, loader in each_pair(p, dataset):
        whole = loader.over(dataset.test)
        if isinstance(dataset, TextDataset):
            rows.append({"seed": seed} | _neighbours(front_net, end_net, whole))
            continue
        (a, labels), (b, _) = predict(front_net, whole), predict(end_net, whole)
        rows.append({"seed": seed} | agreement(a, b, labels, seed=seed))
    return pd.DataFrame(rows)


def _neighbours(front_net: nn.Module, end_net: nn.Module, loader: Loader) -> dict[str, float]:
    nearest = []
    for net in (front_net, end_net):
        own = logits_of(partial(run, net), loader)[0]
        nearest.append(recognised(own, own)[0].fill_diagonal_(-math.inf).argmax(1))
    names = ("error_consistency", "error_consistency_low", "error_consistency_high", "jensen_shannon")
    return {"disagreement": (nearest[0] != nearest[1]).double().mean().item()} | dict.fromkeys(names, math.nan)


def ignores(measure: Measure, change: str) -> str:
    """Whether a change leaves the measure as it is: "yes" of either side, "second" of the second alone, or nothing."""
    return "yes" if change in measure.invariances else "second" if change in measure.y_only else ""


def noise_trap(examples: int = 50, features: tuple[int, ...] = (5, 10, 20, 50, 100, 200, 500), seeds: int = 5):
    """CKA of independent Gaussian noise, biased and debiased: rows of features, seed, kind, cka.

    Nothing is shared, and yet the biased estimate is about d / (n + d) for d features of n examples. "biased, beyond
    chance" is its effect above the null of 100 orders.
    """
    rows = []
    for d in features:
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(1000 * d + seed)
            x, y = torch.randn(2, examples, d, generator=generator, dtype=torch.float64)
            for kind, cka in (("biased", linear_cka), ("debiased", debiased_cka)):
                rows.append({"features": d, "seed": seed, "kind": kind, "cka": cka(x, y).item()})
            effect = calibrate(x, y, "linear_cka", null=100, seed=seed)["effect"]
            rows.append({"features": d, "seed": seed, "kind": "biased, beyond chance", "cka": effect})
        rows.append({"features": d, "seed": 0, "kind": "d / (n + d)", "cka": d / (examples + d)})
    return pd.DataFrame(rows)


def rank_agreement(values: pd.DataFrame, accuracy: pd.Series) -> pd.DataFrame:
    """Spearman correlation over pairs of layers of each measure (see `measured`) with `accuracy`, for every seed.

    Distances change their sign, so that 1 always means: the more similar, the better stitched. `accuracy` is indexed by
    (seed, front_layer, end_layer).
    """
    rows = []
    for (seed, measure), group in values.groupby(["seed", "measure"], sort=False):
        sign = 1 if group["higher_is_better"].iloc[0] else -1
        pair = pd.DataFrame({"m": sign * group.set_index(CELL[1:])["value"], "a": accuracy.loc[seed]})
        rows.append({"seed": seed, "measure": measure, "rank_correlation": pair.rank().corr().loc["m", "a"]})
    return pd.DataFrame(rows)
