"""Images that one network cannot tell apart, and what another network makes of the difference."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.inputs.image import Pixels, check_images, noise
from reptrans.inputs.objective import Objective, match
from reptrans.inputs.optimise import DEFAULT_PRIOR, Inversion, optimise_input
from reptrans.similarity import calibrate, fold
from reptrans.training.batches import answers_of, checked_network


def metamers(front: nn.Module, images: Tensor, start: Tensor, *, tolerance: float = 0.1, **descent) -> Inversion:
    """Images x' that a network's layer cannot tell from the given ones, f(x') = f(x), reached from other images:

        min over x' in [0, 1] of  sum (f(x') - f(x))² / sum f(x)² + priors

    `front`: f, images -> activations, see `fast_front`. `images`, `start`: x and where x' begins, (n, c, h, w) in
    [0, 1]. `descent`: arguments of `optimise_input`. Its rows have `relative_error`, sum |f(x') - f(x)| / sum |f(x)|,
    and `converged`, whether that is at most `tolerance`: an image that is not has shown nothing of the layer.
    Raises ShapeMismatch, BadValue. Source: the inverted inputs of Nanda et al. (2022). Deviation: projected Adam on a
    relative loss, with total variation, in place of plain gradient descent.
    """
    for given, what in ((images, "images"), (start, "starts")):
        check_images(given, what)
    if images.shape != start.shape:
        raise ShapeMismatch(f"images are {tuple(images.shape)} and starts {tuple(start.shape)}; give one for each.")
    if not tolerance > 0:
        raise BadValue(f"tolerance is {tolerance!r}; it must be a number above 0.")
    with torch.no_grad():
        target = answers_of(checked_network(front), images)
    usual = {"prior": DEFAULT_PRIOR, "projection": _inside, "points": 0}
    found = optimise_input(match(front, target, "l2"), Pixels(start), **usual | descent)
    found.rows["converged"] = (found.rows["relative_error"] <= tolerance) & ~found.rows["diverged"]
    return found


@torch.no_grad()
def stir(
    front: nn.Module, images: Tensor, others: Tensor, measure: str = "debiased_cka", null: int = 200
) -> dict[str, float]:
    """STIR(b | a) = S(b(x), b(x')): how much of what network a ignores, network b ignores too.

    `front`: b up to a layer, images -> activations; `images`: x (n, c, h, w); `others`: x', a's `metamers` of them.
    Maps are averaged over places. S: a name in MEASURES. 1: b sees no difference either; 0: it sees nothing in common.
    It is directed, STIR(b | a) is not STIR(a | b), and STIR(a | a) says how far the metamers are some. With what
    exchanged images give, as `calibrate`: value, effect, p, and so on.
    Raises as `calibrate`. Source: Nanda et al. (2022), with linear CKA. Deviation: the debiased one, whose value for
    unrelated images is 0, as they are few.
    """
    x, y = (fold(answers_of(checked_network(front), given), "pool") for given in (images, others))
    return calibrate(x, y, measure, null)


def differentiate(
    still: nn.Module, moving: nn.Module, images: Tensor, *, radius: float, weight: float = 5.0, seed: int = 0, **descent
) -> Inversion:
    """Images near the given ones on which one network's answer holds still and the other's moves as far as it can:

        max over x' of  |b(x') - b(x)| / |b(x)| - weight |a(x') - a(x)| / |a(x)|,
        |x' - x| <= radius, x' in [0, 1]

    `still`, `moving`: a and b, images -> logits. `images`: x (n, c, h, w) in [0, 1]. `radius`: Euclidean, over all
    values of an image. The penalty is a norm, not a square, so that from some finite `weight` on a's answer holds
    exactly, up to the step size. `seed`: of the little noise that it starts with, as at x itself nothing says where to
    go. The rows' `relative_error` is that of a; `moved`, |b(x') - b(x)| / |b(x)|.
    Raises ShapeMismatch, BadValue. Source: maximum differentiation, Wang & Simoncelli (2008). Deviation: theirs keeps a
    perceptual distance fixed by projected gradients, where a penalty stands here; answers instead of distances.
    """
    check_images(images)
    if not (radius > 0 and weight >= 0):
        raise BadValue(f"radius is {radius!r} and weight {weight!r}; radius must be above 0, weight 0 or above.")
    held, changed = (_change(net, images) for net in (still, moving))

    def losses(seen: Tensor) -> Tensor:
        return weight * held(seen) - changed(seen)

    def near(seen: Tensor, progress: float) -> Tensor:
        step = seen - images
        length = step.flatten(1).norm(dim=1).clamp_min(radius).view(-1, 1, 1, 1)
        return _inside(images + step * radius / length, progress)

    start = images + noise(len(images), images.shape[1:], seed=seed, mean=0.0, std=1e-2).to(images)
    objective = Objective(losses, (still, moving), held)
    found = optimise_input(
        objective, Pixels(_inside(start, 0.0)), **{"prior": (), "projection": near, "points": 0} | descent
    )
    with torch.no_grad():
        found.rows["moved"] = changed(found.images).tolist()
    return found


def _change(net: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """images -> |f(images) - f(x)| / |f(x)|, (n,), for the x given here."""
    with torch.no_grad():
        before = answers_of(net, images).flatten(1)
    return lambda seen: (answers_of(net, seen).flatten(1) - before).norm(dim=1) / before.norm(dim=1)


def _inside(images: Tensor, progress: float) -> Tensor:
    return images.clamp(0, 1)
