"""Knowledge review: each level of the student, joined with all deeper ones, is to say what the teacher's level says.

    L = CE + weight w(p) sum_k HCL(F_t^k, A_k),   w(p) = min(1, p / warmup)
    X_K = Y_K,   X_k = a o Y_k + b o up(X_{k+1}),   (a, b) = sigmoid(conv([Y_k, up(X_{k+1})])),   Y_k = conv1(F_s^k)
    A_k = conv2(X_k),   HCL(T, A) = sum_l 2^-l MSE(pool_l T, pool_l A) / sum_l 2^-l

The attention-based fusion (ABF) has two maps, a and b, for each place; conv1 is a 1x1 and conv2 a 3x3 convolution
without bias, each with batch norm; all X have min(512, the channels of the student's deepest level). up and what takes
X_k to the teacher's side repeat the nearest element. The hierarchical context loss (HCL) compares maps as they are
(l = 0), then averaged to 4x4, 2x2 and 1x1, as far as these are smaller (l = 1, 2, 3).
Position: the ends of all groups and, as the deepest level, what the classifiers get; of the teacher before ReLU.
Source: Chen et al. 2021, authors' code: weight 5 for most pairs, 8 for ShuffleNetV2, 0.6 and 1 for thin ResNets; 20 of
240 epochs of warm-up. Deviations: the weight rises with every step, there with every epoch; of their VGG they leave out
the first group.
Common errors: one fusion map and its complement; MSE of the sum in place of the mean; levels paired from the input.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods.dkd import rising
from reptrans.errors import ShapeMismatch
from reptrans.matching import CrossEntropy, Learned, Match, Seen, mean_squares
from reptrans.matching.match import averaged


def review(pair: Pair, *, weight: float = 5.0, warmup: float = 1 / 12) -> Method:
    """The method; `warmup` is the share of the epochs in which the weight rises, in [0, 1). Raises BadValue."""
    teacher = tuple(t for t, _ in pair.before) + pair.embedding[:1]
    student = tuple(s for _, s in pair.groups) + pair.embedding[1:]
    weight = rising(weight, warmup)
    match = Match(teacher, student, hierarchical_context, levels, reviewed(), weight, name="review")
    return Method("review", [Stage([CrossEntropy(), match])], paper="chen2021review", loses="nothing")


def levels(*features: Tensor) -> tuple[Tensor, ...]:
    """Maps (n, c, h, w) as they are and vectors (n, c) as maps (n, c, 1, 1). Raises ShapeMismatch for others."""
    for x in features:
        if x.ndim not in (2, 4):
            raise ShapeMismatch(f"a level is a map (n, c, h, w) or a vector (n, c), not {tuple(x.shape)}.")
    return tuple(x[:, :, None, None] if x.ndim == 2 else x for x in features)


def hierarchical_context(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """The sum of HCL over levels of equal shapes (n, c, h, w); from 0 on. Raises ShapeMismatch."""
    return sum(_of_level(t, s) for t, s in zip(teacher, student, strict=True))


def reviewed() -> Learned:
    """The recipe of a `Review` from the student's levels to the target's shapes."""

    def make(seen: Seen) -> nn.Module:
        shown = levels(*seen.student)
        return Review([x.shape[1] for x in shown], [tuple(t.shape[1:]) for t in seen.target])

    return Learned(make, "review (ABF)")


class Review(nn.Module):
    """All A_k of the student's levels, (n, channels[k], h, w) or (n, channels[k]), in the `shapes` (c, h, w)."""

    def __init__(self, channels: Sequence[int], shapes: Sequence[tuple[int, int, int]]):
        super().__init__()
        middle = min(512, channels[-1])
        self.sizes = [shape[1:] for shape in shapes]
        self.inner = nn.ModuleList(_convolution(c, middle, 1) for c in channels)
        self.outer = nn.ModuleList(_convolution(middle, shape[0], 3) for shape in shapes)
        self.fusion = nn.ModuleList(nn.Conv2d(2 * middle, 2, 1) for _ in channels[:-1])

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        found, deeper = [], None
        for k, x in reversed(list(enumerate(levels(*features)))):
            x = self.inner[k](x)
            if deeper is not None:
                deeper = _nearest(deeper, x.shape[2:])
                own, other = self.fusion[k](torch.cat([x, deeper], 1)).sigmoid().split(1, 1)
                x = own * x + other * deeper
            deeper = _nearest(x, self.sizes[k])
            found.append(self.outer[k](deeper))
        return tuple(reversed(found))


def _of_level(teacher: Tensor, student: Tensor) -> Tensor:
    sides = [side for side in (4, 2, 1) if side < student.shape[2]]
    total = mean_squares(teacher, student)
    for number, side in enumerate(sides, start=1):
        pooled = (averaged(x, (side, side)) for x in (teacher, student))
        total = total + mean_squares(*pooled) / 2**number
    return total / sum(2.0**-number for number in range(len(sides) + 1))


def _convolution(c_in: int, c_out: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_out))


def _nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    return x if x.shape[2:] == tuple(size) else F.interpolate(x, tuple(size), mode="nearest")


hierarchical_context.label, levels.label = "hierarchical context", "all levels"
