"""Sizes, types and places are no data: what the end of a network asks of values before the cut is told without them.

`b = x.size(0)` at the top of a forward and `.view(b, -1)` at its end let nothing of the images past a layer between.
"""

import math

import torch
from torch import Tensor, fx

from reptrans.errors import CannotCut
from reptrans.layers.network import leaving_no_trace
from reptrans.layers.trace import Traced


def answered(
    traced: Traced, graph: fx.Graph, copies: dict, activations: fx.Node, cut: fx.Node, since: int, example: object
) -> set[fx.Node]:
    """The nodes that the end needs beside `cut`; queries about values before it are put into `graph` as answers.

    `example`: two examples of the network's input, from which other sizes than the number of examples are known.
    """

    def is_before(node: fx.Node) -> bool:
        return node is not cut and traced.images in traced.needed([node], cut, since)

    live = traced.needed([traced.output], cut, since, data=True)
    asked = [node for node in live if traced.is_query(node) and is_before(node.all_input_nodes[0])]
    shapes = _shapes(traced, [cut, *(node.all_input_nodes[0] for node in asked)], example) if asked else {}
    for node in sorted(asked, key=traced.position.__getitem__):
        of = node.all_input_nodes[0]
        kind = node.args[1] if node.target is getattr else getattr(node.target, "__name__", node.target)
        rest = tuple(node.args[1:]) if node.op == "call_method" else ()
        copies[node] = graph.call_function(answer_query, (activations, kind, rest, shapes.get(of), shapes.get(cut)))
    others = [node.all_input_nodes[0] for node in live if traced.is_query(node) and node not in copies]
    return live | traced.needed(others, cut, since)


def answer_query(activations: Tensor, kind: str, rest: tuple, known: tuple | None, cut: tuple | None) -> object:
    """What `kind` (size, shape, device, …) of a value before the cut is, for a batch with these activations.

    `known` and `cut`: the shapes of that value and of the activations for two examples, or None. Raises CannotCut for
    what cannot be known of activations of another size than `cut`.
    """
    if kind in ("device", "dtype", "layout", "is_cuda"):
        return getattr(activations, kind)
    if kind == "get_device":
        return activations.get_device()
    count = len(activations) * known[0] // cut[0] if known and cut else len(activations)
    fits = known and activations.shape[1:] == cut[1:]  # else the examples were of another size
    shape = torch.Size((count, *known[1:])) if fits else _OnlyBatch(count)
    if kind in ("numel", "nelement"):
        return math.prod(shape)
    if kind in ("size", "shape"):
        return shape[rest[0]] if rest else shape
    return shape[0] if kind == "len" else len(shape)


class _OnlyBatch:
    """The shape of a value of which nothing but the number of examples is known."""

    def __init__(self, count: int):
        self.count = count

    def __getitem__(self, place: int) -> int:
        return self.count if place == 0 else self._refuse()

    def __iter__(self):
        return self._refuse()

    __len__ = __iter__

    def _refuse(self):
        raise CannotCut(
            "the end of the network asks for a size of what lies before the cut. Give example=images to `end`, two of "
            "the size that is meant."
        )


def _shapes(traced: Traced, nodes: list[fx.Node], example: object) -> dict[fx.Node, tuple]:
    """The shapes of the nodes' values for the example; nothing without one."""
    if not isinstance(example, Tensor):
        return {}
    found, wanted = {}, set(nodes)

    class Looking(fx.Interpreter):
        def run_node(self, node):
            value = super().run_node(node)
            if node in wanted and isinstance(value, Tensor):
                found[node] = tuple(value.shape)
            return value

    with leaving_no_trace(traced.net):
        Looking(traced.net, graph=traced.graph).run(example)
    return found
