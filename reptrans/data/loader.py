"""Batches of a split: normalised, augmented, on the device; order and augmentation follow from (seed, epoch) alone."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from reptrans.data import augment as augmentation
from reptrans.data.split import Split
from reptrans.data.streamed import Streamed, read_ahead
from reptrans.errors import BadValue, ShapeMismatch, check_whole, own_arguments
from reptrans.randomness import checked_seed

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
        self._kinds = augmentation.parse(augment)
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
        """The same without shuffling, augmentation and dropped images: `index` ascends from 0 to the last."""
        return self.over(self.split, shuffle=False, augment="none", drop_last=False)

    def order(self, epoch: int) -> Tensor:
        """The positions (n,) in the split, as they come in `epoch`; on the CPU."""
        n = len(self.split)
        if not self.shuffle:
            return torch.arange(n)
        return torch.randperm(n, generator=augmentation.generator(self.seed, epoch, "order"))

    def _batches(self, epoch: int) -> Iterator[Batch]:
        size = self.split.shape[1:]
        draws = augmentation.Draws.of_epoch(self._kinds, len(self.split), size, self.seed, epoch, self.device)
        (images, labels), order = self._resident, self.order(epoch)
        # The order goes to the device once, and not batch by batch.
        parts, there = (x.split(self.batch_size)[: len(self)] for x in (order, order.to(self.device)))
        stored = read_ahead(self.split, parts) if images is None else (images.index_select(0, index) for index in there)
        for index, raw in zip(there, stored, strict=True):
            done = self._normalised(raw.to(self.device), draws.at(index))
            found = labels[index]
            yield Batch(done, found if found.ndim == 1 else found.to(self.dtype), index)

    def _normalised(self, raw: Tensor, draws: augmentation.Draws) -> Tensor:
        if raw.dtype != torch.uint8:
            return raw.to(self.dtype)
        mean, std = self._statistics
        images = augmentation.moved(raw, draws).to(mean.dtype).div_(255).sub_(mean).div_(std)
        if draws.cutout is not None:
            augmentation.cutout(images, draws.cutout)
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


def _device(asked: str | torch.device) -> torch.device:
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise BadValue(f"device is {asked!r}. Possible: cpu, cuda, cuda:0, cuda:1, mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadValue(f"device is {str(device)!r}, but PyTorch finds no such GPU here. Choose cpu.")
    return device
