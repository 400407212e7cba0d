"""What networks from optional libraries share: the library or how to get it, and what is refused."""

import importlib
import os
from collections.abc import Callable
from types import ModuleType

import torch
from torch import nn

from reptrans.errors import BadValue, NotAvailable
from reptrans.randomness import drawing, made_as

FRESH = "use weights=None for fresh weights."


def library(module: str, extra: str, name: str) -> ModuleType:
    """The imported module. Raises NotAvailable where it is not installed, with the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NotAvailable(
            f"{name} needs {module}, which cannot be imported ({error}). Install it: pip install 'reptrans[{extra}]'."
        ) from error


def refuse_other(weights: str, own: dict[str, int], given: dict[str, int | None], advice: str) -> None:
    """Raises BadValue for another number of classes or of channels than the trained weights have."""
    for what, asked in given.items():
        if asked not in (None, own[what]):
            hint = "channels=3 of load_dataset repeats grey images" if what == "in_channels" else "Leave it out"
            raise BadValue(f"The weights {weights} have {what}={own[what]}, not {asked}. {hint}, or {advice}")


def refuse_large(name: str, make: Callable[[], nn.Module], hint: str) -> None:
    """Raises BadValue if the weights, 8 bytes each while they are drawn, do not fit into this machine's memory.

    The network is made once without memory for its weights; one for which that fails is let through.
    """
    try:
        with drawing(0), torch.device("meta"):
            weights = sum(p.numel() for p in make().parameters())
    except Exception:  # said where the network is made
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**40
    if 8 * weights > memory:
        raise BadValue(
            f"{name} has {weights / 1e9:.1f} billion weights, {8 * weights / 2**30:.0f} GiB while they are drawn; this "
            f"machine has {memory / 2**30:.0f} GiB. {hint}"
        )


@torch.no_grad()
def rehearsed(net: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The network after it has seen one empty image: it says now what it has against that size, not in a training."""
    with made_as(torch.float32):
        net.float().eval()(torch.zeros(shape))
    return net.train()
