"""Which units of a network may change places without changing its outputs, read off its graph.

A *group* is a set of axes of weights that have to be permuted together: the outputs of a convolution, the batch norm
on them, the inputs of what reads them, and, through a residual sum, the outputs of all that is added to them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from reptrans.errors import BadValue
from reptrans.layers.network import copy_of
from reptrans.layers.trace import Traced, trace
from reptrans.layers.values import answer
from reptrans.training import evaluating
from reptrans.training.batches import explained

_SUMS = ("add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "truediv", "div")
# Functions and methods that treat every channel by itself, whatever it holds.
_BY_CHANNEL = frozenset(
    """relu relu_ relu6 leaky_relu elu selu gelu silu mish softplus sigmoid tanh hardswish hardsigmoid hardtanh clamp
    abs neg exp square sqrt dropout dropout2d feature_dropout max_pool2d avg_pool2d adaptive_avg_pool2d
    adaptive_max_pool2d max_pool1d avg_pool1d adaptive_avg_pool1d interpolate pad mean sum amax squeeze unsqueeze
    contiguous clone detach float double to softmax log_softmax stochastic_depth""".split()
)
_REDUCING = ("mean", "sum", "amax")
_BY_CHANNEL_MODULES = tuple(f"torch.nn.modules.{kind}" for kind in ("activation", "pooling", "dropout", "padding"))
_WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
_MIXING = (nn.MultiheadAttention, nn.GLU)
_FIXED = 0  # the group of all units that stay where they are


class Block(NamedTuple):
    """A run of features along an axis: the units of `group` in order, each standing for `repeat` neighbours."""

    group: int
    size: int
    repeat: int = 1

    @property
    def features(self) -> int:
        return self.size * self.repeat


Blocks = tuple[Block, ...]
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
    _check_plain(net)
    with evaluating(net), torch.no_grad():
        traced = _traced(net)
        shapes = _shapes(traced, images)
        units = Units(traced, *Walk(traced, shapes).groups())
        _check(net, units, images)
    return units


def permuted(net: nn.Module, units: Units, permutations: Permutations) -> nn.Module:
    """A copy of `net` in whose group g unit i is the former unit permutations[g][i]; the function stays the same."""
    copied, axes = copy_of(net), units.axes
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


def _check_plain(net: nn.Module) -> None:
    for name, layer in net.named_modules():
        if isinstance(layer, _WEIGHTED) and "weight" not in layer._parameters:
            raise BadValue(
                f"layer {name!r} computes its weight from others (weight_norm, spectral_norm, pruning). Make it plain "
                "first: remove_parametrizations(layer, 'weight') of torch.nn.utils.parametrize, or prune.remove."
            )
    if name := next((name for name, weight in net.named_parameters() if weight.is_complex()), None):
        raise BadValue(f"{name} of {type(net).__name__} is complex; units are aligned and matched by real numbers.")


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
    exact = copy_of(net).double().eval()
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
    copied = copy_of(net)
    for value in (v for v in copied.state_dict().values() if v.is_floating_point()):
        drawn = torch.rand(value.shape, generator=generator, dtype=value.dtype).to(value.device)
        value.copy_((drawn - 0.5) * (12 / max(1, value[0].numel())) ** 0.5 if value.ndim > 1 else drawn + 0.5)
    return copied


@dataclass
class Walk:
    """One pass over the graph in which every value gets the blocks of its axis 1; groups that must agree are joined."""

    traced: Traced
    shapes: dict[fx.Node, torch.Size]
    values: dict[fx.Node, Blocks] = field(default_factory=dict)
    axes: dict[str, dict[int, Blocks]] = field(default_factory=dict)
    read: dict[fx.Node, Blocks] = field(default_factory=dict)
    parent: list[int] = field(default_factory=lambda: [_FIXED])

    def groups(self) -> tuple[dict[int, int], dict[str, dict[int, Blocks]], dict[fx.Node, Blocks]]:
        """Sizes of the groups that may be permuted, blocks along the axes of weights, blocks of what layers read."""
        for node in self.traced.graph.nodes:
            if node.op == "output":
                self.fix(*(self.values[n] for n in node.all_input_nodes if n in self.values))
            elif node in self.shapes:
                self.values[node] = self.value(node)
            elif node.op == "call_module":
                raise self.unknown(node)
        axes = {name: {axis: self.final(blocks) for axis, blocks in of.items()} for name, of in self.axes.items()}
        read = {node: self.final(blocks) for node, blocks in self.read.items()}
        blocks = [block for of in axes.values() for found in of.values() for block in found]
        return {b.group: b.size for b in blocks if b.group != _FIXED and b.size > 1}, axes, read

    def value(self, node: fx.Node) -> Blocks:
        given = [n for n in node.all_input_nodes if n in self.values]
        module, shape = self.module(node), self.shapes[node]
        idle = all(block.group == _FIXED for n in given for block in self.final(self.values[n]))
        if (idle or node.op in ("placeholder", "get_attr")) and not (module and list(module.parameters())):
            return _still(shape)
        blocks = self.followed(node, given, module)
        if blocks is None:
            raise self.unknown(node)
        if len(shape) < 2 or shape[1] != _features(blocks):
            raise BadValue(
                f"{self.described(node)} gives {tuple(shape)}, which are not {_features(blocks)} channels on axis 1."
            )
        return blocks

    def followed(self, node: fx.Node, given: list[fx.Node], module: nn.Module | None) -> Blocks | None:
        """The blocks of what `node` makes of its inputs; None where this is not known."""
        if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
            return self.convolution(node, module)
        if isinstance(module, nn.Linear) and len(self.shapes[given[0]]) == 2:
            return self.layer(node, given[0], module.out_features)
        if self.is_by_channel_norm(given, module):
            if not isinstance(module, nn.PReLU) or module.num_parameters > 1:
                self.note(node, 0, self.values[given[0]])
            return self.values[given[0]]
        if module is None and (name := _name(node)) in ("cat", "concat", "concatenate"):
            on_channels = _dim(node, 0) in (1, 1 - len(self.shapes[node]))
            return sum((self.values[n] for n in given), ()) if on_channels else None
        if module is None and name in _SUMS:
            return self.tied(given)
        return self.passed(node, given[0], module) if len(given) == 1 else None

    def convolution(self, node: fx.Node, module: nn.Module) -> Blocks:
        source = node.all_input_nodes[0]
        if module.groups == 1:
            return self.layer(node, source, module.out_channels)
        blocks = self.values[source]
        if module.groups == module.in_channels:
            more = module.out_channels // module.in_channels
            out = tuple(block._replace(repeat=block.repeat * more) for block in blocks)
        else:
            out = _still(self.shapes[node])
            self.fix(blocks)
        self.note(node, 0, out)
        return out

    def layer(self, node: fx.Node, source: fx.Node, width: int) -> Blocks:
        """Weight (out, in, …) and bias (out,): the inputs are the source's units, the outputs a group of their own."""
        out = (Block(self.group(), width),)
        self.note(node, 1, self.values[source], ("weight",))
        self.note(node, 0, out)
        self.read[source] = self.values[source]
        return out

    def is_by_channel_norm(self, given: list[fx.Node], module: nn.Module | None) -> bool:
        """Norms by channel, and over all channels at once with a weight for each; PReLU has such weights too."""
        if isinstance(module, nn.GroupNorm):
            return module.num_groups == 1
        one_vector = isinstance(module, nn.LayerNorm) and len(self.shapes[given[0]]) == 2
        return one_vector or isinstance(module, nn.modules.batchnorm._NormBase | nn.PReLU)

    def tied(self, given: list[fx.Node]) -> Blocks:
        """Element by element: what stands on the same channel has to move together."""
        # Last the widest, for one channel may stand beside many.
        *others, widest = sorted((self.values[n] for n in given), key=_features)
        for other in others:
            if _features(other) > 1:
                self.tie(other, widest)
        return widest

    def passed(self, node: fx.Node, source: fx.Node, module: nn.Module | None) -> Blocks | None:
        """Operations on each channel by itself, and those that only lay out places anew."""
        before, after, blocks = self.shapes[source], self.shapes[node], self.values[source]
        laid_out = isinstance(module, nn.Flatten) or _name(node) in ("flatten", "view", "reshape")
        if before[:2] == after[:2] and (laid_out or _is_by_channel(node, module, len(before))):
            return blocks
        if laid_out and tuple(after) == (before[0], math.prod(before[1:])):
            return tuple(block._replace(repeat=block.repeat * math.prod(before[2:])) for block in blocks)
        return None

    def note(self, node: fx.Node, axis: int, blocks: Blocks, names: tuple[str, ...] | None = None) -> None:
        """The layer's weights (all of one axis, unless named) follow `blocks` along `axis`."""
        module = self.module(node)
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if (names is None or name in names) and value.ndim > axis:
                known = self.axes.setdefault(f"{node.target}.{name}", {})
                self.tie(known.setdefault(axis, blocks), blocks)

    def tie(self, x: Blocks, y: Blocks) -> None:
        if [block[1:] for block in x] != [block[1:] for block in y]:
            self.fix(x, y)
        else:
            for a, b in zip(x, y, strict=True):
                self.join(a.group, b.group)

    def fix(self, *values: Blocks) -> None:
        for block in (block for blocks in values for block in blocks):
            self.join(block.group, _FIXED)

    def join(self, a: int, b: int) -> None:
        # The smaller number is the root, so that what was joined to the fixed units is fixed.
        a, b = sorted((self.root(a), self.root(b)))
        self.parent[b] = a

    def group(self) -> int:
        self.parent.append(len(self.parent))
        return self.parent[-1]

    def root(self, group: int) -> int:
        while self.parent[group] != group:
            group = self.parent[group]
        return group

    def final(self, blocks: Blocks) -> Blocks:
        return tuple(block._replace(group=self.root(block.group)) for block in blocks)

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.traced.net.get_submodule(node.target) if node.op == "call_module" else None

    def unknown(self, node: fx.Node) -> BadValue:
        return BadValue(
            f"the units of {type(self.traced.net).__name__} cannot be permuted: {self.described(node)} is an operation "
            "whose effect on the order of channels is not known. Compare such networks by their outputs: match_models."
        )

    def described(self, node: fx.Node) -> str:
        module = self.module(node)
        if node.op != "call_module":
            return f"{_name(node)} (at {node.name!r} in the graph)"
        reason = self.traced.opaque.get(node.target)
        return f"layer {node.target!r} ({type(module).__name__})" + (f", not traced ({reason})," if reason else "")


def _still(shape: torch.Size) -> Blocks:
    """Channels that stay in their order: images, and what operations without weights make of them."""
    return (Block(_FIXED, shape[1] if len(shape) > 1 else shape.numel()),)


def _features(blocks: Blocks) -> int:
    return sum(block.features for block in blocks)


def _name(node: fx.Node) -> str:
    """The function's or method's name; "" for a module."""
    if node.op == "call_module":
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _dim(node: fx.Node, default: object) -> object:
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else default)


def _is_by_channel(node: fx.Node, module: nn.Module | None, axes: int) -> bool:
    """Whether this is an operation on each channel by itself."""
    if module is not None:
        known = type(module).__module__ in _BY_CHANNEL_MODULES or isinstance(module, nn.Identity | nn.Upsample)
        return known and not isinstance(module, _MIXING)
    if _name(node) in _REDUCING:
        over = _dim(node, ())
        over = {axis % axes for axis in ((over,) if isinstance(over, int) else over)}
        return bool(over) and not over & {0, 1}
    return _name(node) in _BY_CHANNEL
