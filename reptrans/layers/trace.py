"""A network as a graph of operations in which every layer name points to the value that the layer returns.

`torch.fx` runs the network's own code once with stand-ins for tensors. Two things are added to it: the node of every
named layer is kept, containers and blocks included, and a submodule whose code cannot be traced (it branches on
values, say) becomes one opaque node instead of spoiling the whole graph.
"""

import inspect
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import fx, nn

from reptrans.errors import LayerNotFound, suggest

_WRITING_OPERATORS = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.ipow,
    operator.iand, operator.ior, operator.ixor, operator.imod, operator.imatmul,
}  # fmt: skip
# Modules that always return memory of their own: an in-place operation behind one cannot reach what lies before it.
_FRESH = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm,
    nn.MaxPool2d, nn.AvgPool2d, nn.LocalResponseNorm, nn.MultiheadAttention,
)  # fmt: skip


@dataclass
class Traced:
    """The graph of one network, with the node that each layer name stands for."""

    net: nn.Module
    graph: fx.Graph
    nodes: dict[str, fx.Node]
    opaque: dict[str, str] = field(default_factory=dict)

    @property
    def images(self) -> fx.Node:
        return next(iter(self.graph.nodes))

    @property
    def output(self) -> fx.Node:
        return next(iter(reversed(self.graph.nodes)))

    def writes_to(self, node: fx.Node) -> fx.Node | None:
        """The node whose memory `node` overwrites, or None."""
        if node.op == "call_module":
            writes = getattr(self.net.get_submodule(node.target), "inplace", False)
        elif node.op == "call_method":
            writes = node.target.endswith("_") and not node.target.endswith("__")
        elif node.op == "call_function":
            writes = node.target in _WRITING_OPERATORS or _asks_in_place(node)
        else:
            writes = False
        first = node.args[0] if node.args else node.kwargs.get("input")
        return first if writes and isinstance(first, fx.Node) else None

    def is_overwritten(self, node: fx.Node, within: set[fx.Node]) -> bool:
        """Whether an operation in `within` may overwrite the memory of `node`, directly or through a view of it."""
        seen, reached = set(), [node]
        while reached:
            for user in reached.pop().users:
                if user not in within or user in seen:
                    continue
                if self.writes_to(user) is not None:
                    return True
                seen.add(user)
                if not self._is_fresh(user):
                    reached.append(user)
        return False

    def _is_fresh(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.net.get_submodule(node.target), _FRESH)


def _asks_in_place(node: fx.Node) -> bool:
    """`relu(x, inplace=True)`, `relu(x, True)` and `relu_(x)`."""
    if node.kwargs.get("inplace"):
        return True
    name = getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return True
    try:
        signature = inspect.signature(node.target)
    except (TypeError, ValueError):  # built-in functions tell no signature; those in place are caught by their name
        return False
    position = list(signature.parameters).index("inplace") if "inplace" in signature.parameters else None
    return position is not None and len(node.args) > position and node.args[position] is True


class _Tracer(fx.Tracer):
    def __init__(self):
        super().__init__()
        self.returned: dict[str, fx.Node] = {}
        self.opaque: dict[str, str] = {}

    def create_args_for_root(self, root_fn, is_module, concrete_args=None):
        # One input, the images; every other argument of `forward` keeps its default value.
        return root_fn, [self.root, self.create_proxy("placeholder", "images", (), {})]

    def call_module(self, m, forward, args, kwargs):
        name, last = self.path_of_module(m), next(iter(reversed(self.graph.nodes)))
        try:
            returned = super().call_module(m, forward, args, kwargs)
        except Exception as error:  # any failure of foreign code: the module stays one opaque node, with the reason
            self._forget_after(last)
            self.opaque[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            returned = self.create_proxy("call_module", name, args, kwargs)
        if isinstance(returned, fx.Proxy):
            self.returned[name] = returned.node
        return returned

    def _forget_after(self, last: fx.Node) -> None:
        for node in reversed(self.graph.nodes):
            if node is last:
                return
            self.graph.erase_node(node)
            self.returned = {name: kept for name, kept in self.returned.items() if kept is not node}


def trace(net: nn.Module) -> Traced:
    """The graph of `net` in the mode (train or eval) that it is in; raises what `torch.fx` raises if `forward` itself
    cannot be traced."""
    tracer = _Tracer()
    graph = tracer.trace(net)
    traced = Traced(net, graph, tracer.returned, tracer.opaque)
    _let_readers_follow_writers(traced)
    return traced


def _let_readers_follow_writers(traced: Traced) -> None:
    """After an in-place operation, readers of the old name read the operation's result (the same memory).

    Then the order of operations is in the graph's edges alone, and a slice of the graph computes what the whole did.
    """
    position = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        overwritten = traced.writes_to(node)
        if overwritten is None:
            continue
        for user in list(overwritten.users):
            if position[user] > position[node]:
                user.replace_input_with(overwritten, node)


def ancestors(nodes: list[fx.Node], stop: fx.Node | None = None) -> set[fx.Node]:
    """All nodes that `nodes` depend on, themselves included, not looking beyond `stop`."""
    needed, reached = set(), list(nodes)
    while reached:
        node = reached.pop()
        if node in needed or node is stop:
            continue
        needed.add(node)
        reached.extend(node.all_input_nodes)
    return needed


def layer_names(net: nn.Module) -> list[str]:
    """All names that `named_modules` gives, without the network itself."""
    return [name for name, _ in net.named_modules() if name]


def check_layers(net: nn.Module, names: list[str]) -> None:
    """Raise LayerNotFound for the first name that `net` does not have."""
    known = layer_names(net)
    for name in names:
        if name not in known:
            raise LayerNotFound(
                f"{type(net).__name__} has no layer {name!r}. {suggest(name, _short(name, known), 'Its layers')}"
            )


def _short(name: str, known: list[str], most: int = 60) -> Iterator[str] | list[str]:
    """A readable part of a long list: the outermost names and those that begin alike."""
    if len(known) <= most:
        return known
    stem = str(name).split(".")[0]
    return [k for k in known if "." not in k or k.split(".")[0] == stem][:most] + ["…"]
