"""Arithmetic with weights: the straight path between two networks, the barrier on it, task vectors; and its repair.

Averaging makes activations shrink towards their mean, layer upon layer ("variance collapse", Jordan et al. 2023);
afterwards they can be given the mean and the spread that they had in the networks averaged.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from reptrans.errors import BadData, BadValue, ShapeMismatch, choose
from reptrans.layers import record
from reptrans.layers.network import keeping_modes
from reptrans.merging.align import check_same_architecture
from reptrans.similarity.moments import channel_blocks
from reptrans.training import evaluate, evaluating
from reptrans.training.batches import batches, checked_network
from reptrans.training.evaluation import device_of, keeping_random_state, seed_generators

_ENDS = (0.0, 1.0)


def interpolated(a: nn.Module, b: nn.Module, share: float = 0.5) -> nn.Module:
    """A new network with (1 - share) θ_a + share θ_b, parameters and running statistics; counters are a's.

    `share` outside [0, 1] extrapolates the parameters alone: statistics are then those of the nearer network, for a
    variance could get negative, and a warning says so. Raises ShapeMismatch for two architectures, BadValue.
    """
    merged = _mixed(a, b, share)
    if not 0 <= share <= 1:
        warn_of_statistics(merged, f"share is {share:g}, outside [0, 1]")
    return merged


def warn_of_statistics(net: nn.Module, why: str) -> None:
    """Warn that the running statistics of `net`, if it has any, did not follow its parameters."""
    if any(getattr(module, "running_var", None) is not None for module in net.modules()):
        warnings.warn(
            f"{why}: the running statistics of batch norm did not follow the parameters. Estimate them again with "
            "reestimated(net, loader).",
            stacklevel=3,
        )


def _mixed(a: nn.Module, b: nn.Module, share: float) -> nn.Module:
    check_same_architecture(a, b)
    if not isinstance(share, (int, float)) or not math.isfinite(share):
        raise BadValue(f"share is {share!r}; it must be a number, 0 for the first network and 1 for the second.")
    merged, theirs = copy.deepcopy(a), b.state_dict()
    moved, within = {name for name, _ in a.named_parameters(remove_duplicate=False)}, min(max(share, 0.0), 1.0)
    state = {
        name: value.lerp(theirs[name].to(value), share if name in moved else within)
        if value.is_floating_point()
        else value
        for name, value in a.state_dict().items()
    }
    merged.load_state_dict(state)
    return merged


def path_rows(
    a: nn.Module,
    b: nn.Module,
    loader: Iterable,
    shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    mend: Callable[[nn.Module, float], nn.Module] | None = None,
) -> pd.DataFrame:
    """Rows of share, accuracy, cross_entropy (nats) on the loader's images, along the straight path from `a` to `b`.

    `mend(network, share)` may return a corrected network for every point but the ends, re-estimated batch norm for
    instance. `shares` must hold 0 and 1, without which there is no barrier. Raises BadValue, ShapeMismatch.
    """
    if not set(_ENDS) <= set(shares):
        raise BadValue(f"shares are {list(shares)}; a path begins at 0 and ends at 1. Add what is missing.")
    rows = []
    for share in sorted(shares):
        mended = mend is not None and share not in _ENDS
        net = mend(_mixed(a, b, share), share) if mended else interpolated(a, b, share)
        found = evaluate(net, loader)
        rows.append({"share": share, "accuracy": found["accuracy"], "cross_entropy": found["cross_entropy"]})
    return pd.DataFrame(rows)


def barrier(rows: pd.DataFrame, value: str = "cross_entropy") -> float:
    """How much worse the path gets than the straight line between its ends.

        cross_entropy:  max_t L(t) - [(1 - t) L(0) + t L(1)]
        accuracy:       max_t [(1 - t) A(0) + t A(1)] - A(t)

    over the shares t that the rows have. Range [0, ∞) and [0, 1]; 0 = no barrier, which the ends themselves give.
    Source: Entezari et al. 2022, equation 1; their figures also show the half-way point alone (Frankle et al. 2020).
    """
    choose(value, ["cross_entropy", "accuracy"], "there is no barrier in {}")
    at = rows.set_index("share")[value]
    line = (1 - at.index.to_series()) * at[0.0] + at.index.to_series() * at[1.0]
    worse = at - line if value == "cross_entropy" else line - at
    return float(worse.max())


def task_vector(base: nn.Module, tuned: nn.Module) -> dict[str, Tensor]:
    """τ = θ_tuned - θ_base by name: parameters and running statistics, without counters.

    Raises ShapeMismatch for two architectures. Source: Ilharco et al. 2023, whose networks have no batch norm.
    """
    check_same_architecture(base, tuned)
    after = tuned.state_dict()
    return {
        name: after[name].detach() - value.detach().to(after[name])
        for name, value in base.state_dict().items()
        if value.is_floating_point()
    }


def with_task_vectors(
    base: nn.Module, vectors: Sequence[Mapping[str, Tensor]], scales: float | Sequence[float] = 1.0
) -> nn.Module:
    """A copy of `base` with θ = θ_base + Σ_i scale_i τ_i; a negative scale forgets. One scale serves all.

    Running statistics follow where the scales are shares, from 0 on and at most 1 together; otherwise a variance could
    get negative, so that they stay the base's, and a warning says so. With batch norm, estimate them again
    (`reestimated`) in any case.
    Raises BadValue for another number of scales than of vectors, or one that is not finite; ShapeMismatch for the
    vectors of another network.
    """
    if not (isinstance(vectors, Sequence) and all(isinstance(vector, Mapping) for vector in vectors)):
        raise BadValue("vectors is a list of task vectors, one for each network; see task_vector.")
    scales = [scales] * len(vectors) if isinstance(scales, int | float) else list(scales)
    if not all(math.isfinite(scale) for scale in scales):
        raise BadValue(f"the scales are {scales}; they must be finite numbers.")
    if len(scales) != len(vectors):
        raise BadValue(f"{len(vectors)} task vectors and {len(scales)} scales were given; give one for each, or one.")
    copied = copy.deepcopy(base)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    shares = all(scale >= 0 for scale in scales) and sum(scales) <= 1 + 1e-12
    moved = set(state) if shares else {name for name, _ in base.named_parameters(remove_duplicate=False)}
    for vector, scale in zip(vectors, scales, strict=True):
        for name, change in vector.items():
            if name not in state or state[name].shape != change.shape:
                has = f"{tuple(state[name].shape)}" if name in state else "none"
                raise ShapeMismatch(
                    f"a task vector has {name} {tuple(change.shape)}, {type(base).__name__} has {has}. Task vectors "
                    "are added to the base that they were taken from."
                )
            if name in moved:
                state[name] += scale * change.to(state[name])
    copied.load_state_dict(state)
    if not shares:
        warn_of_statistics(copied, f"scales are {', '.join(f'{scale:g}' for scale in scales)}, which are no shares")
    return copied


_LINEAR = (nn.modules.conv._ConvNd, nn.Linear)


def reestimated(net: nn.Module, loader: Iterable) -> nn.Module:
    """A copy of `net` whose batch norms have the statistics of the loader's images, by `torch.optim.swa_utils`.

    Means over the batches of one pass in train mode, each batch with equal weight: leave incomplete ones out.
    With batch norm this is what REPAIR amounts to (Jordan et al. 2023, section 4.4).
    Raises BadValue for a network without batch norm.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in checked_network(net).modules()):
        raise BadValue(
            f"{type(net).__name__} has no batch norm whose statistics could be estimated again. For networks without "
            "it there is rescaled(merged, a, b, loader), which corrects weights and biases."
        )
    copied, device = copy.deepcopy(net), device_of(net)
    with keeping_modes(copied), keeping_random_state(device):
        seed_generators(0, device)  # of dropout, which is on as in training
        update_bn(_images(loader, device), copied, device)
    return copied


def rescaled(merged: nn.Module, a: nn.Module, b: nn.Module, loader: Iterable, share: float = 0.5) -> nn.Module:
    """A copy of `merged` in which every convolution and linear layer but the last has, channel by channel, the mean

        (1 - share) mean_a + share mean_b,    and the same of the standard deviations,

    on the loader's images. Layers are corrected in the order of the forward pass, each after those before it, by
    scaling its weight and moving its bias; a channel that is constant keeps its weight.
    Raises BadValue for a layer without bias, and for batch norm (see `reestimated`); ShapeMismatch.
    Source: Jordan et al. 2023 (REPAIR), who put batch norms in for it and fold them into the weights.
    """
    for other in (a, b):
        check_same_architecture(merged, other)
    copied, batches = copy.deepcopy(merged), list(_images(loader, device_of(merged)))
    layers = _layers(copied, batches)
    ends = [_statistics(net, layers, batches) for net in (a, b)]
    for name in layers:
        (mean_a, std_a), (mean_b, std_b) = (end[name] for end in ends)
        mean, std = _statistics(copied, [name], batches)[name]
        factor = torch.where(std > 0, torch.lerp(std_a, std_b, share) / std.where(std > 0, 1.0), 1.0)
        shift, layer = torch.lerp(mean_a, mean_b, share) - mean * factor, copied.get_submodule(name)
        with torch.no_grad():
            layer.weight.mul_(factor.to(layer.weight).reshape(-1, *[1] * (layer.weight.ndim - 1)))
            layer.bias.mul_(factor.to(layer.bias)).add_(shift.to(layer.bias))
    return copied


def _layers(net: nn.Module, batches: list[Tensor]) -> list[str]:
    """Names of the convolutions and linear layers in the order in which they run, without the last."""
    if not batches:
        raise BadData("the loader gave no images, so there are no statistics.")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()):
        raise BadValue(f"{type(net).__name__} has batch norm; estimate its statistics again with reestimated.")
    names = [name for name, module in net.named_modules() if isinstance(module, _LINEAR)]
    with evaluating(net), torch.no_grad(), record(net, names) as activations:
        net(batches[0][:1])
        ordered = list(activations)[:-1]
    for name in ordered:
        if net.get_submodule(name).bias is None:
            raise BadValue(f"layer {name!r} has no bias, so its mean cannot be corrected. Give it one: bias=True.")
    return ordered


@torch.no_grad()
def _statistics(net: nn.Module, names: list[str], batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """layer -> (mean, standard deviation) of every channel over all images and places, in float64."""
    first, sums = {}, dict.fromkeys(names, 0.0)
    for images in batches:
        with evaluating(net), record(net, names, clone=True) as activations:
            net(images)
        for name in names:
            x = channel_blocks(activations[name].double())
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
