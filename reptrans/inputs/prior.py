"""What is known of images beforehand: terms added to the loss, random transforms before the network, projections.

A term is images -> (n,) losses; a transform is (images, generator) -> images; a projection is (images, progress) ->
images, applied to the image itself after every step, `progress` in [0, 1) being the share of steps done.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from reptrans.errors import BadValue, check_whole, choose

Term = Callable[[Tensor], Tensor]
Transform = Callable[[Tensor, torch.Generator], Tensor]
Projection = Callable[[Tensor, float], Tensor]

# steps, step size from and to, blur from and to, and k of the loss (k sum |y - O(a)|, or |200 - O_i(a)| for a class).
_PUBLISHED = {
    "class": (220, (1.5, 1.0), (2.4, 0.8), 1.0),
    "output": (220, (2.5, 1.5), (2.4, 0.4), 0.05),
    "trained layer4": (220, (2.5, 1.5), (2.4, 0.4), 0.0002),
    "untrained layer1": (220, (2.5, 1.5), (2.4, 0.4), 0.01),
    "untrained layer4": (500, (0.1, 0.1), (2.4, 0.4), 0.15),
}


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
    check_whole("pixels", pixels, 0)

    def transform(images: Tensor, generator: torch.Generator) -> Tensor:
        padded, (height, width) = F.pad(images, (pixels,) * 4, mode="reflect"), images.shape[-2:]
        top, left = (int(torch.randint(2 * pixels + 1, (), generator=generator)) for _ in range(2))
        return padded[..., top : top + height, left : left + width]

    return transform


def blur(sigma: float | Callable[[float], float], kernel: int = 3) -> Projection:
    """A Gaussian blur of `sigma` pixels, or of sigma(progress), over `kernel` x `kernel` pixels, the border mirrored.

    A projection moves the image off the loss's minimum, so the descent no longer ends where its loss says; total
    variation does more for the picture at less cost.
    """
    check_whole("kernel", kernel, 1)
    if kernel % 2 == 0:
        raise BadValue(f"kernel is {kernel}; it must be an odd number of pixels.")
    if not callable(sigma):
        _check("sigma", sigma)

    def projection(images: Tensor, progress: float) -> Tensor:
        width = sigma(progress) if callable(sigma) else sigma
        return tv.gaussian_blur(images, [kernel, kernel], [width, width])

    return projection


def linear(start: float, end: float) -> Callable[[float], float]:
    """progress -> start (1 - progress) + end progress, for step sizes and widths of blur."""
    return lambda progress: start * (1 - progress) + end * progress


def like_source(what: str) -> tuple[dict, float]:
    """(settings of `optimise_input`, scale k) of one published case: "class", "output", "trained layer4", ...

        settings, k = like_source("untrained layer1")
        optimise_input(match(part, part(image), scale=k), Pixels(noise(1, image.shape[1:])), **settings)

    Plain gradient descent with a step size, and a 3 x 3 blur after each step with a width, that fall along a line; no
    prior. Starts are N(0.7, 1/20) at 299 x 299 pixels, the default of `noise`; images are not normalised.
    A blur after the step is off the loss's minimum, k and the step were set by hand for each layer, and some do not
    converge (on an untrained ResNet50's layer4 the error grows): for work, take the defaults of `optimise_input`.
    Raises UnknownName.
    Source: Badger's scripts (nnetworks, depth-representation; 2021 to 2022), one octave.
    """
    steps, step_size, width, k = choose(what, _PUBLISHED, "the source has no case {}")
    settings = {"steps": steps, "optimiser": torch.optim.SGD, "lr": linear(*step_size), "prior": (),
                "projection": blur(linear(*width), kernel=3)}  # fmt: skip
    return settings, k


def _check(name: str, value: float) -> None:
    if not value >= 0:
        raise BadValue(f"{name} is {value!r}; it must be 0 or above.")
