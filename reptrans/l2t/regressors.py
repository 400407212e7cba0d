"""Which source layer a target layer is compared with, and how far they are apart, channel by channel."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch, choose
from reptrans.randomness import drawing

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
    x = x if x.ndim == 4 else x[:, :, None, None]
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


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
