"""Grey images for colour networks, and the reverse: a grey channel repeated, or three colours averaged."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reptrans.data.split import Split
from reptrans.data.streamed import Streamed, decode


def repeated(split: Split | Streamed) -> Split | Streamed:
    """Images (3, h, w) of which each channel is the one of `split`'s images (1, h, w)."""
    if isinstance(split, Streamed):
        return replace(split, shape=(3, *split.shape[1:]))  # whose decoding converts grey to colour
    return Split(split.images.expand(-1, 3, -1, -1), split.labels)


def averaged(split: Split | Streamed) -> Split | Streamed:
    """Images (1, h, w): the mean of the three channels of `split`'s images, rounded to a whole grey value."""
    if isinstance(split, Streamed):
        return _Averaged(split.files, split.labels, (1, *split.shape[1:]), split.resize)
    return Split(torch.cat([_mean(part) for part in split.images.split(1000)]), split.labels)


@dataclass(frozen=True, eq=False)
class _Averaged(Streamed):
    """Streamed colour images that are handed out in grey."""

    def batch(self, index: Tensor) -> Tensor:
        files = [self.files[i] for i in index.tolist()]
        return _mean(decode(files, (3, *self.shape[1:]), self.resize))

    def select(self, index: Tensor) -> "_Averaged":
        return replace(self, files=tuple(self.files[i] for i in index.tolist()), labels=self.labels[index])


def _mean(images: Tensor) -> Tensor:
    return images.float().mean(1, keepdim=True).round().to(torch.uint8)
