"""What a frozen network says about a data set is computed once: activations, logits, moments of many layers."""

import torch
from torch import Tensor, nn

from reptrans.data import Batch, Loader
from reptrans.data.split import balanced
from reptrans.layers import front
from reptrans.layers.values import answer
from reptrans.progress import progress
from reptrans.similarity import Moments, channel_blocks
from reptrans.stitching.stitch import at_places, axis_of, channels_first, places_of


@torch.no_grad()
def logits_of(net: nn.Module, loader: Loader) -> tuple[Tensor, Tensor]:
    """Logits (n, k) and labels of every example, in the split's order (the loader must not shuffle or augment)."""
    pairs = [(answer(net(batch.images)), batch.labels) for batch in loader]
    return torch.cat([logits for logits, _ in pairs]), torch.cat([labels for _, labels in pairs])


@torch.no_grad()
def kept(modules: dict[str, nn.Module], loader: Loader, most_gib: float) -> dict[str, Tensor] | None:
    """The outputs of frozen modules for every image of the loader's split, computed once: name -> (n, …).

    None where that cannot be: the images are augmented, or the outputs need more than `most_gib` of memory together.
    """
    if loader.augment != "none":
        return None
    tables: dict[str, Tensor] = {}
    for batch in progress(loader.plain(), "activations"):
        outputs = {name: answer(module(batch.images)) for name, module in modules.items()}
        if not tables:
            if sum(v[0].numel() * v.element_size() for v in outputs.values()) * len(loader.split) > most_gib * 2**30:
                return None
            tables = {name: v.new_empty(len(loader.split), *v.shape[1:]) for name, v in outputs.items()}
        for name, value in outputs.items():
            tables[name][batch.index] = value
    return tables


@torch.no_grad()
def collect_moments(
    front_net: nn.Module,
    end_net: nn.Module,
    pairs: list[tuple[str, str]],
    loader: Loader,
    end_shapes: dict[str, tuple[int, ...]],
    flatten: bool = False,
    axes: tuple[dict[str, int], dict[str, int]] | None = None,
) -> dict[tuple[str, str], Moments]:
    """Moments of (front layer, end layer) channels for all pairs, from one pass of `loader` through both networks.

    Each network runs only as far as its last layer in `pairs`. The front's places are brought to the end's; with
    `flatten` the features are all of c·h·w. `axes`: of the channels, by layer of front and end; None for the usual ones
    of `Stitch`. Memory does not grow with the number of images.
    """
    fronts = front(front_net, sorted({f for f, _ in pairs})), front(end_net, sorted({e for _, e in pairs}))
    moments: dict[tuple[str, str], Moments] = {}
    for batch in progress(loader, "moments"):
        xs, ys = (part(batch.images) for part in fronts)
        for f, e in pairs:
            known = (axes[0][f], axes[1][e]) if axes else (None, None)
            x, y = _blocks(xs[f], ys[e], end_shapes[e], known, flatten)
            if (f, e) not in moments:
                moments[f, e] = Moments(x.shape[1], y.shape[1], x.device)
            moments[f, e].update(x, y)
    return moments


def _blocks(
    x: Tensor, y: Tensor, end_shape: tuple[int, ...], axes: tuple[int | None, int | None], flatten: bool
) -> tuple[Tensor, Tensor]:
    if flatten:
        return x.flatten(1), y.flatten(1)
    front_axis, end_axis = (axis_of(shape, axis) for shape, axis in zip((x.shape[1:], end_shape), axes, strict=True))
    x = at_places(channels_first(x, front_axis), places_of(end_shape, end_axis))
    return channel_blocks(x, 1), channel_blocks(channels_first(y, end_axis), 1)


def subset(loader: Loader, most: int) -> Batch:
    """One batch of at most `most` examples, see `balanced`."""
    split = loader.split.select(balanced(loader.split.labels, most))
    return next(iter(loader.plain().over(split, batch_size=len(split))))
