"""The experiment of the notebook on differences: two networks, the same images, and all that may differ between them.

Every part is a function of two `Side`s; most return rows. What a pair of networks does not allow is raised, and
`Found.part` keeps the reason in place of the rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor

from reptrans.errors import BadData, ReptransError, ShapeMismatch
from reptrans.experiments.answers import by_class, by_factor, overall, same_classes, unlabelled
from reptrans.experiments.insides import line, matches, similar, stitches, unjoined, weights
from reptrans.experiments.parameters import Exact, NotNegative, Orders, TrainingParameters
from reptrans.experiments.sides import Side
from reptrans.inputs.metamers import differentiate
from reptrans.similarity import MEASURES

RADIUS = 0.05  # root mean square over the values of an image, of the largest change that is made to it


class DiffRun(TrainingParameters):
    """Two networks, the images that both see, and how many of these each part takes.

    `a`, `b`: NETWORK, trained once on the data as `train_*` say, from `seed_a` and `seed_b`; NETWORK@FILE, with the
    weights in a file; or FILE alone, of one of this package's networks. How many classes and channels a file's network
    has is read off its weights. `image_size_b`, `normalise_b`: for a B that takes the same images in another form.
    `test_images`: whose answers are compared. `images`: for similarity and alignment. `layers`: at most, of each
    network. `orders`: of the null. `fit_images`: training images that stitches are solved on. `scored`: test images
    for stitched and mixed networks. `pictures`: shown; `steps`: of the descent that makes some. `planted`: so many
    pairs with a known difference of each kind, see `planted_pairs`.
    """

    a: str = "tiny10"
    b: str = "tiny10"
    seed_a: NotNegative = 0
    seed_b: NotNegative = 1
    image_size_b: NotNegative = 0
    normalise_b: str = ""
    measure: str = "debiased_cka"
    layers: int = Field(6, ge=1, le=200)
    test_images: NotNegative = 0
    images: int = Field(300, ge=20)
    orders: Orders = 100
    fit_images: int = Field(500, ge=20)
    scored: int = Field(400, ge=20)
    pictures: int = Field(10, ge=1, le=30)
    steps: int = Field(60, ge=1)
    planted: NotNegative = 1
    dtype: Exact = "auto"

    @field_validator("measure")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return MEASURES[name].name

    @property
    def precision(self) -> str:
        """`dtype`, decided: float64 pays on a CPU for small images alone."""
        small = self.dataset.partition(":")[0] in ("digits", "shapes")
        return "float32" if self.dtype == "auto" and not small else super().precision


@dataclass
class Found:
    """What was found, by the names of the parts, and of the parts that cannot be had the reasons."""

    a: Side
    b: Side
    parts: dict[str, object] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def part(self, name: str, function: Callable, *given) -> object:
        """What `function(a, b, *given)` gives, kept; or None, and the reason kept, where it refuses."""
        try:
            self.parts[name] = function(self.a, self.b, *given)
        except ReptransError as error:
            self.missing[name] = str(error)
        return self.parts.get(name)

    def __getitem__(self, name: str) -> object:
        """What a part gave; None where there is nothing of it."""
        return self.parts.get(name)

    def lacking(self) -> list[str]:
        """A line for each reason why something is not compared."""
        missing = self.missing | ({"alignment": apart.why} if (apart := self["weights"]) and apart.why else {})
        if self["similarity"] is not None and self["stitches"] is not None:
            why = "no map over channels joins their places."
            missing |= {f"a stitch {way}": why for way in unjoined(self["similarity"].effect, self["stitches"])}
        reasons = dict.fromkeys(missing.values())
        names = {why: ", ".join(n for n, reason in missing.items() if reason == why) for why in reasons}
        return [f"Not compared, {names[why]}: {why}" for why in reasons]

    @property
    def rows(self) -> dict[str, pd.DataFrame]:
        """The tables."""
        return {name: rows for name, rows in self.parts.items() if isinstance(rows, pd.DataFrame)}


@dataclass(frozen=True)
class Pictures:
    """`rows`, one for each of `images` (n, c, h, w) in [0, 1]: image (its place among the test images), answers of A
    and B; of pictures that were made also `still`, whose answer was to stay. `starts`: what they were made from, the
    same ones for A and for B."""

    rows: pd.DataFrame
    images: Tensor
    starts: Tensor | None = None


def natural(a: Side, b: Side, p: DiffRun) -> Pictures:
    """The test images on which the answers are most different, by the Jensen-Shannon divergence in bits; the first of
    each pair of answers before the second of any."""
    same_classes(a, b)
    x, y = (side.logits.softmax(1) for side in (a, b))
    entropy = [torch.special.entr(v).sum(1) for v in ((x + y) / 2, x, y)]
    bits = (entropy[0] - (entropy[1] + entropy[2]) / 2).clamp_min(0) / math.log(2)
    rows = pd.DataFrame({"image": range(len(bits)), "a": a.answers, "b": b.answers, "divergence": bits})
    rows = rows.sort_values("divergence", ascending=False, kind="stable")
    rows = rows.assign(turn=rows.groupby(["a", "b"]).cumcount()).sort_values("turn", kind="stable")[: p.pictures]
    index = torch.tensor(rows["image"].to_numpy())
    return Pictures(rows.drop(columns="turn").reset_index(drop=True), a.answered.batch(index).double() / 255)


def told(side: Side, rows: pd.DataFrame) -> list[str]:
    """What A and B answer to each picture: the text below it."""
    known = dict(enumerate(side.data.classes))
    return [f"A {known.get(x, x)}\nB {known.get(y, y)}" for x, y in zip(rows["a"], rows["b"], strict=True)]


def made(a: Side, b: Side, p: DiffRun) -> Pictures:
    """Maximum differentiation: images near some on which both agree, where one network's answer stays and the other's
    goes as far as it can; see `differentiate`. The first half is still for A, the other for B."""
    same_classes(a, b)
    if a.data is not b.data:
        raise ShapeMismatch("the two networks take the images in different forms, and a picture has one.")
    agreed = (a.answers == b.answers).nonzero()[:, 0]
    turn = pd.Series(a.answers[agreed]).groupby(a.answers[agreed].numpy()).cumcount()  # one of each class first
    agreed = agreed[turn.argsort(kind="stable").to_list()][: max(1, p.pictures // 2)]
    if not len(agreed):
        raise BadData("the two networks agree on no test image, near which they could be told apart.")
    like = next(a.net.parameters())
    x = (a.answered.batch(agreed).double() / 255).to(like)
    nets, rows, images = {"A": a.module(), "B": b.module()}, [], []
    radius = RADIUS * x[0].numel() ** 0.5
    for still, moving in (("A", "B"), ("B", "A")):
        found = differentiate(nets[still], nets[moving], x, radius=radius, steps=p.steps, lr=0.02, portable=True)
        now = {letter: net(found.images).argmax(1).tolist() for letter, net in nets.items()}
        rows.append(pd.DataFrame({"image": agreed, "still": still, "a": now["A"], "b": now["B"],
                                  "moved": found.rows["moved"]}))  # fmt: skip
        images.append(found.images.cpu().double())
    return Pictures(pd.concat(rows, ignore_index=True), torch.cat(images), x.cpu().double())


def answers_compared(a: Side, b: Side) -> Found:
    """The parts that look at nothing but answers: accuracies (or answers, without labels), classes, factors."""
    found = Found(a, b)
    if found.part("accuracies", overall) is None:
        found.part("answers", unlabelled)
    found.part("classes", by_class)
    found.part("factors", by_factor)
    return found


def differences(a: Side, b: Side, p: DiffRun) -> Found:
    """All parts: those of `answers_compared`, similarity with layers and stitches, weights with line, natural, made."""
    found = answers_compared(a, b)
    if (table := found.part("similarity", similar, p)) is not None:
        found.part("layers", matches, table)
        found.part("stitches", stitches, table, p)
    if (apart := found.part("weights", weights, p)) is not None:
        found.part("line", line, apart, p)
    found.part("natural", natural, p)
    found.part("made", made, p)
    return found
