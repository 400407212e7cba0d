"""The one descent on images: whatever the objective, the image's form, the prior and the optimiser are."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from reptrans.errors import BadValue, Diverged, ShapeMismatch, check_whole, own_arguments
from reptrans.inputs.fronts import fast_front, frozen
from reptrans.inputs.image import Pixels, check_images, noise
from reptrans.inputs.objective import Objective, Projection, Term, Transform, match, total_variation
from reptrans.inputs.recovery import input_errors, mse, outside
from reptrans.randomness import generator_of
from reptrans.training.evaluation import device_of, keeping_random_state
from reptrans.training.schedule import round_weights

DEFAULT_PRIOR = (total_variation(0.1),)


@dataclass
class Inversion:
    """What the descent found.

    `images` (n, c, h, w), not cut to [0, 1]. `rows`, one for each image: loss (the objective's, priors left out),
    relative_error (D, where something is matched), steps (done before it diverged), diverged, outside (share of values
    off [0, 1]), and with a reference mse, psnr, ssim, correlation, aligned_mse. `trace`, for each image at some steps:
    step, row, loss, relative_error, mse.
    """

    images: Tensor
    rows: pd.DataFrame
    trace: pd.DataFrame


@own_arguments
def optimise_input(
    objective: Objective,
    image: Pixels | Tensor,
    *,
    prior: Sequence[Term] = DEFAULT_PRIOR,
    transforms: Sequence[Transform] = (),
    projection: Projection | None = None,
    steps: int = 300,
    optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    lr: float | Callable[[float], float] = 0.05,
    seed: int = 0,
    reference: Tensor | None = None,
    points: int = 20,
    portable: bool = False,
) -> Inversion:
    """Move the image until it does what the objective asks: minimise, for each image by itself,

        L(a) + sum over priors P(a),    L seeing the image through the transforms

    by `steps` steps of `optimiser` (any constructor of torch.optim, called with the parameters and lr). `prior`: by
    default `total_variation(0.1)`. `lr`: a number, from which the step size falls to 0 along half a cosine, or a
    function of progress in [0, 1). `projection` acts on the images after each step. `seed`: of the transforms.
    `reference` (n or 1, c, h, w) in [0, 1]: what the rows compare the images with. `points`: how often the trace is
    measured. `portable`: the moved values are rounded to single precision after each step, so that a descent in float64
    ends the same on every processor, as a training does by `Plan`.
    Adam at 0.05 served every layer of untrained networks, since losses are relative; total variation is the prior that
    gives most picture for the same D. L-BFGS mixes the rows of a batch, so it takes one image.

    An image whose loss or gradient becomes NaN or infinite stays at the last one for which they were finite, its row
    says so, and a RuntimeWarning is given; the others go on. The objective's networks run frozen, in eval mode;
    parameters, what requires gradients, modes and the global random state are afterwards as they were. `image` is
    moved; of a tensor, Pixels of it are.
    Raises ShapeMismatch for images that the objective cannot take, BadValue, and Diverged where the start itself has no
    finite loss.
    Source: Mahendran & Vedaldi (2015); Badger's input generation (blog, 2021), whose constants `like_source` gives.
    """
    image = Pixels(image) if isinstance(image, Tensor) else image
    _check_kinds(objective, image, prior)
    check_whole("steps", steps, 0)
    check_whole("points", points, 0)
    if not callable(lr) and not 0 < lr < math.inf:
        raise BadValue(f"lr is {lr!r}; it must be a number above 0, or a function of progress.")
    if reference is not None:
        check_images(reference, "references")
    with frozen(objective.networks), keeping_random_state(image().device):
        _check_start(objective, image, reference)
        descent = _Descent(objective, image, prior, transforms, projection, seed, portable, reference)
        descent.run(optimiser, lr, steps, points)
        rows = descent.rows()
    for _, row in rows[rows["diverged"]].iterrows():
        warnings.warn(
            f"row {row['row']} has no finite loss or gradient after {row['steps']} steps; its last finite image is "
            "kept. Try a smaller lr.",
            RuntimeWarning,
            stacklevel=2,
        )
    return Inversion(image().detach().clone(), rows, pd.DataFrame(descent.trace))


class _Descent:
    """The state of one descent: the image, its last finite version, and which rows are still alive."""

    def __init__(self, objective, image, prior, transforms, projection, seed, portable, reference):
        self.objective, self.image, self.prior, self.portable = objective, image, prior, portable
        self.transforms, self.projection = transforms, projection
        self.reference = None if reference is None else reference.to(image.values)
        self.generator = generator_of(seed)
        self.alive = torch.ones(len(image.values), dtype=torch.bool, device=image.values.device)
        self.ended = torch.zeros_like(self.alive, dtype=torch.int64)
        self.kept, self.trace = image.values.detach().clone(), []

    def run(self, optimiser, lr, steps: int, points: int) -> None:
        opt = optimiser(self.image.parameters(), lr=_rate(lr, 0.0))
        if isinstance(opt, torch.optim.LBFGS) and len(self.alive) > 1:
            raise BadValue(f"L-BFGS mixes the rows of a batch, which has {len(self.alive)}. Give one image at a time.")
        measured = {round(i * steps / points) for i in range(points)} if points else set()
        for step in range(steps):
            for group in opt.param_groups:
                group["lr"] = _rate(lr, step / steps)
            self.step(opt, step / steps, step if step in measured else None)
            self.ended += self.alive
        self.last = self.figures()
        if points:
            self.measure(steps, self.last)

    def step(self, opt: torch.optim.Optimizer, progress: float, point: int | None) -> None:
        """One step; the trace gets its losses as `point`."""
        values, first = self.image.values, []
        before = values.detach().clone()

        def closure() -> Tensor:
            images = seen = self.image()
            for transform in self.transforms:
                seen = transform(seen, self.generator)
            own = self.objective(seen)
            losses = own + sum(term(images) for term in self.prior)
            (gradient,) = torch.autograd.grad(losses.sum(), values)
            finite = torch.isfinite(losses) & torch.isfinite(gradient).flatten(1).all(1)
            if point is not None and not first:
                self.measure(point, self.figures(None if self.transforms else own.detach()))
            first.append(finite)
            values.grad = gradient.contiguous()  # with NaN, too: `keep` puts such rows back
            return losses.sum().detach()

        opt.step(closure)
        if self.projection:
            with torch.no_grad():
                self.image.set(self.projection(self.image(), progress))
        if self.portable:
            round_weights(self.image.parameters())
        self.keep(first[0], before)

    @torch.no_grad()
    def keep(self, finite: Tensor, at: Tensor) -> None:
        """Take note of the rows of `at` that are `finite`, and hold the others where that was last so."""
        self.alive &= finite
        alive = self.alive.view(-1, *(1,) * (at.ndim - 1))
        self.kept = torch.where(alive, at, self.kept)
        self.image.values.copy_(torch.where(alive, self.image.values, self.kept))

    @torch.no_grad()
    def settled(self) -> Tensor:
        """The objective's losses, after rows without a finite one were held."""
        losses = self.objective(self.image())
        if torch.isfinite(losses).all():
            return losses
        self.keep(torch.isfinite(losses), self.image.values.clone())
        return self.objective(self.image())

    @torch.no_grad()
    def figures(self, losses: Tensor | None = None) -> dict[str, list[float]]:
        """What rows and trace say of the image; `losses`, if they are known and finite, are the objective's."""
        if losses is None or not torch.isfinite(losses).all():
            losses = self.settled()
        errors = self.objective.errors
        known = losses if errors else torch.full_like(losses, math.nan)
        if errors not in (None, self.objective.losses):
            known = errors(self.image())
        return {"loss": losses.tolist(), "relative_error": known.tolist()}

    def measure(self, step: int, figures: dict[str, list[float]]) -> None:
        if self.reference is not None:
            figures = figures | {"mse": mse(self.image().detach(), self.reference).tolist()}
        rows = zip(*figures.values(), strict=True)
        self.trace += [{"step": step, "row": i} | dict(zip(figures, row, strict=True)) for i, row in enumerate(rows)]

    def rows(self) -> pd.DataFrame:
        images = self.image().detach()
        table = pd.DataFrame({"row": range(len(images))} | self.last)
        table = table.assign(steps=self.ended.tolist(), diverged=(~self.alive).tolist())
        if self.reference is None:
            return table.assign(outside=outside(images).tolist())
        return pd.concat([table, input_errors(images, self.reference)], axis=1)


def _rate(lr: float | Callable[[float], float], progress: float) -> float:
    return lr(progress) if callable(lr) else lr * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def _check_kinds(objective: object, image: object, prior: object) -> None:
    if not isinstance(objective, Objective):
        raise BadValue(
            f"the objective is a {type(objective).__name__}; give class_logit(…), match(…), or, of a function of "
            "images that gives their losses (n,), Objective(function, (network,))."
        )
    if not isinstance(image, Pixels):
        raise BadValue(f"the image is a {type(image).__name__}; give Pixels(images) or Fourier(images), which move it.")
    if not (isinstance(prior, Sequence) and all(map(callable, prior))):
        raise BadValue(f"prior is {prior!r}; it is a list of terms such as total_variation(0.1), or () for none.")


def _check_start(objective: Objective, image: Pixels, reference: Tensor | None) -> None:
    images = image()
    losses = objective(images)
    if reference is not None and (reference.shape[1:] != images.shape[1:] or len(reference) not in (1, len(images))):
        raise ShapeMismatch(f"references {tuple(reference.shape)} do not fit images {tuple(images.shape)}.")
    if not torch.isfinite(losses).all():
        row = int((~torch.isfinite(losses)).nonzero()[0])
        raise Diverged(
            f"the loss of row {row} is {losses[row].item()} before the first step. Does the network give finite "
            "activations, and does it have its weights?"
        )


def invert(
    net: nn.Module,
    layer: str | None,
    images: Tensor,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    *,
    distance: str = "l1",
    seed: int = 0,
    **settings,
) -> Inversion:
    """Images that start as noise and move until `layer` answers as it does to `images` (n, c, h, w) in [0, 1].

        found = invert(net, "layer2", images, dataset.mean, dataset.std)
        picture_grid({"image": images, "found": found.images})

    `layer` None: the network's answers. `mean`, `std`: by channel, what the network's images are normalised by, nothing
    by default. `distance`: as in `match`. `seed`: of the first image's noise, the next ones count on. `settings`: those
    of `optimise_input`, steps=300 for one. Rows compare with `images`. The network is left as it was.
    Raises ShapeMismatch, LayerNotFound, CannotCut, BadValue, UnknownName before the first step.
    Source: Mahendran & Vedaldi (2015).
    """
    view = fast_front(net, layer, mean=mean, std=std)
    check_images(images)
    like = next(view.parameters(), images)
    images = images.to(device_of(view), like.dtype)
    with torch.no_grad():
        target = view(images)
    start = Pixels(noise(len(images), images.shape[1:], seed=seed, dtype=images.dtype).to(images.device))
    return optimise_input(match(view, target, distance), start, reference=images, **settings)
