"""Several students of one kind trained side by side, as one set of stacked weights: each as if it were alone.

Small networks spend their time between operations; of many at once each operation is one. What a student sees and
learns is its own: batches, labels, teachers, weights of losses; the optimiser works by elements, so that no student
knows of another.
"""

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from reptrans.data import Batch, Loader
from reptrans.distillation.losses import Losses


class Stacked:
    """Loaders in step: batches with images (s, b, ...), labels and index (s, b), for as long as the shortest."""

    def __init__(self, loaders: Sequence[Loader]):
        self.loaders, self.epoch = list(loaders), 0

    def __len__(self) -> int:
        return min(map(len, self.loaders))

    def __iter__(self) -> Iterator[Batch]:
        for loader in self.loaders:
            loader.epoch = self.epoch
        self.epoch += 1
        for batches in zip(*self.loaders, strict=False):
            yield Batch(*(torch.stack(values) for values in zip(*batches, strict=True)))


class Together(nn.Module):
    """The losses of several students as one objective over Stacked batches; terms are named `term@k`, k the student's.

    `moves`: the stacked parameters that are trained. After training, and before anybody looks at a student, `hand_back`
    copies its weights into it.
    """

    def __init__(self, members: Sequence[Losses]):
        super().__init__()
        self._alone = [_Terms(losses) for losses in members]  # in a list, so that they are no modules of this one
        values, buffers = stack_module_state(self._alone)
        self.names, self.values = list(values), nn.ParameterList(values.values())
        self.buffer_names = list(buffers)
        for number, buffer in enumerate(buffers.values()):
            self.register_buffer(f"buffer{number}", buffer)
        first = dict(self._alone[0].named_parameters())
        self.moves = [v for name, v in zip(self.names, self.values, strict=True) if first[name] in members[0].moves]
        factors = [losses.factor for losses in members]
        self.register_buffer("factors", torch.tensor(factors, dtype=torch.float64), persistent=False)

    def train(self, mode: bool = True) -> "Together":
        self._alone[0].train(mode)
        return super().train(mode)

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        members = [alone.losses for alone in self._alone]
        each = [Batch(*values) for values in zip(*batch, strict=True)]
        pairs = list(zip(members, each, strict=True))
        taught = [losses.taught(own) for losses, own in pairs]
        stacked = {
            who: {tap: torch.stack([one[who][tap] for one in taught]) for tap in first}
            for who, first in taught[0].items()
        }
        labels, counted = zip(*(losses.known(own) for losses, own in pairs), strict=True)
        counted = None if counted[0] is None else torch.stack(counted)
        state = [dict(zip(self.names, self.values, strict=True)), dict(self._own_buffers())]

        def alone(values, buffers, images, labels, counted, taught, factor):
            given = (images, labels, counted, taught, factor, progress)
            return functional_call(self._alone[0], (values, buffers), given)

        at = (0, 0, 0, 0, None if counted is None else 0, 0, 0)
        factors = self.factors.to(self.values[0].dtype)
        with warnings.catch_warnings():
            # Some backward passes, such as that of adaptive pooling, are done one by one, and torch says so each time.
            warnings.filterwarnings("ignore", "There is a performance drop")
            terms, figures = vmap(alone, at, randomness="different")(
                *state, batch.images, torch.stack(labels), counted, stacked, factors
            )
        return _named(terms), _named(figures)

    def hand_back(self) -> None:
        """Copy all weights and buffers into the students and their connectors."""
        with torch.no_grad():
            for k, alone in enumerate(self._alone):
                own = dict(alone.named_parameters()) | dict(alone.named_buffers())
                for name, stacked in (*zip(self.names, self.values, strict=True), *self._own_buffers()):
                    own[name].copy_(stacked[k])

    def _own_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, getattr(self, f"buffer{number}")) for number, name in enumerate(self.buffer_names))


class _Terms(nn.Module):
    """A student's losses, called for their terms."""

    def __init__(self, losses: Losses):
        super().__init__()
        self.losses = losses

    def forward(self, *given) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self.losses.terms(*given)


def _named(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}@{k}": one for name, values in found.items() for k, one in enumerate(values.unbind())}
