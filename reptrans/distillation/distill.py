"""Train a student by a method: its stages one after another, each with `fit`."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from reptrans.data import Batch, Dataset, Loader
from reptrans.distillation.method import Method, Stage
from reptrans.errors import BadValue, ShapeMismatch
from reptrans.matching import CrossEntropy, Learned, Match, Seen, Teacher, check_taps, tapped, term_names
from reptrans.randomness import drawing
from reptrans.training import Plan, accuracy, evaluate, evaluating, fit
from reptrans.training.batches import checked_network
from reptrans.training.evaluation import keeping_random_state

if TYPE_CHECKING:
    import pandas as pd


def distill(
    student: nn.Module,
    teachers: Teacher | Sequence[Teacher],
    method: Method,
    loader: Loader,
    plan: Plan,
    *,
    test: Loader | None = None,
    look_every: int = 1,
    folder: str | Path | None = None,
    label: str = "",
) -> "tuple[nn.Module, pd.DataFrame]":
    """(trained student, rows): the student is trained by the method's stages on the loader's images and labels.

    The student itself is trained in place, unless the method prepares another one or goes several rounds; what of it
    requires no gradient stays as it is, and connectors are left behind. `teachers`: made with the same loader. A stage
    takes round(share * plan.epochs) epochs, at least 1, with its own learning-rate schedule; connectors are initialised
    from plan.seed.
    `folder`: where every stage is kept after each epoch, and from where an interrupted training goes on.
    Rows: one per epoch with method, round, stage, those of `fit`, every term (already times its weight), accuracy on
    the training batches, and, where `test` is given, test_accuracy and test_cross_entropy (nats) after every
    `look_every`-th epoch of a stage and after its last; NaN otherwise.
    Before the first step the losses of every stage are computed once, on copies. Raises BadValue, BadData,
    LayerNotFound, ShapeMismatch by then; Diverged.
    """
    import pandas as pd

    checked_network(student)
    if isinstance(teachers, nn.Module):
        raise BadValue(f"the teacher is a bare {type(teachers).__name__}. Give Teacher(net, loader).")
    teachers = (teachers,) if isinstance(teachers, Teacher) else tuple(teachers)
    check_fit(student, teachers, method, loader, plan)
    start, tables = deepcopy(student), []
    for number in range(method.rounds):
        if number:
            # The student of the round before is the teacher, and a new student starts where the first did.
            teachers, student = (Teacher(student.eval().requires_grad_(False), loader),), deepcopy(start)
        if method.prepare is not None:
            student = method.prepare(student, teachers[0].net)
        if not number:
            rehearse(student, teachers, method, loader, plan)
        saving = None if folder is None else Path(folder) / f"round{number + 1}"
        table = _one_round(student, teachers, method, loader, plan, (test, look_every), saving, label)
        tables.append(table.assign(method=method.name, round=number + 1))
    rows = pd.concat(tables, ignore_index=True)
    first = ["method", "round", "stage"]
    return student, rows[first + [column for column in rows if column not in first]]


class Losses(nn.Module):
    """The losses of one stage as an objective for `fit`, their recipes built: see `resolve`.

    `built`: {recipe: its module}, also of the stages before. `moves`: what is trained, see `moving`; at first, all of
    the student. In train mode all other modules of the student stay in eval mode, as does the teacher's side unless
    connectors alone are trained.
    """

    def __init__(
        self, stage: Stage, student: nn.Module, teachers: Sequence[Teacher], built: Mapping[Learned, nn.Module]
    ):
        super().__init__()
        self.stage, self.student, self.teachers, self.built = stage, student, teachers, built
        self.names, self.moves = term_names(stage.losses), set(student.parameters())

        def modules(transforms: Iterable) -> nn.ModuleList:
            return nn.ModuleList(dict.fromkeys(built[t] for t in transforms if isinstance(t, Learned)))

        self.of_teacher = modules(match.teacher_transform for match in stage.matches)
        self.of_student = modules(match.student_transform for match in stage.matches)

    def train(self, mode: bool = True) -> "Losses":
        super().train(mode)
        for module in self.student.modules():
            own = set(module.parameters(recurse=False))
            # In a stage of the whole student, what has no parameters (dropout) trains as it always does.
            free = not own and self.stage.train == "all"
            if not (free or module in self.moves or own & self.moves):
                module.training = False
        if self.stage.train != "connectors":
            self.of_teacher.eval()
        return self

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """({term: weight * value}, {"accuracy"}) of a batch, `progress` in [0, 1) being the share of the stage done."""
        taught, seen = look(self.stage, self.student, self.teachers, batch)
        with torch.autocast(batch.images.device.type, enabled=False):
            values = [loss.weight_at(progress) * self._value(loss, batch, taught, seen) for loss in self.stage.losses]
        return dict(zip(self.names, values, strict=True)), {"accuracy": accuracy(seen["out"].detach(), batch.labels)}

    def module(self, transform: object) -> object:
        """A recipe's module; any other transform itself."""
        return self.built[transform] if isinstance(transform, Learned) else transform

    def _value(self, loss: Match | CrossEntropy, batch: Batch, taught: dict, seen: dict) -> Tensor:
        if isinstance(loss, CrossEntropy):
            return loss.value(seen["out"], batch.labels)
        teacher, student = loss.values(taught[loss.who], seen)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage.train == "connectors"):
            target = self.module(loss.teacher_transform)(*teacher)
        return loss.distance(target, self.module(loss.student_transform)(*student))


def look(stage: Stage, student: nn.Module, teachers: Sequence[Teacher], batch: Batch) -> tuple[dict, dict]:
    """({which teacher: {tap: its value}}, {tap: the student's value}) for all that a stage compares."""
    taught = {who: teachers[who].values(batch, taps, stage.teacher) for who, taps in stage.teacher_taps.items()}
    return taught, tapped(student, batch.images, batch.labels, stage.student_taps)


def resolve(
    stage: Stage, student: nn.Module, teachers: Sequence[Teacher], example: Batch,
    built: Mapping[Learned, nn.Module] | None = None,
) -> Losses:  # fmt: skip
    """The stage's losses, with recipes made to modules by what `example` shows.

    `built`: {recipe: its module} of earlier stages, for one recipe is one module in all of them.
    """
    with evaluating(student):
        taught, seen = look(stage, student, teachers, example)
    built = built or {}
    for match in stage.matches:
        built = _with_recipes_of(match, *match.values(taught[match.who], seen), teachers[match.who], built)
    return Losses(stage, student, teachers, built)


def moving(
    losses: Losses, example: Batch, moved: Collection[nn.Parameter | nn.Module] = ()
) -> list[nn.Parameter | nn.Module]:
    """What the stage moves: parameters, and the student's batch norms that have none but count in its losses.

    `moved`: what earlier stages did. "reached" is found by differentiating the losses of `example` once.
    """
    connectors = [*losses.of_student.parameters()]
    if losses.stage.train == "connectors":
        return connectors + [*losses.of_teacher.parameters()]
    own = [p for p in losses.student.parameters() if p.requires_grad]
    if losses.stage.train != "all":
        own = _reached(losses, example, own)
    if losses.stage.train == "new":
        own = [part for part in own if part not in moved]
    return own + connectors


def _with_recipes_of(
    match: Match, own: tuple[Tensor, ...], shown: tuple[Tensor, ...], teacher: Teacher, built: Mapping
) -> dict[Learned, nn.Module]:
    """`built` with the modules for the match's recipes, `own` and `shown` being the teacher's and student's values."""
    built, target = dict(built), None

    def over_all():
        for found in teacher.over_all(match.teacher_taps):
            yield tuple(found[tap] for tap in match.teacher_taps)

    def made(transform: object) -> object:
        if not isinstance(transform, Learned):
            return transform
        if transform not in built:
            seen = Seen(tuple(x.detach() for x in shown), own, target, over_all, made)
            built[transform] = transform.make(seen).to(own[0].device, own[0].dtype)
        return built[transform]

    ours = made(match.teacher_transform)
    with torch.no_grad():
        target = (ours.eval() if isinstance(ours, nn.Module) else ours)(*own)
    made(match.student_transform)
    return built


def _reached(losses: Losses, example: Batch, own: list[nn.Parameter]) -> list[nn.Parameter | nn.Module]:
    """Those of the parameters that the losses depend on, and the batch norms without any of their own."""
    norms = [m for m in losses.student.modules() if isinstance(m, _NormBase) and not list(m.parameters())]
    outputs: dict[nn.Module, Tensor] = {}
    with ExitStack() as hooks, evaluating(losses):
        for norm in norms:
            hooks.enter_context(norm.register_forward_hook(lambda norm, _, value: outputs.update({norm: value})))
        total = sum(losses(example)[0].values())
    if not own or not total.requires_grad:
        return []
    outputs = {norm: value for norm, value in outputs.items() if value.requires_grad}
    found = torch.autograd.grad(total, [*own, *outputs.values()], allow_unused=True)
    return [part for part, g in zip([*own, *outputs], found, strict=True) if g is not None]


def _one_round(student, teachers, method, loader, plan, looks, folder, label) -> "pd.DataFrame":
    # Recipes are made anew for every round, but one Learned is one module in all its stages.
    import pandas as pd

    built, moved, tables = {}, set(), []
    example = next(iter(loader.plain()))  # of two images at least, for connectors with batch norm are run on them
    for number, stage in enumerate(method.stages, start=1):
        its_plan = replace(plan, **{"epochs": max(1, round(stage.share * plan.epochs)), **stage.plan})
        with drawing(plan.seed + number):
            student.to(example.images.device, its_plan.dtype)
            losses = resolve(stage, student, teachers, example, built)
            moves = moving(losses, example, moved)
        parameters = [part for part in moves if isinstance(part, nn.Parameter)]
        if not parameters:
            raise BadValue(f"stage {number} of {method.name} has nothing to train; earlier stages trained it already.")
        losses.to(example.images.device, its_plan.dtype)
        built, moved, losses.moves = losses.built, moved.union(moves), set(moves)
        saving = None if folder is None else folder / f"stage{number}.safetensors"
        rows = fit(
            losses, losses, loader.over(loader.split), its_plan, parameters=parameters, checkpoint=saving,
            every_epoch=_looking(student, *looks, its_plan), label=label or method.name,
        )  # fmt: skip
        tables.append(rows.assign(stage=number))
    return pd.concat(tables, ignore_index=True)


def _looking(student: nn.Module, test: Loader | None, every: int, plan: Plan):
    def on_test(epoch: int) -> dict[str, float]:
        due = epoch % every == 0 or epoch == plan.epochs
        found = evaluate(student, test, plan) if due else {}
        return {f"test_{name}": found.get(name, math.nan) for name in ("accuracy", "cross_entropy")}

    return None if test is None else on_test


def check_fit(student: nn.Module, teachers: Sequence[Teacher], method: Method, loader: Loader, plan: Plan) -> None:
    """Raise BadValue for teachers, images and types that do not go together; layers are tried by `rehearse`."""
    matches = [match for stage in method.stages for match in stage.matches]
    needed = max((match.who for match in matches), default=-1) + 1
    if needed > len(teachers):
        raise BadValue(f"{method.name} needs {needed} teachers, but there are {len(teachers)}. Give more of them.")
    if method.rounds > 1 and needed > 1:
        raise BadValue(f"{method.name} has {needed} teachers, but after the first round there is one, the student.")
    if method.rounds > 1:
        check_taps(student, [tap for match in matches for tap in match.teacher_taps])
    for teacher in teachers:
        if teacher.net is student:
            raise BadValue("the teacher is the student itself. Give a copy of it (copy.deepcopy) as the teacher.")
        if teacher.keeps and (teacher.loader.split is not loader.split or loader.augment != "none"):
            raise BadValue(
                "the teacher keeps the values of other images than the loader gives: its own loader has "
                f"{len(teacher.loader.split)} images without augmentation, this one {len(loader.split)} with "
                f"augmentation {loader.augment!r}. Make it with the same loader, Teacher(net, loader)."
            )
    _check_types(teachers, loader, plan)


def rehearse(student: nn.Module, teachers: Sequence[Teacher], method: Method, loader: Loader, plan: Plan) -> None:
    """Every stage's losses once, on a copy of the student and the first images; what does not fit is said by then."""
    example, built = next(iter(loader.plain())), {}
    first = SimpleNamespace(augment="of no interest", plain=lambda: [example])
    with keeping_random_state(example.images.device), torch.no_grad():
        student = deepcopy(student).to(example.images.device, plan.dtype)
        teachers = [Teacher(teacher.net, first) for teacher in teachers]
        for stage in method.stages:
            losses = resolve(stage, student, teachers, example, built).to(example.images.device, plan.dtype).eval()
            _check_answers(losses, example)
            losses(example)
            built = losses.built


def _check_answers(losses: Losses, example: Batch) -> None:
    """Raise ShapeMismatch where answers are matched and there is not one for each class on both sides."""
    taught, seen = look(losses.stage, losses.student, losses.teachers, example)
    for match in losses.stage.matches:
        if match.teacher_taps != ("out",) or match.student_taps != ("out",):
            continue
        own, theirs = seen["out"].shape[1:], taught[match.who]["out"].shape[1:]
        if own != theirs:
            raise ShapeMismatch(
                f"the teacher tells {theirs[-1]} classes apart and the student {own[-1]}, so {match.title!r} cannot "
                f"compare their answers. Take a teacher with num_classes={own[-1]}, or a method that matches layers "
                "alone."
            )


def _check_types(teachers: Sequence[Teacher], loader: Loader, plan: Plan) -> None:
    weights = [(f"teacher {k}", next(t.net.parameters(), None)) for k, t in enumerate(teachers)]
    types = [(f"the plan's {plan.precision}", plan.dtype), *((who, p.dtype) for who, p in weights if p is not None)]
    for who, dtype in types:
        if dtype != loader.dtype:
            raise BadValue(
                f"the loader gives images of {loader.dtype}, but {who} computes with weights of {dtype}. Make the "
                "loader with dtype=plan.dtype, and the teacher with .to(plan.dtype)."
            )


def loaders(dataset: Dataset, batch_size: int, seed: int, augment: str, device, dtype) -> tuple[Loader, Loader]:
    """(training loader, test loader) as distillation needs them: an incomplete last batch is left out."""
    whole = len(dataset.train) >= batch_size
    place = {"device": device, "dtype": dtype}
    train = dataset.loader(
        "train", batch_size, shuffle=True, seed=seed, augment=augment, drop_last=whole, **place
    )  # fmt: skip
    return train, dataset.loader("test", batch_size, **place)
