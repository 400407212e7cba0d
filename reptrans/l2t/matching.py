"""The matching loss as a part of a transfer, and how both networks are looked at."""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reptrans.errors import InPlaceChange, UnknownName, suggest
from reptrans.l2t.pairs import Maps, Pair, Pairs, as_maps
from reptrans.l2t.weights import Weights, dead
from reptrans.layers import record
from reptrans.training import evaluating
from reptrans.training.batches import answers_of, checked_network

LIKE = ("authors",)


class Looked(NamedTuple):
    """One batch in both networks: logits (n, k) and activations by layer; the source's without gradients."""

    logits: Tensor
    target: dict[str, Tensor]
    source_logits: Tensor | None
    source: dict[str, Tensor]


class Matching(nn.Module):
    """Term "matching": the sum of <W, D>, W from `Weights`, D from `Pairs`; figures: the mean lambda of every pair.

    `pairs`: (source layer, target layer). `example`: images that shapes are learned from, and on which a pair whose
    lambda is 0 everywhere is warned of. `resize`, `seed`, and `weights`, see `Pairs` and `Weights`. With
    `like="authors"`: bilinear, initial "random" and summed. A figure is called `source layer > target layer`.
    Raises LayerNotFound, ShapeMismatch, BadValue, UnknownName.
    """

    def __init__(
        self,
        target: nn.Module,
        source: nn.Module,
        pairs: Sequence[Pair],
        example: Tensor,
        *,
        resize: str | None = None,
        like: str | None = None,
        seed: int = 0,
        **weights,
    ):
        super().__init__()
        if like is not None and like not in LIKE:
            raise UnknownName(f"there is no preset like={like!r}. {suggest(like, LIKE)}")
        theirs = {"initial": "random", "summed": True} if like else {}
        sources, targets = both(target, source, pairs, example)
        resize = resize or ("bilinear" if like else "area")
        self.pairs = Pairs(pairs, sources, targets, resize=resize, seed=seed)
        self.weights = Weights(self.pairs, seed=seed + 1, **(theirs | weights))
        self.source_layers, self.target_layers = list(self.pairs.channels), list(self.pairs.of_target)
        self.last: tuple[dict[str, Maps], dict[str, Tensor]] | None = None
        self._warn_of_dead(sources)

    def trained(self) -> list[nn.Parameter]:
        """What the real step moves: the regressors."""
        return list(self.pairs.parameters())

    def forward(self, looked: Looked) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Terms and figures; `last` keeps the prepared maps and W with its graph, for a probe on the same batch."""
        prepared = self.pairs.prepared(looked.source)
        coefficients, where = self.weights(means(looked.source))
        self.last = prepared, coefficients
        differences = self.pairs(prepared, looked.target)
        loss = sum((coefficients[t].detach() * d).sum() for t, d in differences.items())
        found = where.detach().mean(0)
        return {"matching": loss}, {f"{s} > {t}": found[k] for k, (s, t) in enumerate(self.pairs.pairs)}

    def _warn_of_dead(self, sources: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            gone = dead(self.weights.pair_weights(means(sources)), self.pairs.pairs)
        # A pair that was given the factor 0 is meant to be.
        gone = [pair for pair in gone if self.weights.factors[self.pairs.pairs.index(pair)]]
        if gone:
            named = ", ".join(f"{s} > {t}" for s, t in gone)
            warnings.warn(
                f"{len(gone)} of {len(self.pairs.pairs)} pairs are dead from the start: {named}", stacklevel=3
            )


def means(sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Activations by layer to their means over space (n, c)."""
    return {s: as_maps(x).mean((2, 3)) for s, x in sources.items()}


def both(
    target: nn.Module, source: nn.Module, pairs: Sequence[Pair], example: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Activations of the pairs' layers for a few images, (source's, target's), both networks in eval mode."""
    layers = [list(dict.fromkeys(side)) for side in zip(*pairs, strict=True)] or [[], []]
    with evaluating(checked_network(source), checked_network(target)), torch.no_grad():
        sources, targets = (
            look(net, names, example, True)[1] for net, names in zip((source, target), layers, strict=True)
        )
    return sources, targets


def look(net: nn.Module, layers: Sequence[str], images: Tensor, copies: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """(output, activations by layer) of `net` as it is, with their graph."""
    with record(net, layers, clone=copies, detach=False) as seen:
        output = answers_of(net, images)
    return output, {name: seen[name] for name in layers}


def overwrites(net: nn.Module, layers: Sequence[str], example: Tensor) -> bool:
    """Whether an in-place operation of `net` overwrites the output of one of `layers`, so that copies are needed."""
    try:
        with evaluating(net), torch.no_grad():
            look(net, layers, example, copies=False)
    except InPlaceChange:
        return True
    return False
