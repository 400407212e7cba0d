"""Which units of a network may change places without changing its outputs, read off its graph.

A *group* is a set of axes of weights that have to be permuted together: the outputs of a convolution, the batch norm
on them, the inputs of what reads them, and, through a residual sum, the outputs of all that is added to them.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from reptrans.errors import BadValue
from reptrans.layers.trace import Traced, trace
from reptrans.layers.values import answer
from reptrans.merging.walk import Blocks, Walk
from reptrans.training import evaluating
from reptrans.training.batches import explained

Permutations = Mapping[int, Tensor]


@dataclass
class Units:
    """The groups of one network.

    `sizes`: group -> number of units. `axes`: name in the state dict -> axis -> the blocks along it (those of fixed
    units, images and outputs, have a group that is not in `sizes`). `read`: node of the graph -> blocks of its axis 1,
    for all values that a convolution or a linear layer reads.
    """

    traced: Traced
    sizes: dict[int, int]
    axes: dict[str, dict[int, Blocks]]
    read: dict[fx.Node, Blocks]

    @cached_property
    def weights_of(self) -> dict[int, list[str]]:
        """group -> names in the state dict that it moves."""
        moved = {name: {b.group for blocks in axes.values() for b in blocks} for name, axes in self.axes.items()}
        return {group: [name for name, groups in moved.items() if group in groups] for group in self.sizes}

    def random(self, generator: torch.Generator) -> dict[int, Tensor]:
        return {group: torch.randperm(size, generator=generator) for group, size in self.sizes.items()}


def unit_groups(net: nn.Module, images: Tensor) -> Units:
    """The groups of units of `net` that may be permuted, found on its graph and checked on `images` (n, c, h, w).

    Understood are convolutions, linear layers, batch, instance, layer and one-group norms, element-wise operations,
    pooling, sums and products of maps (which tie), concatenation, flattening, and depthwise convolutions (which tie
    output to input). Channels of other grouped convolutions stay where they are.
    Before anything is returned, a copy with all groups permuted at random has to give the same outputs in float64, to
    1e-10 of the largest; so has one with random weights, on which no unit is idle and no branch is 0.
    Raises BadValue for an operation that is not understood, a network that `torch.fx` cannot trace, or one that fails
    this check; ShapeMismatch for images that it does not take.
    Source: the groups are those that Ainsworth et al. 2023 write down by hand for each architecture.
    """
    with evaluating(net), torch.no_grad():
        traced = _traced(net)
        shapes = _shapes(traced, images)
        units = Units(traced, *Walk(traced, shapes).groups())
        _check(net, units, images)
    return units


def permuted(net: nn.Module, units: Units, permutations: Permutations) -> nn.Module:
    """A copy of `net` in whose group g unit i is the former unit permutations[g][i]; the function stays the same."""
    copied, axes = copy.deepcopy(net), units.axes
    state = {n: reordered(value, axes.get(n, {}), permutations) for n, value in net.state_dict().items()}
    copied.load_state_dict(state)
    return copied


def reordered(value: Tensor, axes: Mapping[int, Blocks], permutations: Permutations, skip: int | None = None) -> Tensor:
    """A weight with its axes, but for `skip`, permuted."""
    for axis, blocks in axes.items():
        if axis != skip and any(block.group in permutations for block in blocks):
            value = value.index_select(axis, _index(blocks, permutations).to(value.device))
    return value


def run_nodes(traced: Traced, images: Tensor, see: Callable[[fx.Node, object], None]) -> None:
    """One pass over `images` in which `see(node, value)` looks at every value at the moment it is made."""

    class Looking(fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            see(node, value)
            return value

    Looking(traced.net, graph=traced.graph).run(images)


def _index(blocks: Blocks, permutations: Permutations) -> Tensor:
    parts, start = [], 0
    for block in blocks:
        order = permutations.get(block.group)
        order = torch.arange(block.size) if order is None else order.cpu()
        parts.append(start + (order[:, None] * block.repeat + torch.arange(block.repeat)).flatten())
        start += block.features
    return torch.cat(parts)


def _traced(net: nn.Module) -> Traced:
    try:
        return trace(net)
    except Exception as error:  # foreign code may raise anything
        raise BadValue(
            f"{type(net).__name__} cannot be traced ({type(error).__name__}: {str(error).splitlines()[0]}), so the "
            "groups of its units are not known. Compare such networks by their outputs: match_models."
        ) from error


def _shapes(traced: Traced, images: Tensor) -> dict[fx.Node, torch.Size]:
    shapes: dict[fx.Node, torch.Size] = {}

    def see(node: fx.Node, value: object) -> None:
        if isinstance(value, Tensor):
            shapes[node] = value.shape

    with explained(traced.net, images):
        run_nodes(traced, images, see)
    return shapes


def _check(net: nn.Module, units: Units, images: Tensor) -> None:
    generator, two = torch.Generator().manual_seed(0), images[:2].double()
    exact = copy.deepcopy(net).double().eval()
    for form in (exact, _scrambled(exact, generator)):
        before, after = (answer(net(two.clone())) for net in (form, permuted(form, units, units.random(generator))))
        error = float((before - after).abs().max() / before.abs().max())
        if error > 1e-10:  # an untrained network may give 0 throughout, and 0 / 0 refuses nothing
            raise BadValue(
                f"permuting the units of {type(net).__name__} changes its outputs by {error:.1g} of the largest, so "
                "its groups were not understood. Weights under two names, or code that depends on the order of "
                "channels, are possible reasons. Compare such networks by their outputs: match_models."
            )


def _scrambled(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with random weights that keep the size of activations, and random statistics."""
    copied = copy.deepcopy(net)
    for value in (v for v in copied.state_dict().values() if v.is_floating_point()):
        drawn = torch.rand(value.shape, generator=generator, dtype=value.dtype).to(value.device)
        value.copy_((drawn - 0.5) * (12 / max(1, value[0].numel())) ** 0.5 if value.ndim > 1 else drawn + 0.5)
    return copied
