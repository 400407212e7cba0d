"""What is known of images beforehand: terms added to the loss, random transforms before the network, projections.

A term is images -> (n,) losses; a transform is (images, generator) -> images; a projection is (images, progress) ->
images, applied to the image itself after every step, `progress` in [0, 1) being the share of steps done.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from reptrans.errors import BadValue

Term = Callable[[Tensor], Tensor]
Transform = Callable[[Tensor, torch.Generator], Tensor]
Projection = Callable[[Tensor, float], Tensor]


def total_variation(weight: float = 0.1) -> Term:
    """weight (mean |a(y+1, x) - a(y, x)| + mean |a(y, x+1) - a(y, x)|) for each image.

    The weight stands beside a relative loss, which is 1 for activations of zero. Source: Rudin, Osher & Fatemi (1992);
    the prior of Mahendran & Vedaldi (2015), there on squared differences.
    """
    _check("weight", weight)

    def term(images: Tensor) -> Tensor:
        down, across = images.diff(dim=-2), images.diff(dim=-1)
        return weight * (down.abs().flatten(1).mean(1) + across.abs().flatten(1).mean(1))

    return term


def range_penalty(weight: float = 1.0) -> Term:
    """weight mean(max(0, -a, a - 1)) for each image: nothing inside [0, 1]."""
    _check("weight", weight)
    return lambda images: weight * ((-images).clamp_min(0) + (images - 1).clamp_min(0)).flatten(1).mean(1)


def jitter(pixels: int) -> Transform:
    """A shift of up to `pixels` along each axis, the border mirrored; the same for all images of a step.

    For class images: what has to match a layer's activations place by place is only blurred by it.
    """
    _check("pixels", pixels)

    def transform(images: Tensor, generator: torch.Generator) -> Tensor:
        padded = F.pad(images, (pixels,) * 4, mode="reflect")
        return _window(padded, images.shape[-2], images.shape[-1], generator)

    return transform


def random_crop(size: int) -> Transform:
    """A square of `size` pixels from anywhere; the same for all images of a step, and the only part that moves then."""

    def transform(images: Tensor, generator: torch.Generator) -> Tensor:
        if not 1 <= size <= min(images.shape[-2:]):
            raise BadValue(f"crops of {size} pixels from images of {images.shape[-2]} x {images.shape[-1]}.")
        return _window(images, size, size, generator)

    return transform


def blur(sigma: float | Callable[[float], float], kernel: int = 3) -> Projection:
    """A Gaussian blur of `sigma` pixels, or of sigma(progress), over `kernel` x `kernel` pixels, the border mirrored.

    A projection moves the image off the loss's minimum, so the descent no longer ends where its loss says; total
    variation does more for the picture at less cost.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise BadValue(f"kernel is {kernel}; it must be an odd number of pixels.")

    def projection(images: Tensor, progress: float) -> Tensor:
        width = sigma(progress) if callable(sigma) else sigma
        return tv.gaussian_blur(images, [kernel, kernel], [width, width])

    return projection


def linear(start: float, end: float) -> Callable[[float], float]:
    """progress -> start (1 - progress) + end progress, for step sizes and widths of blur."""
    return lambda progress: start * (1 - progress) + end * progress


def _window(images: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    rows, columns = images.shape[-2] - height + 1, images.shape[-1] - width + 1
    top, left = (int(torch.randint(count, (), generator=generator)) for count in (rows, columns))
    return images[..., top : top + height, left : left + width]


def _check(name: str, value: float) -> None:
    if not value >= 0:
        raise BadValue(f"{name} is {value!r}; it must be 0 or above.")
