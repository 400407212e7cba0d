"""Which pixels an answer rests on, by captum and by Grad-CAM, and whether two networks rest theirs on the same."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.errors import ShapeMismatch
from reptrans.layers.axes import as_map
from reptrans.layers.trace import check_layers
from reptrans.layers.values import chosen, replaced
from reptrans.training import evaluating
from reptrans.training.batches import answers_of, checked_network


def saliency_maps(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """|∂ logit of the class / ∂ pixel| for each image, summed over colours: (n, h, w), at least 0.

    `classes` (n,): whose logit. By captum's Saliency (Simonyan et al. 2014); the network in eval mode meanwhile.
    """
    from captum.attr import Saliency  # which brings Matplotlib and IPython

    with evaluating(checked_network(net)), torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        return Saliency(partial(answers_of, net)).attribute(pixels, target=classes.to(images.device)).sum(1).detach()


def attention_maps(net: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) of each image's label at a layer: (n, h, w) of the layer's size, from 0.

    relu(sum_c a_c A_c), a_c the mean over space of d logit / d A_c. `layer` gives maps (n, c, h, w), or as `layer:map`
    tokens and maps (n, h, w, c); `labels` (n,); the network in eval mode meanwhile. Raises LayerNotFound,
    ShapeMismatch.
    """
    name, seen = layer.removesuffix(":map"), []
    check_layers(checked_network(net), [name])

    def keep(module: nn.Module, inputs: object, output: object) -> object:
        seen.append(chosen(output, who=f"layer {name!r}"))
        return replaced(output, "", seen[-1].clone())  # which later layers may write to

    with net.get_submodule(name).register_forward_hook(keep), evaluating(net), torch.enable_grad():
        logits = answers_of(net, images.detach().clone().requires_grad_())
        of_label = logits.gather(1, labels.to(images.device)[:, None]).sum()
        pair = seen[-1], torch.autograd.grad(of_label, seen[-1])[0]
    activations, gradients = map(as_map, pair) if layer != name else pair
    if activations.ndim != 4:
        raise ShapeMismatch(f"layer {name!r} gives {tuple(activations.shape)}, not maps (n, c, h, w).")
    return (gradients.mean((2, 3), keepdim=True) * activations).sum(1).relu().detach()


def map_agreement(a: Tensor, b: Tensor) -> Tensor:
    """The cosine (n,) of two sets of maps (n, h, w), in [0, 1] for maps from 0 on; averaged down to the smaller size.

    0 where one of the two is empty.
    """
    size = tuple(min(x, y) for x, y in zip(a.shape[1:], b.shape[1:], strict=True))
    a, b = (F.adaptive_avg_pool2d(x[:, None], size).flatten(1) for x in (a, b))
    return F.cosine_similarity(a, b)


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
