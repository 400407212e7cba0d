"""Look at activations while a network runs, without leaving a trace in it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from reptrans.errors import InPlaceChange
from reptrans.layers.network import located, never_called
from reptrans.layers.values import chosen


class Activations(dict):
    """A dict from layer name to tensor that refuses to hand out a value which was overwritten since, or never came."""

    def __init__(self, net: nn.Module, places: dict[str, tuple[str, str]]) -> None:
        super().__init__()
        self._net, self._places, self._ran = net, places, False
        self._versions: dict[str, int] = {}

    def _store(self, name: str, value: Tensor) -> None:
        self[name] = value
        if not value.is_inference():
            self._versions[name] = value._version

    def _check(self, name: str) -> None:
        value = super().__getitem__(name)
        if name in self._versions and value._version != self._versions[name]:
            raise InPlaceChange(
                f"The output of layer {name!r} was overwritten by a later in-place operation (a ReLU with "
                "inplace=True, say), so the recorded tensor no longer holds it. Use record(..., clone=True) for a "
                "copy, or front(net, name), which stops at the layer."
            )

    def _check_all(self) -> None:
        for name in self._places:
            if name in self or self._ran:
                self[name]

    def __getitem__(self, name: str) -> Tensor:
        if name in self:
            self._check(name)
        elif name in self._places and self._ran:
            raise never_called(self._net, name)
        return super().__getitem__(name)


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

    def store_as(name: str, part: str):
        def hook(module, inputs, output):
            value = chosen(output, part, f"layer {name!r}")
            value = value.detach() if detach else value
            activations._store(name, value.clone() if clone or value.is_inference() else value)

        return hook

    hooks = [inner.get_submodule(layer).register_forward_hook(store_as(name, part))
             for name, (layer, part) in places.items()]  # fmt: skip
    hooks.append(inner.register_forward_hook(lambda *_: setattr(activations, "_ran", True)))
    try:
        with _uncompiled(net):
            yield activations
    finally:
        for hook in hooks:
            hook.remove()
    activations._check_all()


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
