"""Where a network is usually looked at: the ends of its groups of one size, before and after ReLU, its embedding."""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from reptrans.errors import BadValue
from reptrans.layers import layer_table
from reptrans.layers.trace import Traced, trace
from reptrans.training import evaluating

_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU)
_BY_HAND = "Name them: Positions(groups=..., starts=..., before=..., layers=..., embedding=...)."
_FUNCTIONS = (F.relu, torch.relu, F.relu6, F.leaky_relu, F.gelu, F.silu)


@dataclass(frozen=True)
class Positions:
    """Taps of one network, from its input to its output.

    `groups`: the last layer of every run of layers with maps of one size. `starts`: the first activation in each of
    them, or the end of the group before where a group has one activation only. `before`: what the ReLU at each group's
    end gets; where a group ends with a sum (pre-activation), the batch norm that comes next; the group's end itself,
    where no module gives it (a ReLU as a function on a sum). `layers`: every rectified layer, for methods that choose
    among them. `embedding`: what the last linear layer gets.
    """

    groups: tuple[str, ...]
    starts: tuple[str, ...]
    before: tuple[str, ...]
    layers: tuple[str, ...]
    embedding: str


def positions(net: nn.Module, images: Tensor) -> Positions:
    """The usual taps of `net`, found from its graph and one forward pass of `images`.

    Only layers that separate input from output count. A network that cannot be traced, or without maps or linear layer,
    raises BadValue: give a `Positions` by hand.
    """
    traced = _graph(net)
    table = layer_table(net, images).set_index("layer")
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    maps = [name for name in table.index if table.cut[name] and len(table.output[name]) == 3]
    maps = sorted((n for n in maps if max(table.output[n][1:]) > 1), key=lambda n: order[traced.nodes[n]])
    linear = [name for name, module in net.named_modules() if isinstance(module, nn.Linear) and name in table.index]
    if not maps or not linear:
        raise BadValue(
            f"{type(net).__name__} has no {'linear layer' if maps else 'maps'} at which it can be cut, so the usual "
            f"positions cannot be found. {_BY_HAND}"
        )
    runs = [list(names) for _, names in groupby(maps, key=lambda n: table.output[n][1:])]
    groups = tuple(_outermost(run, traced) for run in runs)
    rectified = [[n for n in run if isinstance(net.get_submodule(n), _RECTIFIERS)] for run in runs]
    return Positions(
        groups,
        tuple(_start(k, rectified[k], groups, traced) for k in range(len(runs))),
        tuple(_before(traced, name) for name in groups),
        tuple(_distinct([n for found in rectified for n in found], traced)),
        f"{linear[-1]}:in",
    )


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
    if isinstance(called, _RECTIFIERS):
        return f"{node.target}:in"
    if node.op == "call_function" and node.target in _FUNCTIONS:
        return next((n for n, other in traced.nodes.items() if other is node.args[0]), name)
    for norm in node.users:
        if isinstance(_module(traced, norm), nn.modules.batchnorm._BatchNorm):
            if any(isinstance(_module(traced, user), _RECTIFIERS) or user.target in _FUNCTIONS for user in norm.users):
                return norm.target
    return name


def _module(traced: Traced, node: fx.Node) -> nn.Module | None:
    return traced.net.get_submodule(node.target) if node.op == "call_module" else None
