"""Images decoded from their files, by a Streamed split whenever they are needed, or all at once into one tensor.

One rule for every resized image: the shorter side to the size wanted, then the centre square. Grey images become
coloured ones for networks that want these, and the reverse.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from reptrans.data.split import Limited, Split
from reptrans.errors import BadData
from reptrans.progress import progress


def covering(h: int, w: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """For an image of (h, w): the (height, width) that just covers a square of `size`, and the square's (top, left)."""
    height, width = (max(size, round(side * size / min(h, w))) for side in (h, w))
    return (height, width), ((height - size) // 2, (width - size) // 2)


def resized(images: Tensor, size: int | None) -> Tensor:
    """uint8 images (n, c, h, w) as (n, c, size, size), bilinear with antialiasing; as they are if `size` is None."""
    if size is None or images.shape[2:] == (size, size):
        return images
    larger, (top, left) = covering(*images.shape[2:], size)
    images = interpolate(images, larger, mode="bilinear", antialias=True)
    return images[:, :, top : top + size, left : left + size].contiguous()


def resized_picture(image: Image.Image, size: int) -> Image.Image:
    """The same for one Pillow image: Pillow resizes without the lock, so that threads can share the work."""
    if image.size == (size, size):
        return image
    (height, width), (top, left) = covering(image.height, image.width, size)
    box = (left, top, left + size, top + size)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop(box)


GREY = ("1", "L", "LA")
# Pillow decodes and resizes without Python's lock, so threads are as good as processes and start at once.
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True, eq=False)
class Streamed(Limited):
    """A split whose images stay in `files` and are read batch by batch; otherwise with the face of Split.

    labels: (n,) int64 or (n, k) uint8; shape: (c, h, w) of every image as it is handed out; `resize`: whether images of
    other sizes are resized (shorter side, then centre crop) or refused; `grey`: whether images in colour are handed out
    in grey, the mean of their three channels.
    """

    files: tuple[Path, ...]
    labels: Tensor
    shape: tuple[int, int, int]
    resize: bool = False
    grey: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, index: Tensor) -> Tensor:
        """The images at `index`: uint8 (b, c, h, w). Raises BadData, naming the file, for one that cannot be read."""
        files = [self.files[i] for i in index.tolist()]
        if self.grey:
            return mean_of_channels(decode(files, (3, *self.shape[1:]), self.resize))
        return decode(files, self.shape, self.resize)

    def select(self, index: Tensor) -> "Streamed":
        """The examples at `index` (int64 positions), in that order."""
        files = tuple(self.files[i] for i in index.tolist())
        return replace(self, files=files, labels=self.labels[index.to(self.labels.device)])


def mean_of_channels(images: Tensor) -> Tensor:
    """uint8 images (n, 3, h, w) in grey, (n, 1, h, w), rounded to whole values."""
    return images.float().mean(1, keepdim=True).round().to(torch.uint8)


def read_ahead(split: Streamed, parts: Sequence[Tensor], most: int = 2) -> Iterator[Tensor]:
    """The images at each of `parts`; up to `most` batches are read while the last one is in use."""
    pool, waiting = ThreadPoolExecutor(1), deque()
    try:
        for part in parts:
            waiting.append(pool.submit(split.batch, part))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def decode(files: Sequence[Path], shape: tuple[int, int, int], resize: bool, label: str | None = None) -> Tensor:
    """The images in `files`: uint8 (n, c, h, w), behind a progress bar if there is a `label`. Raises BadData."""
    images = torch.empty(len(files), *shape, dtype=torch.uint8)
    table, step = images.numpy(), max(1, min(100, len(files) // THREADS))

    def work(start: int) -> None:
        for i in range(start, min(start + step, len(files))):
            table[i] = _pixels(files[i], shape, resize)

    starts = range(0, len(files), step)
    pool = ThreadPoolExecutor(THREADS)
    try:
        done = pool.map(work, starts)
        for _ in done if label is None else progress(done, label, len(starts)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def _pixels(path: Path, shape: tuple[int, int, int], resize: bool) -> np.ndarray:
    """One image as uint8 (c, h, w)."""
    channels, height, width = shape
    with opened(path) as image:
        if channels == 1 and image.mode not in GREY:
            raise BadData(f"{path} is in colour (mode {image.mode}), but others are grey. Convert one or the other.")
        image = image.convert("L" if channels == 1 else "RGB")
    if resize:
        image = resized_picture(image, height)
    if image.size != (width, height):
        raise BadData(
            f"{path} is {image.width} x {image.height} pixels, others are {width} x {height}. "
            "Give image_size to bring all images to one size."
        )
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A Pillow image; whatever Pillow raises, on opening or in the with-block, becomes a BadData naming the file.

    Raises BadData also for more than 8 bits per channel, of which Pillow would make white.
    """
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise BadData(f"{path} has more than 8 bits per channel (mode {image.mode}). Convert it to 8 bits.")
            yield image
    except BadData:
        raise
    # Decoding is lazy, and Pillow's decoders raise errors of many classes for broken files.
    except Exception as error:
        reason = type(error).__name__
        raise BadData(f"{path} cannot be read as an image ({reason}). Replace or delete it.") from error


def repeated(split: Split | Streamed) -> Split | Streamed:
    """Images (3, h, w) of which each channel is the one of `split`'s images (1, h, w)."""
    if isinstance(split, Streamed):
        return replace(split, shape=(3, *split.shape[1:]))  # whose decoding converts grey to colour
    return replace(split, images=split.images.expand(-1, 3, -1, -1))


def averaged(split: Split | Streamed) -> Split | Streamed:
    """Images (1, h, w): the mean of the three channels of `split`'s images, rounded to a whole grey value."""
    if isinstance(split, Streamed):
        return replace(split, shape=(1, *split.shape[1:]), grey=True)
    return replace(split, images=torch.cat([mean_of_channels(part) for part in split.images.split(1000)]))
