"""`front` and `end` by hooks: the whole network runs, and a layer's value is taken from it, or put in its place.

For networks and layers that no graph reaches, and for inputs of several parts: the same values, later.
"""

import torch
from torch import Tensor, nn

from reptrans.errors import BadValue, CannotCut
from reptrans.layers.network import each, first_examples, leaving_no_trace, located, run
from reptrans.layers.record import record
from reptrans.layers.values import replaced, tensors_in


class HookedFront(nn.Module):
    """Input -> the value of one layer, or {name: value} of several."""

    def __init__(self, net: nn.Module, names: list[str], single: bool):
        super().__init__()
        self.net, self.names, self.single = net, names, single

    def forward(self, inputs: object) -> Tensor | dict[str, Tensor]:
        with record(self.net, self.names, clone=True, detach=False) as activations:
            run(self.net, inputs)
        return activations[self.names[0]] if self.single else {name: activations[name] for name in self.names}


class HookedEnd(nn.Module):
    """Activations -> output, or (activations, input) -> output; `example` stands for the input where none is given."""

    def __init__(self, net: nn.Module, name: str, keep_skip: bool, example: object = None):
        super().__init__()
        self.net, places = located(net, [name])
        self.name, (self.layer, self.part) = name, places[name]
        self.example = example
        if keep_skip:
            return
        if example is None:
            raise BadValue(
                f"whether {name!r} separates input from output cannot be known from the graph of "
                f"{type(net).__name__}; give example=images, two of them."
            )
        self._refuse_bypass()

    def forward(self, activations: Tensor, inputs: object = None) -> object:
        if inputs is None:
            inputs = self._as_many(activations)

        def put(module, given, output):
            return replaced(output, self.part, activations.clone())

        hook = self.net.get_submodule(self.layer).register_forward_hook(put)
        try:
            return run(self.net, inputs)
        finally:
            hook.remove()

    def _as_many(self, activations: Tensor) -> object:
        """The first example again and again: as many inputs as there are activations of."""
        count = len(activations) * self._inputs // self._values
        return each(self.example, lambda t: t[:1].to(activations.device).expand(count, *t.shape[1:]))

    @torch.no_grad()
    def _refuse_bypass(self) -> None:
        """Two different inputs with the same activations must give the same output."""
        example = self.example = first_examples(self.example, 2)
        with leaving_no_trace(self.net):
            state = torch.get_rng_state()
            activations = HookedFront(self.net, [self.name], single=True)(example)
            self._inputs, self._values = len(next(tensors_in(example))[1]), len(activations)
            outputs = []
            for inputs in (example, each(example, _changed)):
                torch.set_rng_state(state)
                outputs.append([tensor for _, tensor in tensors_in(self(activations, inputs))])
        if not all(map(torch.equal, *outputs)):
            raise CannotCut(
                f"Layer {self.name!r} of {type(self.net).__name__} does not separate its input from its output: part "
                "of the network bypasses it. To keep the bypass from the images, ask for keep_skip=True."
            )


def _changed(tensor: Tensor) -> Tensor:
    """Another input of the same shape and kind: other values, or other numbers of tokens."""
    if tensor.is_floating_point():
        return tensor.flip(-1) * 0.5 + 1.0
    return (tensor.long() + 1).remainder(int(tensor.max()) + 1 or 1).to(tensor.dtype)
