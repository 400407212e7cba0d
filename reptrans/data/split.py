"""One part of a data set in memory: all images in one tensor, all labels in another."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reptrans.errors import BadData, BadValue, ShapeMismatch, check_whole
from reptrans.randomness import generator_of


class Limited:
    """What all parts of data sets have in common: labels, by which some examples of every class can be chosen."""

    def limit(self, per_class: int, seed: int | None = None, classes: Sequence[str] = ()) -> "Limited":
        """`per_class` examples of every class, in the part's order: the first ones, or a choice drawn from `seed`.

        Of yes-or-no labels, where an example is in several classes, `per_class` examples in all. `classes` are names
        for the message. Raises BadValue if a class has fewer.
        """
        return self.select(limited(self.labels, per_class, seed, classes))


@dataclass(frozen=True, eq=False, repr=False)
class Split(Limited):
    """Images (n, c, h, w) uint8 with labels (n,) int64, or (n, k) uint8 for k yes-or-no labels.

    Images may also be floats (n, …), for instance activations: a Loader then passes them on as they are.
    Raises ShapeMismatch if there are not as many labels as images, and BadData for values of other types.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for what, value in (("images", self.images), ("labels", self.labels)):
            if not isinstance(value, Tensor):
                raise BadData(
                    f"the {what} of a split are {type(value).__name__}. Give a tensor: torch.as_tensor({what})."
                )
        if len(self.images) != len(self.labels):
            raise ShapeMismatch(
                f"a split needs as many labels as images: images {tuple(self.images.shape)}, "
                f"labels {tuple(self.labels.shape)}."
            )
        if self.images.dtype == torch.uint8 and self.images.ndim != 4:
            raise ShapeMismatch(
                f"images of bytes are (n, channels, height, width), not {tuple(self.images.shape)}. Of grey images "
                "without an axis of channels give images[:, None]."
            )
        if self.images.dtype != torch.uint8 and not self.images.is_floating_point():
            raise BadData(
                f"images are {self.images.dtype}. Give torch.uint8 from 0 to 255, or floats, which are not normalised."
            )
        if self.labels.ndim == 1 and self.labels.dtype != torch.int64:
            raise BadData(f"labels are {self.labels.dtype}. One class for each image is torch.int64: labels.long().")
        if self.labels.ndim == 1 and len(self.labels) and self.labels.min() < 0:
            raise BadData(f"labels hold {int(self.labels.min())}, which is no class. Classes count from 0.")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Split({len(self)} images {self.shape} {str(self.images.dtype).removeprefix('torch.')})"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image: (c, h, w)."""
        return tuple(self.images.shape[1:])

    def batch(self, index: Tensor) -> Tensor:
        """The images at `index`, as they are stored."""
        return self.images[index.to(self.images.device)]

    def select(self, index: Tensor) -> "Split":
        """The examples at `index` (int64 positions), in that order."""
        return Split(self.batch(index), self.labels[index.to(self.labels.device)])


def limited(labels: Tensor, per_class: int, seed: int | None = None, classes: Sequence[str] = ()) -> Tensor:
    """Ascending positions of `per_class` examples of every class; see `Limited.limit`."""
    check_whole("limit", per_class, 1, more=": how many images of every class.")
    labels = labels.cpu()
    kinds = torch.zeros(len(labels), dtype=torch.int64) if labels.ndim > 1 else labels
    generator = None if seed is None else generator_of(seed)
    chosen = []
    for kind in range(len(classes) or int(kinds.max()) + 1) if labels.ndim == 1 else [0]:
        members = (kinds == kind).nonzero().flatten()
        if len(members) < per_class:
            of = "the split" if labels.ndim > 1 else f"class {classes[kind]!r}" if classes else f"class {kind}"
            raise BadValue(f"limit is {per_class}, but {of} has {len(members)} images. Choose a smaller limit.")
        order = slice(None) if generator is None else torch.randperm(len(members), generator=generator)
        chosen.append(members[order][:per_class])
    return torch.cat(chosen).sort().values


def held_out(labels: Tensor, holdout: float, seed: int = 0, classes: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
    """Ascending positions (rest, held out): of every class `holdout` examples, or that share of them, drawn by `seed`.

    `holdout`: a whole number from 1, or a share in (0, 1) of each class's examples, rounded. Of yes-or-no labels, of
    all examples. Raises BadValue where nothing would be held out of a class, or nothing be left of it.
    """
    number = isinstance(holdout, (int, float)) and not isinstance(holdout, bool)
    if not (number and holdout > 0 and (holdout < 1 or holdout % 1 == 0)):
        raise BadValue(f"holdout is {holdout!r}; it is a whole number of examples from 1, or a share in (0, 1).")
    labels, generator, held = labels.cpu(), generator_of(seed), []
    kinds = torch.zeros(len(labels), dtype=torch.int64) if labels.ndim > 1 else labels
    for kind in kinds.unique().tolist():
        members = (kinds == kind).nonzero().flatten()
        count = round(holdout * len(members)) if holdout < 1 else int(holdout)
        if not 0 < count < len(members):
            of = "the split" if labels.ndim > 1 else f"class {classes[kind]!r}" if classes else f"class {kind}"
            raise BadValue(
                f"holdout is {holdout}, which takes {count} of the {len(members)} training examples of {of}. At least "
                "one must be held out for validation, and one be left to train on."
            )
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    chosen = torch.cat(held).sort().values
    rest = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, chosen, False)
    return rest.nonzero().flatten(), chosen


def a_fifth(classes: dict[str, list], seed: int, kind: str, shown: Callable = str) -> tuple[dict, dict]:
    """(four fifths, one fifth) of every class's examples, in their order, by class: to train, and at least one to test.

    Raises BadData for a class of one example; the message calls it `kind`, and names it as `shown` does.
    """
    generator, train, test = generator_of(seed), {}, {}
    for name, members in classes.items():
        if len(members) < 2:
            only = f"class {name!r} has one {kind} only, {shown(members[0])}"
            raise BadData(f"{only}. A split into train and test needs two.")
        order = torch.randperm(len(members), generator=generator).tolist()
        few = set(order[: max(1, round(len(members) / 5))])
        train[name] = [member for i, member in enumerate(members) if i not in few]
        test[name] = [member for i, member in enumerate(members) if i in few]
    return train, test


def balanced(labels: Tensor, most: int) -> Tensor:
    """Ascending positions of at most `most` examples: the first of every class, the same number of each.

    A class that has fewer gives all of them, and the others more. One of each class comes in any case; of yes-or-no
    labels come the first `most`.
    """
    labels = labels.cpu()
    if labels.ndim > 1 or len(labels) <= most:
        return torch.arange(min(len(labels), most))
    counts = torch.bincount(labels)
    share = max(1, bisect_right(range(1, most + 1), most, key=lambda number: int(counts.clamp(max=number).sum())))
    return torch.cat([(labels == kind).nonzero().flatten()[:share] for kind in range(len(counts))]).sort().values
