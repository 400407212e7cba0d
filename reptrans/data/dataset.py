"""A data set: a part to fit, a part to test, the names of its classes, and how its images are normalised."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils import data

from reptrans.data.loader import Loader
from reptrans.data.split import Split, held_out
from reptrans.data.streamed import GREY, Streamed
from reptrans.errors import BadData, BadValue, ShapeMismatch, choose
from reptrans.progress import progress


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of one kind of images; `mean` and `std` are per channel, of images in [0, 1].

    `validation`: training images set aside to choose by, see `with_validation`; None where nothing is chosen.
    Raises BadData for a label that is none of the classes.
    """

    name: str
    train: Split | Streamed
    test: Split | Streamed
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    validation: Split | Streamed | None = None

    def __post_init__(self) -> None:
        for part, split in self._parts.items():
            _check_labels(f"the {part} labels of {self.name}", split.labels, self.classes)

    @classmethod
    def from_torch(
        cls,
        train: data.Dataset,
        test: data.Dataset,
        *,
        name: str = "own",
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> "Dataset":
        """Two torch Datasets of (image, label), read once, into memory.

        An image is a PIL image, or (c, h, w) as bytes or as ToTensor makes floats of them; all of one size, neither
        augmented nor normalised, which the loader does. A label is the number of a class, or k numbers 0 and 1.
        `classes`: by default what the training part calls them, or else numbers. `mean`, `std`: of images in [0, 1],
        measured on the training part where they are not given. Raises BadValue, BadData, ShapeMismatch.
        """
        parts = split_of(train, "train"), split_of(test, "test")
        if parts[0].shape != parts[1].shape:
            raise ShapeMismatch(f"train images are {parts[0].shape} and test images {parts[1].shape}. Give one size.")
        statistics = measured_statistics(parts[0]) if mean is None or std is None else (mean, std)
        mean, std = (tuple(own if given is None else given) for given, own in zip((mean, std), statistics, strict=True))
        found = cls(name, *parts, tuple(classes or class_names(train, *parts)), mean, std)
        found.loader("test")  # which refuses statistics that do not fit
        return found

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self.train.shape[0]

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.train.shape[1:]

    @property
    def form(self) -> dict[str, Any]:
        """What `models.build` is told, to make a network for these images."""
        return {"num_classes": self.num_classes, "in_channels": self.channels, "image_size": self.image_size}

    @property
    def multi_label(self) -> bool:
        """Whether an image has a yes or no for every class (labels (n, k)) rather than one class (labels (n,))."""
        return self.train.labels.ndim > 1

    @property
    def _parts(self) -> dict[str, Split | Streamed]:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    def with_validation(self, holdout: float, seed: int = 0) -> "Dataset":
        """This data set with `holdout` training images of every class, or that share of them, moved to `validation`.

        `holdout`: a whole number from 1, or a share in (0, 1), rounded; of yes-or-no labels it is of all images. They
        are drawn by `seed`; statistics stay as they are. Raises BadValue where none, or all, of a class would go.
        """
        if self.validation is not None:
            raise BadValue(f"{self.name} has {len(self.validation)} images set aside for validation already.")
        rest, held = held_out(self.train.labels, holdout, seed, self.classes)
        return replace(self, train=self.train.select(rest), validation=self.train.select(held))

    def loader(self, part: str = "train", batch_size: int = 128, **settings) -> Loader:
        """A Loader of the "train", "validation" or "test" part with this set's statistics; `settings` as for Loader."""
        split = choose(part, self._parts, "a data set has no part {}")
        return Loader(split, batch_size, **({"mean": self.mean, "std": self.std} | settings))


def measured_statistics(split: Split | Streamed) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation (over pixels, divisor n) of each channel of images in [0, 1].

    Of all images, or of evenly spaced ones: 10,000 of a split in memory, 500 of a streamed one.
    Raises BadData for a channel that is the same everywhere.
    """
    most = 500 if isinstance(split, Streamed) else 10_000
    index = torch.linspace(0, len(split) - 1, min(most, len(split)), dtype=torch.float64).round().long()
    counts = torch.zeros(split.shape[0], 256, dtype=torch.float64)
    # Counts of the 256 grey values: exact, whatever the number of pixels.
    for part in index.split(500):
        for channel, values in enumerate(split.batch(part).transpose(0, 1)):
            counts[channel] += torch.bincount(values.flatten(), minlength=256)
    share, value = counts / counts.sum(1, keepdim=True), torch.arange(256, dtype=torch.float64) / 255
    mean = share @ value
    std = (share * (value - mean[:, None]) ** 2).sum(1).sqrt()
    if (std < 1e-6).any():
        raise BadData(
            f"channel {int(std.argmin())} has one value in all of {len(index)} training images: its standard "
            'deviation is 0. Give the statistics of a known set, for instance normalise="imagenet".'
        )
    return tuple(mean.tolist()), tuple(std.tolist())


def _check_labels(who: str, labels: torch.Tensor, classes: tuple[str, ...]) -> None:
    """Raise BadData for what are no labels (n,) or (n, k) of these classes."""
    if not len(labels):
        return
    least, most = labels.min().item(), labels.max().item()
    if labels.ndim == 1 and most >= len(classes):
        named = ", ".join(classes[:12])
        raise BadData(f"{who} hold {most}, but there are {len(classes)} classes, numbered from 0: {named}.")
    if labels.ndim > 1 and (labels.shape[1:] != (len(classes),) or ((labels != 0) & (labels != 1)).any()):
        raise BadData(
            f"{who} are {tuple(labels.shape)}, from {least} to {most}. They should say yes (1) or no (0) for each of "
            f"the {len(classes)} classes."
        )


def split_of(part: data.Dataset, name: str) -> Split:
    """All (image, label) of a torch Dataset, as bytes and classes; see `Dataset.from_torch`."""
    if not isinstance(part, data.Dataset) or not hasattr(part, "__len__"):
        raise BadValue(
            f"the {name} part is a {type(part).__name__}. Give a torch Dataset that has a length and holds (image, "
            "label); of a DataLoader, its .dataset."
        )
    if not len(part):
        raise BadData(f"the {name} part is empty.")
    first, _ = _example(part, 0, name)
    if any(not torch.equal(_example(part, i, name)[0], _example(part, i, name)[0]) for i in range(min(8, len(part)))):
        raise BadData(f"the {name} part gives another image each time. Leave augmentation to loader(augment=…).")
    if (needed := len(part) * first.numel()) > psutil.virtual_memory().available / 2:
        raise BadValue(f"the {name} part needs {needed / 1e9:.0f} GB of memory. Name a folder of images instead.")
    images, labels = torch.empty(len(part), *first.shape, dtype=torch.uint8), []
    for i in progress(range(len(part)), f"{name} images"):
        image, label = _example(part, i, name)
        if image.shape != first.shape:
            raise ShapeMismatch(
                f"{name} image {i} is {tuple(image.shape)} and the first {tuple(first.shape)}. Resize them to one size."
            )
        images[i] = image
        labels.append(label)
    return Split(images, _class_numbers(labels, name))


def class_names(part: data.Dataset, *splits: Split) -> tuple[str, ...]:
    """The names that the part, or what it is a part of, has for its classes; or else their numbers."""
    if names := getattr(part, "classes", None) or getattr(getattr(part, "dataset", None), "classes", None):
        return tuple(map(str, names))
    labels = splits[0].labels
    count = labels.shape[1] if labels.ndim > 1 else 1 + max(int(split.labels.max()) for split in splits)
    return tuple(map(str, range(count)))


def _example(part: data.Dataset, i: int, name: str) -> tuple[Tensor, object]:
    example = part[i]
    if not isinstance(example, (tuple, list)) or len(example) != 2:
        raise BadData(f"{name} example {i} is a {type(example).__name__}, and not a pair (image, label).")
    return _as_bytes(example[0], f"{name} image {i}"), example[1]


def _as_bytes(image: object, which: str) -> Tensor:
    """uint8 (c, h, w) of a PIL image, of bytes, or of floats in [0, 1] that were bytes, as ToTensor makes them."""
    if isinstance(image, Image.Image) and image.mode[0] not in "IF":
        pixels = np.array(image.convert("L" if image.mode in GREY else "RGB"))
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())
    if not isinstance(image, Tensor) or image.ndim != 3 or len(image) not in (1, 3):
        given = tuple(image.shape) if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise BadData(f"{which} is {given}. Possible: a PIL image of 8 bits, or a tensor (c, h, w), c being 1 or 3.")
    if image.dtype == torch.uint8:
        return image
    values = image.double() * 255
    rounded = values.round().clamp(0, 255)
    if not image.is_floating_point() or not (values - rounded).abs().max() < 1e-3:
        raise BadData(
            f"{which} holds {image.dtype} from {image.min().item():.3g} to {image.max().item():.3g}, no bytes over "
            "255. Leave Normalize out, for the loader normalises, and put Resize before ToTensor."
        )
    return rounded.to(torch.uint8)


def _class_numbers(labels: list, name: str) -> Tensor:
    try:
        found = torch.tensor([label.tolist() if hasattr(label, "tolist") else label for label in labels])
    except (TypeError, ValueError):
        found = torch.tensor(0.5)
    if found.ndim not in (1, 2) or found.is_floating_point():
        raise BadData(
            f"the {name} labels are like {labels[0]!r:.60}. Give each image the number of its class; or, where it can "
            "be in several, as many whole numbers 0 and 1 as there are classes."
        )
    return found.long() if found.ndim == 1 else found.to(torch.uint8)


def of_classes(dataset: Dataset, kept: range) -> Dataset:
    """The images of some classes in a row, numbered from 0."""

    def part(split: Split) -> Split:
        found = split.select(((split.labels >= kept.start) & (split.labels < kept.stop)).nonzero().flatten())
        return Split(found.images, found.labels - kept.start)

    name = f"{dataset.name}_{kept.start}_{kept.stop - 1}"
    classes = tuple(dataset.classes[k] for k in kept)
    return Dataset(name, part(dataset.train), part(dataset.test), classes, dataset.mean, dataset.std)


def smaller(dataset: Dataset, limit: int = 0, test: int = 0) -> Dataset:
    """The first `limit` training images of each class, and `test` evenly spaced test images; 0 keeps all."""
    if limit:
        dataset = replace(dataset, train=dataset.train.limit(limit, None, dataset.classes))
    if not test or test >= len(dataset.test):
        return dataset
    spaced = torch.linspace(0, len(dataset.test) - 1, test, dtype=torch.float64).round().long()
    return replace(dataset, test=dataset.test.select(spaced))
