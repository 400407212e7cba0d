"""Images with boxes: what a detector is trained and tested on, and its batches.

They are read from a folder in COCO's format, images beside one .json file of annotations, or made of scikit-learn's
digits: several, of several sizes and colours, on a textured ground with fragments.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torchvision.datasets import CocoDetection
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.functional import pil_to_tensor

from reptrans.errors import BadData, BadValue, ShapeMismatch, check_whole


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
        check_whole("batch_size", batch_size, 1)
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


_ROUNDING = 1.0  # pixels by which published annotations reach over the border


def coco_scenes(folder: str | Path, annotations: str | Path | None = None) -> Scenes:
    """The images of `folder` with the boxes of `annotations`, by default the folder's only .json file.

    Classes are the file's categories in the order of their ids. Annotations of crowds, and those without any width or
    height, which the original files contain, are left out; boxes that reach over the border by up to a pixel are cut.
    Images are read when they are used. Raises BadData.
    """
    folder = Path(folder)
    path = _annotations(folder) if annotations is None else Path(annotations)
    data = _read(folder, path)
    categories = sorted(data.coco.cats.values(), key=lambda category: category["id"])
    number_of = {category["id"]: number for number, category in enumerate(categories)}
    infos = [data.coco.imgs[i] for i in data.ids]
    if missing := [info["file_name"] for info in infos if not (folder / info["file_name"]).is_file()]:
        raise BadData(f"{path} names {len(missing)} images that are not in {folder}, the first is {missing[0]}.")
    found = [_boxes_of(data.coco.imgToAnns[info["id"]], info, number_of, path) for info in infos]
    boxes, labels = [pair[0] for pair in found], [pair[1] for pair in found]
    sizes = [(info["height"], info["width"]) for info in infos]
    return Scenes(data, boxes, labels, tuple(category["name"] for category in categories), sizes)


class _Images(CocoDetection):
    """The images as uint8 (3, h, w), read one at a time."""

    def __getitem__(self, number: int) -> Tensor:
        (image, _), info = super().__getitem__(number), self.coco.imgs[self.ids[number]]
        if image.size != (info["width"], info["height"]):
            raise BadData(
                f"{info['file_name']} is {image.size[0]} wide and {image.size[1]} high, its annotation says "
                f"{info['width']} and {info['height']}, so its boxes cannot be right."
            )
        return pil_to_tensor(image)


def _annotations(folder: Path) -> Path:
    found = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if len(found) != 1:
        what = f"has {len(found)} .json files" if folder.is_dir() else "is no folder"
        raise BadData(
            f"{folder} {what}; a folder in COCO's format holds its images and exactly one .json file of annotations "
            "(images, annotations, categories). Or name the file with annotations=."
        )
    return found[0]


def _read(folder: Path, path: Path) -> _Images:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports its progress
            data = _Images(str(folder), str(path))
    except (OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise BadData(
            f"{path} cannot be read as COCO's annotations ({type(error).__name__}: {error}): it must be JSON with "
            "images, annotations and categories."
        ) from error
    if not data.ids or not data.coco.cats:
        raise BadData(f"{path} names {len(data.ids)} images and {len(data.coco.cats)} categories; both are needed.")
    return data


def _boxes_of(annotations: list[dict], info: dict, number_of: dict[int, int], path: Path) -> tuple[Tensor, Tensor]:
    kept = [a for a in annotations if not a.get("iscrowd", 0)]
    if bad := [a for a in kept if "bbox" not in a or a.get("category_id") not in number_of]:
        raise BadData(
            f"annotation {bad[0].get('id')} of {path} has no bbox, or a category_id that is none of the file's: "
            f"{bad[0].get('category_id')}."
        )
    boxes = torch.tensor([a["bbox"] for a in kept], dtype=torch.float64).reshape(-1, 4)
    labels = torch.tensor([number_of[a["category_id"]] for a in kept], dtype=torch.int64)
    boxes[:, 2:] += boxes[:, :2]
    cut = clip_boxes_to_image(boxes, (info["height"], info["width"]))
    boxes = cut.where((cut - boxes).abs() <= _ROUNDING, boxes)
    some = (boxes[:, 2] != boxes[:, 0]) & (boxes[:, 3] != boxes[:, 1])
    return boxes[some], labels[some]


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
