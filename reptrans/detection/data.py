"""Images with boxes: what a detector is trained and tested on, and its batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.matching import whole


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images (each uint8 (3, h, w), of any sizes), their boxes (each (m, 4), m from 0 on) and labels (each (m,)).

    Boxes are x1, y1, x2, y2 in pixels, continuous: the pixel in column x reaches from x to x + 1. Labels are int64,
    0 to len(classes) - 1. Raises BadData for boxes that are missing, empty, not finite or outside of the image, or for
    labels out of range.
    """

    images: Sequence[Tensor]
    boxes: list[Tensor]
    labels: list[Tensor]
    classes: tuple[str, ...]
    sizes: list[tuple[int, int]] | None = None  # (h, w) of each image, where asking the images would read files

    def __post_init__(self) -> None:
        if not len(self.images) == len(self.boxes) == len(self.labels):
            counts = f"{len(self.images)} images, {len(self.boxes)} lists of boxes, {len(self.labels)} lists of labels"
            raise BadData(f"there are {counts}; each image needs one of each, (0, 4) and (0,) where nothing is in it.")
        if not any(len(boxes) for boxes in self.boxes):
            raise BadData("there is not a single box in any image: nothing to learn or to find.")
        sizes = self.sizes or [tuple(image.shape[1:]) for image in self.images]
        for number, (boxes, labels, size) in enumerate(zip(self.boxes, self.labels, sizes, strict=True)):
            _check(number, boxes, labels, size, len(self.classes))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def first(self, count: int) -> "Scenes":
        """The first `count` of them."""
        return self._part(slice(0, count))

    def divided(self, count: int) -> tuple["Scenes", "Scenes"]:
        """All but the last `count`, and these. Raises BadValue where either would be empty."""
        if not 0 < count < len(self):
            raise BadValue(
                f"{count} of {len(self)} scenes cannot be held out: some have to stay on both sides. Give a number "
                f"from 1 to {len(self) - 1}, or a share below 1."
            )
        return self._part(slice(0, len(self) - count)), self._part(slice(len(self) - count, len(self)))

    def _part(self, which: slice) -> "Scenes":
        parts = [part and part[which] for part in (self.boxes, self.labels, self.sizes)]
        places = range(*which.indices(len(self)))
        images = self.images[which] if isinstance(self.images, list) else [self.images[i] for i in places]
        return Scenes(images, *parts[:2], self.classes, parts[2])

    def loader(self, batch_size: int = 8, **settings) -> "SceneLoader":
        """A SceneLoader of these images; `settings` are its own."""
        return SceneLoader(self, batch_size, **settings)


class SceneBatch(NamedTuple):
    """Images in [0, 1], one dict of boxes and labels (from 1; 0 is the background) for each, and their positions."""

    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    index: Tensor


class SceneLoader:
    """Iterates over the SceneBatches; order follows from (seed, epoch) alone, and starting a pass adds 1 to `epoch`.

    Images are read when their turn comes, in this process, so large files are slow.
    """

    def __init__(
        self, split: Scenes, batch_size: int = 8, *, shuffle: bool = False, seed: int = 0,
        device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    ):  # fmt: skip
        whole(batch_size=batch_size)
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.device, self.dtype, self.epoch = torch.device(device), dtype, 0

    def __len__(self) -> int:
        """The number of batches; the last may be smaller."""
        return -(-len(self.split) // self.batch_size)

    def __iter__(self) -> Iterator[SceneBatch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return map(self._batch, self._order(epoch).split(self.batch_size))

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.split))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.split), generator=generator)

    def _batch(self, index: Tensor) -> SceneBatch:
        place = {"device": self.device, "dtype": self.dtype}
        images = [self.split.images[i].to(**place) / 255 for i in index.tolist()]
        targets = [
            {"boxes": self.split.boxes[i].to(**place), "labels": self.split.labels[i].to(self.device) + 1}
            for i in index.tolist()
        ]
        return SceneBatch(images, targets, index)


def _check(number: int, boxes: Tensor, labels: Tensor, size: tuple[int, int], classes: int) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
        raise ShapeMismatch(
            f"image {number} has boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}; they must be (m, 4) and "
            "(m,)."
        )
    if labels.dtype != torch.int64 or ((labels < 0) | (labels >= classes)).any():
        raise BadData(
            f"image {number} has labels {labels.tolist()} of {labels.dtype}; they must be int64 from 0 to "
            f"{classes - 1}, the background has none."
        )
    height, width = size
    right, bottom = boxes[:, 2], boxes[:, 3]
    whole = (boxes[:, :2] >= 0).all(1) & (right <= width) & (bottom <= height)
    good = whole & (boxes[:, 0] < right) & (boxes[:, 1] < bottom)  # all False where a number is NaN
    if not good.all():
        wrong = [round(v, 3) for v in boxes[~good][0].tolist()]
        raise BadData(
            f"image {number}, {width} wide and {height} high, has the box {wrong}; boxes are x1 < x2, y1 < y2, in "
            "pixels, inside of the image. Are they x, y, width, height?"
        )
