"""The experiment of the notebook on chance: does noise pass for similar, and does similarity grow with the networks?"""

import math

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import nn

from reptrans.bench import effect
from reptrans.data import Dataset
from reptrans.data.split import balanced
from reptrans.errors import BadData, BadValue
from reptrans.experiments.parameters import Exact, Keep, Names, Orders, Thousand, TrainingParameters, named, piece
from reptrans.layers import cuttable_layers
from reptrans.models import build
from reptrans.notebook import names
from reptrans.progress import progress
from reptrans.similarity import MEASURES, Calibrated, Features, compare
from reptrans.tensorfiles import digest_of

SIZES = ("shallow, narrow", "shallow, wide", "deep, narrow", "deep, wide")
VALUES = ("raw", "chance", "beyond chance")
LEVEL = 0.05
MANY = 8  # measures, of which a figure would have more rows than can be read
_USUAL = "linear_cka,debiased_cka,rsa,mutual_knn"
_LOCAL = ("mutual_knn", "knn_jaccard", "cknna", "rank_similarity", "second_order_cosine")


class ChanceRun(TrainingParameters):
    """Noise and networks, and the measures that are asked about them.

    Noise: maps of `side` x `side` layers of `examples` rows, one side of f features and the other of 2 f, for each f of
    `features`; `repeats` of them, each with a null of `noise_orders`. Networks: `models`, four names, in the order
    shallow and deep, each narrow and wide, `seeds` of each; seen by `images` test images, at `layers` evenly spaced
    layers, with a null of `orders`.
    """

    dtype: Exact = "auto"
    image_size: int = Field(0, ge=0)
    measures: named(lambda: MEASURES, "measure") = _USUAL
    examples: int = Field(40, ge=20)
    features: str = "4,40,400"
    repeats: Thousand = 40
    side: int = Field(4, ge=1, le=50)
    noise_orders: Orders = 59
    models: Names = "cnn3_w8,cnn3_w32,cnn5_w8,cnn5_w32"
    images: int = Field(60, ge=20)
    layers: int = Field(6, ge=2)
    orders: Orders = 200
    seeds: Thousand = Field(8, ge=3)

    @field_validator("models")
    @classmethod
    def _are_four(cls, text: str) -> str:
        if len(names(text)) != len(SIZES):
            raise BadValue(f"models are four names ({'; '.join(SIZES)}), joined by commas; given {text!r}.")
        return text

    @field_validator("features")
    @classmethod
    def _are_widths(cls, text: str) -> str:
        if not names(text) or not all(v.isdecimal() and int(v) for v in names(text)):
            raise BadValue(f"features are whole numbers from 1 on, joined by commas; given {text!r}.")
        return text

    @property
    def chosen(self) -> list[str]:
        return names(self.measures, MEASURES)


def kind_of(measure: str) -> str:
    """Whether a measure looks at the nearest examples alone, or at all."""
    return "neighbourhood" if measure in _LOCAL else "global"


def false_alarms(p: ChanceRun, keep: Keep) -> pd.DataFrame:
    """How often noise that shares nothing is beyond chance: rows of measure, features, d / n, alone, searched.

    "alone": the share of pairs of layers with p of at most 0.05; "searched": the share of maps with any pair beyond
    chance at that level for the whole map. Both are to be 0.05. NaN where the measure refuses so many features.
    `keep(name)` gives a path: every finished line is stored there, and an interrupted run goes on.
    """
    asked = [(measure, f) for measure in p.chosen for f in map(int, names(p.features))]
    rows = [
        piece(keep(f"noise-{measure}-{f}.safetensors"), _alarms, p, measure, f)
        for measure, f in progress(asked, "noise")
    ]
    return pd.DataFrame(rows)


def _alarms(p: ChanceRun, measure: str, f: int) -> dict[str, str | float]:
    try:
        maps = [_noise_map(p, measure, f, repeat) for repeat in range(p.repeats)]
        alone = float(np.mean([(m.p <= LEVEL).to_numpy().mean() for m in maps]))
        searched = float(np.mean([m.beyond(LEVEL).to_numpy().any() for m in maps]))
    except BadData:  # of more features than examples, which the measure says at its door
        alone = searched = math.nan
    return {"measure": measure, "features": f, "d / n": f / p.examples, "alone": alone, "searched": searched}


def _noise_map(p: ChanceRun, measure: str, features: int, repeat: int) -> Calibrated:
    g = torch.Generator().manual_seed(100_000 * repeat + features)
    a, b = (
        Features({str(i): torch.randn(p.examples, f, generator=g) for i in range(p.side)}, range(p.examples))
        for f in (features, 2 * features)
    )
    return compare(a, b, measure=measure, null=p.noise_orders, seed=repeat)


def growth(p: ChanceRun, dataset: Dataset, keep: Keep) -> pd.DataFrame:
    """The most similar pair of layers by size of the networks: rows of size, seed, measure, raw, chance, beyond chance.

    Networks i and i + 1 of a size, averaged over places. "raw" is the largest value over all pairs of layers (the
    smallest distance, negated), "chance" the mean of the largest of each order of the images, "beyond chance" the
    effect of the one above the other, so that the search over layers is in both. Finished pairs are stored at
    `keep(name)`. What does not fit is raised before anything is trained.
    """
    for model in names(p.models):
        untrained = _seen(p, dataset, build(model, **dataset.form, seed=0).to(**p.place))
        for measure in p.chosen:
            compare(untrained, untrained, measure=measure)
    rows = []
    for size, model in zip(SIZES, progress(names(p.models), "networks"), strict=True):
        sides = [_seen(p, dataset, p.trained(model, dataset, seed)) for seed in range(p.seeds)]
        for seed, (a, b) in enumerate(zip(sides, sides[1:] + sides[:1], strict=True)):
            seen = digest_of(a.layers, digest_of(b.layers))  # other weights or images are another pair
            most = piece(keep(f"{model}-s{seed}-{seen}.safetensors"), _most_similar, p, a, b)
            rows += [{"size": size, "seed": seed} | row for row in most]
    return pd.DataFrame(rows)


def _most_similar(p: ChanceRun, a: Features, b: Features) -> list[dict[str, str | float]]:
    rows = []
    for measure in p.chosen:
        found = compare(a, b, measure=measure, null=p.orders).best
        sign = 1 if MEASURES[measure].higher_is_better else -1
        values = (sign * found["value"], sign * found["mean"], found["effect"])
        rows.append({"measure": measure} | dict(zip(VALUES, values, strict=True)))
    return rows


def _seen(p: ChanceRun, dataset: Dataset, net: nn.Module) -> Features:
    few = dataset.test.select(balanced(dataset.test.labels, p.images))
    images = [batch.images for batch in dataset.loader("test", 100, **p.place).over(few)]
    known = list(cuttable_layers(net, images[0]))
    spaced = np.linspace(0, len(known) - 1, min(p.layers, len(known))).round().astype(int)
    return Features.of(net, images, [known[k] for k in spaced])


def with_size(rows: pd.DataFrame) -> pd.DataFrame:
    """What width and depth add to each measure, to chance and beyond it: rows of measure, kind, of, value, added, low,
    high, n.

    Paired over seeds, with the 95 % interval of the mean. "width": wide - narrow, the mean over both depths; "depth":
    deep - shallow, the mean over both widths.
    """
    found = []
    for measure, own in rows.groupby("measure", sort=False):
        for value in VALUES:
            table = own.pivot(index="seed", columns="size", values=value)
            a, b, c, d = (table[size] for size in SIZES)
            for what, added in (("width", (b - a + d - c) / 2), ("depth", (c - a + d - b) / 2)):
                e = effect(added)
                found.append((measure, kind_of(measure), what, value, e.mean, e.low, e.high, e.n))
    return pd.DataFrame(found, columns=["measure", "kind", "of", "value", "added", "low", "high", "n"])


def drawn(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `with_size` that one figure can show: all, but for values without an end, which would set its scale;
    of more than 8 measures what is beyond chance alone."""
    many = table["measure"].nunique() > MANY
    ends = table["measure"].map(lambda name: max(map(abs, MEASURES[name].range)))
    return table[(table["value"] == "beyond chance") | (~np.isinf(ends) & (not many))]
