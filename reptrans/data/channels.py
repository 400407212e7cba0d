"""Grey images for colour networks, and the reverse: a grey channel repeated, or three colours averaged."""

from dataclasses import replace

import torch

from reptrans.data.split import Split
from reptrans.data.streamed import Streamed, mean_of_channels


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
