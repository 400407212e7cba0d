"""The experiment of the grounded notebook: tests of similarity whose answer is known, and which measure passes them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator
from scipy import stats
from torch import Tensor, nn

from reptrans.bench import effect
from reptrans.data import Dataset, Loader, Split
from reptrans.data.split import balanced
from reptrans.errors import BadValue
from reptrans.experiments.parameters import Count, Exact, Names, Thousand, TrainingParameters, named
from reptrans.layers import cuttable_layers, end
from reptrans.models import build
from reptrans.notebook import names
from reptrans.progress import progress
from reptrans.similarity import (
    MEASURES,
    Features,
    Moments,
    channel_blocks,
    compare,
    disagreement,
    error_consistency,
    fold,
    jensen_shannon,
)
from reptrans.similarity.grounding import conformity, correspondence, monotonicity, separation
from reptrans.stitching import AffineMap, direct_matching
from reptrans.training import predict

# What is compared, by what it is called: a measure of activations and its options. Batches that are all of the images
# would make of minibatch CKA the debiased one.
STRUCTURAL = {name: (name, {}) for name in MEASURES if name != "minibatch_cka"} | {
    "rbf_cka, debiased": ("rbf_cka", {"debiased": True}),
    "svcca, 5 directions": ("svcca", {"keep": 5}),
    "rsa, Euclidean, Pearson": ("rsa", {"distance": "euclidean", "compare": "pearson"}),
    "procrustes_angular, half whitened": ("procrustes_angular", {"alpha": 0.5}),
    "mutual_knn, 50": ("mutual_knn", {"k": 50}),
    "knn_jaccard, 50": ("knn_jaccard", {"k": 50}),
    "cknna, 50": ("cknna", {"k": 50}),
}
STITCHES = {"stitch, least squares": "least squares", "stitch, rotation": "rotation",
            "stitch, assignment": "assignment"}  # fmt: skip
ANSWERS = {
    "same answers": lambda a, b, labels: 1 - disagreement(a, b),
    "same errors": error_consistency,
    "Jensen-Shannon": lambda a, b, labels: -float(jensen_shannon(a.softmax(1), b.softmax(1))),
}
FUNCTIONAL = (*STITCHES, *ANSWERS)
GROUPED = ("noise", "cues", "augmentation")
TESTS = (*GROUPED, "layers", "seeds", "answers")

# What the notebook begins with: those that win elsewhere, those that are used most, and one of each other kind.
_USUAL = (
    "debiased_cka,linear_cka,rbf_cka,procrustes_angular,procrustes_size_shape,rsa,distance_correlation,knn_jaccard,"
    "mutual_knn,cknna,rank_similarity,second_order_cosine,aligned_cosine,linear_r2,svcca,soft_correlation_match,"
    '"stitch, least squares","stitch, rotation",same answers,Jensen-Shannon'
)

# ReSi's median rank among its 24 measures over all its tests of vision networks, read off a published figure.
PUBLISHED = {"knn_jaccard": 7, "distance_correlation": 8, "procrustes_angular": 8, "aligned_cosine": 8,
             "second_order_cosine": 8, "procrustes_size_shape": 8.5, "rank_similarity": 9, "linear_cka": 10,
             "linear_r2": 11, "svcca": 14.5}  # fmt: skip


class GroundedRun(TrainingParameters):
    """Which tests, on which networks, for which measures.

    `tests`: some of noise, cues, augmentation, layers, seeds and answers, or all. Groups: `noise_levels`, shares of
    training labels drawn at random; `cues`, shares of training images of `shapes` whose `cue` tells the label;
    `augmentations`, each as `train_augment`. The first of each is what the other tests are made on. `models`: each by
    itself; groups hold `seeds` networks. `contestants`: some of `MEASURES`, of these with other options ("cknna, 50"),
    of stitches and of answers, or all; "" takes twenty usual ones. `layer`: where groups are compared and stitched; ""
    is the last before the classifier's average. `layers`: of the tests of layers, at most so many, evenly spaced.
    `images`: test images.
    """

    dtype: Exact = "auto"
    dataset: str = "shapes:shape:easy"
    limit: int = Field(125, ge=0)
    image_size: int = Field(16, ge=0)
    models: Names = "cnn3_w8"
    tests: named(lambda: TESTS, "test") = "all"
    noise_levels: str = "0,0.5,1"
    cues: str = "0,0.8,1"
    cue: str = "colour"
    augmentations: str = "none,crop"
    contestants: str = ""
    layer: str = ""
    layers: int = Field(7, ge=3)
    images: int = Field(300, ge=20)
    seeds: Thousand = Field(5, ge=3)
    train_epochs: Count = 8

    @field_validator("noise_levels", "cues")
    @classmethod
    def _are_shares(cls, text: str) -> str:
        try:
            shares = [float(v) for v in names(text)]
        except ValueError:
            raise BadValue(f"shares are numbers from 0 to 1, joined by commas; given {text!r}.") from None
        if len(shares) < 2 or not all(0 <= v <= 1 for v in shares):
            raise BadValue(f"groups need two shares or more, from 0 to 1; given {text!r}.")
        return text

    @field_validator("contestants")
    @classmethod
    def _are_known(cls, text: str) -> str:
        names(text, (*STRUCTURAL, *FUNCTIONAL))
        return text

    @field_validator("augmentations")
    @classmethod
    def _are_two(cls, text: str) -> str:
        if len(names(text)) < 2:
            raise BadValue(f"groups need two augmentations or more, joined by commas; given {text!r}.")
        return text

    @property
    def chosen(self) -> list[str]:
        return names(self.contestants or _USUAL, [*STRUCTURAL, *FUNCTIONAL])


def grounded(p: GroundedRun, dataset: Dataset) -> tuple[pd.DataFrame, dict[str, "Tests"]]:
    """Rows of model, test, seed, contestant, score, 1 for a measure that is always right; and by model what was tested.

    Tests of groups ("noise", "cues", "augmentation"): whether networks trained the same way are told from those trained
    otherwise, the mean of `separation` and `conformity`. "layers": `monotonicity` over a network's layers. "seeds":
    `correspondence` of the layers of two networks. "answers": Spearman's correlation with the likeness of answers, over
    pairs of the networks of "noise". Networks are trained once and kept. Raises before anything is trained what does
    not fit.
    """
    tests = names(p.tests, TESTS)
    if "cues" in tests and not p.dataset.startswith("shapes"):
        raise BadValue(f"cues are drawn into shapes alone, and dataset is {p.dataset!r}. Leave the test 'cues' out.")
    rows, put_to = [], {model: Tests(p, dataset, model) for model in names(p.models)}
    for model, own in put_to.items():
        for test in progress(tests, model):
            found = pd.DataFrame(own.run(test), columns=["seed", "contestant", "score"])
            rows.append(found.assign(model=model, test=test))
    return pd.concat(rows, ignore_index=True), put_to


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each contestant, the best first: rank, its mean over tests and models, with the interval of its mean
    over seeds, and tests, how many it took part in.

    In each test, model and seed contestants are ranked by score, equal ones by their mean rank, as shares of those that
    took part: 0 is the best, 1 the last.
    """
    by = ["model", "test", "seed"]
    score = rows["score"].round(9)  # rounding that differs from machine to machine is no difference
    place = score.groupby([rows[name] for name in by]).rank(ascending=False)
    most = place.groupby([rows[name] for name in by]).transform("size")
    placed = rows.assign(rank=(place - 1) / (most - 1))
    means = placed.groupby(["contestant", "seed"], sort=False)["rank"].mean().unstack()
    found = {name: effect(values) for name, values in means.iterrows()}
    tests = rows.groupby("contestant")["test"].nunique()
    table = pd.DataFrame(
        [(name, e.mean, e.low, e.high, tests[name], kind_of(name)) for name, e in found.items()],
        columns=["contestant", "rank", "low", "high", "tests", "kind"],
    )
    return table.sort_values("rank", kind="stable", ignore_index=True)


def kind_of(contestant: str) -> str:
    """Whether a contestant looks at activations alone, stitches, or looks at answers."""
    return "answers" if contestant in ANSWERS else "stitching" if contestant in STITCHES else "activations"


def beside_published(rows: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Spearman correlation of the mean ranks here with the median ranks that ReSi published for ten measures, and its
    95 % bootstrap interval over these: (rho, low, high)."""
    known = set(PUBLISHED) & set(rows["contestant"])
    if len(known) < 4:
        raise BadValue(f"{len(known)} of the contestants have a published rank; a correlation needs four.")
    own = ranked(rows).set_index("contestant")["rank"]
    both = pd.DataFrame({"own": own, "published": pd.Series(PUBLISHED, dtype=float)}).dropna().to_numpy()
    rng = np.random.default_rng(seed)
    drawn = [both[rng.integers(len(both), size=len(both))] for _ in range(resamples)]
    drawn = [_spearman(*v.T) for v in drawn if (np.ptp(v, axis=0) > 0).all()]
    return _spearman(*both.T), *np.quantile(drawn, (0.025, 0.975))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.spearmanr(a, b).statistic)


def places(p: GroundedRun, dataset: Dataset, model: str) -> tuple[str, list[str]]:
    """The layer at which groups are compared and stitched, and the layers of the tests of layers, in their order.

    Raises LayerNotFound, CannotCut; BadValue for a network with fewer than three layers.
    """
    net = build(model, **dataset.form).eval()
    images = next(iter(dataset.loader("test", 2))).images
    known = list(cuttable_layers(net, images))
    end(net, p.layer or known[0])
    shapes = {name: v.shape for name, v in Features.of(net, [images], known).layers.items()}
    maps = [name for name, shape in shapes.items() if len(shape) == 4 and shape[2:].numel() > 1]
    if len(known) < 3 or not (p.layer or maps):
        raise BadValue(f"{model} has the layers {', '.join(known)}: three are needed, one of them a map. Name layer.")
    spaced = np.linspace(0, len(known) - 1, min(p.layers, len(known))).round().astype(int)
    return p.layer or maps[-1], [known[k] for k in spaced]


@dataclass
class Networks:
    """Trained networks and what they say of the same images: `table`, a row for each with its group and seed;
    `features`, the activations at `layer` of each, called by its place; `logits` (n, k) of each; the images' labels."""

    nets: list[nn.Module]
    table: pd.DataFrame
    layer: str
    features: Features
    logits: list[Tensor]
    labels: Tensor
    _found: dict[str, np.ndarray] = field(default_factory=dict)

    def similarity(self, contestant: str) -> np.ndarray:
        """(networks, networks), higher is more similar; where a contestant is directed, the mean of both ways. Kept."""
        if contestant not in self._found:
            if contestant in STITCHES:
                self._found |= self._stitched()
            elif contestant in STRUCTURAL:
                self._found[contestant] = likeness(self.features, self.features, contestant)
            else:
                self._found[contestant] = self._of_answers(contestant)
        return self._found[contestant]

    def _of_answers(self, contestant: str) -> np.ndarray:
        found = np.ones((len(self.nets),) * 2)
        for i, j in combinations(range(len(self.nets)), 2):
            value = ANSWERS[contestant](self.logits[i], self.logits[j], self.labels)
            found[i, j] = found[j, i] = 0.0 if math.isnan(value) else value  # of errors that nobody makes
        return found

    @torch.no_grad()
    def _stitched(self) -> dict[str, np.ndarray]:
        """The share of images on which a front, stitched to another network's end, answers as that does."""
        maps = list(self.features.layers.values())
        found = {name: np.ones((len(self.nets),) * 2) for name in STITCHES}
        ends = [end(net, self.layer) for net in self.nets]
        for i, j in permutations(range(len(self.nets)), 2):
            moments = Moments(maps[i].shape[1], maps[j].shape[1])
            moments.update(channel_blocks(maps[i], 1), channel_blocks(maps[j], 1))
            for name, kind in STITCHES.items():
                answers = ends[j](_mapped(direct_matching(moments, kind), maps[i]))
                found[name][i, j] = 1 - disagreement(answers, self.logits[j])
        return {name: (values + values.T) / 2 for name, values in found.items()}


def _mapped(matched: AffineMap, maps: Tensor) -> Tensor:
    """An affine map of the channels at every place of maps (n, c, …)."""
    weight, bias = matched.weight.to(maps), matched.bias.to(maps)
    return (weight @ maps.flatten(2) + bias[:, None]).unflatten(2, maps.shape[2:])


def likeness(a: Features, b: Features, contestant: str) -> np.ndarray:
    """A measure for all layers of `a` with all of `b`, averaged over places, signed so that higher is more similar; of
    one side with itself the mean of both ways."""
    measure, options = STRUCTURAL[contestant]
    values = compare(a, b, measure=measure, **options).to_numpy()
    values = values if MEASURES[measure].higher_is_better else -values
    return (values + values.T) / 2 if a is b else values


def _groups(p: GroundedRun, test: str) -> Iterator[tuple[str, GroundedRun, Dataset]]:
    """(name of the group, how its networks are trained, on what) for a test of groups."""
    if test == "augmentation":
        for name in names(p.augmentations):
            own = p.model_copy(update={"train_augment": name})
            yield name, own, own.load()
        return
    for share in names(p.noise_levels if test == "noise" else p.cues):
        if test == "noise":
            yield share, p, with_noise(p.load(), float(share))
        else:
            cue = f":shortcut={p.cue}@{share}" if float(share) else ""
            yield share, p, p.model_copy(update={"dataset": p.dataset + cue}).load()


def with_noise(dataset: Dataset, share: float) -> Dataset:
    """The data set with this share of its training labels drawn again, uniformly, the same for every network.

    A label that is drawn may be the true one.
    """
    labels, g = dataset.train.labels.clone(), torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(labels), generator=g)[: round(share * len(labels))]
    labels[chosen] = torch.randint(dataset.num_classes, (len(chosen),), generator=g)
    return replace(dataset, train=Split(dataset.train.images, labels))


def _networks(p: GroundedRun, test: str, model: str, layer: str) -> Networks:
    """The networks of a test of groups, trained, and what they say of the test images of the data set as it is."""
    nets, table = [], []
    for group, own, dataset in _groups(p, test):
        for seed in range(p.seeds):
            nets.append(own.trained(model, dataset, seed))
            table.append((group, seed))
    loader = _test_images(p)
    given = [batch.images for batch in loader]
    maps = {str(i): Features.of(net, given, [layer]).layers[layer] for i, net in enumerate(nets)}
    answers = [predict(net, loader) for net in nets]
    features = Features(maps, range(len(answers[0][1])))
    table = pd.DataFrame(table, columns=["group", "seed"])
    return Networks(nets, table, layer, features, [logits for logits, _ in answers], answers[0][1])


def _test_images(p: GroundedRun) -> Loader:
    dataset = p.load()
    few = dataset.test.select(balanced(dataset.test.labels, p.images))
    return dataset.loader("test", 100, **p.place).over(few)


class Tests:
    """What one architecture is put to: each test gives (seed, contestant, score); networks are shared between them."""

    def __init__(self, p: GroundedRun, dataset: Dataset, model: str):
        self.p, self.model, self.dataset = p, model, dataset
        self.layer, self.layers = places(p, dataset, model)
        self._groups: dict[str, Networks] = {}

    def run(self, test: str) -> Iterator[tuple[int, str, float]]:
        return {"layers": self._order, "seeds": self._seeds, "answers": self._answers}.get(test, self._group)(test)

    def networks(self, test: str) -> Networks:
        if test not in self._groups:
            self._groups[test] = _networks(self.p, test, self.model, self.layer)
        return self._groups[test]

    def _group(self, test: str) -> Iterator[tuple[int, str, float]]:
        """The mean of separation and conformity, of the networks of each seed."""
        networks = self.networks(test)
        groups, seeds = (networks.table[name].to_numpy() for name in ("group", "seed"))
        for contestant in self.p.chosen:
            values = networks.similarity(contestant)
            score = (separation(values, groups) + conformity(values, groups)) / 2
            yield from ((seed, contestant, score[seeds == seed].mean()) for seed in np.unique(seeds))

    def _order(self, _: str) -> Iterator[tuple[int, str, float]]:
        for seed, own in enumerate(self._by_layer):
            for contestant in self._structural:
                yield seed, contestant, monotonicity(likeness(own, own, contestant))

    def _seeds(self, _: str) -> Iterator[tuple[int, str, float]]:
        for seed, own in enumerate(self._by_layer):
            other = self._by_layer[(seed + 1) % len(self._by_layer)]
            for contestant in self._structural:
                yield seed, contestant, correspondence(likeness(own, other, contestant))

    def _answers(self, _: str) -> Iterator[tuple[int, str, float]]:
        """Spearman correlation with how similar answers are, over the pairs of each seed's networks with all others.

        Contestants that look at answers are left out.
        """
        networks = self.networks("noise")
        answers, seeds = networks.similarity("Jensen-Shannon"), networks.table["seed"].to_numpy()
        apart = ~np.eye(len(seeds), dtype=bool)
        for contestant in (name for name in self.p.chosen if name not in ANSWERS):
            values = networks.similarity(contestant)
            for seed in np.unique(seeds):
                some = apart & (seeds == seed)[:, None]
                yield seed, contestant, _spearman(values[some], answers[some])

    @property
    def _structural(self) -> list[str]:
        return [name for name in self.p.chosen if name in STRUCTURAL]

    @cached_property
    def _by_layer(self) -> list[Features]:
        """Activations of all layers of the networks of the data set as it is."""
        given = [batch.images for batch in _test_images(self.p)]
        nets = (self.p.trained(self.model, self.dataset, seed) for seed in range(self.p.seeds))
        return [_pooled(Features.of(net, given, self.layers)) for net in nets]


def _pooled(features: Features) -> Features:
    return Features({name: fold(v, "pool") for name, v in features.layers.items()}, features.ids)
