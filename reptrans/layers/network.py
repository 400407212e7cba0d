"""What counts as a network, and how it is run: wrappers taken off, any kind of input, no trace left."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from reptrans.errors import BadValue, CannotCut
from reptrans.layers.trace import check_layers, layer_names
from reptrans.layers.values import tensors_in

_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
_PREFIXES = tuple(f"{name}." for name in _WRAPPERS.values())


def unwrap(net: nn.Module) -> nn.Module:
    """The network itself inside what torch.compile, DataParallel or DistributedDataParallel put around it.

    Raises BadValue for TorchScript, whose layers cannot be looked at, and for what is no network.
    """
    if isinstance(net, torch.jit.ScriptModule):
        raise BadValue(
            "the network is TorchScript, whose layers cannot be cut or looked at. Build it from its Python code, and "
            "load its weights: net.load_state_dict(scripted.state_dict())."
        )
    if not isinstance(net, nn.Module):
        given = repr(net) if isinstance(net, str) else f"a {type(net).__name__}"
        raise BadValue(f"a network is a torch.nn.Module, and {given} was given. Make one of a name with build(name).")
    inside = _WRAPPERS.get(type(net).__name__)
    return unwrap(getattr(net, inside)) if inside and hasattr(net, inside) else net


class _Called(nn.Module):
    """The layers, weights and mode of another network, and a forward of its own."""

    def __init__(self, net: nn.Module, how: Callable):
        vars(self).update(_net=net, _how=how)  # not as a layer, for all names would begin with it
        mode = net.training
        super().__init__()
        self._modules, self._parameters, self._buffers = net._modules, net._parameters, net._buffers
        self.training = mode

    @property
    def training(self) -> bool:
        return self._net.training

    @training.setter
    def training(self, mode: bool) -> None:
        self._net.training = mode

    def forward(self, *inputs: object, **named: object) -> object:
        return self._how(self._net, *inputs, **named)


def called(net: nn.Module, how: Callable) -> nn.Module:
    """`net` for all functions of this package, where it is not called as net(images) but as how(net, images).

        how = lambda net, images: net.get_image_features(pixel_values=images)
        compare(called(clip, how), other, loader)

    Its layers, under their names, its weights and its mode stay one and the same. Of a batch that is a mapping of
    keywords `how` gets these: how(net, left=…, right=…). Raises BadValue for what takes no network and no input.
    """
    net = unwrap(net)
    try:
        parameters = inspect.signature(how).parameters.values()
        fits = any(p.kind is p.VAR_KEYWORD for p in parameters) or len(parameters) > 1
    except ValueError:  # of some built-in functions nothing is known
        fits = True
    except TypeError:
        fits = False
    if not fits:
        raise BadValue(f"how is {how!r:.60}. Give a function of the network and its input: lambda net, images: …")
    return type(type(net).__name__, (_Called,), {})(net, how)


def located(net: nn.Module, names: Iterable[str]) -> tuple[nn.Module, dict[str, tuple[str, str]]]:
    """The unwrapped network, and (layer, part) for each name as it was given.

    A name is that of a layer, with or without the wrappers' prefix, and may choose a part of what the layer returns:
    `layer:1`, `layer:hidden_states.3`. Raises LayerNotFound.
    """
    inner, found = unwrap(net), {}
    known = set(layer_names(inner))
    for name in names:
        layer, part = name, ""
        if name not in known and ":" in str(name) and (split := name.rpartition(":"))[0]:
            layer, part = split[0], split[2]
        while layer not in known and str(layer).startswith(_PREFIXES):
            layer = layer.partition(".")[2]
        check_layers(inner, [layer])
        found[name] = layer, part
    return inner, found


def run(net: nn.Module, inputs: Tensor | tuple | list | Mapping) -> object:
    """`net` on a copy of its inputs: a tensor, several in a tuple or list, or keywords in a mapping; never compiled."""
    inputs = each(inputs, Tensor.clone)  # which the network may write to
    if isinstance(inputs, Mapping):
        return net._call_impl(**inputs)
    return net._call_impl(*inputs) if isinstance(inputs, (tuple, list)) else net._call_impl(inputs)


def first_examples(inputs: object, count: int) -> object:
    """The first `count` examples of a network's inputs, detached."""
    return each(inputs, lambda tensor: tensor.detach()[:count])


def each(inputs: object, change) -> object:
    """`change` of every tensor of a network's inputs."""
    if isinstance(inputs, Mapping):
        return {name: each(value, change) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return type(inputs)(each(value, change) for value in inputs)
    return change(inputs) if isinstance(inputs, Tensor) and inputs.ndim else inputs


def copy_of(net: nn.Module) -> nn.Module:
    """A copy that shares nothing with `net`.

    What a pass with gradients left in the network, its last activations or weights that a hook computes from others
    (pruning, the older weight_norm), is copied without its graph, which torch does not copy.
    """
    left = (tensor for module in net.modules() for _, tensor in tensors_in(vars(module)) if not tensor.is_leaf)
    return deepcopy(net, {id(tensor): tensor.detach().clone() for tensor in left})


@contextmanager
def leaving_no_trace(net: nn.Module) -> Iterator[None]:
    """Within, `net` may run in whatever mode it is in; its buffers and the random state are then as they were."""
    own = [(module, dict(module._buffers)) for module in net.modules()]  # in whose place `forward` may put others
    kept = [(buffer, buffer.clone()) for buffer in net.buffers()]
    devices = sorted({b.device for b in (*net.parameters(), *net.buffers()) if b.is_cuda}, key=str)
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for module, buffers in own:
                module._buffers.update(buffers)
            for buffer, before in kept:
                buffer.copy_(before)


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """All modules in eval mode inside, each of them in its own former mode afterwards."""
    with keeping_modes(*nets):
        for net in nets:
            net.eval()
        yield


@contextmanager
def keeping_modes(*nets: nn.Module) -> Iterator[None]:
    """Give every submodule its mode back at the end."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def watching(net: nn.Module, layers: Iterable[str], see: Callable[[str, object], object]) -> Iterator[None]:
    """Within, `see(name, output)` is called whenever one of the layers returns; a mapping says whose name is what."""
    with ExitStack() as hooks:
        for name, layer in (layers if isinstance(layers, Mapping) else {name: name for name in layers}).items():

            def hook(module: nn.Module, given: object, output: object, name: str = name) -> None:
                see(name, output)

            hooks.enter_context(net.get_submodule(layer).register_forward_hook(hook))
        yield


def never_called(net: nn.Module, layer: str) -> CannotCut:
    """The error for a layer that a forward pass never called."""
    return CannotCut(
        f"the forward pass of {type(net).__name__} never calls {layer!r}: it is a list of layers, a part for training "
        "alone, or computed by the layer around it. Name the layer around it, or one inside."
    )
