"""Channels last: how maps and 4-d weights lie in memory where convolutions in single precision are faster for it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from reptrans.layers.network import copy_of
from reptrans.layers.values import tensors_in
from reptrans.training.evaluation import keeping_random_state

LAYOUTS = (torch.contiguous_format, torch.channels_last)


@contextmanager
def channels_last(networks: Iterable[nn.Module], images: object) -> Iterator[None]:
    """Inside, the networks' 4-d weights have their channels last, and so have the maps that they make of `images`.

    Results differ by rounding. All stays as it is where this is slower or cannot be: in double precision; for what is
    no image (n, c, h, w), as texts are; for weights that were not contiguous before; and for networks that need their
    maps contiguous, as `x.view(len(x), -1)` does, or that say something else of two images then, as with dropout on
    maps, whose masks are drawn in the order of memory.
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
    return all(_says_the_same(net, images[:2]) for net in networks)


def _says_the_same(net: nn.Module, images: Tensor) -> bool:
    """Whether a copy of the network says the same in both layouts, in each mode in which it says anything."""
    modes = [[_said(net, images, layout, train) for layout in LAYOUTS] for train in (False, True)]
    modes = [(plain, last) for plain, last in modes if plain is not None]
    return bool(modes) and all(last is not None and all(map(_close, plain, last)) for plain, last in modes)


def _said(net: nn.Module, images: Tensor, layout: torch.memory_format, train: bool) -> list[Tensor] | None:
    try:
        with keeping_random_state(images.device), torch.no_grad():
            found = copy_of(net).to(memory_format=layout).train(train)(images.clone())
            return [value.double() for _, value in tensors_in(found)]
    # Foreign code may raise anything; what is wrong in both layouts is said where the network is used.
    except Exception:
        return None


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 0.01 * a.abs().max())
