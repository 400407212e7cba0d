"""Images of people, who, by which camera, and where the joints are; and pairs of them.

Pairs are of the same person or not, with the poses and pictures that the generator is to reach.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from reptrans.data import Split
from reptrans.data.loader import mixed
from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.matching import above_0
from reptrans.randomness import generator_of


@dataclass(frozen=True, eq=False)
class People:
    """n images of people.

    `images` (n, 3, h, w) uint8; `identities` (n,) int64; `cameras` (n,) int64; `landmarks` (n, j, 2): row and column of
    each joint in pixels, the centre of the first pixel at 0, NaN where a joint is not seen; None where nobody knows.
    Raises ShapeMismatch, BadData.
    """

    images: Tensor
    identities: Tensor
    cameras: Tensor
    landmarks: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ShapeMismatch(f"images are {_described(self.images)}; they must be (n, 3, h, w) uint8.")
        for name in ("identities", "cameras"):
            if getattr(self, name).shape != (n,):
                raise ShapeMismatch(f"there are {n} images, but {name} are {tuple(getattr(self, name).shape)}.")
        if self.landmarks is not None and (self.landmarks.ndim != 3 or self.landmarks.shape[::2] != (n, 2)):
            raise ShapeMismatch(f"landmarks are {tuple(self.landmarks.shape)}; they must be ({n}, joints, 2).")
        if n == 0:
            raise BadData("there are no images of people.")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return tuple(self.images.shape[2:])

    @property
    def joints(self) -> int:
        """How many landmarks an image has, 0 where they are unknown."""
        return 0 if self.landmarks is None else self.landmarks.shape[1]

    def select(self, index: Tensor) -> "People":
        """The images at `index`, positions or a mask (n,)."""
        fields = (self.images, self.identities, self.cameras, self.landmarks)
        return People(*(None if field is None else field[index] for field in fields))


@dataclass(frozen=True)
class Reid:
    """A re-identification data set: people to learn from, and queries and a gallery of people never seen before."""

    name: str
    train: People
    query: People
    gallery: People


def as_floats(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 images as numbers in [-1, 1], what the networks see and the generator makes."""
    return images.to(dtype) / 127.5 - 1


def pose_maps(landmarks: Tensor, size: tuple[int, int], sigma: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """One map for each joint, exp(-d^2 / (2 sigma^2)) with d the distance from the joint in pixels: (n, j, h, w).

    `landmarks` (n, j, 2), rows and columns; the map of a joint that is not seen (NaN) is 0. Raises BadValue.
    """
    above_0(" (pixels)", sigma=sigma)
    rows, columns = (torch.arange(n, dtype=dtype, device=landmarks.device) for n in size)
    r, c = landmarks.to(dtype).unbind(2)
    r, c = ((axis - at[..., None]).square() / (-2 * sigma**2) for axis, at in ((rows, r), (columns, c)))
    return (r[..., :, None] + c[..., None, :]).exp().nan_to_num(0.0)


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


class PairBatch(NamedTuple):
    """b pairs: `sources` (2b, 3, h, w) in [-1, 1], first ones, then second ones; `same` (b,) 1.0 or 0.0; `index` (b,).

    `maps` (2b, j, h, w) and `targets` (2b, 3, h, w): the pose to show each source's person in, and her picture in it.
    Both are the same for the two of a pair of the same person, and None where no targets are wanted.
    """

    sources: Tensor
    same: Tensor
    index: Tensor
    maps: Tensor | None = None
    targets: Tensor | None = None


class Pairs:
    """A loader: in each epoch every image is once the first of a pair.

    The second is another image of the same person with probability 1 / (1 + negatives), else one of somebody else. A
    person with a single image has only pairs of the second kind, and that image as target. Each target is a random
    image of the source's person. All follows from (seed, epoch). A last batch of a single pair is left out.
    Source: authors' code, with three different pairs for each same one. Deviation: there the share is exact.
    Raises BadData for people without landmarks (if `targets`), and where no pair of the same, or of different persons
    exists; BadValue.
    """

    def __init__(
        self,
        people: People,
        batch_size: int = 32,
        *,
        negatives: float = 3.0,
        targets: bool = True,
        sigma: float = 1.5,
        seed: int = 0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.people, self.batch_size, self.negatives, self.seed = people, batch_size, negatives, seed
        self.targets, self.sigma, self.dtype, self.device = targets, sigma, dtype, torch.device(device)
        self._check()
        self.shuffle, self.split, self.epoch = True, Split(people.images, people.identities), 0
        self._images = as_floats(people.images.to(self.device), dtype)
        self._landmarks = people.landmarks.to(self.device) if targets else None

    def __len__(self) -> int:
        whole, rest = divmod(len(self.people), self.batch_size)
        return whole + (rest > 1)

    def __iter__(self) -> Iterator[PairBatch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for first, second, same, target in self.choose(epoch):
            sources = self._images[torch.cat([first, second]).to(self.device)]
            batch = PairBatch(sources, same.to(self.device, self.dtype), first)
            if self.targets:
                at = target.flatten().to(self.device)
                # Made anew for each batch: those of all images would be larger than the images.
                maps = pose_maps(self._landmarks[at], self.people.size, self.sigma, self.dtype)
                batch = batch._replace(maps=maps, targets=self._images[at])
            yield batch

    def choose(self, epoch: int) -> list[tuple[Tensor, ...]]:
        """Positions by batch: first (b,), second (b,), whether they are the same person, and targets (2, b)."""
        g, who, n = generator_of(mixed(self.seed, epoch)), self.people.identities, len(self.people)
        first = torch.randperm(n, generator=g)
        same_person = who[first, None] == who
        others = same_person & (first[:, None] != torch.arange(n))
        same = (torch.rand(n, generator=g) * (1 + self.negatives) < 1) & others.any(1)
        second = _one_of(torch.where(same[:, None], others, ~same_person), g)
        target = torch.stack([_one_of(same_person, g), _one_of(who[second, None] == who, g)])
        target[1] = torch.where(same, target[0], target[1])
        parts = (t.split(self.batch_size, -1) for t in (first, second, same, target))
        return list(zip(*parts, strict=True))[: len(self)]

    def _check(self) -> None:
        if type(self.batch_size) is not int or self.batch_size < 2:
            raise BadValue(f"batch_size is {self.batch_size!r}; batch norm needs a whole number of pairs from 2 on.")
        if not 0 <= self.negatives < float("inf"):
            raise BadValue(f"negatives is {self.negatives!r}; it must be a number from 0 on.")
        counts = self.people.identities.unique(return_counts=True)[1]
        if len(counts) < 2 or counts.max() < 2:
            raise BadData(
                f"{len(self.people)} images of {len(counts)} persons do not give pairs of both kinds. "
                "There must be two persons at least, and two images of one of them."
            )
        if self.targets:
            landmarks_known(self.people)
            above_0(" (pixels)", sigma=self.sigma)


def landmarks_known(people: People) -> None:
    """Refuse people of whom an image has no landmark at all, for stages II and III need a pose of each."""
    if people.landmarks is None:
        raise BadData(
            "the images have no landmarks, and stages II and III need the pose of every image. Give a file of "
            "landmarks (see load_market), or train stage I alone."
        )
    if unknown := int(people.landmarks.isnan().all(2).all(1).sum()):
        raise BadData(
            f"{unknown} of {len(people)} images have no landmark, and stages II and III need the pose of every image. "
            "Add their landmarks, or leave these images out with People.select."
        )


def _one_of(allowed: Tensor, g: torch.Generator) -> Tensor:
    """The position of one True in each row (n, m), each with the same probability."""
    return torch.where(allowed, torch.rand(allowed.shape, generator=g), -1.0).argmax(1)
