"""Which pixels an answer rests on, by captum, and whether two networks rest theirs on the same ones."""

import torch
from captum.attr import Saliency
from torch import Tensor, nn

from reptrans.errors import ShapeMismatch
from reptrans.training import evaluating


def saliency_maps(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """|∂ logit of the class / ∂ pixel| for each image, summed over colours: (n, h, w), at least 0.

    `classes` (n,): whose logit. By captum's Saliency (Simonyan et al. 2014); the network in eval mode meanwhile.
    """
    with evaluating(net), torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        return Saliency(net).attribute(pixels, target=classes.to(images.device)).sum(1).detach()


def map_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of two maps (n, h, w) of each image: (n,), in [-1, 1], 1 = the same pixels matter.

    NaN for a map that is the same everywhere. Source: Song et al. 2019, who compare networks by attribution maps.
    Raises ShapeMismatch.
    """
    if x.shape != y.shape:
        raise ShapeMismatch(f"maps of the same images are needed; given {tuple(x.shape)} and {tuple(y.shape)}.")
    x, y = (v.flatten(1).double() for v in (x, y))
    x, y = (v - v.mean(1, keepdim=True) for v in (x, y))
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
