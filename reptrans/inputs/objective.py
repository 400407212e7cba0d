"""What an image is to do, one loss for each image of a batch, small where it does it; and what is known of images.

Losses are summed over the batch wherever they are differentiated, so no image feels its neighbours. Beforehand, terms
are added to the loss (images -> (n,) losses), random transforms stand before the network ((images, generator) ->
images), and projections act on the image itself after every step ((images, progress) -> images, `progress` in [0, 1)
being the share of steps done).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from reptrans.errors import BadValue, ShapeMismatch, check_whole, choose
from reptrans.training.batches import answers_of, checked_network

DISTANCES = ("l1", "l2", "cosine")


@dataclass(frozen=True)
class Objective:
    """A function of images (n, c, h, w) that gives n losses.

    `networks` are the modules that it runs, which `optimise_input` freezes meanwhile; `errors`, images -> n relative
    errors D, is there where something is to be matched. Attribution methods (captum's, say) take an Objective as it is:
    it is a scalar for each image.
    """

    losses: Callable[[Tensor], Tensor]
    networks: tuple[nn.Module, ...] = field(default=())
    errors: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        return self.losses(images)


def class_logit(net: nn.Module, classes: int | Sequence[int] | Tensor, constant: float = 0.0) -> Objective:
    """One output of the network, to be made large: C - O_k(a), for each image.

    `classes`: k for all images, or one k for each. `constant`: C, which moves no image, for it drops out of the
    gradient. To make the output small instead, give the objective the weight -1 in `weighted`.
    Raises BadValue for a class that the network does not have, ShapeMismatch.
    Source: the `C - O_i(a)` of Badger's generated inputs (blog, 2021), there with C = 200. Deviation: its scripts take
    the absolute value, which turns back where O_k exceeds C.
    """
    checked_network(net)
    try:
        wanted = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError):
        raise BadValue(f"classes are whole numbers, one for all images or one for each; given {classes!r}.") from None
    # Read once: a look at a GPU's values in every step would wait for all that is under way.
    numbers = wanted.flatten().tolist() if isinstance(classes, Tensor) else np.ravel(classes).tolist()

    def losses(images: Tensor) -> Tensor:
        outputs = answers_of(net, images)
        _check_classes(wanted, numbers, outputs)
        return constant - outputs.gather(1, wanted.to(outputs.device).expand(len(outputs))[:, None])[:, 0]

    return Objective(losses, (net,))


def match(
    front: nn.Module, target: Tensor | nn.Module, distance: str = "l1", *, scale: float | None = None
) -> Objective:
    """Activations, or outputs, to be those of the target: with u = front(a) and the target v, for each image

        "l1"      D = sum |u - v| / sum |v|
        "l2"      sum (u - v)² / sum v²
        "cosine"  1 - u·v / (|u| |v|)

    all relative to the target, so that no step size depends on a layer's scale. `front`: images -> (n, …); `target`:
    (n, …), or (1, …) for all images, or another module that sees the same images. `scale`: k, for k sum |u - v| or
    k sum (u - v)² instead, as published scripts have it.
    The relative error of the rows is D, whatever the distance.
    Raises UnknownName (distance), ShapeMismatch, BadValue for a target of zeros or with NaN.
    Source: l2 is that of Mahendran & Vedaldi (2015, eq. 2); l1 that of Badger's scripts, there times a k set by hand.
    """
    choose(distance, DISTANCES, "there is no distance {} of activations")
    checked_network(front)
    if isinstance(target, Tensor):
        target = target.detach()
        _check_target(target)
    else:
        checked_network(target)

    def pair(images: Tensor) -> tuple[Tensor, Tensor]:
        u = answers_of(front, images)
        v = target if isinstance(target, Tensor) else answers_of(target, images)
        if u.shape[1:] != v.shape[1:] or len(v) not in (1, len(u)):
            raise ShapeMismatch(
                f"{len(u)} images give activations {tuple(u.shape)}, and the target is {tuple(v.shape)}. It must be "
                f"{('1', *map(str, u.shape[1:]))} for all images, or hold one entry for each, at the same layer and "
                "image size.".replace("'", "")
            )
        return u.flatten(1), v.flatten(1).expand(len(u), -1)

    def apart(images: Tensor, distance: str = distance, scale: float | None = scale) -> Tensor:
        return _distance(*pair(images), distance, scale)

    networks = (front,) if isinstance(target, Tensor) else (front, target)
    relative = distance == "l1" and scale is None
    return Objective(apart, networks, apart if relative else partial(apart, distance="l1", scale=None))


def weighted(
    objectives: Sequence[Objective], weights: Sequence[float] | None = None, *, equal_gradients: bool = True
) -> Objective:
    """Several objectives at once: sum_j w_j L_j(a), a negative weight pushing away; all weights 1 by default.

    With `equal_gradients` an image moves along sum_j w_j (m / |g_j|) g_j instead, where g_j is the gradient of L_j
    with respect to it and m the mean of the |g_j|: what a weight means then does not depend on the networks' scales.
    That direction is no gradient of the value returned, which is the plain sum; it costs no extra pass.
    Raises BadValue. Source: the combined gradient of Badger's model-similarity page. Deviation: its weights act on the
    constant C alone, and so on nothing.
    """
    weights = [1.0] * len(objectives) if weights is None else list(weights)
    if not objectives or len(weights) != len(objectives):
        raise BadValue(f"{len(objectives)} objectives and {len(weights)} weights; give as many of each, at least one.")

    def losses(images: Tensor) -> Tensor:
        if not (equal_gradients and images.requires_grad and torch.is_grad_enabled()):
            return sum(w * each(images) for w, each in zip(weights, objectives, strict=True))
        values, gradients = zip(*(value_and_gradient(each, images) for each in objectives), strict=True)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients])
        factors = torch.tensor(weights).to(norms)[:, None] * norms.mean(0) / norms.clamp_min(1e-30)
        direction = sum(f.view(-1, 1, 1, 1) * g for f, g in zip(factors, gradients, strict=True))
        # The plain sum, plus a zero that has the direction as its gradient.
        zero = ((images - images.detach()) * direction).flatten(1).sum(1)
        return sum(w * v for w, v in zip(weights, values, strict=True)) + zero

    return Objective(losses, tuple(net for each in objectives for net in each.networks))


def value_and_gradient(objective: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """(losses (n,), gradient of each image's loss with respect to that image (n, c, h, w)), detached."""
    with torch.enable_grad():
        seen = images.detach().requires_grad_()
        losses = objective(seen)
        (gradient,) = torch.autograd.grad(losses.sum(), seen)
    return losses.detach(), gradient


def _distance(u: Tensor, v: Tensor, distance: str, scale: float | None) -> Tensor:
    if distance == "cosine":
        # Equal to 1 - cos, and exactly 0 with an exactly vanishing gradient where u and v are equal.
        return (F.normalize(u) - F.normalize(v)).square().sum(1) / 2
    size = Tensor.abs if distance == "l1" else Tensor.square
    apart = size(u - v).sum(1)
    return apart / size(v).sum(1) if scale is None else scale * apart


def _check_target(target: Tensor) -> None:
    sums = target.flatten(1).abs().sum(1)
    if not torch.isfinite(sums).all():
        raise BadValue("the target holds NaN or infinity; does the network give finite activations for its image?")
    if (sums == 0).any():
        raise BadValue(
            f"the target of row {int((sums == 0).nonzero()[0])} is zero everywhere, so nothing is relative to it. "
            "Choose another layer, or another image."
        )


def _check_classes(wanted: Tensor, numbers: list[int], outputs: Tensor) -> None:
    if outputs.ndim != 2:
        raise ShapeMismatch(f"a class needs outputs (n, classes), and the network gives {tuple(outputs.shape)}.")
    if wanted.ndim > 1 or (wanted.ndim == 1 and len(wanted) != len(outputs)):
        raise ShapeMismatch(f"{len(outputs)} images and classes of shape {tuple(wanted.shape)}; give one for each.")
    if wanted.is_floating_point() or not all(0 <= number < outputs.shape[1] for number in numbers):
        given = ", ".join(map(str, sorted(set(numbers))))
        raise BadValue(f"class {given} was asked for, and the network has the classes 0 to {outputs.shape[1] - 1}.")


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
    """(settings of `optimise_input`, scale k) of one published case: "class", "output", "trained layer4",
    "untrained layer1" or "untrained layer4".

        settings, k = like_source("untrained layer1")
        start = Pixels(noise(1, image.shape[1:]))
        optimise_input(match(part, part(image), scale=k), start, **settings)

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
