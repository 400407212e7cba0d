"""The named scalars of a training: their sum is minimised, their means over an epoch become its row."""

import math

import torch
from torch import Tensor

from reptrans.errors import BadValue, Diverged
from reptrans.training.evaluation import wide

Scalars = dict[str, Tensor | float]

_STEPS_BETWEEN_LOOKS = 50
_OWN_COLUMNS = ("epoch", "step", "lr")


def total_of(terms: Scalars, figures: Scalars) -> Tensor:
    """The sum of the terms; BadValue for what is no scalar, has two meanings, or moves no parameter."""
    for name, value in (terms | figures).items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise BadValue(f"{name} is a tensor {tuple(value.shape)}; a term or figure is a scalar. Take its mean.")
    if both := sorted(set(terms) & set(figures)):
        raise BadValue(f"{both[0]!r} is the name of a term and of a figure. Give each its own.")
    total = sum(terms.values())
    if not isinstance(total, Tensor) or not total.requires_grad:
        raise BadValue(
            f"no parameter can make the loss smaller: the terms ({', '.join(terms) or 'none'}) do not depend on any "
            "that requires a gradient."
        )
    return total.reshape(())


def row_of(own: dict, means: dict, found: dict) -> dict:
    """One epoch's row: its own columns, the means, and what was found at its end; BadValue if a name comes twice."""
    taken = [name for name in (*means, *found) if name in _OWN_COLUMNS or (name in means and name in found)]
    if taken:
        raise BadValue(f"{taken[0]!r} would stand twice in a row. Rename the term, figure or entry of every_epoch.")
    return own | means | found


class Sums:
    """Means over the images of one epoch, and the look-out for terms that are not finite.

    Values are fetched together, for every fetch stops a GPU: there every 50 steps, on the CPU at each.
    """

    def __init__(self, epochs: int, epoch: int, device: torch.device) -> None:
        self.epochs, self.epoch, self.device = epochs, epoch, device
        self.between_looks = 1 if device.type == "cpu" else _STEPS_BETWEEN_LOOKS
        self.waiting: list[tuple] = []
        self.totals: dict[str, float] = {}
        self.images: dict[str, int] = {}

    def add(self, terms: Scalars, figures: Scalars, images: int, step: int, lr: float) -> None:
        values = [torch.as_tensor(v, device=self.device).detach().reshape(()) for v in (terms | figures).values()]
        fetched = torch.stack([value.to(wide(self.device)) for value in values])
        self.waiting.append((list(terms), list(figures), fetched, images, step, lr))
        if len(self.waiting) >= self.between_looks:
            self.look()

    def look(self) -> None:
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        values = iter(torch.cat([fetched for _, _, fetched, *_ in waiting]).tolist())
        for terms, figures, _, images, step, lr in waiting:
            for name in (*terms, *figures):
                value = next(values)
                if name in terms and not math.isfinite(value):
                    raise self._diverged(name, value, step, lr)
                self.totals[name] = self.totals.get(name, 0.0) + value * images
                self.images[name] = self.images.get(name, 0) + images

    def means(self) -> dict[str, float]:
        self.look()
        return {name: total / self.images[name] for name, total in self.totals.items()}

    def _diverged(self, name: str, value: float, step: int, lr: float) -> Diverged:
        return Diverged(
            f"{name} became {value} in epoch {self.epoch} of {self.epochs}, at step {step}, learning rate {lr:.4g}. "
            "Lower lr, set clip, or look for values that are not finite in the images."
        )
