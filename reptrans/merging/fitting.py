"""Train one network to answer, or to represent, as another does, and report what that gained and what it cost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn

from reptrans.attribution import map_correlation, saliency_maps
from reptrans.data import Batch, Loader, Split
from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.layers import front
from reptrans.layers.network import copy_of
from reptrans.matching import affine, resized
from reptrans.similarity import Moments, channel_blocks, compare
from reptrans.training import Plan, evaluate, evaluating, fit
from reptrans.training.batches import answers_of, checked_weights
from reptrans.training.evaluation import device_of
from reptrans.training.schedule import PRECISIONS

Pairs = Sequence[tuple[str, str]]

_OUTPUTS = "outputs"
_MAPS = 32  # images whose saliency maps are compared


@dataclass(frozen=True)
class Matching:
    """How a student is trained to match. The precision is that of the student's weights, whatever the plan says.

    `relative`: each image's residual divided by the teacher's squared norm, so that no learning rate depends on a
    layer's scale. `connector`: a linear map over channels from each student layer to the teacher's, trained along; it
    starts at its least-squares fit.
    """

    plan: Plan
    batch_size: int = 100
    relative: bool = False
    connector: bool = False


#: The `Matching` that was published: plain gradient descent on one image at a time, 1,000 epochs at 1e-5, squared
#: residuals as they are.
SOURCE = Matching(
    Plan(epochs=1000, lr=1e-5, momentum=0.0, nesterov=False, weight_decay=0.0, schedule="constant"), batch_size=1
)
#: The `Matching` that is used by default: Adam, 30 epochs from 1e-3 along a cosine, relative residuals.
FAIR = Matching(Plan(epochs=30, optimiser="adam", lr=1e-3, weight_decay=0.0, schedule="cosine"), relative=True)


def match_models(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    on: str | Pairs = "outputs",
    how: Matching = FAIR,
    *,
    held_out: Tensor | None = None,
    task: Iterable | None = None,
    report: Pairs = (),
    seed: int = 0,
) -> tuple[nn.Module, pd.DataFrame]:
    """A copy of `student` whose parameters were moved towards doing on `images` what `teacher` does, and rows.

        RSS = mean over images of Σ_j ‖S_j(x) - T_j(x)‖²

    with j the outputs, or the pairs (student layer, teacher layer) of `on`; relative: each term divided by ‖T_j(x)‖².
    Both networks are in eval mode throughout (batch-norm statistics stay), the teacher and the given student
    unchanged. `images`, `held_out`: (n, c, h, w) as the networks take them; `task`: batches of the student's own task;
    `report`: pairs whose likeness is told (those of `on` in any case); `seed`: order of images.
    Rows: quantity, where, before, after, and ratio = after / before. Quantities: rss and relative rss (fitted, held
    out), whichever is minimised; agreement, the share of images with the teacher's answer, and saliency, the mean
    correlation of the maps of the teacher's answer on up to 32 images (both fitted and held out, where there are as
    many outputs); accuracy (task); cka, debiased, of pooled maps (by pair, on held-out images if given, else on the
    fitted ones; from 4 images on); distance, ‖θ - θ₀‖ and ‖θ - θ₀‖ / ‖θ₀‖ of the parameters.
    Raises LayerNotFound, CannotCut; ShapeMismatch for images, outputs or layers that do not fit; BadData, BadValue.
    Source: the merging of two classifiers by the squared distance of their outputs (`SOURCE`). There the same image
    fits and judges; here held-out images judge as well.
    """
    checked_weights(student), checked_weights(teacher)
    # The precision of the student's weights; "bfloat16" stays where they are float32, which means mixed precision.
    dtype, wanted = next(student.parameters()).dtype, how.plan.precision
    plan = replace(how.plan, precision=next((p for p in (wanted, *PRECISIONS) if PRECISIONS[p] == dtype), wanted))
    moved = copy_of(student).requires_grad_(True).eval()
    pairs = None if on == _OUTPUTS else _pairs(on)
    matched = _Matched(moved, teacher, pairs, how)
    sets = {"fitted": images} | ({} if held_out is None else {"held out": held_out})
    for name, batch in sets.items():
        matched.check(batch, name)
    likeness = list(dict.fromkeys([*(pairs or ()), *_pairs(report)]))
    before = _state(moved, teacher, sets, task, likeness)
    loader = Loader(Split(images, torch.arange(len(images))), min(how.batch_size, len(images)), mean=(0.0,), std=(1.0,),
                    shuffle=True, seed=seed, device=device_of(student), dtype=images.dtype)  # fmt: skip
    matched.connect(images)
    before |= matched.residuals(sets)
    targets = matched.targets(images)

    def objective(batch: Batch, progress: float) -> tuple[dict[str, Tensor], dict]:
        wanted = [target[batch.index] for target in targets]
        return {"rss": matched.per_image(matched(batch.images), wanted, how.relative).mean()}, {}

    fit(objective, matched, loader, plan)
    after = _state(moved, teacher, sets, task, likeness) | matched.residuals(sets)
    distances = _distances(student, moved)
    before, after = before | dict.fromkeys(distances, 0.0), after | distances
    table = pd.DataFrame({"quantity": q, "where": w, "before": before[q, w], "after": after[q, w]} for q, w in before)
    table["ratio"] = table["after"] / table["before"].where(table["before"] != 0)
    moved.train(student.training)
    return moved, table


class _Matched(nn.Module):
    """A student beside its teacher at the places to match; its `train` leaves everything in eval mode."""

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: Pairs | None, how: Matching):
        super().__init__()
        self.student, self.pairs, self.how, self.connectors = student, pairs, how, nn.ModuleList()
        # Kept out of the modules: a teacher is looked at and never trained, saved or moved.
        self.teacher, self.sides = (teacher,), (_values(student, pairs, 0), _values(teacher, pairs, 1))

    def train(self, mode: bool = True) -> "_Matched":
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        values = self.sides[0](images)
        return [c(v) for c, v in zip(self.connectors, values, strict=True)] if self.connectors else values

    @torch.no_grad()
    def targets(self, images: Tensor) -> list[Tensor]:
        """What the teacher gives for the images."""
        with evaluating(*self.teacher):
            parts = [self.sides[1](part) for part in images.split(self.how.batch_size)]
        return [torch.cat(values) for values in zip(*parts, strict=True)]

    def per_image(self, values: list[Tensor], targets: list[Tensor], relative: bool) -> Tensor:
        """(n,): the residuals of all places, summed."""
        total = 0
        for t, s in map(resized, targets, values):
            rss = (s - t).flatten(1).square().sum(1)
            total = total + (rss / t.flatten(1).square().sum(1).clamp_min(1e-12) if relative else rss)
        return total

    @torch.no_grad()
    def residuals(self, sets: dict[str, Tensor]) -> dict[tuple[str, str], float]:
        found = {}
        for name, images in sets.items():
            seen = ((self(part), self.targets(part)) for part in images.split(self.how.batch_size))
            each = [[self.per_image(*both, relative) for relative in (False, True)] for both in seen]
            for quantity, parts in zip(("rss", "relative rss"), zip(*each, strict=True), strict=True):
                found[quantity, name] = float(torch.cat(parts).double().mean())
        return found

    def check(self, images: Tensor, name: str) -> None:
        """One image through both: clear errors before anything is trained."""
        if images.ndim != 4 or not len(images):
            raise ShapeMismatch(
                f"the {name} images are {tuple(images.shape)}; they must be (n, c, h, w), at least one."
            )
        found = []
        for side, net, role in zip(self.sides, (self.student, *self.teacher), ("student", "teacher"), strict=True):
            try:
                with evaluating(net), torch.no_grad():
                    found.append(side(images[:1]))
            except (RuntimeError, ShapeMismatch) as error:
                raise ShapeMismatch(
                    f"the {role} {type(net).__name__} does not take the {name} images {tuple(images.shape)} "
                    f"{images.dtype}: {str(error).splitlines()[0]}"
                ) from None
        if not images.isfinite().all():
            raise BadData(f"the {name} images hold NaN or infinity.")
        for place, s, t in zip(self.pairs or [_OUTPUTS], *found, strict=True):
            if s.shape != t.shape and place == _OUTPUTS:
                raise ShapeMismatch(
                    f"the student's outputs are {tuple(s.shape[1:])}, the teacher's {tuple(t.shape[1:])}. Match "
                    "networks with as many outputs, or match layers: on=[(student layer, teacher layer), …]."
                )
            if s.shape != t.shape and not (self.how.connector and s.ndim == t.ndim and s.ndim in (2, 4)):
                raise ShapeMismatch(
                    f"the student's {place[0]!r} gives {tuple(s.shape[1:])} for an image, the teacher's {place[1]!r} "
                    f"{tuple(t.shape[1:])}. Either pair layers of one shape, or, where both give maps or both vectors, "
                    "let a linear map be trained along: Matching(..., connector=True)."
                )

    @torch.no_grad()
    def connect(self, images: Tensor) -> None:
        """A linear map for each pair, where they are asked for: weight and bias by least squares on `images`."""
        if not (self.how.connector and self.pairs):
            return
        first = list(zip(self(images[:1]), self.targets(images[:1]), strict=True))
        moments = [Moments(s.shape[1], t.shape[1], s.device) for s, t in first]
        for part in images.split(self.how.batch_size):
            for seen, s, t in zip(moments, self(part), self.targets(part), strict=True):
                y, x = (channel_blocks(v, 1) for v in resized(t, s))
                seen.update(x, y)
        for seen, (s, t) in zip(moments, first, strict=True):
            # Through the pseudo-inverse, for dead channels make the normal equations singular.
            weight = (torch.linalg.pinv(seen.xx, rtol=1e-12, hermitian=True) @ seen.xy).T
            layer = affine(s, t.shape[1]).to(s)
            layer.weight.copy_(weight.reshape(layer.weight.shape))
            layer.bias.copy_(seen.mean_y - weight @ seen.mean_x)
            self.connectors.append(layer)


def _values(net: nn.Module, pairs: Pairs | None, side: int) -> Callable[[Tensor], list[Tensor]]:
    """images -> the list of values to match, of one of the two networks."""
    if pairs is None:
        return lambda images: [answers_of(net, images)]
    names = [pair[side] for pair in pairs]
    with evaluating(net):
        part = front(net, list(dict.fromkeys(names)))
    return lambda images: list(map(part(images).__getitem__, names))


def _pairs(on: object) -> list[tuple[str, str]]:
    pairs = [on] if isinstance(on, str) else list(on)
    if any(isinstance(pair, str) or len(pair) != 2 or not all(isinstance(n, str) for n in pair) for pair in pairs):
        raise BadValue(f"on is {on!r}. Possible: 'outputs', or pairs: [(student layer, teacher layer), …]")
    return [tuple(pair) for pair in pairs]


def _state(student, teacher, sets, task, likeness: Pairs) -> dict[tuple[str, str], float]:
    """All that is told of a student, apart from the residuals."""
    found: dict[tuple[str, str], float] = {}
    for name, images in sets.items():
        with evaluating(student, teacher), torch.no_grad():
            parts = images.split(256)
            own, wanted = (torch.cat([answers_of(net, part) for part in parts]) for net in (student, teacher))
        if own.shape != wanted.shape:
            continue
        answers = wanted.argmax(1)
        found["agreement", name] = float((own.argmax(1) == answers).double().mean())
        maps = [saliency_maps(net, images[:_MAPS], answers[:_MAPS]) for net in (student, teacher)]
        found["saliency", name] = float(map_correlation(*maps).nanmean())
    if task is not None:
        found["accuracy", "task"] = evaluate(student, task)["accuracy"]
    judged = sets.get("held out", sets["fitted"])
    if likeness and len(judged) >= 4:
        names = [list(dict.fromkeys(side)) for side in zip(*likeness, strict=True)]
        table = compare(student, teacher, judged.split(256), *names)
        found |= {("cka", f"{s} - {t}"): float(table.loc[s, t]) for s, t in likeness}
    return found


def _distances(before: nn.Module, after: nn.Module) -> dict[tuple[str, str], float]:
    old, new = (torch.cat([p.detach().double().flatten() for p in net.parameters()]) for net in (before, after))
    moved, size = float((new - old).norm()), float(old.norm())
    return {("distance", "parameters"): moved, ("distance", "relative"): moved / size}
