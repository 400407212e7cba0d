"""What and where to transfer: the weight of every channel and of every pair, made from the source's maps."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import BadValue, choose
from reptrans.l2t.regressors import Pair, Pairs
from reptrans.randomness import drawing

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
