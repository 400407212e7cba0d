"""Look at activations while a network runs, without leaving a trace in it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from reptrans.errors import InPlaceChange
from reptrans.layers.network import located, never_called, watching
from reptrans.layers.values import chosen


class Activations(dict):
    """A dict from layer name to tensor that refuses to hand out a value which was overwritten since, or never came."""

    def __init__(self, net: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.net, self.names, self.ran = net, names, False
        self.versions: dict[str, int] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self and name in self.names and self.ran:
            raise never_called(self.net, name)
        value = super().__getitem__(name)
        if name in self.versions and value._version != self.versions[name]:
            raise InPlaceChange(
                f"The output of layer {name!r} was overwritten by a later in-place operation (a ReLU with "
                "inplace=True, say), so the recorded tensor no longer holds it. Use record(..., clone=True) for a "
                "copy, or front(net, name), which stops at the layer."
            )
        return value


@contextmanager
def record(
    net: nn.Module, names: str | Iterable[str], *, clone: bool = False, detach: bool = True
) -> Iterator[Activations]:
    """Inside the block, every forward pass of `net` stores the outputs of the named layers.

    Arguments: `names`, one name or several, as `named_modules` gives them; `clone` stores copies (needed where a
    later operation works in place, and under `torch.inference_mode`, where overwriting cannot be detected);
    `detach=False` keeps the tensors in the autograd graph, for use in a loss.
    Gives a dict from name to tensor; a module called more than once in a pass stands for its last call.
    Of a layer that returns several values the first tensor is stored, or the one that the name chooses, `layer:1`. A
    compiled network runs as it is without compiling, whose code knows no hooks.
    On leaving the block, also by an error, the hooks are gone; mode, parameters and random state are never touched.
    Raises LayerNotFound; BadValue where a layer returns no tensor, or where the network ran and never called it;
    InPlaceChange when the block ends or a value is read, if an in-place operation has overwritten a stored tensor.
    """
    inner, places = located(net, [names] if isinstance(names, str) else list(names))
    activations = Activations(inner, places)

    def see(name: str, output: object) -> None:
        value = chosen(output, places[name][1], f"layer {name!r}")
        value = value.detach() if detach else value
        activations[name] = value = value.clone() if clone or value.is_inference() else value
        if not value.is_inference():
            activations.versions[name] = value._version

    def ran(name: str, output: object) -> None:
        activations.ran = True

    layers = {name: layer for name, (layer, _) in places.items()}
    with watching(inner, layers, see), watching(inner, [""], ran), _uncompiled(net):
        yield activations
    for name in places if activations.ran else list(activations):
        activations[name]  # is looked at


@contextmanager
def _uncompiled(net: nn.Module) -> Iterator[None]:
    compiled = [module for module in net.modules() if type(module).__name__ == "OptimizedModule"]
    usual = [module.forward for module in compiled]
    for module in compiled:
        module.forward = module._orig_mod.__call__
    try:
        yield
    finally:
        for module, forward in zip(compiled, usual, strict=True):
            module.forward = forward
