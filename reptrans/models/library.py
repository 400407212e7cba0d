"""What networks from optional libraries share: the library or how to get it, near names, and a bound on their size."""

import difflib
import importlib
import os
from collections.abc import Callable, Iterable
from types import ModuleType

import torch
from torch import nn

from reptrans.errors import BadValue, NotAvailable
from reptrans.randomness import drawing


def library(module: str, extra: str, name: str) -> ModuleType:
    """The imported module. Raises NotAvailable where it is not installed, with the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise NotAvailable(
            f"{name} needs {module}, which cannot be imported ({error}). Install it: pip install 'reptrans[{extra}]'."
        ) from error


def near(name: str, options: Iterable[str]) -> str:
    """ "Did you mean 'a' or 'b'? ", or nothing: for lists of a thousand names, which no message should hold."""
    found = sorted(difflib.get_close_matches(name, list(options), n=5))
    return f"Did you mean {' or '.join(map(repr, found))}? " if found else ""


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
    drawn = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        net.float().eval()(torch.zeros(shape))
    finally:
        torch.set_default_dtype(drawn)
    return net.train()
