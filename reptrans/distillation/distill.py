"""Train a student by a method: its stages one after another, each with `fit`."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from reptrans.data import Batch, Dataset, Loader
from reptrans.data.loader import training_loader
from reptrans.distillation.losses import Losses, Stacked, Together, look, moving, resolve
from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods import METHODS
from reptrans.errors import BadValue, ShapeMismatch
from reptrans.layers.network import copy_of
from reptrans.matching import Teacher, check_taps
from reptrans.randomness import drawing
from reptrans.training import Plan, evaluate, evaluating, fit
from reptrans.training.batches import answers_of, checked_weights
from reptrans.training.evaluation import check_answers, check_labels, device_of, keeping_random_state
from reptrans.training.layout import channels_last
from reptrans.training.resume import content, recipe_of, weights_of

if TYPE_CHECKING:
    import pandas as pd


class Member(NamedTuple):
    """One student in a training: what it learns from, and by what it differs from others beside it.

    `seed`: of connectors, dropout and the like. `factor`: what the method's weights are multiplied by, see
    `Stage.scaled`. `labelled` (n,) bool: the loader's images whose labels are known, None for all. Labels of the others
    are never looked at: in cross-entropy they do not count, and gradient taps take the first teacher's answers instead.
    """

    student: nn.Module
    teachers: tuple[Teacher, ...]
    loader: Loader
    seed: int = 0
    factor: float = 1.0
    labelled: Tensor | None = None


def distill(
    student: nn.Module,
    teachers: Teacher | nn.Module | Sequence[Teacher | nn.Module],
    method: Method | str,
    loader: Loader | Dataset,
    plan: Plan,
    *,
    factor: float = 1.0,
    labelled: Tensor | None = None,
    watch: Mapping[str, Loader] | None = None,
    look_every: int = 1,
    folder: str | Path | None = None,
    label: str = "",
    **options,
) -> "tuple[nn.Module, pd.DataFrame]":
    """(trained student, rows): the student is trained by the method's stages on the loader's images and labels.

        plan = Plan(epochs=60)
        student, rows = distill(student, teacher, "nst", dataset, plan, kernel="gaussian")

    `teachers`: networks, or Teachers made with the same loader. `method`: a value, or a name of METHODS, made with
    `options` for the positions that `Pair.of` finds. `loader`: of a Dataset, whole batches of 128 training images,
    shuffled from plan.seed.
    The student itself is trained in place, unless the method prepares another one or goes several rounds; what of it
    requires no gradient stays as it is, and connectors are left behind. A stage takes round(share * plan.epochs)
    epochs, at least 1, with its own learning-rate schedule; connectors are initialised
    from plan.seed. `factor`, `labelled`: see `Member`.
    `folder`: where every stage is kept after each epoch, and from where an interrupted training goes on.
    Rows: one per epoch with method, round, stage, those of `fit`, every term (already times its weight), accuracy on
    the training batches, and for each NAME of `watch` NAME_accuracy and NAME_cross_entropy (nats) on that loader's
    images, after every `look_every`-th epoch of a stage and after its last; NaN otherwise.
    Before the first step the losses of every stage are computed once, on copies. Raises BadValue, BadData,
    LayerNotFound, ShapeMismatch by then; Diverged.
    """
    device = device_of(checked_weights(student))
    if not isinstance(plan, Plan):
        raise BadValue(f"the plan is a {type(plan).__name__}. Give a Plan, Plan(epochs=60) say.")
    if isinstance(loader, Dataset):
        loader, _ = loaders(loader, 128, plan.seed, "none", device, plan.dtype)
    if not isinstance(loader, Loader):
        raise BadValue(
            f"the loader is a {type(loader).__name__}. Give dataset.loader('train', 128, shuffle=True), or the "
            "Dataset; Dataset.from_torch(train, test) makes one of your own images."
        )
    teachers = (teachers,) if isinstance(teachers, (Teacher, nn.Module, str)) else tuple(teachers)
    teachers = tuple(each if isinstance(each, Teacher) else Teacher(each, loader) for each in teachers)
    if isinstance(method, str):
        _check_types(teachers, loader, plan)
        images = next(iter(loader.plain())).images
        student = student.to(images.device, plan.dtype)
        nets = (student, *(teacher.net for teacher in teachers))
        with evaluating(*nets), torch.no_grad():
            for net in nets:
                answers_of(net, images[:2])
        method = METHODS[method](Pair.of(student, teachers, images), **options)
    elif options:
        raise BadValue(f"distill has no argument {next(iter(options))!r}; a Method has its options already.")
    member = Member(student, teachers, loader, plan.seed, factor, labelled)
    ((student, rows),) = distill_together(
        [member], method, plan, watch=watch, look_every=look_every, folder=folder, label=label
    )
    return student, rows


def distill_together(
    members: Sequence[Member],
    method: Method,
    plan: Plan,
    *,
    watch: Mapping[str, Loader] | None = None,
    look_every: int = 1,
    folder: str | Path | None = None,
    label: str = "",
) -> "list[tuple[nn.Module, pd.DataFrame]]":
    """What `distill` gives, for several students of one architecture that are trained side by side.

    Each ends as it would alone, but for rounding; nothing depends on plan.seed. Many small students train several times
    faster so than one after the other, as those of methods with gradient taps still do; `folder` is for one student
    alone.
    Raises BadValue for a limit of gradients (`clip`), which would be one for all of them.
    """
    import pandas as pd

    members = list(members)
    if len(members) > 1 and _by_gradients(method):
        return [
            distill(*m[:2], method, m.loader, replace(plan, seed=m.seed), factor=m.factor, labelled=m.labelled,
                    watch=watch, look_every=look_every, label=label)
            for m in members
        ]  # fmt: skip
    if len(members) > 1 and (plan.clip is not None or folder is not None):
        raise BadValue("students side by side have no common clip, and no folder. Train them one by one for these.")
    for member in members:
        check_fit(member.student, member.teachers, method, member.loader, plan)
        _check_known(member)
    starts, tables = [copy_of(member.student) for member in members], [[] for _ in members]
    for number in range(method.rounds):
        if number:
            # The student of the round before is the teacher, and a new student starts where the first did.
            members = [_next_round(m, start) for m, start in zip(members, starts, strict=True)]
        if method.prepare is not None:
            members = [m._replace(student=method.prepare(m.student, m.teachers[0].net)) for m in members]
        if not number:
            rehearse(members[0], method, plan)
        saving = None if folder is None else Path(folder) / f"round{number + 1}"
        found = _one_round(members, method, plan, (watch or {}, look_every), saving, label)
        for own, table in zip(tables, found, strict=True):
            own.append(table.assign(method=method.name, round=number + 1))
    first = ["method", "round", "stage"]
    rows = [pd.concat(own, ignore_index=True) for own in tables]
    rows = [table[first + [column for column in table if column not in first]] for table in rows]
    return [(member.student, table) for member, table in zip(members, rows, strict=True)]


def _by_gradients(method: Method) -> bool:
    """Whether it has gradient taps, whose own backward pass does not go through vmap."""
    return any(tap.startswith("grad:") for stage in method.stages for tap in stage.student_taps)


def _next_round(member: Member, start: nn.Module) -> Member:
    taught = Teacher(member.student.eval().requires_grad_(False), member.loader)
    return member._replace(student=copy_of(start), teachers=(taught,))


def _one_round(members: list[Member], method, plan, looks, folder, label) -> "list[pd.DataFrame]":
    # Recipes are made anew for every round, but one Learned is one module in all its stages.
    import pandas as pd

    built, moved = [{} for _ in members], [set() for _ in members]
    tables = []
    for number, stage in enumerate(method.stages, start=1):
        its_plan = replace(plan.over(max(1, round(stage.share * plan.epochs))), **stage.plan)
        losses = [
            _prepared(member, stage, its_plan, number, *known)
            for member, *known in zip(members, built, moved, strict=True)
        ]
        if not any(isinstance(part, nn.Parameter) for part in losses[0].moves):
            raise BadValue(f"stage {number} of {method.name} has nothing to train; earlier stages trained it already.")
        built = [each.built for each in losses]
        moved = [known.union(each.moves) for known, each in zip(moved, losses, strict=True)]
        saving = None if folder is None else folder / f"stage{number}.safetensors"
        known = {} if saving is None else {"checkpoint": saving, "facts": _facts(members[0], method)}
        with channels_last(_alone(members), next(iter(members[0].loader.plain())).images):
            rows = _fitted(members, losses, its_plan, looks, known, label or method.name)
        tables.append([table.assign(stage=number) for table in rows])
    return [pd.concat(own, ignore_index=True) for own in zip(*tables, strict=True)]


def _prepared(member: Member, stage: Stage, plan: Plan, number: int, built: Mapping, moved: Collection) -> Losses:
    """The losses of the stage for this student, what they move known."""
    # Of two images at least, for connectors with batch norm are run on them.
    example = next(iter(member.loader.plain()))
    with drawing(member.seed + number):
        member.student.to(example.images.device, plan.dtype)
        losses = resolve(stage, member.student, member.teachers, example, built)
        losses.moves = dict.fromkeys(moving(losses, example, moved))
    losses.factor = member.factor
    losses.labels = None if member.labelled is None else _labels(member, example)
    return losses.to(example.images.device, plan.dtype)


def _labels(member: Member, example: Batch) -> tuple[Tensor, Tensor]:
    """(labels of all images, which of them are known); the teacher's answers stand for those that are not."""
    own = torch.cat([batch.labels for batch in member.loader.plain()])
    known = member.labelled.to(own.device)
    said = member.teachers[0].answers if member.teachers else own.new_zeros(len(own), 0)
    if own.ndim > 1:
        said = (said > 0).to(own.dtype) if said.shape == own.shape else torch.zeros_like(own)
    else:
        # The answers of a teacher of other classes say nothing here.
        said = said.argmax(1) if said.shape[1] == _classes(member.student, example) else torch.zeros_like(own)
    return torch.where(known.view(-1, *[1] * (own.ndim - 1)), own, said.to(own)), known


def _classes(student: nn.Module, example: Batch) -> int:
    with evaluating(student), torch.no_grad():
        return answers_of(student, example.images).shape[1]


def _fitted(members, losses: list[Losses], plan: Plan, looks, known: dict, label: str) -> "list[pd.DataFrame]":
    """Train, alone or side by side; the rows of each. `known`: of one alone, its checkpoint and what belongs to it."""
    loaders = [member.loader.over(member.loader.split) for member in members]
    if len(members) == 1:
        (member,), (alone,) = members, losses
        every = _looking([member.student], *looks, plan)
        parameters = [part for part in alone.moves if isinstance(part, nn.Parameter)]
        given = known | {"parameters": parameters, "label": label}
        return [fit(alone, alone, loaders[0], plan, every_epoch=lambda e: every(e)[0], **given)]
    together = Together(losses)
    every = _looking([member.student for member in members], *looks, plan)

    def look_at_each(epoch: int) -> dict[str, float]:
        together.hand_back()
        found = every(epoch)
        return {f"{name}@{k}": value for k, own in enumerate(found) for name, value in own.items()}

    rows = fit(
        together, together, Stacked(loaders), plan, parameters=together.moves, every_epoch=look_at_each, label=label
    )
    together.hand_back()
    return [_rows_of(rows, k) for k in range(len(members))]


def _facts(member: Member, method: Method) -> dict[str, object]:
    """What tells a training from one of another method, other teachers or other labels."""
    return {
        "method": method.name, "recipe": recipe_of(method), "factor": member.factor,
        "teachers": weights_of(*(teacher.net for teacher in member.teachers)),
        "labelled": "all" if member.labelled is None else content([member.labelled]),
    }  # fmt: skip


def _alone(members: list[Member]) -> list[nn.Module]:
    """The networks of one student; none for several, whose weights are stacked and gain nothing by another layout."""
    return [members[0].student, *(teacher.net for teacher in members[0].teachers)] if len(members) == 1 else []


def _rows_of(rows: "pd.DataFrame", number: int) -> "pd.DataFrame":
    """The columns of all students and those of this one, under their own names."""
    own = [name for name in rows if "@" not in name or name.rpartition("@")[2] == str(number)]
    return rows[own].rename(columns=lambda name: name.rpartition("@")[0] or name)


def _looking(students: list[nn.Module], watch: Mapping[str, Loader], every: int, plan: Plan):
    def found(epoch: int) -> list[dict[str, float]]:
        due = epoch % every == 0 or epoch == plan.epochs
        return [_seen(student, watch, plan if due else None) for student in students]

    return found


def _seen(student: nn.Module, watch: Mapping[str, Loader], plan: Plan | None) -> dict[str, float]:
    """Accuracy and cross-entropy on what is watched; NaN without a plan."""
    values = {name: evaluate(student, loader, plan) if plan else {} for name, loader in watch.items()}
    return {f"{n}_{k}": v.get(k, math.nan) for n, v in values.items() for k in ("accuracy", "cross_entropy")}


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


def _check_known(member: Member) -> None:
    """Raise BadValue for a mask that is none of the loader's images."""
    mask = member.labelled
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (len(member.loader.split),) or not mask.any()):
        raise BadValue(
            f"labelled is {mask.dtype} {tuple(mask.shape)}; it must say True or False for each of the loader's "
            f"{len(member.loader.split)} images, and True for at least one."
        )


def rehearse(member: Member, method: Method, plan: Plan) -> None:
    """Every stage's losses once, on a copy of the student and the first images; what does not fit is said by then."""
    loader, teachers = member.loader, member.teachers
    example, built = next(iter(loader.plain())), {}
    first = SimpleNamespace(augment="of no interest", plain=lambda: [example])
    with keeping_random_state(example.images.device), torch.no_grad():
        student = copy_of(member.student).to(example.images.device, plan.dtype)
        teachers = [Teacher(teacher.net, first) for teacher in teachers]
        for stage in method.stages:
            losses = resolve(stage, student, teachers, example, built).to(example.images.device, plan.dtype).eval()
            _check_answers(losses, example, loader.split.labels.cpu())
            losses(example)
            built = losses.built


def _check_answers(losses: Losses, example: Batch, labels: Tensor) -> None:
    """Raise BadData, ShapeMismatch for answers that do not fit the labels, or, where matched, each other."""
    taught, seen = look(losses.stage, losses.student, losses.teachers, example)
    check_answers(seen["out"], example.labels)
    if labels.ndim == 1:
        check_labels(labels, seen["out"].shape[1])
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


def loaders(
    dataset: Dataset, batch_size: int, seed: int, augment: str, device: str | torch.device, dtype: torch.dtype
) -> tuple[Loader, Loader]:
    """(training loader, test loader) as distillation needs them: an incomplete last batch is left out."""
    place = {"device": device, "dtype": dtype}
    return training_loader(dataset, batch_size, seed, augment, **place), dataset.loader("test", batch_size, **place)
