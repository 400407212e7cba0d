"""A network as a graph of operations in which every layer name points to the value that the layer returns.

`torch.fx` runs the network's own code once with stand-ins for tensors. Three things are added to it: the node of every
named layer is kept, containers and blocks included; a submodule whose code cannot be traced (it branches on values,
say) becomes one opaque node instead of spoiling the whole graph; and what writes into memory is a node too.
"""

import inspect
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, fx, nn

from reptrans.errors import CannotCut, LayerNotFound, suggest
from reptrans.layers.values import tensors_in
from reptrans.randomness import random_states_kept

_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "iand", "ior", "ixor", "imod", "imatmul")
_WRITING_OPERATORS = {getattr(operator, name) for name in _IN_PLACE} | {operator.setitem}
# Modules that always return memory of their own: an in-place operation behind one cannot reach what lies before it.
_FRESH = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm,
    nn.MaxPool2d, nn.AvgPool2d, nn.LocalResponseNorm, nn.MultiheadAttention, nn.modules.rnn.RNNBase, nn.Embedding,
)  # fmt: skip
# Methods, functions and attributes of tensors that may return a view of their input, or the input itself.
_VIEWS = frozenset(
    """T H mT mH as_strided chunk contiguous data detach diagonal double dropout dropout1d dropout2d dropout3d dsplit
    expand expand_as flatten float getattr getitem half hsplit imag movedim moveaxis narrow permute pixel_shuffle ravel
    real requires_grad_ reshape reshape_as rrelu select split squeeze swapaxes swapdims t tensor_split to transpose
    type type_as unbind unflatten unfold unsqueeze view view_as view_as_complex view_as_real vsplit
    alpha_dropout feature_alpha_dropout bfloat16 cpu cuda broadcast_to broadcast_tensors atleast_1d atleast_2d
    atleast_3d meshgrid positive resolve_conj resolve_neg stochastic_depth""".split()
)
_HOLDERS = (dict, list, set)
# What is asked of a tensor and is none of its values.
_QUERIES = frozenset("size shape dim ndim ndimension device dtype layout numel nelement is_cuda get_device len".split())


@dataclass(frozen=True)
class Returned:
    """What a layer returned: the node of each part, "" for a single one, and the last node before it returned."""

    parts: dict[str, fx.Node]
    last: fx.Node


@dataclass
class Traced:
    """The graph of one network, with the node that each layer name stands for.

    `constants`: tensors that the network's code makes or holds, and that are no attribute of it; the graph names them.
    """

    net: nn.Module
    graph: fx.Graph
    returned: dict[str, "Returned"]
    opaque: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """The node of each layer that returned one value, or of the first of several."""
        return {name: next(iter(returned.parts.values())) for name, returned in self.returned.items()}

    @property
    def images(self) -> fx.Node:
        return next(iter(self.graph.nodes))

    @property
    def output(self) -> fx.Node:
        return next(iter(reversed(self.graph.nodes)))

    @cached_property
    def position(self) -> dict[fx.Node, int]:
        return {node: index for index, node in enumerate(self.graph.nodes)}

    def writes_to(self, node: fx.Node) -> fx.Node | None:
        """The node whose memory `node` overwrites, or None."""
        if node.op == "call_module":
            writes = node.target in self.opaque or getattr(self.net.get_submodule(node.target), "inplace", False)
        elif node.op == "call_method":
            writes = _is_in_place(node.target)
        elif node.op == "call_function":
            if isinstance(out := node.kwargs.get("out"), fx.Node):
                return out
            writes = node.target in _WRITING_OPERATORS or _asks_in_place(node)
        else:
            writes = False
        first = node.args[0] if node.args else node.kwargs.get("input")
        return first if writes and isinstance(first, fx.Node) else None

    def is_query(self, node: fx.Node) -> bool:
        """Whether the node asks for a tensor's size, type or place, which are none of its values."""
        if node.op == "call_function":
            kind = node.args[1] if node.target is getattr else getattr(node.target, "__name__", "")
        else:
            kind = node.target if node.op == "call_method" else ""
        return kind in _QUERIES and len(node.all_input_nodes) == 1

    @cached_property
    def memory(self) -> dict[fx.Node, fx.Node]:
        """For each node one that stands for all nodes whose values may share its memory."""
        stands: dict[fx.Node, fx.Node] = {}

        def of(node: fx.Node) -> fx.Node:
            while stands.setdefault(node, node) is not node:
                node = stands[node]
            return node

        for node in self.graph.nodes:
            for other in self._may_be_views_of(node):
                stands[of(node)] = of(other)
        return {node: of(node) for node in self.graph.nodes}

    def _may_be_views_of(self, node: fx.Node) -> Iterable[fx.Node]:
        if (written := self.writes_to(node)) is not None:
            yield written
        name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
        own = getattr(node.target, "__module__", None) or ""
        if node.op == "call_module":
            module = self.net.get_submodule(node.target)
            views = not isinstance(module, _FRESH)
        elif node.op == "call_function":
            views = name in _VIEWS or not own.startswith(("torch", "_operator", "math"))
        else:
            views = node.op == "call_method" and name in _VIEWS
        if views and not self.is_query(node):
            yield from node.all_input_nodes

    @cached_property
    def writes(self) -> dict[fx.Node, list[fx.Node]]:
        """The writing nodes, in order, by the memory that they write to."""
        found = defaultdict(list)
        for node in self.graph.nodes:
            if (written := self.writes_to(node)) is not None:
                found[self.memory[written]].append(node)
        return found

    def last_write(self, node: fx.Node, before: int) -> fx.Node | None:
        """The last node that wrote into the memory of `node` before a position."""
        earlier = [w for w in self.writes.get(self.memory[node], ()) if self.position[w] < before]
        return earlier[-1] if earlier else None

    def needed(
        self, outputs: Iterable[fx.Node], cut: fx.Node | None = None, since: int = -1, data: bool = False
    ) -> set[fx.Node]:
        """All nodes that `outputs` depend on, themselves included, also by what was written into their memory before.

        With `cut` its value at the position `since` is given: nodes before it are not looked for, and what was written
        into its memory earlier is part of the value. With `data` only values count: queries do not depend on what they
        are asked of.
        """
        after = self._behind(cut) if cut is not None else set()
        found, reached = set(), list(outputs)
        while reached:
            node = reached.pop()
            if node in found or node is cut:
                continue
            found.add(node)
            if not (data and self.is_query(node)):
                reached += node.all_input_nodes
                for read in node.all_input_nodes:
                    write = self.last_write(read, self.position[node])
                    if write is not None and not (read in after and self.position[write] <= since):
                        reached.append(write)
        return found

    def _behind(self, cut: fx.Node) -> set[fx.Node]:
        """`cut` and all that is computed from it; the graph has every node after what it reads."""
        found = {cut}
        for node in self.graph.nodes:
            if not found.isdisjoint(node.all_input_nodes):
                found.add(node)
        return found

    def is_overwritten(self, node: fx.Node, within: set[fx.Node], since: int) -> bool:
        """Whether an operation in `within`, after the position `since`, may write to memory that `node` shares."""
        return any(w in within and self.position[w] > since for w in self.writes.get(self.memory[node], ()))


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"


def _asks_in_place(node: fx.Node) -> bool:
    """`relu(x, inplace=True)`, `relu(x, True)` and `relu_(x)`."""
    if node.kwargs.get("inplace") or _is_in_place(getattr(node.target, "__name__", "")):
        return True
    try:
        names = list(inspect.signature(node.target).parameters)
    except (TypeError, ValueError):  # built-in functions tell no signature; those in place are caught by their name
        return False
    return dict(zip(names, node.args, strict=False)).get("inplace") is True


class _Proxy(fx.Proxy):
    """A stand-in for which `+=` and `x[i] = y` write, as they do for tensors; fx would make a sum of the one."""

    def __setitem__(self, key, value):
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})


def _writing(function):
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in _IN_PLACE:
    setattr(_Proxy, f"__{_name}__", _writing(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    def __init__(self):
        super().__init__()
        self.returned: dict[str, Returned] = {}
        self.opaque: dict[str, str] = {}

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

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
        if parts := {path: proxy.node for path, proxy in tensors_in(returned, fx.Proxy)}:
            self.returned[name] = Returned(parts, next(iter(reversed(self.graph.nodes))))
        return returned

    def _forget_after(self, last: fx.Node) -> None:
        for node in reversed(self.graph.nodes):
            if node is last:
                return
            self.graph.erase_node(node)
            self.returned = {name: r for name, r in self.returned.items() if node not in (r.last, *r.parts.values())}


def trace(net: nn.Module) -> Traced:
    """The graph of `net` in the mode (train or eval) that it is in; raises what `torch.fx` raises if `forward` itself
    cannot be traced, and CannotCut if it draws random numbers of its own, for a graph would hold one draw forever."""
    tracer = _Tracer()
    with _python_state_kept(net) as added, _len_of_proxies(net), random_states_kept() as drawn:
        graph = tracer.trace(net)
        if drawn():
            raise CannotCut(f"the forward pass of {type(net).__name__} draws random numbers, which no graph would do.")
    constants = {name: value for name, value in added.items() if isinstance(value, Tensor)}
    traced = Traced(net, graph, tracer.returned, tracer.opaque, constants)
    _let_readers_follow_writers(traced)
    return traced


@contextmanager
def _python_state_kept(net: nn.Module) -> Iterator[dict[str, object]]:
    """What the network's code stores within (a cache, a last value) is a stand-in for tensors, and is taken back.

    Gives a dict that in the end holds the attributes that were added to the network itself.
    """
    added, own = {}, set(vars(net))
    kept = [(holder, next(kind for kind in _HOLDERS if isinstance(holder, kind))(holder)) for holder in _holders(net)]
    try:
        yield added
    finally:
        added |= {name: value for name, value in vars(net).items() if name not in own}
        for holder, before in kept:
            if isinstance(holder, list):
                holder[:] = before
            else:
                holder.clear()
                holder.update(before)


def _holders(net: nn.Module) -> Iterator[dict | list | set]:
    """The attributes of all modules and of other objects of their packages, and the lists, dicts and sets in them."""
    packages = {type(module).__module__.partition(".")[0] for module in net.modules()} - {"torch"}
    reached, seen = [vars(module) for module in net.modules()], set()
    while reached:
        holder = reached.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        yield holder
        for value in holder.values() if isinstance(holder, dict) else holder:
            own = type(value).__module__.partition(".")[0] in packages and not isinstance(value, (nn.Module, Tensor))
            if isinstance(value, _HOLDERS):
                reached.append(value)
            elif own and type(getattr(value, "__dict__", None)) is dict:
                reached.append(vars(value))


@contextmanager
def _len_of_proxies(net: nn.Module) -> Iterator[None]:
    """Within, the networks' own code may ask for `len(x)` of a stand-in, for which Python wants a number at once."""

    def length(of):
        proxied = isinstance(of, fx.Proxy)
        return of.tracer.create_proxy("call_function", len, (of,), {}) if proxied else len(of)

    spaces = {id(f.__globals__): f.__globals__ for m in net.modules()
              if "len" not in getattr(f := type(m).forward, "__globals__", {"len"})}  # fmt: skip
    for space in spaces.values():
        space["len"] = length
    try:
        yield
    finally:
        for space in spaces.values():
            del space["len"]


def _let_readers_follow_writers(traced: Traced) -> None:
    """After an in-place operation, readers of the old name read the operation's result (the same memory)."""
    for node in traced.graph.nodes:
        overwritten = traced.writes_to(node)
        if overwritten is None or node.target is operator.setitem or node.target in traced.opaque:
            continue  # what these return is not the memory that they write to
        for user in list(overwritten.users):
            if traced.position[user] > traced.position[node]:
                user.replace_input_with(overwritten, node)


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
    """A readable part of a long list: the outermost names and those that begin the same way."""
    if len(known) <= most:
        return known
    stem = str(name).split(".")[0]
    return [k for k in known if "." not in k or k.split(".")[0] == stem][:most] + ["…"]
