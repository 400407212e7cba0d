"""The matching loss as a part of a transfer: what is compared with what, how far apart it is, and what it weighs.

`Pairs` say which source layer a target layer is compared with, and how far they are apart, channel by channel;
`Weights` what and where to transfer: the weight of every channel and of every pair, made from the source's maps.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch, choose
from reptrans.layers import record
from reptrans.matching.transforms import at_least_single
from reptrans.randomness import drawing
from reptrans.training import evaluating
from reptrans.training.batches import answers_of, checked_network

RESIZING = ("area", "bilinear")
Pair = tuple[str, str]


class Together(nn.ModuleDict):
    """Several source networks as one: layers of part `name` are called `name.layer`; the output is the first one's."""

    def __init__(self, **nets: nn.Module):
        super().__init__(nets)

    def forward(self, images: Tensor) -> Tensor:
        return [net(images) for net in self.values()][0]


class Maps(NamedTuple):
    """What a target layer is compared with: source maps (n, c, h, w), their means and mean squares (n, c)."""

    maps: Tensor
    mean: Tensor
    power: Tensor


class Pairs(nn.Module):
    """Squared differences between source maps and what 1x1 convolutions r make of target maps.

        D_(m,n)[b, c] = mean over pixels of (S^m_c(x_b) - r_(m,n)(T^n(x_b))_c)²

    `pairs`: (source layer, target layer), any number. `sources`, `targets`: activations of a few images by layer name,
    which shapes are learned from: maps (n, c, h, w) or vectors (n, c). The source map is resized to the target's side:
    "area" takes means where it shrinks and is bilinear where it grows; "bilinear" samples without averaging, as the
    authors do. The regressors of one target layer are one convolution, for all its pairs; pairs keep the order given
    within a target layer. `seed`: of the regressors, PyTorch's default initialisation.
    Raises BadValue, ShapeMismatch naming both layers.
    Source: Jang et al. 2019 (and FitNets, Romero et al. 2015). Deviation: "area".
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        sources: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        *,
        resize: str = "area",
        seed: int = 0,
    ):
        super().__init__()
        self.pairs = _checked(pairs, resize, sources, targets)
        self.resize = resize
        self.of_target = {t: [s for s, other in self.pairs if other == t] for _, t in self.pairs}
        self.channels = {s: sources[s].shape[1] for s, _ in self.pairs}
        self.sizes = {t: tuple(as_maps(targets[t]).shape[2:]) for t in self.of_target}
        like = next(iter(targets.values()))
        self.regressors = nn.ModuleDict()
        with drawing(seed):
            for t, names in self.of_target.items():
                wide = sum(self.channels[s] for s in names)
                self.regressors[_key(t)] = nn.Conv2d(targets[t].shape[1], wide, 1).to(like.device, like.dtype)

    def prepared(self, sources: Mapping[str, Tensor]) -> dict[str, Maps]:
        """By target layer, its pairs' source maps side by side, at its size; each distinct size is made once."""
        wanted = dict.fromkeys((s, self.sizes[t]) for s, t in self.pairs)
        made = {(s, size): resized(as_maps(sources[s]), size, self.resize) for s, size in wanted}
        joined = {t: torch.cat([made[s, self.sizes[t]] for s in names], 1) for t, names in self.of_target.items()}
        return {t: Maps(x, x.mean((2, 3)), x.square().mean((2, 3))) for t, x in joined.items()}

    def forward(self, prepared: Mapping[str, Maps], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """D by target layer: (n, channels of all its pairs)."""
        return {
            t: _differences(source, as_maps(targets[t]), self.regressors[_key(t)]) for t, source in prepared.items()
        }

    def split(self, joined: Mapping[str, Tensor]) -> dict[Pair, Tensor]:
        """(n, channels of all pairs) by target layer to (n, c) by pair."""
        parts = {}
        for t, names in self.of_target.items():
            pieces = joined[t].split([self.channels[s] for s in names], 1)
            parts |= {(s, t): piece for s, piece in zip(names, pieces, strict=True)}
        return {pair: parts[pair] for pair in self.pairs}


def resized(x: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """Maps (n, c, h, w) at another height and width; unchanged where it is theirs."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    if how == "area" and all(new <= old for new, old in zip(size, x.shape[2:], strict=True)):
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def as_maps(x: Tensor) -> Tensor:
    """(n, c) as (n, c, 1, 1); at least float32."""
    return at_least_single(x if x.ndim == 4 else x[:, :, None, None])


def _differences(source: Maps, x: Tensor, regressor: nn.Conv2d) -> Tensor:
    """The mean over pixels of |S - Rx - b|² = |S|² - 2 R·(S xᵀ) + R (x xᵀ) Rᵀ + b (b + 2 R x̄ - 2 S̄), (n, channels)."""
    pixels = x[0, 0].numel()
    if pixels < 4 * x.shape[1]:
        return (source.maps - regressor(x)).square().mean((2, 3))
    # Many pixels and few channels: two small Grams instead of a residual of the maps' full size.
    weight, bias = regressor.weight.flatten(1), regressor.bias
    x, s = x.flatten(2), source.maps.flatten(2)
    gram, cross, mean = x @ x.mT / pixels, s @ x.mT / pixels, x.mean(2)
    linear = ((weight @ gram - 2 * cross) * weight).sum(2)
    return source.power + linear + bias * (bias + 2 * mean @ weight.T - 2 * source.mean)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a ModuleDict takes no dots


def _checked(pairs: Sequence[Pair], resize: str, sources: Mapping, targets: Mapping) -> list[Pair]:
    pairs = [tuple(pair) for pair in pairs]
    if not pairs:
        raise BadValue("pairs is empty; name one at least: (source layer, target layer).")
    if twice := [pair for pair in pairs if pairs.count(pair) > 1]:
        raise BadValue(f"the pair {twice[0]} stands twice in pairs. Name it once.")
    choose(resize, RESIZING, "there is no resizing {}")
    for s, t in pairs:
        a, b = tuple(sources[s].shape), tuple(targets[t].shape)
        if len(a) != len(b) or len(a) not in (2, 4):
            raise ShapeMismatch(
                f"source layer {s!r} gives {a}, target layer {t!r} gives {b}: these cannot be resized onto each "
                "other. A pair needs two layers of maps (n, c, h, w), or two of vectors (n, c)."
            )
    return pairs


ACTIVATIONS = ("relu6", "relu", "relu-avg", "const")
INITIAL = ("zero", "random")


class Weights(nn.Module):
    """The coefficients W of the matching loss, which is the sum of <W, D> over all pairs' squared differences D.

        W_(m,n)[b, c] = beta / B * lambda_(m,n)(x_b) * w_(m,n)(x_b)_c
        w = softmax(A z + a) with `what`, else 1 / C                  (the paper's f)
        lambda = relu6(v . z + e) with `where`, else 1                (the paper's g)

    z: the mean over space of S^m(x_b), C channels; B: images in the batch. Every pair has its own A, a, v, e. A and a
    start at 0, so that every channel has 1 / C at first; e starts at `start`, and v at 0, so that every pair is alive
    and all are equal, or with `initial="random"` at PyTorch's default. With neither f nor g this is feature matching.
    `activation` of g: relu6, relu, relu-avg (relu of v . z / C + e), const (softplus(10 e), one number for a pair,
    whatever the image; e starts at 0).
    `summed`: where g is on and f off, channels are summed, not averaged, which makes the loss C times larger.
    Raises BadValue, UnknownName.
    Source: Jang et al. 2019, authors' code, which has `initial="random"` and `summed`. Deviation: neither is default,
    since random v leave some pairs dead, and the preference among the others to luck.
    """

    def __init__(
        self,
        pairs: Pairs,
        *,
        what: bool = True,
        where: bool = True,
        beta: float = 0.5,
        activation: str = "relu6",
        start: float = 1.0,
        initial: str = "zero",
        summed: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        choose(activation, ACTIVATIONS, "there is no activation {}")
        choose(initial, INITIAL, "there is no initial {}")
        if not 0 <= beta < math.inf:
            raise BadValue(f"beta is {beta!r}; it must be a number from 0 on.")
        self.pairs, self.of_target, self.beta, self.activation = pairs.pairs, pairs.of_target, beta, activation
        widths = [pairs.channels[s] for s, _ in self.pairs]
        self.share = [1.0 if summed and where and not what else 1 / c for c in widths]
        constant, like = activation == "const", next(pairs.parameters())
        with drawing(seed):
            self.f = nn.ModuleList(nn.Linear(c, c) for c in widths if what)
            self.g = nn.ModuleList(nn.Linear(c, 1) for c in widths if where and not constant)
        self.free = nn.Parameter(torch.zeros(len(widths))) if where and constant else None
        self.to(like.device, like.dtype)
        for parameter in self.f.parameters():
            nn.init.zeros_(parameter)
        for layer in self.g:
            nn.init.constant_(layer.bias, start)
            if initial == "zero":
                nn.init.zeros_(layer.weight)

    def pair_weights(self, means: Mapping[str, Tensor]) -> Tensor:
        """lambda (n, pairs), at least 0. `means`: (n, C) by source layer."""
        first = next(iter(means.values()))
        if not len(self.g):
            same = first.new_ones(len(self.pairs)) if self.free is None else F.softplus(10 * self.free)
            return same.expand(len(first), -1)
        z = [means[s] / means[s].shape[1] if self.activation == "relu-avg" else means[s] for s, _ in self.pairs]
        raw = torch.cat([g(x) for g, x in zip(self.g, z, strict=True)], 1)
        return F.relu6(raw) if self.activation == "relu6" else F.relu(raw)

    def channel_weights(self, means: Mapping[str, Tensor]) -> list[Tensor]:
        """w (n, C) of each pair: shares that add up to 1."""
        z = [means[s] for s, _ in self.pairs]
        if not len(self.f):
            return [torch.full_like(x, share) for x, share in zip(z, self.share, strict=True)]
        return [f(x).softmax(1) for f, x in zip(self.f, z, strict=True)]

    def forward(self, means: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """(W by target layer, channels of its pairs side by side: (n, channels); lambda (n, pairs))."""
        where, what = self.pair_weights(means), self.channel_weights(means)
        scaled = {
            pair: self.beta / len(where) * where[:, [k]] * w
            for k, (pair, w) in enumerate(zip(self.pairs, what, strict=True))
        }
        return {t: torch.cat([scaled[s, t] for s in names], 1) for t, names in self.of_target.items()}, where


def dead(where: Tensor, pairs: list[Pair]) -> list[Pair]:
    """The pairs whose lambda (n, pairs) is 0 for every image: no loss, so no gradient ever revives them."""
    return [pair for pair, gone in zip(pairs, (where == 0).all(0).tolist(), strict=True) if gone]


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
