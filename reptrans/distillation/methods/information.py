"""Variational information distillation: the student's features predict the teacher's, as well as a Gaussian can.

    L = CE + sum_k lambda_k L_k,   L_k = sum_chw [ ln sigma_c + (t_chw - mu_chw(s))^2 / (2 sigma_c^2) ]

mu is learned from the student's features, sigma^2_c = ln(1 + exp(alpha_c)) + 1e-5 is learned for every channel of the
teacher and starts at 5. -L_k bounds the mutual information of both layers from below, up to a constant. It has no least
value; channels that cannot be predicted get a large variance and weigh little.
Position: the ends of all groups, sides averaged to the smaller. Connector: three 1x1 convolutions without bias, ReLUs
between, as wide as the teacher. One stage.
Source: Ahn et al. 2019. `like="authors"` is their code, with the mean over c, h, w in place of the sum, and lambda = 1.
Deviations: ln(2 pi) / 2 is left out, and so are the logits, which they match too; `like="paper"` has the sum, whose
lambda must be smaller by as much as maps are large.
Common errors: one variance for all channels, or a variance without lower bound; ln sigma^2 in place of ln sigma.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import BadValue, choose
from reptrans.matching import CrossEntropy, Learned, Match, Seen, affine, per_image, same_shape

_LEAST = 1e-5


def vid(pair: Pair, *, like: str = "authors", weight: float = 1.0, variance: float = 5.0) -> Method:
    """The method, `weight` being every lambda_k, `variance` where sigma^2 starts. Raises UnknownName, BadValue."""
    distance = choose(like, {"authors": mean_surprise, "paper": surprise}, "there is no variant {} of vid")
    matches = [
        Match(t, s, distance, student_transform=predicted(variance), weight=weight, resize=True) for t, s in pair.groups
    ]
    return Method(
        "vid", [Stage([CrossEntropy(), *matches])], zero=False, paper="ahn2019",
        loses="what cannot be predicted: it counts little",
    )  # fmt: skip


def predicted(variance: float = 5.0) -> Learned:
    """The connector: a `Prediction` of the target's channels. Raises BadValue for a variance up to 1e-5."""
    if not variance > _LEAST:
        raise BadValue(f"variance is {variance!r}; it must be a number above {_LEAST:g}.")

    def make(seen: Seen) -> nn.Module:
        outputs = seen.target.shape[1]
        first, second, third = (affine(x, outputs, bias=False) for x in (seen.student[0], seen.target, seen.target))
        return Prediction(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third), outputs, variance)

    return Learned(make, "mean and variance")


class Prediction(nn.Module):
    """mu(s) and sigma^2: features (n, c_s, ...) -> ((n, c_t, ...), (c_t, 1, 1) or (c_t,))."""

    def __init__(self, mean: nn.Module, channels: int, variance: float):
        super().__init__()
        self.mean = mean
        # The inverse of ln(1 + exp(alpha)), written so that a large variance does not overflow.
        start = variance - _LEAST
        self.alpha = nn.Parameter(torch.full((channels,), start + math.log(-math.expm1(-start))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        variance = F.softplus(self.alpha) + _LEAST
        return self.mean(x), variance.reshape(-1, *[1] * (x.ndim - 2))


def surprise(teacher: Tensor, student: tuple[Tensor, Tensor]) -> Tensor:
    """L_k of the teacher's features (n, c, ...) and the student's (mean, variance) of them; mean over images."""
    mean, variance = student
    return per_image((same_shape(teacher, mean) - mean).square() / variance + variance.log()) / 2


def mean_surprise(teacher: Tensor, student: tuple[Tensor, Tensor]) -> Tensor:
    """The same divided by the number of elements of an image's features."""
    return surprise(teacher, student) / teacher[0].numel()


surprise.label, mean_surprise.label = "-ln q(t | s)", "-ln q(t | s) / (c h w)"
