"""Overhaul of feature distillation: values before ReLU, where it does not matter how far negative the teacher's are.

    L = CE + alpha sum_l 2^(l-L) d_p(sigma_m(t_l), r_l(s_l)),    sigma_m(t) = max(t, m_c),    m_c = E[t_c | t_c < 0] < 0
    d_p(T, S) = sum_i 0 if S_i <= T_i <= 0, else (T_i - S_i)^2

After a batch norm with scale gamma and shift beta, t_c ~ N(beta, gamma^2), and the margin has a closed form.
Position: before the ReLU that ends each group; in pre-activation networks the next batch norm. Connector r: 1x1
convolution and batch norm. One stage; the teacher normalises by the batch's statistics, which the authors measured to
be better. Source: Heo et al. 2019, authors' code. Deviations: where the tap is no batch norm's output, as after a sum,
the margin is the mean of the negative values over all training images, where the authors take the last batch norm's;
the teacher's running statistics stay as they are; sides are averaged to the smaller.
Common errors: T - S without the square; the rule turned round (what is skipped is S <= T <= 0, on the *transformed*
values); one margin for all channels; a mean over all values, not of the negative ones.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.layers.trace import trace
from reptrans.matching import CrossEntropy, Learned, Match, Seen, conv1x1_bn, per_image, same_shape


def ofd(pair: Pair, *, alpha: float = 1e-3, mode: str = "batch") -> Method:
    """The method; `alpha` is that for CIFAR-100 (ImageNet: 1e-4), `mode` the teacher's, "batch" or "eval"."""
    matches = [
        Match(t, s, partial_l2, margin_relu(pair.teacher, t), conv1x1_bn(), alpha / 2**k, resize=True)
        for k, (t, s) in enumerate(reversed(pair.before))
    ]
    return Method(
        "ofd", [Stage([CrossEntropy(), *reversed(matches)], teacher=mode)], entry=1, paper="heo2019overhaul",
        loses="how far below the margin a value is",
    )  # fmt: skip


def partial_l2(teacher: Tensor, student: Tensor) -> Tensor:
    """d_p above, summed inside an image, mean over images; from 0 on; equal shapes (n, ...). Raises ShapeMismatch."""
    target = same_shape(teacher, student)
    skipped = (student <= target) & (target <= 0)
    return per_image((target - student).square().masked_fill(skipped, 0.0))


partial_l2.label = "partial squared L2"


def margin_relu(net: nn.Module, tap: str) -> Learned:
    """sigma_m for the values at `tap` of `net`, with a margin for each channel.

    In closed form, label "margin ReLU", if the tap is the output of a batch norm; else, and in a network that cannot be
    traced, estimated from the training images, "margin ReLU (from data)".
    """
    norm = norm_at(net, tap)
    if norm is None:
        return Learned(_from_data, "margin ReLU (from data)")
    return Learned(lambda seen: MarginReLU(_margin_after(norm, seen.teacher[0])), "margin ReLU")


class MarginReLU(nn.Module):
    """max(x, m_c), with the margins (c,) as a buffer; (n, c, ...) -> (n, c, ...)."""

    def __init__(self, margin: Tensor):
        super().__init__()
        self.register_buffer("margin", margin)

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.margin.view(-1, *[1] * (x.ndim - 2)))


def normal_margin(scale: Tensor, shift: Tensor) -> Tensor:
    """E[t | t < 0] of t ~ N(shift, scale^2): shift - a phi(z) / Phi(-z), a = |scale|, z = shift / a; (c,) each.

    -3 a where values below 0 have a probability of at most 0.001; shift, but not above 0, where a = 0.
    """
    a = scale.abs()
    z = shift / a.clamp_min(torch.finfo(a.dtype).tiny)
    below = torch.special.ndtr(-z)
    rare = below <= 0.001
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(rare, -3 * a, shift - a * density / below.where(~rare, 1.0))


def margin_of(values: Iterable[Tensor]) -> Tensor:
    """The mean (c,) of the negative values of each channel over batches (n, c, ...); 0 for a channel without any."""
    sums = counts = 0.0
    for x in values:
        x = x.transpose(0, 1).flatten(1)
        sums, counts = sums + x.clamp(max=0).sum(1), counts + (x < 0).sum(1)
    return sums / counts.clamp(min=1)


def norm_at(net: nn.Module, tap: str) -> nn.Module | None:
    """The batch norm whose output is the value at `tap`; None if it is another's, or `net` cannot be traced."""
    try:
        traced = trace(net)
    except Exception:  # foreign code: any failure means that there is no graph to look at
        return None
    name = tap.removesuffix(":in")
    node = traced.nodes.get(name)
    if node is not None and tap.endswith(":in"):
        node = node.args[0] if node.op == "call_module" and node.target == name else None
    found = net.get_submodule(node.target) if node is not None and node.op == "call_module" else None
    return found if isinstance(found, _BatchNorm) else None


def _margin_after(norm: nn.Module, like: Tensor) -> Tensor:
    one = like.new_ones(norm.num_features)
    scale, shift = (one, 0 * one) if norm.weight is None else (norm.weight.detach(), norm.bias.detach())
    return normal_margin(scale, shift)


def _from_data(seen: Seen) -> MarginReLU:
    return MarginReLU(margin_of(values for (values,) in seen.teacher_values()))
