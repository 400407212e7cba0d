"""Train a student by a method: its stages one after another, each with `fit`."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
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


class StageObjective(nn.Module):
    """The losses of one stage as an objective for `fit`, with the connectors they need.

    `parameters_to_train` are those that the stage moves, `moving_norms` the batch norms without parameters on which
    its losses depend. In train mode, all other modules of the student stay in eval mode, as does the teacher's side
    unless it is what is trained.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[Teacher],
        stage: Stage,
        example: Batch,
        built: dict[Learned, nn.Module],
        moved: set[nn.Parameter | nn.Module],
    ):
        super().__init__()
        self.student, self.teachers, self.stage = student, teachers, stage
        self.names = term_names(stage.losses)
        self.student_taps = sorted({tap for m in stage.matches for tap in m.student_taps} | {"out"})
        self._wanted = {m.who: set() for m in stage.matches}
        for match in stage.matches:
            self._wanted[match.who] |= set(match.teacher_taps)
        values = self._values(example, eval_mode=True)
        for match in stage.matches:
            _build(match, values, teachers[match.who], built)
        sides = [(m.teacher_transform, m.student_transform) for m in stage.matches]
        self.of_teacher = _modules([t for t, _ in sides], built)
        self.of_student = _modules([s for _, s in sides], built)
        self._built = built
        self.parameters_to_train = list(student.parameters())
        self.moving_norms: set[nn.Module] = set()
        self.parameters_to_train = self._chosen(example, moved)

    def train(self, mode: bool = True) -> "StageObjective":
        super().train(mode)
        moving = set(self.parameters_to_train)
        for module in self.student.modules():
            own = list(module.parameters(recurse=False))
            # In a stage of the whole student, what has no parameters (dropout) trains as it always does.
            still = not any(p in moving for p in own) and (own or self.stage.train != "all")
            if still and module not in self.moving_norms:
                module.training = False
        if self.stage.train != "connectors":
            self.of_teacher.eval()
        return self

    def forward(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """({term: weight * value}, {"accuracy"}) of a batch, `progress` in [0, 1) being the share of the stage done."""
        seen, taught = self._values(batch)
        terms = {}
        with torch.autocast(batch.images.device.type, enabled=False):
            for name, loss in zip(self.names, self.stage.losses, strict=True):
                weight = loss.weight_at(progress)
                terms[name] = weight * self._value(loss, batch, seen, taught)
        return terms, {"accuracy": accuracy(seen["out"].detach(), batch.labels)}

    def _value(self, loss: Match | CrossEntropy, batch: Batch, seen: dict, taught: dict) -> Tensor:
        if isinstance(loss, CrossEntropy):
            return loss.value(seen["out"], batch.labels)
        teacher, student = loss.values(taught[loss.who], seen)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage.train == "connectors"):
            target = self._module(loss.teacher_transform)(*teacher)
        return loss.distance(target, self._module(loss.student_transform)(*student))

    def _values(self, batch: Batch, eval_mode: bool = False) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
        """(the student's values at its taps, {which teacher: its values})."""
        taught = {
            who: self.teachers[who].values(batch, sorted(taps), self.stage.teacher)
            for who, taps in self._wanted.items()
        }
        if eval_mode:
            with evaluating(self.student):
                return tapped(self.student, batch.images, batch.labels, self.student_taps), taught
        return tapped(self.student, batch.images, batch.labels, self.student_taps), taught

    def _module(self, transform: object):
        return self._built[transform] if isinstance(transform, Learned) else transform

    def _chosen(self, example: Batch, moved: set[nn.Parameter | nn.Module]) -> list[nn.Parameter]:
        """The parameters that this stage moves; takes note of `moving_norms`."""
        connectors = [*self.of_student.parameters()]
        if self.stage.train == "connectors":
            return connectors + [*self.of_teacher.parameters()]
        own = [p for p in self.student.parameters() if p.requires_grad]
        if self.stage.train != "all":
            own, self.moving_norms = self._reached(example, own)
        if self.stage.train == "new":
            own, self.moving_norms = [p for p in own if p not in moved], self.moving_norms - moved
        return own + connectors

    def _reached(self, example: Batch, own: list[nn.Parameter]) -> tuple[list[nn.Parameter], set[nn.Module]]:
        """Those of the parameters that the losses depend on, and the batch norms without any of their own."""
        norms = [m for m in self.student.modules() if isinstance(m, _NormBase) and not list(m.parameters())]
        outputs: dict[nn.Module, Tensor] = {}
        hooks = [m.register_forward_hook(lambda norm, _, value: outputs.update({norm: value})) for m in norms]
        try:
            with evaluating(self):
                total = sum(self(example)[0].values())
        finally:
            for hook in hooks:
                hook.remove()
        if not own or not total.requires_grad:
            return [], set()
        outputs = {norm: value for norm, value in outputs.items() if value.requires_grad}
        found = torch.autograd.grad(total, [*own, *outputs.values()], allow_unused=True)
        reached = [what for what, g in zip([*own, *outputs], found, strict=True) if g is not None]
        return [p for p in reached if isinstance(p, nn.Parameter)], {m for m in reached if isinstance(m, nn.Module)}


def _one_round(student, teachers, method, loader, plan, looks, folder, label) -> "pd.DataFrame":
    # Recipes are made anew for every round, but one Learned is one module in all its stages.
    import pandas as pd

    built, moved, tables = {}, set(), []
    example = _example(loader)
    for number, stage in enumerate(method.stages, start=1):
        epochs = max(1, round(stage.share * plan.epochs))
        its_plan = replace(plan, **{"epochs": epochs, **stage.plan})
        with drawing(plan.seed + number):
            student.to(example.images.device, its_plan.dtype)
            objective = StageObjective(student, teachers, stage, example, built, moved)
        if not objective.parameters_to_train:
            raise BadValue(f"stage {number} of {method.name} has nothing to train; earlier stages trained it already.")
        objective.to(example.images.device, its_plan.dtype)
        saving = None if folder is None else folder / f"stage{number}.safetensors"
        rows = fit(
            objective, objective, loader.over(loader.split), its_plan, parameters=objective.parameters_to_train,
            checkpoint=saving, every_epoch=_looking(student, *looks, its_plan), label=label or method.name,
        )  # fmt: skip
        moved |= {p for p in student.parameters() if p in set(objective.parameters_to_train)} | objective.moving_norms
        tables.append(rows.assign(stage=number))
    return pd.concat(tables, ignore_index=True)


def _build(match: Match, values: tuple[dict, dict], teacher: Teacher, built: dict) -> None:
    """Make the modules that the match's recipes stand for, from example values."""
    seen, taught = values
    own, shown = match.values(taught[match.who], seen)

    def over_all():
        for found in teacher.over_all(match.teacher_taps):
            yield tuple(found[tap] for tap in match.teacher_taps)

    def made(transform: Learned) -> nn.Module:
        if transform not in built:
            known = Seen(
                tuple(x.detach() for x in shown), own, target, teacher.net, match.teacher_taps, over_all, made
            )  # fmt: skip
            built[transform] = transform.make(known).to(own[0].device, own[0].dtype)
        return built[transform]

    target = None
    for transform in (match.teacher_transform, match.student_transform):
        module = made(transform) if isinstance(transform, Learned) else transform
        if target is None:
            with torch.no_grad():
                target = module.eval()(*own) if isinstance(module, nn.Module) else module(*own)


def _modules(transforms: Sequence[object], built: dict) -> nn.ModuleList:
    return nn.ModuleList(dict.fromkeys(built[t] for t in transforms if isinstance(t, Learned)))


def _example(loader: Loader) -> Batch:
    """The first images in plain order: two at least, for connectors with batch norm are run on them."""
    return next(iter(loader.plain()))


def _looking(student: nn.Module, test: Loader | None, every: int, plan: Plan):
    if test is None:
        return None

    def look(epoch: int) -> dict[str, float]:
        if epoch % every and epoch != plan.epochs:
            return {"test_accuracy": math.nan, "test_cross_entropy": math.nan}
        found = evaluate(student, test, plan)
        return {"test_accuracy": found["accuracy"], "test_cross_entropy": found["cross_entropy"]}

    return look


def check_fit(student: nn.Module, teachers: Sequence[Teacher], method: Method, loader: Loader, plan: Plan) -> None:
    matches = [match for stage in method.stages for match in stage.matches]
    needed = max((match.who for match in matches), default=-1) + 1
    if needed > len(teachers):
        raise BadValue(f"{method.name} needs {needed} teachers, but there are {len(teachers)}. Give more of them.")
    if method.rounds > 1 and needed > 1:
        raise BadValue(f"{method.name} has {needed} teachers, but after the first round there is one, the student.")
    for match in matches:
        if method.prepare is None:
            check_taps(student, match.student_taps)
        check_taps(teachers[match.who].net, match.teacher_taps)
        if method.rounds > 1:
            check_taps(student, match.teacher_taps)
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


class _First:
    """The loader's first images and nothing else, as a Teacher wants to see a loader."""

    augment = "of no interest"

    def __init__(self, batch: Batch):
        self.batch = batch

    def plain(self) -> list[Batch]:
        return [self.batch]


def rehearse(student: nn.Module, teachers: Sequence[Teacher], method: Method, loader: Loader, plan: Plan) -> None:
    """Every stage's losses once, on a copy of the student and the first images; what does not fit is said by then."""
    example, built = _example(loader), {}
    with keeping_random_state(example.images.device), torch.no_grad():
        student = deepcopy(student).to(example.images.device, plan.dtype)
        teachers = [Teacher(teacher.net, _First(example)) for teacher in teachers]
        for stage in method.stages:
            _check_answers(student, teachers, stage, example)
            objective = StageObjective(student, teachers, replace(stage, train="all"), example, built, set())
            objective.to(example.images.device, plan.dtype).eval()(example)


def _check_answers(student: nn.Module, teachers: Sequence[Teacher], stage: Stage, example: Batch) -> None:
    """Raise ShapeMismatch where answers are matched and there is not one for each class on both sides."""
    for match in stage.matches:
        if match.teacher_taps != ("out",) or match.student_taps != ("out",):
            continue
        with evaluating(student):
            own = tapped(student, example.images, None, ["out"], keep_graph=False)["out"].shape[1:]
        theirs = teachers[match.who].values(example, ["out"])["out"].shape[1:]
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
