"""Scenes made of scikit-learn's digits: several, of several sizes and colours, on a textured ground with fragments."""

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from reptrans.detection.data import Scenes
from reptrans.errors import BadValue

_TRAIN = 1_000  # the digits before it are drawn in "train", the others in "test", as in the data set "digits"
_PAINTED = 0.35  # a pixel is painted, and belongs to the digit, from this share of full ink on
_FRAGMENTS, _TRIES = 4, 50


def digit_scenes(
    count: int = 300, *, part: str = "train", classes: str = "0123456789", size: int = 64, most: int = 3,
    grey: bool = False, seed: int = 0,
) -> Scenes:  # fmt: skip
    """`count` images (3, size, size) of 1 to `most` digits, each drawn between a fifth and two fifths of `size` high.

    A box is the tight one around a digit's painted pixels; boxes never overlap. The ground is noise of two scales with
    fragments of digits on it that belong to no class. `classes`: the digits that appear, as text, their order giving
    the labels. The arguments decide every pixel; "train" and "test" use different digits, and the first images stay
    the same when `count` grows. Raises BadValue.
    """
    known = part in ("train", "test") and set(classes) <= set("0123456789")
    if not known or not classes or len(set(classes)) < len(classes) or min(count, most) < 1 or size < 32:
        raise BadValue(
            f"scenes of digits with part={part!r}, classes={classes!r}, count={count}, most={most}, size={size}: part "
            "is train or test, classes different digits such as '0123', count and most at least 1, size at least 32."
        )
    rng = np.random.default_rng([seed, part == "test"])
    scenes = [_scene(rng, part, classes, size, most, grey) for _ in range(count)]
    images, boxes, labels = zip(*scenes, strict=True)
    return Scenes(list(images), list(boxes), list(labels), tuple(classes))


def _scene(rng, part: str, classes: str, size: int, most: int, grey: bool) -> tuple[Tensor, Tensor, Tensor]:
    image = _ground(rng, size, grey)
    for _ in range(_FRAGMENTS):
        row, column = 4 * int(rng.integers(2)), 2 * int(rng.integers(3))
        corner = _digit(rng, part, int(rng.integers(10)))[row : row + 4, column : column + 4]
        ink = _ink(corner, int(rng.integers(size // 10, size // 5 + 1)))
        _paint(image, ink, _place(rng, ink, size), _colour(rng, grey))
    boxes, labels = [], []
    for _ in range(int(rng.integers(1, most + 1))):
        label = int(rng.integers(len(classes)))
        ink = _ink(_digit(rng, part, int(classes[label])), int(rng.integers(size // 5, 2 * size // 5 + 1)))
        place = _free_place(rng, ink, size, boxes)
        if place is None:
            continue
        _paint(image, ink, place, _colour(rng, grey))
        boxes.append([place[0], place[1], place[0] + ink.shape[1], place[1] + ink.shape[0]])
        labels.append(label)
    return (255 * image).round().to(torch.uint8), torch.tensor(boxes, dtype=torch.float64), torch.tensor(labels)


def _ground(rng, size: int, grey: bool) -> Tensor:
    """(3, size, size) in [0, 0.6]: noise of single pixels upon noise of patches."""
    channels = 1 if grey else 3
    coarse = torch.from_numpy(rng.uniform(0.0, 0.4, (1, channels, 6, 6)))
    fine = torch.from_numpy(rng.uniform(0.0, 0.2, (channels, size, size)))
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)[0]
    return (smooth + fine).expand(3, size, size).clone()


def _digit(rng, part: str, label: int) -> Tensor:
    """(8, 8) in [0, 1]: one of the part's digits of that class."""
    images, labels = _all_digits()
    chosen = np.flatnonzero(labels == label)
    chosen = chosen[chosen < _TRAIN] if part == "train" else chosen[chosen >= _TRAIN]
    return images[int(rng.choice(chosen))]


@cache
def _all_digits() -> tuple[Tensor, np.ndarray]:
    found = load_digits()
    return torch.from_numpy(found.images) / 16, found.target


def _ink(digit: Tensor, side: int) -> Tensor:
    """The digit enlarged to `side` pixels and cut to what gets painted, (h, w); 0 where nothing is."""
    ink = F.interpolate(digit[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0]
    ink = ink.where(ink >= _PAINTED, 0.0)
    rows, columns = ink.any(1).nonzero().flatten(), ink.any(0).nonzero().flatten()
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else ink


def _place(rng, ink: Tensor, size: int) -> tuple[int, int]:
    """(x, y) of the upper left corner, anywhere inside."""
    return int(rng.integers(size - ink.shape[1] + 1)), int(rng.integers(size - ink.shape[0] + 1))


def _free_place(rng, ink: Tensor, size: int, taken: list[list[int]]) -> tuple[int, int] | None:
    for _ in range(_TRIES):
        x, y = _place(rng, ink, size)
        right, bottom = x + ink.shape[1], y + ink.shape[0]
        if all(x >= other[2] or right <= other[0] or y >= other[3] or bottom <= other[1] for other in taken):
            return x, y
    return None


def _colour(rng, grey: bool) -> Tensor:
    """Light, so that it stands out from the ground."""
    return torch.from_numpy(rng.uniform(0.6, 1.0, (1 if grey else 3, 1, 1)))


def _paint(image: Tensor, ink: Tensor, place: tuple[int, int], colour: Tensor) -> None:
    x, y = place
    there = image[:, y : y + ink.shape[0], x : x + ink.shape[1]]
    there.copy_(ink * colour + (1 - ink) * there)
