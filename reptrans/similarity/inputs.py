"""What networks are compared on: the batches of any loader, brought to each network, and what it says to them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data

from reptrans.errors import BadData, BadValue, ReptransError, ShapeMismatch
from reptrans.layers.network import each
from reptrans.training.batches import refuse_meta

Inputs = Tensor | dict[str, Tensor]  # images (n, …), or a network's keywords

_IMAGES = ("images", "pixel_values", "x")
_LABELS = ("label", "labels")
_ADVICE = (
    "A loader gives batches: images (n, c, h, w), a tuple that begins with them, or a mapping with "
    f"{', '.join(map(repr, _IMAGES))} or with the network's keywords; dataset.loader('test') or a torch DataLoader do."
)


def batches(loader: Iterable) -> Iterator[Inputs]:
    """What the networks see of every batch; a tensor, an array or a mapping is one batch. Raises BadValue, BadData."""
    if isinstance(loader, (Tensor, np.ndarray, Mapping)):
        loader = [loader]
    sized = isinstance(loader, data.Dataset) and not isinstance(loader, data.IterableDataset)
    if isinstance(loader, (str, bytes, nn.Module)) or sized or not hasattr(loader, "__iter__"):
        raise BadValue(f"the loader is {_named(loader)}. {_ADVICE}")
    return map(_inputs, loader)


def _inputs(batch: object) -> Inputs:
    if isinstance(batch, Mapping):
        images = next((batch[name] for name in _IMAGES if name in batch), None)
        found = {k: v for k, v in batch.items() if isinstance(v, Tensor) and k not in _LABELS}
        if images is None and found:
            return found
        batch = batch if images is None else images
    elif isinstance(batch, (tuple, list)) and len(batch):
        return _inputs(batch[0])
    try:
        found = torch.from_numpy(batch) if isinstance(batch, np.ndarray) else batch
    except (TypeError, ValueError):
        found = None
    if not isinstance(found, Tensor) or not found.ndim:
        raise BadData(f"a batch of the loader holds {_named(batch)}, not a tensor (n, …). {_ADVICE}")
    return found


def size_of(inputs: Inputs) -> int:
    """The number of examples."""
    return len(inputs) if isinstance(inputs, Tensor) else len(next(iter(inputs.values())))


def joined(a: Inputs, b: Inputs) -> Inputs | None:
    """The examples of a and then of b; None where their shapes differ, as those of texts of other lengths."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        same = isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape[1:] == b.shape[1:]
        return torch.cat([a, b]) if same else None
    parts = {name: joined(a[name], b[name]) for name in a if name in b}
    whole = len(parts) == len(a) == len(b) and all(part is not None for part in parts.values())
    return parts if whole else None


def moved(net: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs where the network is, floats in its precision."""
    own = next((p for p in net.parameters() if p.is_floating_point()), next(net.parameters(), None))
    if own is None:
        return inputs
    floats = own.dtype if own.is_floating_point() else None
    return each(inputs, lambda v: v.to(own.device, floats if v.is_floating_point() else None))


def refuse_single(net: nn.Module, inputs: Inputs) -> None:
    """Raise ShapeMismatch for one image by itself: a convolution takes it, and its channels would pass for examples."""
    first = next((module for module in net.modules() if next(module.parameters(recurse=False), None) is not None), None)
    axes = first.weight.ndim if isinstance(first, nn.modules.conv._ConvNd) else 0
    if isinstance(inputs, Tensor) and axes == inputs.ndim + 1:
        raise ShapeMismatch(
            f"{type(net).__name__} takes batches (n, …) of {axes} axes; given one of {tuple(inputs.shape)}. Of a "
            "single example give x[None]."
        )


@contextmanager
def explained(net: nn.Module, inputs: Inputs) -> Iterator[None]:
    """What a network raises for its inputs becomes one sentence: ShapeMismatch; BadValue for weights without values."""
    try:
        yield
    except (ReptransError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        refuse_meta(net)
        first = (str(error).splitlines() or [type(error).__name__])[0]
        whole = isinstance(inputs, Tensor) and not inputs.is_floating_point()
        advice = " Images are floats, scaled and normalised as in the network's training: images.float() / 255 say."
        raise ShapeMismatch(
            f"{type(net).__name__} does not take {_named(inputs)}: {first}.{advice if whole else ''}"
        ) from error


def _named(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a batch {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, Mapping):
        return f"a mapping of {', '.join(map(str, value)) or 'nothing'}"
    return repr(value)[:80] if isinstance(value, (str, bytes, int, float, type(None))) else f"a {type(value).__name__}"
