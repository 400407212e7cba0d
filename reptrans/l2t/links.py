"""Pictures of what was learned: which layers are matched, how unequal their channels weigh, where the target looks."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from reptrans.attribution import saliency_maps
from reptrans.errors import BadValue
from reptrans.l2t.matching import Pair


def matching_lines(strengths: Mapping[Pair, float], most: float | None = None, ax: Axes | None = None) -> Axes:
    """Source layers on the left, target layers on the right, input below; each pair's line is as wide as its lambda.

    `strengths`: {(source layer, target layer): mean lambda, from 0}. `most`: the lambda of the widest line (10 points);
    None for the largest given. As figure 4 of Jang et al. 2019. Raises BadValue where there are no pairs.
    """
    if not strengths:
        raise BadValue("strengths is empty; give {(source layer, target layer): mean lambda}.")
    ax = ax or plt.subplots(figsize=(3.2, 3.2))[1]
    most = most or max(strengths.values()) or 1.0
    sides = [list(dict.fromkeys(side)) for side in zip(*strengths, strict=True)]
    heights = [{name: k / max(1, len(names) - 1) for k, name in enumerate(names)} for names in sides]
    for (s, t), strength in strengths.items():
        ax.plot(
            (0, 1),
            (heights[0][s], heights[1][t]),
            color="C0",
            lw=10 * strength / most,
            alpha=0.7,
            solid_capstyle="butt",
        )
    for side, align in ((0, "right"), (1, "left")):
        for name, height in heights[side].items():
            ax.plot(side, height, "o", color="0.2", ms=5, zorder=3)
            ax.text((-0.06, 1.06)[side], height, name, ha=align, va="center", fontsize=9)
    ax.set(xlim=(-0.5, 1.5), ylim=(-0.15, 1.15))
    ax.axis("off")
    return ax


def channel_histogram(weights: Mapping[Pair, Tensor], ax: Axes | None = None) -> Axes:
    """How often a channel weighs how much, as a multiple of the uniform weight: w (n, C) of every pair, times C.

    1 is a channel of uniform weight; the more spread, the more is chosen. One line for each source layer, over all its
    pairs; what is above 2 stands at 2.
    """
    ax = ax or plt.subplots(figsize=(6, 3.5))[1]
    for layer in dict.fromkeys(s for s, _ in weights):
        relative = torch.cat([(w * w.shape[1]).flatten() for (s, _), w in weights.items() if s == layer])
        values = relative.detach().cpu().double().numpy().clip(0, 2)
        ax.hist(values, bins=50, range=(0, 2), histtype="step", density=True, label=layer)
    ax.axvline(1.0, color="0.4", ls="--", lw=1)
    ax.set(xlabel="channel weight / uniform weight", ylabel="density")
    ax.legend(title="source layer", loc="upper left")
    return ax


def saliency(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """`saliency_maps` (n, h, w) of the labels (n,), each image's adding up to 1; zeros where no pixel matters."""
    found = saliency_maps(net, images, labels)
    return found / found.sum((1, 2), keepdim=True).clamp_min(1e-12)


def on_bright(net: nn.Module, images: Tensor, labels: Tensor, raw: Tensor) -> Tensor:
    """The share (n,) of each image's saliency on pixels whose largest channel in `raw` (n, c, h, w) beats its mean."""
    found = saliency(net, images, labels)
    bright = raw.to(found.device, torch.float64).amax(1)
    return (found * (bright > bright.mean((1, 2), keepdim=True))).sum((1, 2))


def evenness(weights: Tensor) -> Tensor:
    """exp(entropy) / C of each row of shares (n, C): 1 where all channels weigh the same, 1 / C for a single one."""
    return torch.special.entr(weights).sum(1).exp() / weights.shape[1]
