"""Cut a network at a layer: `front` runs only what leads to it, `end` only what follows.

Both are ordinary modules that share the network's weights. Composed they do the operations of the whole network, in
the same order, so `end(front(images))` equals `net(images)` bit for bit. A graph is for speed and hooks are for truth:
before its first use a part is compared with the network itself on two examples, and where they differ, or the graph
does not reach the layer, the network runs whole, with hooks.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from operator import attrgetter
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from reptrans.errors import BadValue, CannotCut, choose, suggest
from reptrans.layers.hooked import HookedEnd, HookedFront
from reptrans.layers.network import first_examples, leaving_no_trace, located, run, unwrap, watching
from reptrans.layers.queries import answered
from reptrans.layers.trace import Traced, layer_names, trace
from reptrans.layers.values import chosen, tensors_in

# By network: two examples of its input, and the graphs that were found to do what it does.
_SEEN: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()
_SOUND: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


def front(net: nn.Module, names: str | Iterable[str]) -> nn.Module:
    """The part of `net` that leads from its input to one layer, or to several.

    One name gives a module input -> activations; several give input -> {name: activations}, all from one pass that
    ends with the last of them. Values that a later in-place operation would overwrite are copied first. Of a layer that
    returns several values it is the first tensor, or the one that the name chooses: `layer:1`. The input is a tensor,
    or whatever the network takes: a tuple, or a mapping of keywords; these run the network whole, with hooks.
    The parts share weights and buffers with `net`, and are made for the mode (train or eval) that `net` is in now and
    for its hooks: make them again after registering or removing a hook, and after changing the mode, if the network's
    own code asks for `self.training`.
    Raises LayerNotFound; BadValue for what is no network or has no such part; CannotCut for a layer that the forward
    pass never reaches.
    """
    single, names = isinstance(names, str), [names] if isinstance(names, str) else list(names)
    net, places = located(net, names)
    hooked, traced = HookedFront(net, names, single), _traced(net)
    cuts = {name: traced and _place(traced, *places[name]) for name in names}
    if not (traced and all(cuts.values())):
        return hooked
    return _checked_front(_front_graph(traced, cuts, single), net, hooked)


def end(net: nn.Module, name: str, *, keep_skip: bool = False, example: object = None) -> nn.Module:
    """The part of `net` that leads from the output of layer `name` to the network's output.

    A module activations -> output that never writes to its input. A layer that does not separate input from output
    (inside a residual branch, say) is refused; with `keep_skip=True` the module takes (activations, input) instead and
    computes what bypasses the layer from the input with the network's own weights, as the stitching code of
    Csiszárik et al. (2021) does everywhere.
    `example` (two examples of the input are enough) is needed for a layer that a graph does not reach, unless a front
    of the same network has run before. Where the input has a mask of padding, it is needed at every call:
    `end(net, name)(activations, input)`. Weights, mode, hooks and errors as for `front`.
    """
    net, places = located(net, [name])
    if example is not None:
        _SEEN[net] = first_examples(example, 2)
    if not isinstance(_SEEN.get(net, torch.empty(0)), Tensor):  # a graph knows networks of one input
        return HookedEnd(net, name, keep_skip, _SEEN[net])
    traced = _traced(net)
    cut = traced and _place(traced, *places[name])
    graph = cut and _end_graph(traced, name, cut, keep_skip)
    if graph is None:
        return HookedEnd(net, name, keep_skip, _SEEN.get(net))
    return _checked_end(graph, net, name, keep_skip)


def cuttable_layers(net: nn.Module, example: object = None) -> list[str]:
    """The layers, in the order of the forward pass, that separate the network's input from its output.

    The last one, whose output is the network's own, is left out. Layers that the graph does not reach, inside parts
    that cannot be traced, are tried out on `example` where it is given. Raises CannotCut for a network that `torch.fx`
    cannot trace at all, where this cannot be known without one.
    """
    net = unwrap(net)
    traced = _traced(net)
    if traced is None and example is None:
        raise CannotCut(
            f"{type(net).__name__} cannot be traced, so its separating layers are not known; name a layer, or give "
            "example=images."
        )
    found = separating(traced) if traced else []
    if example is None:
        return found
    hidden = [name for name in layer_names(net) if traced is None or name not in traced.returned]
    return _in_order(net, [*found, *(name for name in hidden if _separates(net, name, example))], example)


def separating(traced: Traced) -> list[str]:
    """The layers whose value carries all that the network's output depends on."""
    output = traced.output.all_input_nodes
    found = []
    for name, returned in traced.returned.items():
        node = next(iter(returned.parts.values()))
        since = traced.position[returned.last]
        if not name or [node] == output or traced.images not in traced.needed([node], data=True):
            continue
        if traced.images not in traced.needed([traced.output], _value_node(traced, node, ""), since, data=True):
            found.append(name)
    return sorted(found, key=lambda name: traced.position[traced.nodes[name]])


class _Place:
    """Where a graph has a layer's value: its node, the part of it at run time, and when the layer had returned."""

    def __init__(self, node: fx.Node, part: str, since: int):
        self.node, self.part, self.since = node, part, since


def _place(traced: Traced, layer: str, part: str) -> _Place | None:
    """None where the graph does not reach the layer, but hooks may. Raises BadValue, CannotCut."""
    if layer not in traced.returned and _inside_something(traced, layer):
        return None
    known = {name: traced.returned[name] for name in layer_names(traced.net) if name in traced.returned}
    net = type(traced.net).__name__
    returned = choose(layer, known, f"{net} cannot be cut at {{}}: the forward pass never calls it", CannotCut)
    since = traced.position[returned.last]
    if part in returned.parts:
        return _Place(returned.parts[part], "", since)
    if "" in returned.parts:  # one node for whatever the layer returns when it runs
        return _Place(returned.parts[""], part, since)
    first = next(iter(returned.parts))
    node = choose(part or first, returned.parts, f"layer {layer!r} has no part {{}}", BadValue, listed="Its parts")
    return _Place(node, "", since)


def _inside_something(traced: Traced, layer: str) -> bool:
    """Whether the layer lies inside one that stands as one node in the graph, or calls what the graph does not show."""
    outer = {layer.rsplit(".", depth)[0] for depth in range(1, layer.count(".") + 1)}
    leaves = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    return bool(outer & leaves)


def _front_graph(traced: Traced, cuts: dict[str, _Place], single: bool) -> fx.GraphModule:
    writes = [traced.last_write(cut.node, cut.since + 1) for cut in cuts.values()]
    needed = traced.needed([*(cut.node for cut in cuts.values()), *(w for w in writes if w is not None)])
    graph, copies, results, waiting = fx.Graph(), {}, {}, dict(cuts)
    for node in traced.graph.nodes:
        if node is traced.images:
            copies[node] = graph.node_copy(node)
            if any(traced.memory[w] is traced.memory[node] for w in needed if traced.writes_to(w) is not None):
                copies[node] = graph.call_method("clone", (copies[node],))
        elif node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        for name in [n for n, cut in waiting.items() if cut.node in copies and _is_done(traced, cut, node)]:
            results[name] = _result(traced, graph, copies, waiting.pop(name), needed, f"layer {name!r}")
    names = list(cuts)
    graph.output(results[names[0]] if single else {name: results[name] for name in names})
    return _module(traced, graph, f"Front of {type(traced.net).__name__}")


def _is_done(traced: Traced, cut: _Place, node: fx.Node) -> bool:
    write = traced.last_write(cut.node, cut.since + 1)
    return traced.position[node] >= traced.position[cut.node if write is None else write]


def _result(traced: Traced, graph: fx.Graph, copies: dict, cut: _Place, needed: set[fx.Node], who: str) -> fx.Node:
    value = copies[cut.node]
    if cut.part or _may_be_several(traced, cut.node):
        value = graph.call_function(chosen, (value, cut.part, who))
    return graph.call_method("clone", (value,)) if traced.is_overwritten(cut.node, needed, cut.since) else value


def _may_be_several(traced: Traced, node: fx.Node) -> bool:
    """Whether the node may stand for a tuple or a dict: an opaque module, a recurrent or an attention layer."""
    if node.op != "call_module":
        return False
    kinds = (nn.modules.rnn.RNNBase, nn.modules.rnn.RNNCellBase, nn.MultiheadAttention)
    return node.target in traced.opaque or isinstance(traced.net.get_submodule(node.target), kinds)


def _value_node(traced: Traced, node: fx.Node, part: str) -> fx.Node | None:
    """The node of the tensor that is cut at: `node`, or the reader that picks it out of several; None if unclear."""
    picks = [user for user in node.users if _picked(user) is not None]
    if not picks or not _may_be_several(traced, node):
        return None if part else node
    wanted = part or _picked(min(picks, key=traced.position.__getitem__))
    first = part or wanted in ("0", "logits", "last_hidden_state")
    right = [user for user in picks if _picked(user) == wanted and first]
    return right[0] if len(right) == 1 else None


def _picked(user: fx.Node) -> str | None:
    """The key by which a reader picks one of several values, or None."""
    picks = len(user.args) > 1 and getattr(user.target, "__name__", "") in ("getitem", "getattr")
    return str(user.args[1]) if picks and isinstance(user.args[1], (int, str)) else None


def _end_graph(traced: Traced, name: str, cut: _Place, keep_skip: bool) -> fx.GraphModule | None:
    """None where only hooks can tell. Raises CannotCut for a layer that is bypassed."""
    value = _value_node(traced, cut.node, cut.part)
    if value is None:
        return None
    needed = traced.needed([traced.output], value, cut.since)
    if traced.images in traced.needed([traced.output], value, cut.since, data=True) and not keep_skip:
        raise CannotCut(
            f"Layer {name!r} of {type(traced.net).__name__} does not separate its input from its output: part of the "
            f"network bypasses it. {suggest(name, separating(traced), 'Layers where it can be cut')}. To keep the "
            "bypass from the images, ask for keep_skip=True."
        )
    overwritten = traced.is_overwritten(value, needed, cut.since)
    if keep_skip and overwritten:
        return None  # what bypasses the layer may share the memory that is written to
    graph, copies = fx.Graph(), {}
    copies[value] = activations = graph.placeholder("activations")
    if keep_skip:
        copies[traced.images] = graph.call_method("clone", (graph.placeholder("images"),))
    else:
        needed = answered(traced, graph, copies, activations, value, cut.since, _SEEN.get(traced.net))
    if overwritten:
        copies[value] = graph.call_method("clone", (activations,))
    for node in traced.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return _module(traced, graph, f"End of {type(traced.net).__name__}")


def _module(traced: Traced, graph: fx.Graph, title: str) -> fx.GraphModule:
    named = {node.target for node in graph.nodes if node.op in ("call_module", "get_attr")}
    own = traced.constants
    parts = {name: own[name] if name in own else attrgetter(name)(traced.net) for name in named}
    module = fx.GraphModule(parts, graph, class_name=title.replace(" ", ""))
    module.training = traced.net.training
    return module


def _checked_front(graph: fx.GraphModule, net: nn.Module, hooked: HookedFront) -> fx.GraphModule:
    """`graph`, which at its first call is compared with the network, and gives way to hooks where they differ."""
    way = []

    def forward(inputs):
        if _is_plain(inputs) and not way:
            _SEEN[net] = example = first_examples(inputs, 2)
            sound = _is_sound(graph, net, lambda: _run(graph, example), lambda: hooked(example))
            way.append(partial(_run, graph) if sound else hooked)
        elif isinstance(inputs, (Mapping, tuple, list)):
            _SEEN[net] = first_examples(inputs, 2)
            return hooked(inputs)
        return way[0](inputs) if way else _run(graph, inputs)

    graph.forward = forward  # of this object alone: a copy, whose weights may become others, is not compared
    return graph


def _checked_end(graph: fx.GraphModule, net: nn.Module, name: str, keep_skip: bool) -> fx.GraphModule:
    """Likewise, as soon as two examples of the network's input are known."""
    way, hooked_front = [], HookedFront(net, [name], single=True)

    def forward(activations, *inputs):
        example = _SEEN.get(net)
        if inputs and isinstance(inputs[0], (Mapping, tuple, list)):
            return HookedEnd(net, name, keep_skip, inputs[0])(activations, *inputs)
        if _is_plain(activations) and _is_plain(example) and not way:
            more = (example,) if keep_skip else ()
            sound = _is_sound(graph, net, lambda: _run(graph, hooked_front(example), *more), lambda: run(net, example))
            way.append(partial(_run, graph) if sound else HookedEnd(net, name, keep_skip, example))
        return way[0](activations, *inputs) if way else _run(graph, activations, *inputs)

    graph.forward = forward
    return graph


def _run(graph: fx.GraphModule, *inputs: Tensor) -> object:
    return type(graph).forward(graph, *inputs)


def _is_plain(value: object) -> bool:
    """Whether its numbers can be looked at: not those of tracers' stand-ins, of fake tensors, or inside vmap."""
    return type(value) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def _is_sound(graph: fx.GraphModule, net: nn.Module, *ways: Callable[[], object]) -> bool:
    """Whether two ways to a value, one of them through `graph`, give the same; looked at once for each graph."""
    known = _SOUND.setdefault(net, set())
    hooks = [*net._forward_pre_hooks, *net._forward_hooks]  # no graph of `net` has its own, only those of its layers
    key = f"{net.training} {hooks} {graph.code}"
    if key not in known:
        results, buffers = [], list(map(id, net.buffers()))
        for way in ways:
            with leaving_no_trace(net):
                results.append(way())
                if list(map(id, net.buffers())) != buffers:  # `self.mean = …` is in no graph
                    return False
        if not same(*results):
            return False
        known.add(key)
    return True


def same(first: object, second: object) -> bool:
    """Whether two values hold the same tensors, to the bit; NaN equals NaN."""
    a, b = (list(tensors_in(value)) for value in (first, second))
    return [n for n, _ in a] == [n for n, _ in b] and all(
        x.shape == y.shape and bool(((x == y) | ((x != x) & (y != y))).all())
        for (_, x), (_, y) in zip(a, b, strict=True)
    )


def _separates(net: nn.Module, name: str, example: object) -> bool:
    with suppress(CannotCut, BadValue):
        HookedEnd(net, name, False, first_examples(example, 2))
        return True
    return False


def _in_order(net: nn.Module, names: list[str], example: object) -> list[str]:
    order: dict[str, None] = {}
    with watching(net, names, lambda name, _: order.setdefault(name)), leaving_no_trace(net):
        run(net, first_examples(example, 2))
    return list(order)


def _traced(net: nn.Module) -> Traced | None:
    with suppress(Exception):  # foreign code: whatever it raises, hooks do the same work without the graph
        return trace(net)
    return None
