"""Look at activations while a network runs, without leaving a trace in it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from reptrans.errors import BadValue, InPlaceChange
from reptrans.layers.trace import check_layers


class Activations(dict):
    """A dict from layer name to tensor that refuses to hand out a value which was overwritten since."""

    def __init__(self) -> None:
        super().__init__()
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

    def __getitem__(self, name: str) -> Tensor:
        self._check(name)
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
    On leaving the block, also by an error, the hooks are gone; mode, parameters and random state are never touched.
    Raises LayerNotFound; BadValue where a layer returns something else than a tensor; InPlaceChange when the block
    ends or a value is read, if an in-place operation has overwritten a stored tensor.
    """
    names = [names] if isinstance(names, str) else list(names)
    check_layers(net, names)
    activations = Activations()

    def store_as(name: str):
        def hook(module, inputs, output):
            if not isinstance(output, Tensor):
                raise BadValue(f"Layer {name!r} returns {type(output).__name__}, not a tensor; name a layer inside it.")
            value = output.detach() if detach else output
            activations._store(name, value.clone() if clone or value.is_inference() else value)

        return hook

    hooks = [net.get_submodule(name).register_forward_hook(store_as(name)) for name in names]
    try:
        yield activations
    finally:
        for hook in hooks:
            hook.remove()
    for name in activations:
        activations._check(name)
