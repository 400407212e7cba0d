"""Channels last: how maps and 4-d weights lie in memory where convolutions in single precision are faster for it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from reptrans.training.evaluation import keeping_random_state


@contextmanager
def channels_last(networks: Iterable[nn.Module], images: object) -> Iterator[None]:
    """Inside, the networks' 4-d weights have their channels last, and so have the maps that they make of `images`.

    Results differ by rounding. All stays as it is where this is slower or cannot be: in double precision; for what is
    no image (n, c, h, w), as texts are; for weights that were not contiguous before; and for networks that need their
    maps contiguous, as `x.view(len(x), -1)` does.
    """
    networks = list(networks)
    moved = networks if _works(networks, images) else []
    for net in moved:
        net.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for net in moved:
            net.to(memory_format=torch.contiguous_format)


def _works(networks: list[nn.Module], images: object) -> bool:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.dtype == torch.float64:
        return False
    if not all(p.is_contiguous() for net in networks for p in net.parameters()):
        return False
    try:
        with keeping_random_state(images.device), torch.no_grad():
            for net in networks:
                deepcopy(net).to(memory_format=torch.channels_last).train()(images[:2])
    except (RuntimeError, TypeError):  # what else may be wrong is said where the networks are used
        return False
    return True
