"""Invert a layer in one line: which images give the activations that these images give?"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reptrans.inputs.fronts import fast_front
from reptrans.inputs.image import Pixels, check_images, noise
from reptrans.inputs.objective import match
from reptrans.inputs.optimise import Inversion, optimise_input
from reptrans.training.evaluation import device_of


def invert(
    net: nn.Module,
    layer: str | None,
    images: Tensor,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    *,
    distance: str = "l1",
    seed: int = 0,
    **settings,
) -> Inversion:
    """Images that start as noise and move until `layer` answers as it does to `images` (n, c, h, w) in [0, 1].

        found = invert(net, "layer2", images, dataset.mean, dataset.std)
        picture_grid({"image": images, "found": found.images})

    `layer` None: the network's answers. `mean`, `std`: by channel, what the network's images are normalised by, nothing
    by default. `distance`: as in `match`. `seed`: of the first image's noise, the next ones count on. `settings`: those
    of `optimise_input`, steps=300 for one. Rows compare with `images`. The network is left as it was.
    Raises ShapeMismatch, LayerNotFound, CannotCut, BadValue, UnknownName before the first step.
    Source: Mahendran & Vedaldi (2015).
    """
    view = fast_front(net, layer, mean=mean, std=std)
    check_images(images)
    like = next(view.parameters(), images)
    images = images.to(device_of(view), like.dtype)
    with torch.no_grad():
        target = view(images)
    start = Pixels(noise(len(images), images.shape[1:], seed=seed, dtype=images.dtype).to(images.device))
    return optimise_input(match(view, target, distance), start, reference=images, **settings)
