"""One part of a data set in memory: all images in one tensor, all labels in another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reptrans.errors import BadValue, ShapeMismatch


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images (n, c, h, w) uint8 with labels (n,) int64, or (n, k) uint8 for k yes-or-no labels.

    Images may also be floats (n, …), for instance activations: a Loader then passes them on as they are.
    Raises ShapeMismatch if there are not as many labels as images.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ShapeMismatch(
                f"a split needs as many labels as images: images {tuple(self.images.shape)}, "
                f"labels {tuple(self.labels.shape)}."
            )

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

    def limit(self, per_class: int, seed: int | None = None, classes: Sequence[str] = ()) -> "Split":
        """`per_class` examples of every class, in the split's order: the first ones, or a choice drawn from `seed`.

        Of yes-or-no labels, where an example is in several classes, `per_class` examples in all. `classes` are names
        for the message. Raises BadValue if a class has fewer.
        """
        return self.select(limited(self.labels, per_class, seed, classes))


def limited(labels: Tensor, per_class: int, seed: int | None = None, classes: Sequence[str] = ()) -> Tensor:
    """Ascending positions of `per_class` examples of every class; see `Split.limit`."""
    if type(per_class) is not int or per_class < 1:
        raise BadValue(f"limit is {per_class!r}. It must be a whole number from 1: how many images of every class.")
    labels = labels.cpu()
    kinds = torch.zeros(len(labels), dtype=torch.int64) if labels.ndim > 1 else labels
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    chosen = []
    for kind in range(len(classes) or int(kinds.max()) + 1) if labels.ndim == 1 else [0]:
        members = (kinds == kind).nonzero().flatten()
        if len(members) < per_class:
            of = "the split" if labels.ndim > 1 else f"class {classes[kind]!r}" if classes else f"class {kind}"
            raise BadValue(f"limit is {per_class}, but {of} has {len(members)} images. Choose a smaller limit.")
        order = slice(None) if generator is None else torch.randperm(len(members), generator=generator)
        chosen.append(members[order][:per_class])
    return torch.cat(chosen).sort().values
