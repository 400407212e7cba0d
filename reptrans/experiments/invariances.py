"""The experiment of the invariances notebook: do two networks that can be stitched look at the same things?"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from reptrans.bench import effect
from reptrans.data import Dataset
from reptrans.data.shapes import FACTORS, parse, shapes
from reptrans.data.split import balanced
from reptrans.errors import BadValue
from reptrans.experiments.parameters import (
    Count,
    Exact,
    NotNegative,
    Positive,
    Thousand,
    TrainingParameters,
    Weight,
)
from reptrans.experiments.stitched import Stitching
from reptrans.experiments.stitching import StitchingRun
from reptrans.inputs.fronts import FastFront, fast_front
from reptrans.inputs.image import noise
from reptrans.inputs.metamers import differentiate, metamers, stir
from reptrans.inputs.objective import total_variation
from reptrans.inputs.optimise import Inversion
from reptrans.models import build
from reptrans.progress import progress

FEWEST = 20  # metamers that converged, for STIR
SHARES = ["stitched", "plain", "forward", "backward", "stir_forward", "stir_backward"]


class InvariancesRun(TrainingParameters):
    """Networks that look at the label's own factor, networks that look at a cue, and how they are compared.

    `dataset`: shapes without a shortcut; `cue`: the shortcut, FACTOR@SHARE, in the training images of the second kind
    of network. `layer`: where networks are cut. `images`: test images on which label and cue agree, to make metamers
    of, from `start`: other images, or noise. `tolerance`: the relative error up to which one counts. `radius`: of
    maximum differentiation, for the first `pictures` images.
    """

    dtype: Exact = "auto"
    dataset: str = "shapes:shape:images=2000:difficulty=0"
    image_size: NotNegative = 16
    cue: str = "colour@1"
    model: str = "cnn5_w8"
    layer: str = "avgpool"
    seeds: Thousand = 5
    train_epochs: Count = 10
    stitch_epochs: NotNegative = 3
    images: int = Field(64, ge=20)
    start: Literal["images", "noise"] = "images"
    steps: Count = 200
    lr: Positive = 0.05
    variation: Weight = 0.1
    tolerance: Positive = 0.1
    radius: Positive = 2.0
    pictures: int = Field(8, ge=1, le=20)

    @model_validator(mode="after")
    def _has_a_cue(self) -> "InvariancesRun":
        if self.dataset.partition(":")[0] != "shapes" or "shortcut" in self.dataset:
            raise BadValue(
                f"dataset is {self.dataset!r}; it must be shapes, whose factors are known, without a shortcut."
            )
        parse(self.cued)
        return self

    @property
    def cued(self) -> str:
        """The name of the data set with the cue."""
        return f"{self.dataset}:shortcut={self.cue}"

    @property
    def kinds(self) -> tuple[str, str]:
        """What the two kinds of network are called: the factor of the label, and the cue."""
        recipe = parse(self.cued)
        return "+".join(recipe.factors), recipe.shortcut[0]


@dataclass(frozen=True)
class Data:
    """What the run looks at: `train`, {kind of network: its data set}, with one set of statistics, of the cue's kind
    with those test images alone on which cue and label agree; `conflicting`, the other test images and their labels by
    kind; `images` and `start` (n, c, h, w), what metamers are made of and from."""

    train: dict[str, Dataset]
    conflicting: tuple[Tensor, dict[str, Tensor]]
    images: Tensor
    start: Tensor

    @property
    def agreeing(self) -> Dataset:
        """The data set with the cue, on which both kinds of network are right."""
        return list(self.train.values())[1]


@dataclass
class Invariances:
    """`networks`, a row for each seed and kind: accuracy where label and cue agree, and where they do not, the share of
    answers that follow either. `metamers`, a row for each of these and image: relative_error, converged, holds (whether
    the network's own answer is the same), and STIR of the network with itself. `pairs`, see `compare_pair`.
    `differences`, a row for each seed, still and moving network: by how much, relative to itself, either answer moved
    in the middle, and how often it is another class. `first`, {kind: network of the first seed}; `differ`, the images
    (n, c, h, w) on which its answer stays and that of the other kind moves."""

    networks: pd.DataFrame
    metamers: pd.DataFrame
    pairs: pd.DataFrame
    differences: pd.DataFrame
    first: dict[str, "Seen"]
    differ: dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """One network and its metamers: `front` up to the layer, `whole`, both on images in [0, 1]."""

    net: nn.Module
    front: FastFront
    whole: FastFront
    found: Inversion

    @torch.no_grad()
    def answers(self, images: Tensor) -> list[int]:
        """The class that it gives to each image (n, c, h, w) in [0, 1]."""
        return self.whole(images).argmax(1).tolist()

    @property
    def converged(self) -> Tensor:
        return torch.tensor(self.found.rows["converged"].to_numpy())


def load(p: InvariancesRun) -> Data:
    """The data of the run. Raises BadValue where fewer test images agree than are asked for."""
    own, cued = p.load(), p.model_copy(update={"dataset": p.cued}).load()
    cued = replace(cued, mean=own.mean, std=own.std)
    recipe, (label, cue) = parse(p.cued), p.kinds
    cues = shapes(f"shapes:{cue}:images=1:seed={recipe.seed}", 8).test.labels
    agree = own.test.labels % len(FACTORS[cue]) == cues
    agreeing, conflicting = (own.test.select(which.nonzero()[:, 0]) for which in (agree, ~agree))
    if len(agreeing) < p.images:
        raise BadValue(f"images is {p.images}, and label and cue agree in {len(agreeing)} test images. Take fewer.")
    few = agreeing.select(balanced(agreeing.labels, p.images))
    images = _unit(p, few)
    return Data(
        {label: own, cue: replace(cued, test=agreeing)},
        (_unit(p, conflicting), {label: conflicting.labels, cue: cues[~agree]}),
        images,
        images[_of_others(few.labels)] if p.start == "images" else _noise(images),
    )


def _unit(p: InvariancesRun, split) -> Tensor:
    return (split.images.double() / 255).to(**p.place)


def _noise(images: Tensor) -> Tensor:
    return noise(len(images), images.shape[1:], mean=0.5, std=0.1).to(images).clamp(0, 1)


def _of_others(labels: Tensor) -> Tensor:
    """For each image the next one, going round, of another class."""
    n = len(labels)
    return torch.tensor([next(j % n for j in range(i + 1, i + n + 1) if labels[j % n] != labels[i] or j == i + n)
                         for i in range(n)])  # fmt: skip


def invariances(p: InvariancesRun, data: Data, folder: Path | None = None) -> Invariances:
    """Train both kinds of network, make metamers of each, stitch all kinds of pairs, and compare.

    Pairs by kind: the front of seed i and the end of seed i + 1 (the last with the first) of the same kind, or of
    seed i of the other kind. Networks trained on the way are kept in `folder`.
    Raises, before anything is trained, what layer, model and data do not allow.
    """
    _rehearse(p, data)
    count = max(p.seeds, 2)
    seen = {(kind, seed): _seen(p, data, kind, seed, folder)
            for seed in progress(range(count), "networks") for kind in p.kinds}  # fmt: skip
    pairs, differences, differ = [], [], {}
    for seed in progress(range(p.seeds), "pairs"):
        for a in p.kinds:
            for b in p.kinds:
                one, other = seen[a, seed], seen[b, (seed + 1) % count if a == b else seed]
                key = {"seed": seed, "front": a, "end": b, "cues": "same" if a == b else "different"}
                pairs.append(key | compare_pair(p, data, one, other, seed))
                found = _difference(p, data, one, other)
                differences.append({"seed": seed, "still": a, "moving": b} | _differ(data, one, other, found))
                if seed == 0 and a != b:
                    differ[a] = found.images
    return Invariances(
        pd.DataFrame([{"seed": s, "network": k} | _follows(data, v.whole) for (k, s), v in seen.items()]),
        pd.concat([_own(data, v).assign(seed=s, network=k) for (k, s), v in seen.items()], ignore_index=True),
        pd.DataFrame(pairs), pd.DataFrame(differences), {kind: seen[kind, 0] for kind in p.kinds}, differ,
    )  # fmt: skip


def compare_pair(p: InvariancesRun, data: Data, one: Seen, other: Seen, seed: int) -> dict[str, float]:
    """One front A, of `one`, stitched to one end B, of `other`, and what each ignores, as shares of images:

    - stitched: the stitched network's accuracy over B's, on test images where label and cue agree;
    - plain, forward, backward: how often the stitched network answers as B does on images x, on A's metamers of them,
      which the stitched network cannot tell from x, and on B's, which B cannot;
    - stir_forward, stir_backward: STIR(B | A) and STIR(A | B), with p_forward and p_backward of chance;
    - follows_…: which factor its answers follow where label and cue disagree.
    Only metamers that converged count. Forward and backward are definitions of this package: a stitch in place of B's
    own front is right wherever either of the two is blind.
    """
    stitching = Stitching(one.net, other.net, [(p.layer, p.layer)], data.agreeing, _settings(p), seed=seed)
    done = stitching.stitch(p.layer, p.layer)
    whole = FastFront(done.network, data.agreeing.mean, data.agreeing.std, halved=False)
    row = {"stitched": done.rows["relative_accuracy"].iloc[-1], "plain": _agreement(whole, other.whole, data.images)}
    for way, source, reader in (("forward", one, other), ("backward", other, one)):
        some = source.converged
        x, seen = data.images[some], source.found.images[some]
        row[way] = _agreement(whole, other.whole, seen)
        told = _stir(reader, x, seen)
        row |= {f"stir_{way}": told["value"], f"p_{way}": told["p"]}
    return row | _follows(data, whole)


def by_kind(pairs: pd.DataFrame) -> pd.DataFrame:
    """A row for each kind of pair: every share with the 95 % interval of its mean over seeds, in words."""
    rows = [{"front": a, "end": b} | {name: _interval(rows[name]) for name in SHARES}
            for (a, b), rows in pairs.groupby(["front", "end"], sort=False)]  # fmt: skip
    return pd.DataFrame(rows)


def lost(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs with the same cue minus those with different ones, paired by seed: mean, low, high and n of each share."""
    means = pairs.groupby(["cues", "seed"])[SHARES].mean()
    rows = []
    for name in SHARES:
        known = (means.loc["same", name] - means.loc["different", name]).dropna()
        if len(known):
            found = effect(known)
            rows.append({"share": name, "mean": found.mean, "low": found.low, "high": found.high, "n": found.n})
    return pd.DataFrame(rows)


def _interval(values: pd.Series) -> str:
    if values.isna().any():
        return ""
    found = effect(values)
    return f"{found.mean:.2f}" + (f" [{found.low:.2f}, {found.high:.2f}]" if found.n > 1 else "")


def _settings(p: InvariancesRun) -> StitchingRun:
    return StitchingRun(
        direct="least squares", epochs=p.stitch_epochs, batch_size=50, cka_images=4, dtype=p.precision, device=p.device
    )


def _rehearse(p: InvariancesRun, data: Data) -> None:
    """Cut and stitch an untrained network, so that what does not fit is said at once."""
    net = build(p.model, **data.agreeing.form).to(**p.place).eval()
    Stitching(net, net, [(p.layer, p.layer)], data.agreeing, _settings(p))
    fast_front(net, p.layer, mean=data.agreeing.mean, std=data.agreeing.std)(data.images[:2])


def _seen(p: InvariancesRun, data: Data, kind: str, seed: int, folder: Path | None) -> Seen:
    own = data.train[kind]
    net = p.trained(p.model, own, seed, folder).to(**p.place)
    front, whole = (fast_front(net, layer, mean=own.mean, std=own.std) for layer in (p.layer, None))
    found = metamers(
        front, data.images, data.start, tolerance=p.tolerance, steps=p.steps, lr=p.lr,
        prior=(total_variation(p.variation),), portable=True,
    )  # fmt: skip
    return Seen(net, front, whole, found)


def _difference(p: InvariancesRun, data: Data, still: Seen, moving: Seen) -> Inversion:
    x = data.images[: p.pictures]
    return differentiate(still.whole, moving.whole, x, radius=p.radius, steps=p.steps, lr=0.02, portable=True)


@torch.no_grad()
def _differ(data: Data, still: Seen, moving: Seen, found: Inversion) -> dict[str, float]:
    """How far both answers moved, in the middle, and how often each is another class."""
    x, rows = data.images[: len(found.images)], found.rows
    other = {name: 1 - _agreement(net.whole, net.whole, x, found.images)
             for name, net in (("still_changed", still), ("moving_changed", moving))}  # fmt: skip
    return {"still_by": rows["relative_error"].median(), "moving_by": rows["moved"].median()} | other


@torch.no_grad()
def _agreement(net: nn.Module, other: nn.Module, images: Tensor, others: Tensor | None = None) -> float:
    """Share of images to which the two give the same answer; with `others`, the second is shown these instead."""
    answers = net(images).argmax(1), other(images if others is None else others).argmax(1)
    return (answers[0] == answers[1]).double().mean().item()


@torch.no_grad()
def _follows(data: Data, whole: nn.Module) -> dict[str, float]:
    test, (images, labels) = data.agreeing.test, data.conflicting
    answers = whole((test.images.double() / 255).to(images)).argmax(1).cpu()
    told = whole(images).argmax(1).cpu()
    follows = {f"follows_{kind}": (told == wanted).double().mean().item() for kind, wanted in labels.items()}
    return {"accuracy": (answers == test.labels).double().mean().item()} | follows


@torch.no_grad()
def _own(data: Data, seen: Seen) -> pd.DataFrame:
    """The rows of a network's metamers: errors, whether its answer holds, and STIR of the network with itself."""
    x, found = data.images, seen.found
    holds = (seen.whole(x).argmax(1) == seen.whole(found.images).argmax(1)).double().tolist()
    rows = found.rows[["relative_error", "converged"]].assign(image=range(len(x)), holds=holds)
    some = seen.converged
    return rows.assign(stir=_stir(seen, x[some], found.images[some])["value"])


def _stir(reader: Seen, images: Tensor, others: Tensor) -> dict[str, float]:
    """STIR, or nothing where too few metamers converged to say anything."""
    return stir(reader.front, images, others) if len(images) >= FEWEST else {"value": math.nan, "p": math.nan}
