"""Batch norm with a cheap second derivative, in place of torch's, which makes some twenty full maps on the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Norms of `net` that are in train mode use the batch's statistics and leave the running ones alone."""
    norms = [m for m in net.modules() if m.training and getattr(m, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class CheaperNorms(TorchFunctionMode):
    """Inside the block, batch norms by the batch's statistics alone are computed by `batch_norm`; the same values."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.batch_norm:
            return _replaced(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, mean and var (biased) of x (n, c, …) by channel.

    With y = s (x - mean), s = 1 / sqrt(var + eps), g the output's gradient, N values in a channel, the gradient of x
    is w s (g - <g>/N - y <g, y>/N). Its own derivative along (v, p, q), cotangents of the gradients of x, weight and
    bias, is again a sum of v, g, x and 1 with one number per channel each, so that sums over maps are all it needs.
    """
    return _Norm.apply(x, weight, bias, eps)


def _replaced(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5) -> Tensor:
    if training and running_mean is None and weight is not None and bias is not None:
        return batch_norm(x, weight, bias, eps)
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple:
        x, weight, mean, scale = ctx.saved_tensors
        return *_Gradient.apply(g, x, weight, mean, scale, ctx.eps), None


class _Gradient(torch.autograd.Function):
    """(g, x, weight) -> gradients of x, weight, bias; `mean` and `scale` are x's own, and differentiated as such."""

    @staticmethod
    def forward(ctx, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> tuple:
        found = _fused(g, x, weight, mean, scale, eps)
        ctx.save_for_backward(g, x, weight, mean, scale, *found[1:])
        ctx.eps = eps
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, v: Tensor, p: Tensor, q: Tensor) -> tuple:
        g, x, w, mean, s, gy, g1 = ctx.saved_tensors
        n = x.numel() / x.shape[1]
        to_g, vy, v1 = _fused(v, x, w, mean, s, ctx.eps)
        slope = p * s
        to_g = to_g.addcmul_(x, _wide(slope, x)).add_(_wide(q - slope * mean, x))
        vg = (v * g).sum([0, *range(2, x.ndim)])
        rest = vg - (v1 * g1 + vy * gy) / n
        c1, cy = p * g1 - w * s / n * (gy * v1 + vy * g1), p * gy - 2 * w * s / n * gy * vy
        slope = -(w * rest * s + cy) * s / n
        to_x = v * _wide(-w * s * s * gy / n, x)
        to_x.addcmul_(g, _wide(s * (p - w * s * vy / n), x)).addcmul_(x, _wide(slope * s, x))
        to_x.add_(_wide(-s * c1 / n - slope * s * mean, x))
        return to_g, to_x, s * rest, None, None, None


def _fused(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, ...]:
    """w s (g - <g>/N - y <g, y>/N), <g, y>, <g>."""
    g = g.contiguous()
    return torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mean, scale, True, eps, [True] * 3)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """(c,) to the axes of x (n, c, …)."""
    return values.view(-1, *[1] * (x.ndim - 2))
