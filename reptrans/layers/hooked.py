"""`front` and `end` by hooks: the whole network runs, and a layer's value is taken from it, or put in its place.

For networks and layers that no graph reaches, and for inputs of several parts: the same values, later.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from reptrans.errors import BadValue, CannotCut
from reptrans.layers.network import each, first_examples, leaving_no_trace, located, run, unwrap, watching
from reptrans.layers.record import record
from reptrans.layers.values import replaced, tensors_in

# By network: the layers of which a whole pass, in eval mode, has shown that they are called just once.
_ONCE: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


class _Reached(BaseException):
    """Raised by a hook: all that was wanted is there. No Exception, which a network's own code might catch."""


class HookedFront(nn.Module):
    """Input -> the value of one layer, or {name: value} of several.

    In eval mode the network stops at the last of them, once a whole pass has shown that each is called just once.
    """

    def __init__(self, net: nn.Module, names: list[str], single: bool):
        super().__init__()
        self.net, self.names, self.single = net, names, single
        self.layers = {layer for layer, _ in located(net, names)[1].values()}

    def forward(self, inputs: object) -> Tensor | dict[str, Tensor]:
        calls: Counter[str] = Counter()
        may_stop = not self.net.training and self.layers <= _ONCE.setdefault(self.net, set())

        def see(layer: str, output: object) -> None:
            calls[layer] += 1
            if may_stop and len(calls) == len(self.layers):
                raise _Reached

        with record(self.net, self.names, clone=True, detach=False) as activations:
            with suppress(_Reached), watching(unwrap(self.net), self.layers, see):
                run(self.net, inputs)
                if not self.net.training:
                    _ONCE[self.net] |= {layer for layer, count in calls.items() if count == 1}
        return activations[self.names[0]] if self.single else {name: activations[name] for name in self.names}


class HookedEnd(nn.Module):
    """Activations -> output, or (activations, input) -> output; `example` stands for the input where none is given.

    A mask of the input, which says what is padding, is no data: it may reach what follows the layer, and must be given.
    """

    def __init__(self, net: nn.Module, name: str, keep_skip: bool, example: object = None):
        super().__init__()
        self.net, places = located(net, [name])
        self.name, (self.layer, self.part) = name, places[name]
        self.example, self.calls = example, None
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
        if self.calls is None:
            self.calls = self._counted(first_examples(inputs, 2))
        seen = []

        def put(module, given, output):
            seen.append(None)
            # A layer that is called several times stands for its last call.
            return replaced(output, self.part, activations.clone()) if len(seen) == self.calls else None

        with self.net.get_submodule(self.layer).register_forward_hook(put):
            output = run(self.net, inputs)
        if len(seen) != self.calls:
            raise CannotCut(f"a pass calls {self.name!r} {len(seen)} times, another one {self.calls} times.")
        return output

    @torch.no_grad()
    def _counted(self, inputs: object) -> int:
        """How often a pass calls the layer."""
        if self.layer in _ONCE.get(self.net, ()):
            return 1
        seen = []
        with watching(self.net, [self.layer], lambda *_: seen.append(None)), leaving_no_trace(self.net):
            run(self.net, inputs)
        return len(seen)

    def _as_many(self, activations: Tensor) -> object:
        """The first example again and again: as many inputs as there are activations of."""
        if masks := list(_masks(self.example)):
            raise BadValue(
                f"what follows {self.name!r} needs {', '.join(masks)} to know what is padding. Give the input too: "
                "end(activations, inputs)."
            )
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
            changed = each(example, _changed)
            for inputs in (example, changed | _masks(example) if _masks(example) else changed):
                torch.set_rng_state(state)
                outputs.append([tensor for _, tensor in tensors_in(self(activations, inputs))])
        if not all(map(torch.equal, *outputs)):
            raise CannotCut(
                f"Layer {self.name!r} of {type(self.net).__name__} does not separate its input from its output: part "
                "of the network bypasses it. To keep the bypass from the images, ask for keep_skip=True."
            )


def _masks(inputs: object) -> dict[str, object]:
    """What of a network's keywords says which of the other inputs count: its masks."""
    named = inputs.items() if isinstance(inputs, Mapping) else ()
    return {name: value for name, value in named if "mask" in name and value is not None}


def _changed(tensor: Tensor) -> Tensor:
    """Another input of the same shape and kind: other values, or other numbers of tokens."""
    if tensor.is_floating_point():
        return tensor.flip(-1) * 0.5 + 1.0
    return (tensor.long() + 1).remainder(int(tensor.max()) + 1 or 1).to(tensor.dtype)
