"""Batches of a split: normalised, augmented, on the device; order and augmentation follow from (seed, epoch) alone.

Augmentation is of whole batches with tensor operations; an image's draws depend on (seed, epoch, position) alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reptrans.data.split import Split
from reptrans.data.streamed import Streamed, read_ahead
from reptrans.errors import BadValue, ShapeMismatch, UnknownName, check_whole, own_arguments, suggest
from reptrans.randomness import checked_seed

KINDS = ("flip", "crop", "cutout")
PAD = 4
_PURPOSES = ("order", *KINDS)


def augmentations(augment: str) -> tuple[str, ...]:
    """The kinds in "flip,crop", in the order in which they are done; "standard" is "flip,crop", "none" is ().

    Raises UnknownName.
    """
    names = {"none": "", "standard": "flip,crop"}.get(augment, augment)
    chosen = [part.strip() for part in names.split(",") if part.strip()]
    for name in chosen:
        if name not in KINDS:
            options = suggest(name, ["none", "standard", *KINDS])
            raise UnknownName(f"there is no augmentation {name!r}. {options}; the last three also joined by commas.")
    return tuple(kind for kind in KINDS if kind in chosen)


def generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for every (seed, epoch, purpose): one augmentation more leaves the others' draws."""
    return torch.Generator().manual_seed(mixed(seed, epoch, _PURPOSES.index(purpose)))


@dataclass(frozen=True)
class Draws:
    """What is done to each of n images in one epoch; None where that kind is not wanted.

    `flip` (n,) bool; `crop` (n, 2) int64, the window's row and column in the padded image, 0 to 2·PAD;
    `cutout` (n, 2) int64, the row and column of the square's centre.
    """

    flip: Tensor | None = None
    crop: Tensor | None = None
    cutout: Tensor | None = None

    @classmethod
    def of_epoch(
        cls, kinds: tuple[str, ...], n: int, size: tuple[int, int], seed: int, epoch: int, device: torch.device
    ) -> "Draws":
        """The draws for n images of `size` (h, w), made on the CPU and moved to `device`."""
        ranges = {"flip": (2,), "crop": (2 * PAD + 1,) * 2, "cutout": size}
        drawn = {}
        for kind in kinds:
            g = generator(seed, epoch, kind)
            columns = [torch.randint(high, (n,), generator=g) for high in ranges[kind]]
            drawn[kind] = (torch.stack(columns, 1) if len(columns) > 1 else columns[0].bool()).to(device)
        return cls(**drawn)

    def at(self, index: Tensor) -> "Draws":
        """The draws of the images at `index`."""
        return Draws(*(None if drawn is None else drawn[index] for drawn in (self.flip, self.crop, self.cutout)))


def moved(images: Tensor, draws: Draws) -> Tensor:
    """Flip and crop of uint8 images (b, c, h, w), before normalisation."""
    if draws.flip is not None:
        images = flip(images, draws.flip)
    return images if draws.crop is None else crop(images, draws.crop)


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Images (b, c, h, w), mirrored left to right where `chosen` (b,) is True."""
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def crop(images: Tensor, corner: Tensor) -> Tensor:
    """A window of the images' own size (h, w) from the images padded by PAD pixels; `corner` (b, 2) its row and column.

    The padding is 0 *before* normalisation, black, as in torchvision's RandomCrop(size, padding=4) ahead of ToTensor.
    """
    b, _, h, w = images.shape
    padded = torch.nn.functional.pad(images, (PAD,) * 4)
    # A view of all windows; indexing copies one for each image.
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)
    return windows[torch.arange(b, device=images.device), :, corner[:, 0], corner[:, 1]]


def cutout(images: Tensor, centre: Tensor) -> Tensor:
    """Normalised images (b, c, h, w) with a square of side min(h, w) // 2 around `centre` (b, 2) set to 0, the mean.

    The centre is anywhere in the image, so the square may be cut by the border.
    Source: DeVries & Taylor 2017, *Improved Regularization of Convolutional Neural Networks with Cutout*; their
    length on CIFAR-10 is 16 of 32 pixels. Changes `images` in place.
    """
    h, w = images.shape[2:]
    side = min(h, w) // 2
    first = centre - side // 2
    rows, columns = (
        (place >= first[:, i, None]) & (place < first[:, i, None] + side)
        for i, place in enumerate((torch.arange(h, device=images.device), torch.arange(w, device=images.device)))
    )
    return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)


DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Batch(NamedTuple):
    """Images (b, c, h, w), labels (b,) int64 or (b, k) float, and the examples' positions in the split (b,) int64."""

    images: Tensor
    labels: Tensor
    index: Tensor


@own_arguments
class Loader:
    """Iterates over the Batches of a split.

    Images are (x / 255 − mean) / std per channel, in `dtype`, on `device`; float images are passed on as they are.
    `augment`: "none", "standard" (flip and crop), or some of flip, crop, cutout joined by commas: mirrored with
    probability 1/2; a window from the image padded by 4 black pixels; a square of half the side set to the mean.
    `epoch` says which epoch the next pass is; starting a pass adds 1, and setting it repeats or resumes one. With the
    same split, seed and epoch come the same images, on any device and, in any order, for any batch size.
    A split in memory is moved to the device once; a Streamed one is read ahead of the computation.
    Raises BadValue (also for a device that is not there), UnknownName (augmentation), ShapeMismatch (statistics for
    another number of channels).
    """

    def __init__(
        self,
        split: Split | Streamed,
        batch_size: int = 128,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        shuffle: bool = False,
        seed: int = 0,
        augment: str = "none",
        drop_last: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.split, self.batch_size, self.drop_last = split, batch_size, drop_last
        self.shuffle = shuffle
        self.mean, self.std, self.device, self.dtype = tuple(mean), tuple(std), _device(device), dtype
        self._kinds = augmentations(augment)
        self.augment = ",".join(self._kinds) or "none"
        self.epoch = 0
        check_whole("batch_size", batch_size, 1)
        self.seed = checked_seed(seed)
        if dtype not in DTYPES:
            raise BadValue(f"dtype is {dtype}. Possible: {', '.join(map(str, DTYPES))}.")
        self._check_split()

    def __len__(self) -> int:
        """The number of batches."""
        whole, rest = divmod(len(self.split), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._batches(epoch)

    def over(self, split: Split | Streamed, **changes) -> "Loader":
        """A loader of another (or the same) split that starts at epoch 0, otherwise like this one but for `changes`."""
        names = ("batch_size", "mean", "std", "shuffle", "seed", "augment", "drop_last", "device", "dtype")
        other = type(self)(split, **({name: getattr(self, name) for name in names} | changes))
        if split is self.split and other.device == self.device and "_resident" in vars(self):
            other._resident = self._resident
        return other

    def plain(self) -> "Loader":
        """This loader without shuffling, augmentation and dropped images: `index` ascends from 0 to the last."""
        return self.over(self.split, shuffle=False, augment="none", drop_last=False)

    def order(self, epoch: int) -> Tensor:
        """The positions (n,) in the split, as they come in `epoch`; on the CPU."""
        n = len(self.split)
        if not self.shuffle:
            return torch.arange(n)
        return torch.randperm(n, generator=generator(self.seed, epoch, "order"))

    def _batches(self, epoch: int) -> Iterator[Batch]:
        size = self.split.shape[1:]
        draws = Draws.of_epoch(self._kinds, len(self.split), size, self.seed, epoch, self.device)
        (images, labels), order = self._resident, self.order(epoch)
        # The order goes to the device once, and not batch by batch.
        parts, there = (x.split(self.batch_size)[: len(self)] for x in (order, order.to(self.device)))
        stored = read_ahead(self.split, parts) if images is None else (images.index_select(0, index) for index in there)
        for index, raw in zip(there, stored, strict=True):
            done = self._normalised(raw.to(self.device), draws.at(index))
            found = labels[index]
            yield Batch(done, found if found.ndim == 1 else found.to(self.dtype), index)

    def _normalised(self, raw: Tensor, draws: Draws) -> Tensor:
        if raw.dtype != torch.uint8:
            return raw.to(self.dtype)
        mean, std = self._statistics
        images = moved(raw, draws).to(mean.dtype).div_(255).sub_(mean).div_(std)
        if draws.cutout is not None:
            cutout(images, draws.cutout)
        return images.to(self.dtype)

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        # bfloat16 has too few digits to subtract in; it is only what comes out.
        exact = torch.float32 if self.dtype == torch.bfloat16 else self.dtype
        mean, std = (torch.tensor(v, dtype=exact, device=self.device)[:, None, None] for v in (self.mean, self.std))
        return mean, std

    @cached_property
    def _resident(self) -> tuple[Tensor | None, Tensor]:
        """The whole split on the device; None for images that are streamed."""
        images = None if isinstance(self.split, Streamed) else self.split.images.to(self.device)
        return images, self.split.labels.to(self.device)

    def _check_split(self) -> None:
        if isinstance(self.split, Split) and self.split.images.dtype != torch.uint8:
            if self._kinds:
                raise BadValue(
                    f"augment is {self.augment!r}, but the split holds {self.split.images.dtype} values. "
                    'Only uint8 images can be augmented; choose "none".'
                )
        elif not len(self.mean) == len(self.std) == self.split.shape[0]:
            raise ShapeMismatch(
                f"images have {self.split.shape[0]} channels, but there are {len(self.mean)} means and "
                f"{len(self.std)} standard deviations. Give one of each for every channel."
            )


def training_loader(dataset: Any, batch_size: int, seed: int, augment: str = "none", **place) -> Loader:
    """The training part in an order drawn from `seed`, without an incomplete last batch, unless it is the only one."""
    whole = len(dataset.train) >= batch_size
    return dataset.loader("train", batch_size, shuffle=True, seed=seed, augment=augment, drop_last=whole, **place)


def mixed(*numbers: int) -> int:
    """One seed from several without collisions of neighbours, as their sum would have."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _device(asked: str | torch.device) -> torch.device:
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise BadValue(f"device is {asked!r}. Possible: cpu, cuda, cuda:0, cuda:1, mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadValue(f"device is {str(device)!r}, but PyTorch finds no such GPU here. Choose cpu.")
    return device
