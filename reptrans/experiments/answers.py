"""What two networks answer to the same images: how often they are right, of which classes, and what answers follow.

All differences are told on one scale, an effect that a small sample makes smaller: see `paired`.
"""

import math

import pandas as pd
import torch
from scipy.stats import binomtest, norm
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from reptrans.data.shapes import FACTORS, parse, shapes
from reptrans.errors import BadData, ShapeMismatch
from reptrans.experiments.sides import Side
from reptrans.similarity import agreement

LEVEL = 0.05
DIFFER = "answers differ"


def paired(x: Tensor, y: Tensor, tests: int = 1) -> dict[str, float]:
    """Shares of two yes-or-no vectors (n,) over the same images: x, y, difference, low, high, effect.

    The interval is Agresti and Min's of 2005 for paired shares, at 95 % for all `tests` together. `effect`: Cohen's
    h = 2 |asin √x − asin √y| (Cohen 1988), in the proportion of the interval's end nearer to 0; 0 if it holds 0.
    """
    a, b, n = x.double().mean().item(), y.double().mean().item(), len(x) + 2
    more, fewer = int((x & ~y).sum()) + 0.5, int((~x & y).sum()) + 0.5
    middle, reach = (more - fewer) / n, norm.isf(LEVEL / 2 / tests)
    reach *= math.sqrt(more + fewer - (more - fewer) ** 2 / n) / n
    h = 2 * abs(math.asin(math.sqrt(a)) - math.asin(math.sqrt(b)))
    near = max(abs(middle) - reach, 0.0) / abs(middle) if middle else 0.0
    low, high = max(middle - reach, -1.0), min(middle + reach, 1.0)
    return {"a": a, "b": b, "difference": a - b, "low": low, "high": high, "effect": h * near}


def same_classes(a: Side, b: Side) -> None:
    """Raise ShapeMismatch where answers of A and of B are not of the same classes."""
    k, m = a.logits.shape[1], b.logits.shape[1]
    if k != m:
        raise ShapeMismatch(f"A tells {k} classes apart and B {m}.")


def labels_of(side: Side) -> Tensor:
    """The labels of the answers. Raises BadData where they do not fit."""
    labels, k = side.answered.labels, side.logits.shape[1]
    if labels.ndim > 1:
        raise BadData(f"{side.data.name} has several true labels at once; answers of one class are compared here.")
    if k != side.data.num_classes:
        raise BadData(
            f"{side.letter} tells {k} classes apart, and {side.data.name} has {side.data.num_classes}: its labels do "
            "not say which answers are right."
        )
    return labels


def overall(a: Side, b: Side) -> pd.DataFrame:
    """Rows of what, value, low, high: accuracies, their difference, different answers, and error consistency."""
    same_classes(a, b)
    labels = labels_of(a)
    x, y = (side.answers == labels for side in (a, b))
    told = agreement(a.logits, b.logits, labels)
    gap = paired(x, y)
    return _rows({
        "A is right": share(x), "B is right": share(y), "A − B": (gap["difference"], gap["low"], gap["high"]),
        "only A is right": share(x & ~y), "only B is right": share(y & ~x), DIFFER: share(a.answers != b.answers),
        "error consistency": [told[f"error_consistency{end}"] for end in ("", "_low", "_high")],
    })  # fmt: skip


def unlabelled(a: Side, b: Side) -> pd.DataFrame:
    """The one row of `overall` that takes no labels."""
    same_classes(a, b)
    return _rows({DIFFER: share(a.answers != b.answers)})


def _rows(found: dict) -> pd.DataFrame:
    return pd.DataFrame([(what, *values) for what, values in found.items()], columns=["what", "value", "low", "high"])


def share(yes: Tensor) -> tuple[float, float, float]:
    """A share and Wilson's 95 % interval."""
    found = binomtest(int(yes.sum()), len(yes))
    return found.statistic, *map(float, found.proportion_ci(1 - LEVEL, "wilson"))


def by_class(a: Side, b: Side) -> pd.DataFrame:
    """A row for each class, by effect: how often either network is right on its images, and the wrong answer that the
    two give most unequally often: other, a_other, b_other.

    All intervals of the table hold at once. `effect` is the larger of the two, less that of being right on the images
    of all other classes, where it goes the same way: what is true of every class says nothing of this one.
    """
    same_classes(a, b)
    labels, k = labels_of(a), a.data.num_classes
    right, rows = (a.answers == labels, b.answers == labels), []
    for i in [i for i in range(k) if (labels == i).sum() > 1 and (labels != i).any()]:
        here = labels == i
        own = paired(*(v[here] for v in right), tests=k * k)
        counts = [torch.bincount(side.answers[here], minlength=k).double() for side in (a, b)]
        gap = (counts[0] - counts[1]).abs()
        gap[i] = -1
        j = int(gap.argmax())
        other = paired(*(side.answers[here] == j for side in (a, b)), tests=k * k)
        rest = paired(*(v[~here] for v in right))
        beyond = rest["effect"] if own["difference"] * rest["difference"] > 0 else 0.0
        rows.append({"class": a.data.classes[i], "n": int(here.sum())} | own | {
            "other": a.data.classes[j], "a_other": other["a"], "b_other": other["b"], "other_low": other["low"],
            "other_high": other["high"], "confused": other["effect"] >= 0.75 * own["effect"] and other["effect"] > 0,
            "effect": max(0.0, max(own["effect"], other["effect"]) - beyond),
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values("effect", ascending=False, kind="stable", ignore_index=True)


def factors_of(side: Side) -> dict[str, Tensor]:
    """What is known of the answered images beside their labels, each (n,) whole numbers.

    Of shapes the factors that the label does not tell, as they were drawn. Of other images, in four equal parts:
    brightness, contrast, and of colours the shares of red, green and blue; and eight clusters of pixels.
    """
    if side.data.name.partition(":")[0] == "shapes" and not side.most:
        recipe = parse(side.data.name)
        rest = [factor for factor in FACTORS if factor not in recipe.factors]
        return {f: shapes(f"shapes:{f}:images=1:seed={recipe.seed}", 8).test.labels for f in rest}
    parts = torch.arange(len(side.answered)).split(500)
    small = torch.cat([F.adaptive_avg_pool2d(side.answered.batch(i).double() / 255, 8) for i in parts])
    each = {"brightness": small.mean((1, 2, 3)), "contrast": small.flatten(1).std(1)}
    if side.data.channels == 3:
        tints = small.mean((2, 3)) - small.mean((1, 2, 3))[:, None]
        each |= dict(zip(("red", "green", "blue"), tints.T, strict=True))
    quarters = {name: _quarters(values) for name, values in each.items()}
    clusters = KMeans(8, n_init=1, random_state=0).fit_predict(small.flatten(1).numpy())
    return quarters | {"cluster of pixels": torch.from_numpy(clusters).long()}


def _quarters(values: Tensor) -> Tensor:
    """(n,) 0 to 3, by rank."""
    return values.argsort(stable=True).argsort(stable=True) * 4 // len(values)


def by_factor(a: Side, b: Side) -> pd.DataFrame:
    """A row for each factor and network, by effect: whether its answers follow the factor where those of the other do
    not; factor, follower, n, a, b, difference, low, high, effect.

    In one half of the images each value of the factor gets the answer that the follower gives more often than the
    other network; counted is how often both give it in the other half, and the reverse, where it is not the label. If
    half of the difference is there without the factor, its values exchanged within each class, the effect is 0.
    """
    same_classes(a, b)
    try:
        labels = labels_of(a)
    except BadData:
        labels = torch.full_like(a.answers, -1)
    known, rows = factors_of(a), []
    for name, values in known.items():
        for leader, other in ((a, b), (b, a)):
            there, tests, sign = (values, _within(values, labels)), 2 * len(known), 1 if leader is a else -1
            found, without = (_follows(leader, other, v, labels, tests) for v in there)
            if sign * found["difference"] <= max(0.0, 2 * sign * without["difference"]):
                found["effect"] = 0.0
            rows.append({"factor": name, "follower": leader.letter} | found)
    return pd.DataFrame(rows).sort_values("effect", ascending=False, kind="stable", ignore_index=True)


def _follows(leader: Side, other: Side, values: Tensor, labels: Tensor, tests: int) -> dict[str, float]:
    told = _followed(leader.answers, other.answers, values, leader.logits.shape[1])
    apart = told != labels
    sides = sorted((leader, other), key=lambda side: side.letter)
    return {"n": int(apart.sum())} | paired(*((side.answers == told)[apart] for side in sides), tests=tests)


def _within(values: Tensor, labels: Tensor) -> Tensor:
    """The values of a factor exchanged at random among the images of each class."""
    drawn = torch.rand(len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = (labels.double() + drawn).argsort()
    mixed = torch.empty_like(values)
    mixed[labels.argsort(stable=True)] = values[order]
    return mixed


def _followed(leader: Tensor, other: Tensor, values: Tensor, classes: int) -> Tensor:
    """(n,): the answer that goes with each image's value of a factor, as the other half of the images shows it."""
    told, half = torch.empty_like(leader), torch.arange(len(leader)) % 2 == 0
    for now in (half, ~half):
        table = torch.zeros(int(values.max()) + 1, classes)
        for answers, sign in ((leader, 1.0), (other, -1.0)):
            table.index_put_((values[~now], answers[~now]), torch.full((int((~now).sum()),), sign), accumulate=True)
        told[now] = table.argmax(1)[values[now]]
    return told
