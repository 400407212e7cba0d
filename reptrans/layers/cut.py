"""Cut a network at a layer: `front` runs only what leads to it, `end` only what follows.

Both are ordinary modules that share the network's weights. Composed they do exactly the operations of the whole
network, in the same order, so `end(front(images))` equals `net(images)` bit for bit.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from reptrans.errors import BadValue, CannotCut, suggest
from reptrans.layers.record import record
from reptrans.layers.trace import Traced, ancestors, check_layers, layer_names, trace


def front(net: nn.Module, names: str | Iterable[str]) -> nn.Module:
    """The part of `net` that leads from the images to one layer, or to several.

    One name gives a module images -> activations; several give images -> {name: activations}, all from one pass that
    ends with the last of them. Values that a later in-place operation would overwrite are copied first.
    The parts share weights and buffers with `net`, and are made for the mode (train or eval) that `net` is in now: make
    them again after changing it, if the network's own code asks for `self.training`. A network that `torch.fx` cannot
    trace runs whole, with hooks: the same values, later.
    Raises LayerNotFound; CannotCut for a layer that the forward pass never reaches.
    """
    single, names = isinstance(names, str), [names] if isinstance(names, str) else list(names)
    check_layers(net, names)
    traced = _traced(net)
    if traced is None:
        return _HookedFront(net, names, single)
    outputs = {name: _node(traced, name) for name in names}
    needed = ancestors(list(outputs.values()))
    graph, copies = fx.Graph(), {}
    results = {}
    for node in traced.graph.nodes:
        if node not in needed and node is not traced.images:
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        for name in (n for n, output in outputs.items() if output is node):
            keep = traced.is_overwritten(node, needed)
            results[name] = graph.call_method("clone", (copies[node],)) if keep else copies[node]
    graph.output(results[names[0]] if single else {name: results[name] for name in names})
    return _module(net, graph, f"Front of {type(net).__name__}")


def end(net: nn.Module, name: str, *, keep_skip: bool = False, example: Tensor | None = None) -> nn.Module:
    """The part of `net` that leads from the output of layer `name` to the network's output.

    A module activations -> output that never writes to its input. A layer that does not separate input from output
    (inside a residual branch, say) is refused; with `keep_skip=True` the module takes (activations, images) instead and
    computes what bypasses the layer from the images with the network's own weights, as the stitching code of
    Csiszárik et al. (2021) does everywhere.
    `example` (images, at least one) is needed only for a network that `torch.fx` cannot trace.
    Weights, mode and errors as for `front`.
    """
    check_layers(net, [name])
    traced = _traced(net)
    if traced is None:
        return _HookedEnd(net, name, keep_skip, example)
    cut = _node(traced, name)
    needed = ancestors([traced.output], stop=cut)
    if traced.images in needed and not keep_skip:
        raise CannotCut(
            f"Layer {name!r} of {type(net).__name__} does not separate its input from its output: part of the network "
            f"bypasses it. {suggest(name, _separating(traced), 'Layers where it can be cut')}. To keep the bypass "
            "from the images, ask for keep_skip=True."
        )
    graph, copies = fx.Graph(), {}
    copies[cut] = activations = graph.placeholder("activations")
    if keep_skip:
        copies[traced.images] = graph.placeholder("images")
    if traced.is_overwritten(cut, needed):
        copies[cut] = graph.call_method("clone", (activations,))
    for node in traced.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return _module(net, graph, f"End of {type(net).__name__}")


def cuttable_layers(net: nn.Module) -> list[str]:
    """The layers, in the order of the forward pass, that separate the network's input from its output.

    The last one, whose output is the network's own, is left out. Raises CannotCut for a network that `torch.fx` cannot
    trace, where this cannot be known beforehand.
    """
    traced = _traced(net)
    if traced is None:
        raise CannotCut(f"{type(net).__name__} cannot be traced, so its separating layers are not known; name a layer.")
    return _separating(traced)


def _separating(traced: Traced) -> list[str]:
    (output,) = traced.output.all_input_nodes if len(traced.output.all_input_nodes) == 1 else (None,)
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    names = [
        name
        for name, node in traced.nodes.items()
        if name and node is not output and traced.images not in ancestors([traced.output], stop=node)
        and traced.images in ancestors([node])
    ]  # fmt: skip
    return sorted(names, key=lambda name: order[traced.nodes[name]])


def _traced(net: nn.Module) -> Traced | None:
    try:
        return trace(net)
    except Exception:  # foreign code: whatever it raises, hooks do the same work without the graph
        return None


def _node(traced: Traced, name: str) -> fx.Node:
    if name in traced.nodes:
        return traced.nodes[name]
    inside = next((outer for outer in traced.opaque if name.startswith(outer + ".")), None)
    why = f"it lies inside {inside!r}, which cannot be traced ({traced.opaque[inside]})" if inside else (
        "the forward pass never calls it, it returns no tensor, or it lies inside a module of torch.nn"
    )  # fmt: skip
    known = [n for n in layer_names(traced.net) if n in traced.nodes]
    raise CannotCut(f"{type(traced.net).__name__} cannot be cut at {name!r}: {why}. {suggest(name, known, 'Possible')}")


def _module(net: nn.Module, graph: fx.Graph, title: str) -> fx.GraphModule:
    module = fx.GraphModule(net, graph, class_name=title.replace(" ", ""))
    module.training = net.training
    return module


class _HookedFront(nn.Module):
    """`front` for a network that cannot be traced: the whole network runs, and the layers are recorded."""

    def __init__(self, net: nn.Module, names: list[str], single: bool):
        super().__init__()
        self.net, self.names, self.single = net, names, single

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        with record(self.net, self.names, clone=True, detach=False) as activations:
            self.net(images)
        return activations[self.names[0]] if self.single else {name: activations[name] for name in self.names}


class _HookedEnd(nn.Module):
    """`end` for a network that cannot be traced: the whole network runs, and the layer's output is replaced."""

    def __init__(self, net: nn.Module, name: str, keep_skip: bool, example: Tensor | None):
        super().__init__()
        self.net, self.name, self.keep_skip = net, name, keep_skip
        if keep_skip:
            return
        if example is None:
            raise BadValue(
                f"{type(net).__name__} cannot be traced, so its end at {name!r} runs the whole network with the "
                "layer's output replaced; give example=images (one or more) for it to run on."
            )
        self.register_buffer("example", example[:1].clone(), persistent=False)
        self._refuse_bypass()

    def forward(self, activations: Tensor, images: Tensor | None = None) -> Tensor:
        if images is None:
            images = self.example.expand(len(activations), *self.example.shape[1:])
        hook = self.net.get_submodule(self.name).register_forward_hook(lambda *_: activations.clone())
        try:
            return self.net(images)
        finally:
            hook.remove()

    @torch.no_grad()
    def _refuse_bypass(self) -> None:
        """Two different images with the same activations must give the same output."""
        activations = _HookedFront(self.net, [self.name], single=True)(self.example)
        other = self.example.flip(-1) * 0.5 + 1.0
        if not torch.equal(self(activations), self(activations, other)):
            raise CannotCut(
                f"Layer {self.name!r} of {type(self.net).__name__} does not separate its input from its output: part "
                "of the network bypasses it. To keep the bypass from the images, ask for keep_skip=True."
            )
