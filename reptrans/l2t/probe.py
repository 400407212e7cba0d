"""How the loss after a few steps of SGD changes with the weights of an auxiliary loss: the exact gradient.

Nothing here knows of networks: parameters are named tensors, steps are functions of them, and nothing given is changed.
Batch norm has a cheap second derivative here, in place of torch's, which makes some twenty full maps on the way.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from reptrans.errors import BadValue, check_whole, choose

Point = dict[str, Tensor]
ORDERS = ("second", "first")


@dataclass(frozen=True)
class MetaGradient:
    """`gradient`: dF / d coefficients, shaped like them. The rest is what was met on the way.

    `losses`: the auxiliary loss before each of its T steps. `task_loss`: F before the task step. `outer_loss`: F after
    it. `theta`: where the T + 1 steps led.
    """

    gradient: list[Tensor]
    losses: list[Tensor]
    task_loss: Tensor
    outer_loss: Tensor
    theta: Point


@dataclass(frozen=True)
class Sgd:
    """torch's SGD as a function: d = g + wd theta; v' = momentum v + d; theta' = theta - lr v' (or d + momentum v')."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def step(self, theta: Point, velocity: Point, gradients: Sequence[Tensor]) -> tuple[Point, Point]:
        """(theta', v'), without a graph."""
        after, pace = {}, {}
        with torch.no_grad():
            for (name, value), gradient in zip(theta.items(), gradients, strict=True):
                move = gradient + self.weight_decay * value
                pace[name] = self.momentum * velocity[name] + move
                move = move + self.momentum * pace[name] if self.nesterov else pace[name]
                after[name] = value - self.lr * move
        return after, pace

    def back(self, a: Point, b: Point) -> tuple[Point, Point]:
        """Adjoints (of theta', of v') to those (of d, of v); that of theta needs the Hessian, see `meta_gradient`."""
        reach = self.lr * (self.momentum if self.nesterov else 1.0)
        pace = {name: b[name] - reach * a[name] for name in a}
        move = {name: pace[name] - self.lr * a[name] for name in a} if self.nesterov else pace
        return move, {name: self.momentum * value for name, value in pace.items()}


def meta_gradient(
    terms: Callable[[Point], Sequence[Tensor]],
    task: Callable[[Point], Tensor],
    theta: Point,
    velocity: Point,
    coefficients: Sequence[Tensor],
    *,
    T: int = 2,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    order: str = "second",
) -> MetaGradient:
    """dF(theta_{T+1}) / dW, through T steps of SGD on L and one on F, all from (theta, velocity).

        L(theta) = sum_k <W_k, D_k(theta)>,
        theta_{t+1}, v_{t+1} = SGD(theta_t, v_t, dL),   t < T;   then once with dF

    `terms`: theta -> D, tensors shaped like `coefficients` W, which L is linear in. `task`: theta -> F, a scalar.
    `velocity`: SGD's momentum by parameter. Weight decay moves every parameter at every step, also one that a loss does
    not reach. With g the gradient of a step and a, b the adjoints of theta' and v', the sweep from the last step back
    takes u, the adjoint of d, into

        dW += d<g, u>/dW,   a <- a + wd u + H u,   b <- momentum (b - lr a)

    by one double backward pass; of the first step only the mixed part is needed, and computed. `order="first"` leaves
    out every H u: cheaper, and another direction. T = 0 gives zeros. Raises BadValue.
    Source: Franceschi et al. 2017 (Reverse-HG), as used by Jang et al. 2019. Deviations: no state is replayed; the
    graph of each step is kept instead.
    """
    _check(T, order, theta, velocity, lr)
    sgd = Sgd(lr, momentum, weight_decay, nesterov)
    weights = [value.detach().requires_grad_() for value in coefficients]
    steps: list[_Step] = []
    for _ in range(T):
        steps.append(_Step(theta, lambda at: _inner(weights, terms(at)), graph=True))
        theta, velocity = sgd.step(theta, velocity, steps[-1].gradients)
    last = _Step(theta, task, graph=order == "second" and T > 0)
    theta, velocity = sgd.step(theta, velocity, last.gradients)
    outer = _Step(theta, task, graph=False)

    found = [torch.zeros_like(value) for value in weights]
    a, b = dict(zip(theta, outer.gradients, strict=True)), {name: torch.zeros_like(v) for name, v in theta.items()}
    losses = [step.loss for step in steps]
    for step in (last, *reversed(steps)) if T else ():
        u, b = sgd.back(a, b)
        curved = order == "second" and step is not steps[0]
        hessian, mixed = step.products(u, step.leaves if curved else {}, weights if step is not last else [])
        found = [old + new for old, new in zip(found, mixed, strict=True)] if mixed else found
        a = {name: a[name] + weight_decay * u[name] + hessian.get(name, 0.0) for name in a}
        step.release()
    return MetaGradient(found, losses, last.loss, outer.loss, theta)


class _Step:
    """The gradient of one loss at one point, with its graph if products with it will be asked for."""

    def __init__(self, theta: Point, loss: Callable[[Point], Tensor], graph: bool):
        self.leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
        with torch.enable_grad():
            value = loss(self.leaves)
            self.gradients = torch.autograd.grad(
                value, list(self.leaves.values()), create_graph=graph, allow_unused=True, materialize_grads=True
            )
        self.loss = value.detach()

    def products(self, u: Point, leaves: Point, weights: list[Tensor]) -> tuple[Point, list[Tensor]]:
        """d<g, u> / d leaves, by name, and d<g, u> / d weights; only what is asked for is computed."""
        inputs = [*leaves.values(), *weights]
        pairs = [(g, u[name]) for name, g in zip(self.leaves, self.gradients, strict=True) if g.requires_grad]
        if not inputs or not pairs:
            return {}, [torch.zeros_like(w) for w in weights]
        outputs, along = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, inputs, along, allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=False)), list(found[len(leaves) :])

    def release(self) -> None:
        """Let the graph go: its tensors are most of the memory."""
        self.gradients = ()


def _inner(weights: Sequence[Tensor], terms: Sequence[Tensor]) -> Tensor:
    return sum((w * d).sum() for w, d in zip(weights, terms, strict=True))


def _check(T: int, order: str, theta: Point, velocity: Point, lr: float) -> None:
    check_whole("T", T, 0, of=" of steps")
    choose(order, ORDERS, "order is {}", BadValue)
    if theta.keys() != velocity.keys():
        raise BadValue(f"theta has {', '.join(theta)}, velocity has {', '.join(velocity)}; both need the same names.")
    if not lr > 0:
        raise BadValue(f"lr is {lr!r}; it must be a number above 0.")


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Norms of `net` that are in train mode use the batch's statistics and leave the running ones alone."""
    norms = [m for m in net.modules() if m.training and getattr(m, "track_running_stats", False)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class CheaperNorms(TorchFunctionMode):
    """Inside the block, batch norms by the batch's statistics alone are computed by `batch_norm`; the same values."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.batch_norm:
            return _replaced(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, mean and var (biased) of x (n, c, …) by channel.

    With y = s (x - mean), s = 1 / sqrt(var + eps), g the output's gradient, N values in a channel, the gradient of x
    is w s (g - <g>/N - y <g, y>/N). Its own derivative along (v, p, q), cotangents of the gradients of x, weight and
    bias, is again a sum of v, g, x and 1 with one number per channel each, so that sums over maps are all it needs.
    """
    return _Norm.apply(x, weight, bias, eps)


def _replaced(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5) -> Tensor:
    if training and running_mean is None and weight is not None and bias is not None:
        return batch_norm(x, weight, bias, eps)
    return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, scale = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple:
        x, weight, mean, scale = ctx.saved_tensors
        return *_Gradient.apply(g, x, weight, mean, scale, ctx.eps), None


class _Gradient(torch.autograd.Function):
    """(g, x, weight) -> gradients of x, weight, bias; `mean` and `scale` are x's own, and differentiated as such."""

    @staticmethod
    def forward(ctx, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> tuple:
        found = _fused(g, x, weight, mean, scale, eps)
        ctx.save_for_backward(g, x, weight, mean, scale, *found[1:])
        ctx.eps = eps
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx, v: Tensor, p: Tensor, q: Tensor) -> tuple:
        g, x, w, mean, s, gy, g1 = ctx.saved_tensors
        n = x.numel() / x.shape[1]
        to_g, vy, v1 = _fused(v, x, w, mean, s, ctx.eps)
        slope = p * s
        to_g = to_g.addcmul_(x, _wide(slope, x)).add_(_wide(q - slope * mean, x))
        vg = (v * g).sum([0, *range(2, x.ndim)])
        rest = vg - (v1 * g1 + vy * gy) / n
        c1, cy = p * g1 - w * s / n * (gy * v1 + vy * g1), p * gy - 2 * w * s / n * gy * vy
        slope = -(w * rest * s + cy) * s / n
        to_x = v * _wide(-w * s * s * gy / n, x)
        to_x.addcmul_(g, _wide(s * (p - w * s * vy / n), x)).addcmul_(x, _wide(slope * s, x))
        to_x.add_(_wide(-s * c1 / n - slope * s * mean, x))
        return to_g, to_x, s * rest, None, None, None


def _fused(g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, ...]:
    """w s (g - <g>/N - y <g, y>/N), <g, y>, <g>."""
    g = g.contiguous()
    return torch.ops.aten.native_batch_norm_backward(g, x, weight, None, None, mean, scale, True, eps, [True] * 3)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """(c,) to the axes of x (n, c, …)."""
    return values.view(-1, *[1] * (x.ndim - 2))
