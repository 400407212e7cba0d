"""A data set: a part to fit, a part to test, the names of its classes, and how its images are normalised."""

from dataclasses import dataclass

import torch

from reptrans.data.loader import Loader
from reptrans.data.split import Split
from reptrans.data.streamed import Streamed
from reptrans.errors import BadData, choose


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits of one kind of images; `mean` and `std` are per channel, of images in [0, 1].

    Raises BadData for a label that is none of the classes.
    """

    name: str
    train: Split | Streamed
    test: Split | Streamed
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for part, split in (("train", self.train), ("test", self.test)):
            _check_labels(f"the {part} labels of {self.name}", split.labels, self.classes)

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
    def form(self) -> dict[str, object]:
        """What `models.build` is told, to make a network for these images."""
        return {"num_classes": self.num_classes, "in_channels": self.channels, "image_size": self.image_size}

    @property
    def multi_label(self) -> bool:
        """Whether an image has a yes or no for every class (labels (n, k)) rather than one class (labels (n,))."""
        return self.train.labels.ndim > 1

    def loader(self, part: str = "train", batch_size: int = 128, **settings) -> Loader:
        """A Loader of the "train" or "test" part with this set's mean and std; `settings` as for Loader."""
        split = choose(part, {"train": self.train, "test": self.test}, "a data set has no part {}")
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
