"""What the three categories share: a new network, frozen old ones, and an objective that `fit` can minimise."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.training import accuracy, classification_loss, evaluating
from reptrans.training.batches import answers_of, checked_network


class Beside(nn.Module):
    """Old networks, taken over: eval mode at every use whatever was called before, no gradients for their parameters.

    `settings`, JSON data, tell one objective from another.
    """

    def __init__(self, olds: Sequence[nn.Module], settings: dict):
        super().__init__()
        olds = [olds] if isinstance(olds, nn.Module | str) else olds
        # In tuples here and below: not submodules, so that mode, state and parameters of networks stay their own.
        self._olds = tuple(checked_network(old).eval().requires_grad_(False) for old in olds)
        self.settings = {"kind": type(self).__name__.lower()} | settings
        if not self._olds:
            raise BadValue("olds is empty: a condition needs one trained network at least. The first is trained alone.")

    @property
    def olds(self) -> tuple[nn.Module, ...]:
        """The old networks, in eval mode."""
        for old in self._olds:
            old.eval()
        return self._olds


class Condition(Beside):
    """The objective of a new network beside old ones: `condition(batch, progress) -> (terms, figures)`.

    `fit(condition, condition.modules_to_train(), loader, plan)` trains the new network and what the condition has of
    its own (approximators, say). The new network keeps its own mode: `eval()` is honoured.
    Raises BadValue, ShapeMismatch.
    """

    def __init__(self, new: nn.Module, olds: Sequence[nn.Module], example: Tensor, settings: dict):
        super().__init__(olds, settings)
        self._new = (checked_network(new),)
        if any(old is new for old in self._olds):
            raise BadValue("the new network is one of the old ones. Build another for it.")
        with evaluating(new), torch.no_grad():
            shapes = [tuple(answers_of(net, example).shape) for net in (new, *self.olds)]
        if len(set(shapes)) > 1:
            raise ShapeMismatch(
                f"the new network's output is {shapes[0]}, the old ones' {', '.join(map(str, shapes[1:]))}. All must "
                "tell the same classes apart."
            )

    @property
    def new(self) -> nn.Module:
        return self._new[0]

    def modules_to_train(self) -> dict[str, nn.Module]:
        """What `fit` takes as its modules."""
        return {"new": self.new, "condition": self}

    def predictor(self) -> nn.Module:
        """images -> logits of what was trained."""
        return self.new


def labelled(logits: Tensor, labels: Tensor, weight: float = 1.0) -> tuple[dict, dict]:
    """The term and the figure that every condition has: weighted cross-entropy (nats), and accuracy."""
    return {"cross_entropy": weight * classification_loss(logits, labels)}, {"accuracy": accuracy(logits, labels)}


def check_numbers(least: float = 0.0, **values: float) -> None:
    """BadValue for the first that is no finite number from `least` on."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
            raise BadValue(f"{name} is {value!r}; it must be a number from {least:g} on.")


def reverse_gradient(x: Tensor, factor: float = 1.0) -> Tensor:
    """x itself, whose gradient comes back times -factor (Ganin and Lempitsky 2015)."""
    same = x.view_as(x)
    if same.requires_grad:
        same.register_hook(lambda gradient: -factor * gradient)
    return same
