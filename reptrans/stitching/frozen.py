"""What a frozen network says about a data set is computed once: activations, logits, moments of many layers."""

from collections.abc import Callable, Iterable
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.data import Batch, Loader, Split
from reptrans.data.split import balanced
from reptrans.layers import front
from reptrans.layers.network import run
from reptrans.layers.values import answer
from reptrans.progress import progress
from reptrans.similarity import Moments, channel_blocks
from reptrans.similarity.fold import token_mask, without_padding
from reptrans.stitching.stitch import at_places, axis_of, channels_first, places_of
from reptrans.training.evaluation import refuse_nan

_GIB = 2**30
_MOST_NETWORKS = 4
SHARE = 1 / 4  # of the memory for one network on one split: of two networks, training and test images fit together


@torch.no_grad()
def logits_of(net: Callable, loader: Loader, texts: str = "pool") -> tuple[Tensor, Tensor]:
    """Logits (n, k) and labels of every example, in the split's order (the loader must not shuffle or augment).

    Of a network that answers texts token by token, `texts` says: the mean over tokens, "pool", or all of the "tokens".
    Raises BadData where there are NaN among them.
    """
    pairs = [(unpadded(answer(net(batch.images)), batch.images, texts), batch.labels) for batch in loader]
    logits, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    refuse_nan(int(logits.isnan().flatten(1).any(1).sum()), len(logits))
    return logits, labels


def unpadded(activations: Tensor, inputs: object, how: str = "pool") -> Tensor:
    """Of texts (n, t, d) the mean over tokens, (n, d), or all "tokens", (tokens, d); everything else as it is."""
    mask = token_mask(inputs, activations)
    return activations if mask is None else without_padding(activations, mask, how)


def recognised(found: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the rows of a network's `own` (n, d) each that was `found` (n, d) is: (logits, the right rows).

    Logits are cosines over 0.05. Of rows that are as near, as of a word that is said twice, any is right. Of more than
    4,096 rows so many, evenly spread, are looked at.
    """
    some = torch.linspace(0, len(own) - 1, min(4096, len(own)), dtype=torch.float64).round().long()
    logits = F.normalize(found[some]) @ F.normalize(own[some]).T / 0.05
    nearest, rows = logits.max(1), torch.arange(len(some), device=found.device)
    return logits, torch.where(logits.diagonal() >= nearest.values - 1e-4, nearest.indices, rows)


@torch.no_grad()
def kept(modules: dict[str, nn.Module], loader: Loader, most_gib: float) -> dict[str, Tensor] | None:
    """The outputs of frozen modules for every image of the loader's split, computed once: name -> (n, …).

    None where that cannot be: the images are augmented, or the outputs need more than `most_gib` of memory together.
    """
    return _tables(lambda images: {n: answer(module(images)) for n, module in modules.items()}, loader, most_gib * _GIB)


def _tables(outputs_of: Callable[[Tensor], dict[str, Tensor]], loader: Loader, most: float) -> dict[str, Tensor] | None:
    """Likewise, for what gives all outputs at once; `most` in bytes."""
    if loader.augment != "none":
        return None
    tables: dict[str, Tensor] = {}
    for batch in progress(loader.plain(), "activations"):
        outputs = outputs_of(batch.images)
        if not tables:
            if sum(v[0].numel() * v.element_size() for v in outputs.values()) * len(loader.split) > most:
                return None
            tables = {name: v.new_empty(len(loader.split), *v.shape[1:]) for name, v in outputs.items()}
        for name, value in outputs.items():
            tables[name][batch.index] = value
    return tables


class Seen:
    """What frozen networks say of images that are not augmented, computed once for all who ask.

    `most_gib`: what the activations may take together; those asked for longest ago go first. Of more than four networks
    the same goes for all that is known of one.
    """

    def __init__(self, most_gib: float):
        self._most = most_gib * _GIB
        # By network, layer (None: the output) and split, which is kept, so that no other gets its identity.
        self._found: dict[tuple[nn.Module, str | None, int], tuple[Split, tuple[Tensor, ...]]] = {}
        self._refused: WeakKeyDictionary[nn.Module, set[object]] = WeakKeyDictionary()

    def logits(self, net: nn.Module, loader: Loader) -> tuple[Tensor, Tensor]:
        """`logits_of` all examples, of texts for each token."""
        key = net, None, id(loader.split)
        if key not in self._found:
            self._found[key] = loader.split, logits_of(partial(run, net), loader, "tokens")
        self._forget_all_before([key])
        return self._found[key][1]

    def activations(
        self, net: nn.Module, layers: Iterable[str], loader: Loader, share: float = 1.0
    ) -> dict[str, Tensor] | None:
        """Those of each layer for every image of the loader's split, (n, …), from one pass; None as for `kept`.

        `share` of the memory: what these may take.
        """
        keys = {layer: (net, layer, id(loader.split)) for layer in layers}
        refused, these = self._refused.setdefault(net, set()), (*keys, len(loader.split), share)
        if these in refused or loader.augment != "none":
            return None
        if not all(key in self._found for key in keys.values()):
            with torch.no_grad():
                tables = _tables(front(net, list(keys)), loader, share * self._most)
            if tables is None:
                refused.add(these)
                return None
            self._found |= {key: (loader.split, (tables[layer],)) for layer, key in keys.items()}
        self._forget_all_before(keys.values())
        return {layer: self._found[key][1][0] for layer, key in keys.items()}

    def _forget_all_before(self, newest: Iterable[tuple[nn.Module, str | None, int]]) -> None:
        """Put these last, and let go of the first while there is too much."""
        for key in newest:
            self._found[key] = self._found.pop(key)
        while len({net for net, *_ in self._found}) > _MOST_NETWORKS or self._size > self._most:
            del self._found[next(iter(self._found))]

    @property
    def _size(self) -> int:
        return sum(table.nbytes for (_, layer, _), (_, found) in self._found.items() if layer for table in found)


@torch.no_grad()
def collect_moments(
    front_net: nn.Module,
    end_net: nn.Module,
    pairs: list[tuple[str, str]],
    loader: Loader,
    flatten: bool = False,
    axes: tuple[dict[str, int], dict[str, int]] | None = None,
    seen: Seen | None = None,
) -> dict[tuple[str, str], Moments]:
    """Moments of (front layer, end layer) channels for all pairs, from one pass of `loader` through both networks.

    Each network runs only as far as its last layer in `pairs`. The front's places are brought to the end's; with
    `flatten` the features are all of c·h·w. `axes`: of the channels, by layer of front and end; None for the usual ones
    of `Stitch`. Memory does not grow with the number of images. `seen` knows activations already, or keeps them for
    later where all layers of a network need no more than a quarter of its memory.
    """
    sides = (front_net, sorted({f for f, _ in pairs})), (end_net, sorted({e for _, e in pairs}))
    fronts = [_batchwise(net, layers, loader, seen) for net, layers in sides]
    moments: dict[tuple[str, str], Moments] = {}
    for batch in progress(loader, "moments"):
        xs, ys = (part(batch) for part in fronts)
        for f, e in pairs:
            known = (axes[0][f], axes[1][e]) if axes else (None, None)
            x, y = blocks(xs[f], ys[e], known, flatten, token_mask(batch.images, xs[f]))
            if (f, e) not in moments:
                moments[f, e] = Moments(x.shape[1], y.shape[1], x.device)
            moments[f, e].update(x, y)
    return moments


def _batchwise(net: nn.Module, layers: list[str], loader: Loader, seen: Seen | None) -> Callable[[Batch], dict]:
    known = seen and seen.activations(net, layers, loader, SHARE)
    if known:
        return lambda batch: {layer: table[batch.index] for layer, table in known.items()}
    part = front(net, layers)
    return lambda batch: part(batch.images)


def blocks(
    x: Tensor, y: Tensor, axes: tuple[int | None, int | None], flatten: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Activations of front and end as `Moments` takes them, the front's brought to the end's places.

    `axes` of their channels, None for the usual ones; with `flatten` all features; `mask` (n, t): tokens that count.
    """
    if flatten:
        return x.flatten(1), y.flatten(1)
    if mask is not None:  # what is padding is no sample
        return x[mask], y[mask]
    front_axis, end_axis = (axis_of(v.shape[1:], axis) for v, axis in zip((x, y), axes, strict=True))
    x = at_places(channels_first(x, front_axis), places_of(y.shape[1:], end_axis))
    return channel_blocks(x, 1), channel_blocks(channels_first(y, end_axis), 1)


@torch.no_grad()
def rows_of(parts: tuple[nn.Module, ...], loader: Loader, most: int) -> list[Tensor]:
    """What each part says of at most `most` of the loader's examples, see `balanced`: (n, features), batch by batch."""
    few = loader.plain().over(loader.split.select(balanced(loader.split.labels, most)))
    found = [[unpadded(part(batch.images), batch.images).flatten(1) for part in parts] for batch in few]
    return [torch.cat(rows) for rows in zip(*found, strict=True)]
