"""The experiment of the model similarity notebook: do two networks ask for the same images?"""

from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pandas as pd
import torch
from pydantic import field_validator
from torch import Tensor
from torch.nn import functional as F

from reptrans.data import Dataset
from reptrans.errors import BadData, BadValue
from reptrans.experiments.parameters import Count, Exact, NotNegative, Positive, Thousand, TrainingParameters, Weight
from reptrans.inputs.fronts import FastFront, fast_front
from reptrans.inputs.image import Pixels, noise
from reptrans.inputs.objective import (
    Objective,
    class_logit,
    match,
    range_penalty,
    total_variation,
    value_and_gradient,
    weighted,
)
from reptrans.inputs.optimise import Inversion, optimise_input
from reptrans.inputs.recovery import correlation
from reptrans.models import build
from reptrans.notebook import names
from reptrans.progress import progress


class ModelSimilarityRun(TrainingParameters):
    """Two networks and a third that judges, and how images are made for them.

    `models`: two names, joined by a comma; `judge`: of the third network, from a seed of its own. `variation` and
    `inside`: weights of the total variation and of values off [0, 1], for class images, beside a loss in logits; the
    matched outputs take a hundredth of them, since theirs is relative.
    """

    dtype: Exact = "auto"
    image_size: NotNegative = 16
    models: str = "resnet8,cnn3_w16"
    judge: str = "cnn3_w32"
    seeds: Thousand = 3
    steps: Count = 100
    lr: Positive = 0.05
    variation: Weight = 20.0
    inside: Weight = 50.0

    @field_validator("models")
    @classmethod
    def _are_two(cls, text: str) -> str:
        if len(names(text)) != 2:
            raise BadValue(f"models is {text!r}; two names are compared, joined by a comma.")
        return text


@dataclass
class Likeness:
    """`made`, a row for each seed, kind of image and class: p_one, p_other, p_judge, the probability of the class,
    right, whether the judge sees it, and reached, whether the descent got to its class at all. `gradients`: cosine of
    the two networks' image gradients at each place, for the same class and for different ones. `matched`: a row for
    each seed, target and class, from outputs matched. `images`, {(seed, kind): (k, c, h, w)}; `networks`,
    {seed: (one, other, judge)}."""

    made: pd.DataFrame
    gradients: pd.DataFrame
    matched: pd.DataFrame
    images: dict[tuple[int, str], Tensor]
    networks: dict[int, tuple[FastFront, FastFront, FastFront]]


def compare_models(p: ModelSimilarityRun, dataset: Dataset, folder: Path | None = None) -> Likeness:
    """Make images of every class for one network, for the other, for both, and for one and not the other; then images
    that give the other network the outputs of given ones.

    Kinds: "one", "other", class images; "both", their weighted objective with equal gradients; "difference", the same
    with a minus for the other. Targets of matched outputs: "generated", the class images of the one network, and
    "natural", the first test image of each class. With a the target image, x the result and b the other network's own
    class image: relative_error, correlation_matched (x with a), correlation_own (b with a).
    Networks trained on the way are kept in `folder`. Raises, before anything is trained, BadData for a class without a
    test image, and what does not fit an untrained network.
    """
    made, gradients, matched, images, networks = [], [], [], {}, {}
    natural = first_of_each(dataset).to(**p.place)
    for name in (*names(p.models), p.judge):
        net = build(name, **dataset.form)
        fast_front(net.to(natural).eval(), mean=dataset.mean, std=dataset.std)(natural)
    for seed in progress(range(p.seeds), "seeds"):
        one, other, judge = networks[seed] = _networks(p, dataset, seed, folder)
        classes = torch.arange(dataset.num_classes)
        wanted = [class_logit(net, classes) for net in (one, other)]
        kinds = {"one": wanted[0], "other": wanted[1], "both": weighted(wanted),
                 "difference": weighted(wanted, [1.0, -1.0])}  # fmt: skip
        start = noise(1, natural.shape[1:], seed=seed, mean=0.5).to(natural).expand_as(natural)
        for kind, objective in kinds.items():
            images[seed, kind] = _made(p, objective, start, 1.0).images
        images[seed, "natural"] = natural
        for kind in (*kinds, "natural"):
            made.append(_seen(networks[seed], images[seed, kind]).assign(seed=seed, kind=kind))
            made[-1]["reached"] = _reached(made[-1], kind)
        for place, at in (("noise", start), ("natural", natural), ("both", images[seed, "both"])):
            gradients.append(_gradients(one, other, at) | {"seed": seed, "place": place})
        for kind, a in (("generated", images[seed, "one"]), ("natural", natural)):
            images[seed, f"{kind}, matched"], rows = _matched(p, other, a, start, images[seed, "other"])
            matched.append(rows.assign(seed=seed, target=kind))
    return Likeness(pd.concat(made, ignore_index=True), pd.DataFrame(gradients), pd.concat(matched, ignore_index=True),
                    images, networks)  # fmt: skip


def first_of_each(dataset: Dataset) -> Tensor:
    """The first test image of every class, (k, c, h, w) in [0, 1], float64. Raises BadData where there is none."""
    labels = dataset.test.labels
    if gone := sorted(set(range(dataset.num_classes)) - set(labels.tolist())):
        missing = ", ".join(dataset.classes[k] for k in gone)
        raise BadData(f"{dataset.name} has no test image of {missing}; one of each class is needed. Add some.")
    index = torch.stack([(labels == k).nonzero()[0, 0] for k in range(dataset.num_classes)])
    return dataset.test.batch(index).double() / 255


def _networks(p: ModelSimilarityRun, dataset: Dataset, seed: int, folder: Path | None) -> tuple[FastFront, ...]:
    plan = zip([*names(p.models), p.judge], (seed, seed, p.seeds + seed), strict=True)
    nets = [p.trained(name, dataset, own, folder).to(**p.place) for name, own in plan]
    return tuple(fast_front(net, mean=dataset.mean, std=dataset.std) for net in nets)


def _made(p: ModelSimilarityRun, objective: Objective, start: Tensor, share: float) -> Inversion:
    prior = (total_variation(share * p.variation), range_penalty(share * p.inside))
    return optimise_input(objective, Pixels(start), prior=prior, steps=p.steps, lr=p.lr, points=0, portable=True)


@torch.no_grad()
def _seen(networks: tuple[FastFront, ...], images: Tensor) -> pd.DataFrame:
    """What the three networks say of images that should show the classes 0, 1, … ."""
    classes = range(len(images))
    told = {f"p_{who}": F.softmax(net(images), 1).diagonal().tolist()
            for who, net in zip(("one", "other", "judge"), networks, strict=True)}  # fmt: skip
    right = [float(k == answer) for k, answer in zip(count(), networks[2](images).argmax(1).tolist(), strict=False)]
    return pd.DataFrame({"class": list(classes)} | told | {"right": right})


def _reached(rows: pd.DataFrame, kind: str) -> pd.Series:
    """Whether those networks answer with the class that it was made for, and, of a difference, the other does not."""
    one, other = rows["p_one"] > 0.5, rows["p_other"] > 0.5
    return {"one": one, "other": other, "both": one & other, "difference": one & ~other}.get(kind, one | True)


def _gradients(one: FastFront, other: FastFront, images: Tensor) -> dict[str, float]:
    """Mean cosine of the two networks' gradients of a class logit with respect to each image."""
    k = len(images)
    every = images.repeat_interleave(k, 0), torch.arange(k).repeat(k)
    g, h = (F.normalize(value_and_gradient(class_logit(net, every[1]), every[0])[1].flatten(1)).unflatten(0, (k, k))
            for net in (one, other))  # fmt: skip
    cosines = (g @ h.mT).mean(0)  # of class i in one network and class j in the other, mean over images
    same = cosines.diagonal().mean()
    return {"same_class": same.item(), "other_class": ((cosines.sum() - k * same) / (k * k - k)).item()}


def _matched(
    p: ModelSimilarityRun, net: FastFront, a: Tensor, start: Tensor, own: Tensor
) -> tuple[Tensor, pd.DataFrame]:
    """Images with the outputs that `net` gives to a, and how much more they look like a than the net's class images."""
    with torch.no_grad():
        target = net(a)
    found = _made(p, match(net, target), start, 0.01)
    rows = {"class": range(len(a)), "relative_error": found.rows["relative_error"],
            "correlation_matched": correlation(found.images, a).tolist(),
            "correlation_own": correlation(own, a).tolist()}  # fmt: skip
    return found.images, pd.DataFrame(rows)
