"""After weights were averaged: give the activations the mean and the spread that they had in the networks averaged.

Averaging makes activations shrink towards their mean, layer upon layer ("variance collapse", Jordan et al. 2023).
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from reptrans.errors import BadData, BadValue
from reptrans.layers import record
from reptrans.layers.network import copy_of, keeping_modes, watching
from reptrans.merging.align import check_same_architecture
from reptrans.similarity.moments import channel_blocks
from reptrans.training import evaluating
from reptrans.training.batches import batches, checked_weights
from reptrans.training.evaluation import device_of, keeping_random_state, seed_generators

_LINEAR = (nn.modules.conv._ConvNd, nn.Linear)


def reestimated(net: nn.Module, loader: Iterable) -> nn.Module:
    """A copy of `net` whose batch norms have the statistics of the loader's images, by `torch.optim.swa_utils`.

    Means over the batches of one pass in train mode, each batch with equal weight: leave incomplete ones out.
    With batch norm this is what REPAIR amounts to (Jordan et al. 2023, section 4.4).
    Raises BadValue for a network without batch norm.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in checked_weights(net).modules()):
        raise BadValue(
            f"{type(net).__name__} has no batch norm whose statistics could be estimated again. For networks without "
            "it there is rescaled(merged, a, b, loader), which corrects weights and biases."
        )
    copied, device = copy_of(net), device_of(net)
    with keeping_modes(copied), keeping_random_state(device):
        seed_generators(0, device)  # of dropout, which is on as in training
        update_bn(_images(loader, device), copied, device)
    return copied


def rescaled(merged: nn.Module, a: nn.Module, b: nn.Module, loader: Iterable, share: float = 0.5) -> nn.Module:
    """A copy of `merged` in which every convolution and linear layer but the last has, channel by channel, the mean

        (1 - share) mean_a + share mean_b,    and the same of the standard deviations,

    on the loader's images. Layers are corrected in the order of the forward pass, each after those before it, by
    scaling its weight and moving its bias; a channel that is constant keeps its weight.
    Raises BadValue for batch norm (see `reestimated`), and for a layer whose weight and bias are not its own to change:
    without bias, parametrized, shared with another, called several times; ShapeMismatch; BadData without images.
    Source: Jordan et al. 2023 (REPAIR), who put batch norms in for it and fold them into the weights.
    """
    for other in (a, b):
        check_same_architecture(merged, other)
    copied, batches = copy_of(merged), list(_images(loader, device_of(merged)))
    layers = _layers(copied, batches)
    ends = [_statistics(net, layers, batches) for net in (a, b)]
    for name in layers:
        (mean_a, std_a), (mean_b, std_b) = (end[name] for end in ends)
        mean, std = _statistics(copied, [name], batches)[name]
        factor = torch.where(std > 0, torch.lerp(std_a, std_b, share) / std.where(std > 0, 1.0), 1.0)
        shift, layer = torch.lerp(mean_a, mean_b, share) - mean * factor, copied.get_submodule(name)
        with torch.no_grad():
            transposed = getattr(layer, "transposed", False)  # of these weights the outputs are second, in each group
            weight = layer.weight.unflatten(0, (layer.groups, -1)) if transposed else layer.weight[None, None]
            weight.mul_(factor.to(weight).reshape(len(weight), 1, -1, *[1] * (weight.ndim - 3)))
            layer.bias.mul_(factor.to(layer.bias)).add_(shift.to(layer.bias))
    return copied


def _layers(net: nn.Module, batches: list[Tensor]) -> list[str]:
    """Names of the convolutions and linear layers in the order in which they run, without the last."""
    if not batches:
        raise BadData("the loader gave no images, so there are no statistics.")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        raise BadValue(f"{type(net).__name__} has batch norm; estimate its statistics again with reestimated.")
    names = [name for name, module in net.named_modules() if isinstance(module, _LINEAR)]
    calls = Counter()
    watched = watching(net, names, lambda name, _: calls.update([name]))
    with evaluating(net), torch.no_grad(), record(net, names) as activations, watched:
        net(batches[0][:1])
        ordered = list(activations)[:-1]
    holders = Counter(id(weight) for module in net.modules() for weight in module._parameters.values())
    for name in ordered:
        layer = net.get_submodule(name)
        if not {"weight", "bias"} <= layer._parameters.keys():
            raise BadValue(
                f"layer {name!r} computes its weight or bias from others (weight_norm, say). Make it plain first: "
                "torch.nn.utils.parametrize.remove_parametrizations."
            )
        if layer.bias is None:
            raise BadValue(f"layer {name!r} has no bias, so its mean cannot be corrected. Give it one: bias=True.")
        if calls[name] > 1 or any(holders[id(weight)] > 1 for weight in (layer.weight, layer.bias)):
            raise BadValue(
                f"layer {name!r} is called several times, or shares its weights with another one, so one correction "
                "cannot fit all. Use copies: copy.deepcopy(layer)."
            )
    return ordered


@torch.no_grad()
def _statistics(net: nn.Module, names: list[str], batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """layer -> (mean, standard deviation) of every channel over all images and places, in float64."""
    first, sums = {}, dict.fromkeys(names, 0.0)
    for images in batches:
        with evaluating(net), record(net, names, clone=True) as activations:
            net(images)
        for name in names:
            axis = -1 if isinstance(net.get_submodule(name), nn.Linear) else 1
            x = channel_blocks(activations[name].double(), axis)
            # From the first value, so that no digits are lost, and a constant channel varies by exactly 0.
            apart = x - first.setdefault(name, x[:1, :, :1])
            sums[name] += torch.stack([(apart**power).sum((0, 2)) for power in range(3)])
    found = {}
    for name, (count, total, squares) in sums.items():
        variance = squares / count - (total / count).square()
        found[name] = first[name].flatten() + total / count, variance.clamp_min(0).sqrt()
    return found


def _images(loader: Iterable, device: torch.device) -> Iterator[Tensor]:
    """Images of the loader's batches, which may also be images alone."""
    for batch in loader:
        yield batch.to(device) if isinstance(batch, Tensor) else next(batches([batch], device)).images
