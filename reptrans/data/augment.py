"""Augmentation of whole batches with tensor operations; each image's draws depend on (seed, epoch, position) alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reptrans.errors import UnknownName, suggest

KINDS = ("flip", "crop", "cutout")
PAD = 4
_PURPOSES = ("order", *KINDS)


def parse(augment: str) -> tuple[str, ...]:
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
    # One integer from three without collisions of neighbours, as (seed + epoch) would have.
    (state,) = np.random.SeedSequence([seed, epoch, _PURPOSES.index(purpose)]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> 1))


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
