"""Terms whose gradients get in each other's way: projected, or taken in turns.

Both give terms of unchanged value and another gradient, so that one `fit` serves them too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from reptrans.errors import BadValue
from reptrans.layers import front


def pcgrad(terms: dict[str, Tensor], parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """The terms, each with its gradient g_i projected: for all j != i with g_i g_j < 0, g_i -= (g_i g_j / |g_j|²) g_j.

    Over all `parameters` as one vector, with g_j as they were; in the order of the terms (the original draws the order,
    which makes no difference for two). Nothing but `parameters` gets gradients. Source: Yu et al. 2020, algorithm 1.
    """
    own = {name: _gradient(term, parameters) for name, term in terms.items()}
    sizes, done = [p.numel() for p in parameters], {}
    for name, term in terms.items():
        g = own[name].clone()
        for other in (own[n] for n in terms if n != name):
            overlap, length = g @ other, other @ other
            g -= torch.where((overlap < 0) & (length > 0), overlap / length.clamp_min(1e-30), 0) * other
        done[name] = with_gradient(term, parameters, g.split(sizes))
    return done


def alternating(
    terms: dict[str, Tensor], regulariser: str, parameters: Sequence[nn.Parameter], even: bool
) -> dict[str, Tensor]:
    """The terms; at odd steps only those but `regulariser` move anything, at even steps it alone moves `parameters`."""
    if not even:
        return {n: term.detach() if n == regulariser else term for n, term in terms.items()}
    found = torch.autograd.grad(terms[regulariser], parameters, allow_unused=True)
    used = [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]
    moved = with_gradient(terms[regulariser], *zip(*used, strict=True))
    return {n: moved if n == regulariser else term.detach() for n, term in terms.items()}


def parameters_before(net: nn.Module, layer: str) -> list[nn.Parameter]:
    """The trained parameters that lead to `layer`, the layer's own included. Raises BadValue, LayerNotFound."""
    part = front(net, layer)
    if not isinstance(part, fx.GraphModule):
        raise BadValue(f"{type(net).__name__} cannot be traced, so what leads to {layer!r} is not known. Use 'pcgrad'.")
    wanted = {id(p) for p in part.parameters() if p.requires_grad}
    found = [p for p in net.parameters() if id(p) in wanted]
    if not found:
        raise BadValue(f"no parameter of {type(net).__name__} leads to {layer!r}. Name a layer behind the first ones.")
    return found


def with_gradient(term: Tensor, parameters: Sequence[nn.Parameter], gradient: Sequence[Tensor]) -> Tensor:
    """The value of `term`, with `gradient` (of the parameters' sizes, in any shape) as its gradient."""
    zero = sum(((p - p.detach()) * g.view_as(p)).sum() for p, g in zip(parameters, gradient, strict=True))
    return term.detach() + zero


def _gradient(term: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])
