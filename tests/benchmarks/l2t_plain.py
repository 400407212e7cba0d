"""An outer step of L2T-ww the plain way, as the code of Jang et al. (2019) does it: what reptrans is measured against.

Every loss runs the source again and resizes every pair's maps again; every step copies all state, and the sweep puts
it back, recomputes the loss and goes back through the full graph, f and g included.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrans.layers import record


class PlainL2T:
    """Target, source, one regressor, f and g for each (source layer, target layer), and both optimisers."""

    def __init__(self, target: nn.Module, source: nn.Module, pairs: Sequence[tuple[str, str]], example: Tensor, **sgd):
        self.target, self.source, self.pairs, self.beta = target, source.eval(), list(pairs), 0.5
        with torch.no_grad():
            sources, targets = self._features(example)
        c = [(sources[s].shape[1], targets[t].shape[1]) for s, t in self.pairs]
        like = next(target.parameters())
        self.r = nn.ModuleList(nn.Conv2d(wide, narrow, 1) for narrow, wide in c).to(like.dtype)
        self.f = nn.ModuleList(nn.Linear(narrow, narrow) for narrow, _ in c).to(like.dtype)
        self.g = nn.ModuleList(nn.Linear(narrow, 1) for narrow, _ in c).to(like.dtype)
        for f, g in zip(self.f, self.g, strict=True):
            for tensor in (f.weight, f.bias):
                nn.init.zeros_(tensor)
            nn.init.ones_(g.bias)
        self.theta = [*target.parameters(), *self.r.parameters()]
        self.phi = [*self.f.parameters(), *self.g.parameters()]
        self.sgd = torch.optim.SGD(self.theta, **sgd)
        self.adam = torch.optim.Adam(self.phi, lr=1e-4, weight_decay=1e-4)

    def step(self, images: Tensor, labels: Tensor, T: int = 2) -> None:
        """One outer step: real step, T matching steps, task step, outer loss, reverse sweep, Adam."""
        losses = [lambda: self.matching(images)] * T + [lambda: self.task(images, labels)]
        self._move(lambda: self.task(images, labels) + self.matching(images))
        start, states = self._state(), []
        for loss in losses:
            states.append(self._state())
            self._move(loss)
        self._zero()
        self.task(images, labels).backward()
        a, b = [_gradient(p) for p in self.theta], [torch.zeros_like(p) for p in self.theta]
        self._zero()
        for state, loss in zip(reversed(states), reversed(losses), strict=True):
            self._restore(state)
            a, b = self._back(loss(), a, b)
        self._restore(start)
        self.adam.step()

    def plain_step(self, images: Tensor, labels: Tensor) -> None:
        """The real step alone."""
        self._move(lambda: self.task(images, labels) + self.matching(images))

    def task(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.target(images), labels)

    def matching(self, images: Tensor) -> Tensor:
        sources, targets = self._features(images)
        total = 0.0
        for (s, t), r, f, g in zip(self.pairs, self.r, self.f, self.g, strict=True):
            x, y = sources[s], targets[t]
            z = x.mean((2, 3))
            if x.shape[2] != y.shape[2]:
                x = F.interpolate(x, scale_factor=y.shape[2] / x.shape[2], mode="bilinear", align_corners=False)
            per_image = (f(z).softmax(1) * (x - r(y)).square().mean((2, 3))).sum(1, keepdim=True)
            total = total + self.beta * (F.relu6(g(z)) * per_image).mean()
        return total

    def _features(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        with torch.no_grad(), record(self.source, [s for s, _ in self.pairs]) as sources:
            self.source(images)
        with record(self.target, [t for _, t in self.pairs], detach=False) as targets:
            self.target(images)
        return sources, targets

    def _move(self, loss) -> None:
        self._zero()
        loss().backward()
        for p in self.theta:  # zeros, not None: momentum and decay move every parameter
            p.grad = _gradient(p)
        self.sgd.step()

    def _back(self, loss: Tensor, a: list[Tensor], b: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        group = self.sgd.param_groups[0]
        lr, mu, wd = group["lr"], group["momentum"], group["weight_decay"]
        gradients = torch.autograd.grad(loss, self.theta, create_graph=True, allow_unused=True, materialize_grads=True)
        for p in self.theta:
            p.grad = None
        along = sum((g * (y - lr * x)).sum() for g, x, y in zip(gradients, a, b, strict=True))
        along.backward()
        moved = [
            (1 - lr * wd) * x + wd * y + _gradient(p) for x, y, p in zip(a, b, self.theta, strict=True)
        ]  # fmt: skip
        return moved, [mu * y - lr * mu * x for x, y in zip(a, b, strict=True)]

    def _zero(self) -> None:
        self.sgd.zero_grad()
        self.adam.zero_grad()

    def _state(self) -> tuple:
        return deepcopy((self.target.state_dict(), self.r.state_dict(), self.sgd.state_dict()))

    def _restore(self, state: tuple) -> None:
        for module, saved in zip((self.target, self.r, self.sgd), state, strict=True):
            module.load_state_dict(saved)


def _gradient(p: Tensor) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
