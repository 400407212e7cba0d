"""The matching loss as a part of a transfer, and how both networks are looked at."""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reptrans.errors import choose
from reptrans.l2t.regressors import Maps, Pair, Pairs, as_maps
from reptrans.l2t.weights import Weights, dead
from reptrans.layers import record
from reptrans.training import evaluating
from reptrans.training.batches import answers_of, checked_network

LIKE = {"authors": {"initial": "random", "summed": True}}


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
        theirs = {} if like is None else choose(like, LIKE, "there is no preset like={}")
        sources, targets = both(target, source, pairs, example)
        resize = resize or ("bilinear" if like else "area")
        self.pairs = Pairs(pairs, sources, targets, resize=resize, seed=seed)
        self.weights = Weights(self.pairs, seed=seed + 1, **(theirs | weights))
        self.source_layers, self.target_layers = list(self.pairs.channels), list(self.pairs.of_target)
        self._warn_of_dead(sources)

    def forward(self, looked: Looked) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[dict[str, Maps], dict]]:
        """Terms, figures, and what a probe on the same batch goes on from: prepared maps, and W with its graph."""
        prepared = self.pairs.prepared(looked.source)
        coefficients, where = self.weights(means(looked.source))
        differences = self.pairs(prepared, looked.target)
        loss = sum((coefficients[t].detach() * d).sum() for t, d in differences.items())
        found = where.detach().mean(0)
        figures = {f"{s} > {t}": found[k] for k, (s, t) in enumerate(self.pairs.pairs)}
        return {"matching": loss}, figures, (prepared, coefficients)

    def _warn_of_dead(self, sources: Mapping[str, Tensor]) -> None:
        pairs = self.pairs.pairs
        with torch.no_grad():
            gone = dead(self.weights.pair_weights(means(sources)), pairs)
        if gone:
            named = ", ".join(f"{s} > {t}" for s, t in gone)
            warnings.warn(f"{len(gone)} of {len(pairs)} pairs are dead from the start: {named}", stacklevel=3)


def means(sources: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Activations by layer to their means over space (n, c)."""
    return {s: as_maps(x).mean((2, 3)) for s, x in sources.items()}


def both(
    target: nn.Module, source: nn.Module, pairs: Sequence[Pair], example: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Activations of the pairs' layers for a few images, (source's, target's), both networks in eval mode."""
    layers = [list(dict.fromkeys(side)) for side in zip(*pairs, strict=True)] or [[], []]
    with evaluating(checked_network(source), checked_network(target)), torch.no_grad():
        return look(source, layers[0], example)[1], look(target, layers[1], example)[1]


def look(
    net: nn.Module, layers: Sequence[str], images: Tensor, copies: bool = True
) -> tuple[Tensor, dict[str, Tensor]]:
    """(output, activations by layer) of `net` as it is, with their graph; copies, for what works in place behind."""
    with record(net, layers, clone=copies, detach=False) as seen:
        output = answers_of(net, images)
    return output, {name: seen[name] for name in layers}
