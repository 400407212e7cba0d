"""Where a network is usually looked at: the ends of its groups, before and after ReLU, its embedding.

Of the families that papers distil a table has the blocks of every group; of others the ends of runs of one size count.

WideResNet   layer1 ... or block1 ...: the raw sums, which no ReLU follows (Zagoruyko and Komodakis 2017)
ResNet       layer1 ..., of small and of large images: the last block after its ReLU; `before` has the raw sum
ShuffleNet   stage2 ... or layer1 ...: the last block, its channels shuffled
MobileNetV2  the last inverted residual of every size, which is linear; also of other networks of such blocks
VGG          the last ReLU of every block, before its pooling
Swin         the last block of every stage, its tokens as a map
But for Swin, so the benchmark's code (Tian et al. 2020) and those after it have them; of VGG they leave out block 1.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.layers import channel_axes, cuttable_layers, front, layer_table
from reptrans.layers.axes import patch_square
from reptrans.layers.trace import Traced, trace
from reptrans.training import evaluating

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU)
Groups = list[list[str]]  # taps of one group after another, each from its start to its end
_BLOCK = "(?i).*(block|bottleneck|residual)"
_BY_HAND = "Name them: Positions(groups=..., starts=..., before=..., layers=..., embedding=...)."
_FUNCTIONS = (F.relu, torch.relu, F.relu6, F.leaky_relu, F.gelu, F.silu)


@dataclass(frozen=True)
class Positions:
    """Taps of one network, from its input to its output.

    `groups`: their ends. `starts`: the first activation in each of them, or the end of the group before where a group
    has one activation only. `before`: what the ReLU at each group's end gets; where a group ends with a sum
    (pre-activation), the batch norm that comes next; the group's end itself, where no module gives it (a ReLU as a
    function on a sum). `layers`: every rectified layer, for methods that choose among them. `embedding`: what the last
    linear layer gets. `source`: "table: WideResNet" and the like, "blocks" or "graph" (see `positions`), or "by hand".
    """

    groups: tuple[str, ...]
    starts: tuple[str, ...]
    before: tuple[str, ...]
    layers: tuple[str, ...]
    embedding: str
    source: str = "by hand"


def positions(net: nn.Module, images: Tensor) -> Positions:
    """The usual taps of `net`, as papers have them of its family: WideResNet, ResNet, ShuffleNet, MobileNetV2, VGG,
    Swin.

    "blocks": of another network with tokens, or with channels last, they are its blocks as maps (`:map`): the last of
    every size, or, where all are of one size as in a vision transformer, the ends of four quarters. "graph": of all
    others the last layer of every run of layers with maps of one size, found from the graph and one forward pass of
    `images`; only layers that separate input from output count. A network without maps, tokens or linear layer raises
    BadValue: give a `Positions` by hand.
    """
    if known := published(net):
        return _of_table(net, images, *known)
    blocks = _of_blocks(net, images)
    if blocks and any(tap.endswith(":map") for tap in blocks.groups):
        return blocks
    try:
        return _of_graph(net, images)
    except BadValue:
        if blocks is None:
            raise
        return blocks


def _of_table(net: nn.Module, images: Tensor, family: str, groups: Groups) -> Positions:
    ends = tuple(group[-1] for group in groups)
    starts = tuple(group[0] if len(group) > 1 else ends[max(k - 1, 0)] for k, group in enumerate(groups))
    before, layers = ends, tuple(tap for group in groups for tap in group)
    linear = _linear(net)
    if not linear:
        raise BadValue(f"{type(net).__name__} has no linear layer, so its embedding cannot be found. {_BY_HAND}")
    if not ends[0].endswith(":map"):
        # Without a graph, what the ReLUs get is not known.
        with suppress(BadValue):
            traced = _graph(net)
            before = tuple(_before(traced, end) for end in ends)
            layers = _of_graph(net, images).layers
    return Positions(ends, starts, before, layers, f"{linear[-1]}:in", f"table: {family}")


def _of_graph(net: nn.Module, images: Tensor) -> Positions:
    traced = _graph(net)
    table = layer_table(net, images).set_index("layer")
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    maps = [name for name in table.index if table.cut[name] and len(table.output[name]) == 3]
    maps = sorted((n for n in maps if max(table.output[n][1:]) > 1), key=lambda n: order[traced.nodes[n]])
    linear = [name for name in _linear(net) if name in table.index]
    if not maps or not linear:
        raise BadValue(
            f"{type(net).__name__} has no {'linear layer' if maps else 'maps'} at which it can be cut, so the usual "
            f"positions cannot be found. {_BY_HAND}"
        )
    runs = [list(names) for _, names in groupby(maps, key=lambda n: table.output[n][1:])]
    groups = tuple(_outermost(run, traced) for run in runs)
    rectified = [[n for n in run if isinstance(net.get_submodule(n), RECTIFIERS)] for run in runs]
    return Positions(
        groups,
        tuple(_start(k, rectified[k], groups, traced) for k in range(len(runs))),
        tuple(_before(traced, name) for name in groups),
        tuple(_distinct([n for found in rectified for n in found], traced)),
        f"{linear[-1]}:in",
        "graph",
    )


def _of_blocks(net: nn.Module, images: Tensor) -> Positions | None:
    """The positions of a network with layer norms, as hooks find them; None for others."""
    if not any(isinstance(module, nn.LayerNorm) for module in net.modules()):
        return None
    with evaluating(net), torch.no_grad():
        names = cuttable_layers(net, images)
        shapes = {name: tuple(value.shape[1:]) for name, value in front(net, names)(images).items()}
        axes = channel_axes(net, names, images)
    grids = {name: grid for name in names if (grid := _grid(shapes[name], axes[name])) and max(grid) > 1}
    linear = _linear(net)
    if not linear or not grids:
        return None
    runs = [_blocks(list(run)) for _, run in groupby(grids, key=grids.__getitem__)]
    if len(runs) == 1:
        quarters = min(4, len(runs[0]))
        groups = [runs[0][round((k + 1) * len(runs[0]) / quarters) - 1] for k in range(quarters)]
    else:
        groups = [run[-1] for run in runs]
    taps = {name: name if axes[name] == 1 else f"{name}:map" for name in grids}
    ends = tuple(taps[name] for name in groups)
    layers = tuple(taps[name] for run in runs for name in run)
    return Positions(ends, (ends[0], *ends[:-1]), ends, layers, f"{linear[-1]}:in", "blocks")


def _linear(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, nn.Linear)]


def _grid(shape: tuple[int, ...], axis: int) -> tuple[int, int] | None:
    """(h, w) of one example's activations as a map; None where they are none."""
    if len(shape) == 3:
        return shape[1:] if axis == 1 else shape[:2]
    try:
        return (patch_square(shape[0])[0],) * 2 if len(shape) == 2 and axis == -1 else None
    except ShapeMismatch:
        return None


def _blocks(run: list[str]) -> list[str]:
    """Of layers in order those that are numbered, the outermost: `blocks.0`, `blocks.1`; or else all of them."""
    numbered = [name for name in run if name[-1:].isdigit()]
    least = min((name.count(".") for name in numbered), default=0)
    return [name for name in numbered if name.count(".") == least] or run


def _graph(net: nn.Module) -> Traced:
    try:
        with evaluating(net):
            return trace(net)
    except Exception as error:  # foreign code: any failure means that there is no graph to look at
        raise BadValue(
            f"{type(net).__name__} cannot be traced ({error}), so the usual positions cannot be found. {_BY_HAND}"
        ) from error


def _outermost(run: list[str], traced: Traced) -> str:
    """The last layer's name; of several names for one value, that of the outermost module."""
    return min((n for n in run if traced.nodes[n] is traced.nodes[run[-1]]), key=lambda n: n.count("."))


def _start(number: int, rectified: list[str], groups: tuple[str, ...], traced: Traced) -> str:
    first = rectified[0] if rectified else None
    if first and traced.nodes[first] is not traced.nodes[groups[number]]:
        return first
    return groups[number - 1] if number else groups[0]


def _distinct(names: list[str], traced: Traced) -> list[str]:
    """One name for every value, the first."""
    return list({traced.nodes[name]: name for name in reversed(names)}.values())[::-1]


def _before(traced: Traced, name: str) -> str:
    node = traced.nodes[name]
    called = _module(traced, node)
    if isinstance(called, RECTIFIERS):
        return f"{node.target}:in"
    if node.op == "call_function" and node.target in _FUNCTIONS:
        return next((n for n, other in traced.nodes.items() if other is node.args[0]), name)
    for norm in node.users:
        if isinstance(_module(traced, norm), nn.modules.batchnorm._BatchNorm):
            if any(isinstance(_module(traced, user), RECTIFIERS) or user.target in _FUNCTIONS for user in norm.users):
                return norm.target
    return name


def _module(traced: Traced, node: fx.Node) -> nn.Module | None:
    return traced.net.get_submodule(node.target) if node.op == "call_module" else None


def published(net: nn.Module) -> tuple[str, Groups] | None:
    """(family, taps of its groups) of a network that the table knows, by its class and its layers' names; else None."""
    for family, groups in FAMILIES.items():
        if found := groups(net):
            return family, found
    return None


def _wide(net: nn.Module) -> Groups:
    groups = _stages(net, "layer|block")
    layers = (m for group in groups[:1] for m in net.get_submodule(group[-1]).modules() if not list(m.children()))
    # Batch norm comes first where a block's sum is left as it is.
    return groups if isinstance(next(layers, None), nn.BatchNorm2d) else []


def _inverted(net: nn.Module) -> Groups:
    blocks = _children(net, "blocks|features", "InvertedResidual|DepthwiseSeparableConv")
    if not any(_holds(net, block, "InvertedResidual") for block in blocks):
        return []
    groups = [[f"{blocks[0]}:in", blocks[0]]]
    for block in blocks[1:]:
        if any(isinstance(m, nn.Conv2d) and m.stride[0] > 1 for m in net.get_submodule(block).modules()):
            groups.append([])
        groups[-1].append(block)
    return groups


def _vgg(net: nn.Module) -> Groups:
    if hasattr(net, "relu1_1"):
        names = [name for name, _ in net.named_children() if name.startswith("relu")]
        return [list(run) for _, run in groupby(names, key=lambda name: name.partition("_")[0])]
    groups, chain = [[]], getattr(net, "features", None) if type(net).__name__ == "VGG" else None
    for name, layer in chain.named_children() if chain else ():
        if isinstance(layer, nn.MaxPool2d):
            groups.append([])
        elif isinstance(layer, RECTIFIERS):
            groups[-1].append(f"features.{name}")
    return [group for group in groups if group]


def _swin(net: nn.Module) -> Groups:
    blocks = [name for name, module in net.named_modules() if _is(module, "SwinTransformer.*Block.*")]
    return [[f"{block}:map" for block in run] for _, run in groupby(blocks, key=lambda name: name.rpartition(".")[0])]


FAMILIES = {
    "WideResNet": _wide,
    "ShuffleNet": lambda net: _stages(net, "layer|stage") if "Shuffle" in type(net).__name__ else [],
    "ResNet": lambda net: _stages(net, "layer"),
    "MobileNetV2": _inverted,
    "VGG": _vgg,
    "Swin": _swin,
}


def _stages(net: nn.Module, names: str) -> Groups:
    """layer1, layer2, ... where they hold residual blocks; the first starts with what it gets, others with a block."""
    groups = []
    for stage in (name for name, _ in net.named_children() if re.fullmatch(rf"({names})\d", name)):
        inside = [name for name, module in net.get_submodule(stage).named_modules() if name and _is(module, _BLOCK)]
        blocks = [f"{stage}.{name}" for name in inside if name.count(".") == inside[0].count(".")]
        if blocks:
            start = blocks[:1] if groups else [f"{stage}:in"]
            groups.append([*start, stage] if len(blocks) > 1 or not groups else [stage])
    return groups


def _children(net: nn.Module, parents: str, kinds: str) -> list[str]:
    """The layers right below one of the parents that are, or hold, a module of one of the kinds."""
    found = (name for name, _ in net.named_modules() if re.fullmatch(rf"({parents})\.\w+", name))
    return [name for name in found if _holds(net, name, kinds)]


def _holds(net: nn.Module, name: str, kinds: str) -> bool:
    return any(_is(module, kinds) for module in net.get_submodule(name).modules())


def _is(module: nn.Module, kinds: str) -> bool:
    return re.fullmatch(kinds, type(module).__name__) is not None
