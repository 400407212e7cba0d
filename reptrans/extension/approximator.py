"""From the old networks' activations to the new one's: the approximator, and the forms that activations take."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch, check_whole


class Bias(nn.Module):
    """Adds a learned number to each channel; 0 at the start."""

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def approximator(source: int, target: int, depth: int = 1, kernel: int = 1) -> nn.Sequential:
    """bias, (depth - 1) times [conv source -> source, BatchNorm, ReLU], conv source -> target without bias, bias.

    Maps (n, source, h, w) to (n, target, h, w); depth 1 is linear, depth 0 is nothing at all. `kernel`: odd.
    Source: Wald et al. 2023, authors' code; the inner convolutions too have no bias, which BatchNorm would remove.
    """
    check_whole("depth", depth, 0, more="; 0 is no approximator.")
    if not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise BadValue(f"kernel is {kernel!r}; it must be odd: 1, 3 or 5, say.")
    if depth == 0:
        return nn.Sequential()
    layers: list[nn.Module] = [Bias(source)]
    for _ in range(depth - 1):
        layers += [_conv(source, source, kernel), nn.BatchNorm2d(source), nn.ReLU()]
    return nn.Sequential(*layers, _conv(source, target, kernel), Bias(target))


def as_maps(x: Tensor, layer: str = "") -> Tensor:
    """Maps (n, c, h, w) as they are; (n, c) as (n, c, 1, 1); tokens (n, t, c) as (n, c, t, 1); float32 or more."""
    if x.ndim == 3:
        x = x.transpose(1, 2)
    if not 2 <= x.ndim <= 4:
        raise ShapeMismatch(
            f"layer {layer!r} gives {tuple(x.shape)}; possible are maps (n, c, h, w), tokens (n, t, c), vectors (n, c)."
        )
    x = x[(..., *[None] * (4 - x.ndim))]
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def from_maps(x: Tensor, ndim: int) -> Tensor:
    """Maps back as activations of `ndim` axes: what `as_maps` had before."""
    return x if ndim == 4 else x.flatten(2).mT if ndim == 3 else x.flatten(1)


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (n, c, h, w) at another height and width: linear in both, averaging where it shrinks."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)


def _conv(source: int, target: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(source, target, kernel, padding=kernel // 2, bias=False)
