"""The experiment of the survey's notebook: one student by many methods, and what each of them moved."""

import ast
import inspect
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from torch import nn

from reptrans.checkpoints import load_network, trained
from reptrans.data import Dataset
from reptrans.distillation.cap import capped
from reptrans.distillation.distill import check_fit, distill, loaders, rehearse
from reptrans.distillation.method import Method, Pair
from reptrans.distillation.methods import METHODS, efficient_detection, fd_gan, imitation
from reptrans.errors import BadValue, UnknownName, suggest
from reptrans.experiments.parameters import (
    Count,
    DatasetParameters,
    NotNegative,
    Positive,
    Thousand,
    Trained,
    Weight,
    named,
)
from reptrans.matching import Positions, Teacher, positions
from reptrans.models import build
from reptrans.notebook import names, once
from reptrans.progress import progress
from reptrans.similarity import compare
from reptrans.training import Plan

# Options that may be 0: weights, and what is added. All other numbers divide, or count something.
_MAY_BE_0 = {"weight", "task", "alpha", "beta", "head", "distance", "angle", "scale", "margin", "seed"}
_LARGEST = 10**6  # no option is a number beyond it
_FEW = 64  # images of a rehearsal, or a batch


def _readable(text: str) -> str:
    read_options(text)
    return text


Options = Annotated[str, AfterValidator(_readable)]


class DistillationRun(Trained, DatasetParameters):
    """Teacher, student, and the methods that stand between them.

    `method`: names of METHODS joined by commas, or all; `options`: method.option=value joined by commas, as in
    nst.kernel=gaussian,at.power=1. `limit`: the teacher's training images of each class; `labelled`: the student's,
    drawn anew for every seed. `teacher_checkpoint`: weights for the first teacher, "" trains it; `teachers`: how many
    there are, for methods that take several. `cap`: what is matched counts at first at most this many times as much as
    the task, see `capped`; 0 keeps published weights. `images`: test images on which layers are compared;
    `look_every`: epochs between two looks at all test images.
    """

    image_size: NotNegative = 0
    method: named(lambda: METHODS, "method") = "plain,kd,fitnets,at,nst,pkt,ofd,ab,fsp"
    options: Options = ""
    teacher: str = "cnn3_w16"
    student: str = "cnn3_w2"
    teacher_checkpoint: str = ""
    teachers: Thousand = 1
    teacher_epochs: Count = 15
    teacher_augment: str = "none"
    labelled: NotNegative = 20
    seeds: Thousand = 5
    epochs: Count = 60
    lr: Positive = 0.05
    batch_size: int = Field(50, ge=2)
    clip: Weight = 1.0
    cap: Weight = 0.1
    images: int = Field(500, ge=4)
    look_every: Count = 1

    def plan(self, seed: int) -> Plan:
        """How the students are trained."""
        return super().plan(seed, clip=self.clip or None)

    def teacher_recipe(self) -> dict:
        """How teachers are trained: on all their images, in one cycle."""
        plan = Plan(epochs=self.teacher_epochs, lr=0.1, weight_decay=self.weight_decay, schedule="one_cycle",
                    precision=self.precision, portable=True)  # fmt: skip
        return {"plan": plan, "batch_size": self.batch_size, "augment": self.teacher_augment}


@dataclass
class Distilled:
    """`rows`: one per seed, method, stage and epoch; `moved`: CKA of student and teacher at the end of each group,
    before and after; `students`, `teachers`: the networks by (method, seed) and by seed; `pair`: of the last seed."""

    rows: pd.DataFrame
    moved: pd.DataFrame
    students: dict[tuple[str, int], nn.Module]
    teachers: dict[int, nn.Module]
    pair: Pair


def distill_all(p: DistillationRun, dataset: Dataset, folder: Path) -> Distilled:
    """Every method with every seed; each stage is kept in `folder`, from which an interrupted run goes on.

    All methods of a seed start from the same student, see the same images in the same order, and share one Teacher, so
    that without augmentation the teacher's values are computed once for all of them.
    Raises what does not fit before anything is trained: every method is tried on untrained networks.
    """
    _Bench(p, dataset, 0, rehearsal=True).rehearse()
    found = Distilled(pd.DataFrame(), pd.DataFrame(), {}, {}, None)
    tables, moved = [], []
    for seed in progress(range(p.seeds), "seeds"):
        bench = _Bench(p, dataset, seed)
        found.teachers[seed], found.pair = bench.teachers[0].net, bench.pair(bench.student())
        start = bench.similarity(bench.student())
        for name in names(p.method, METHODS):
            student, rows = bench.distilled(name, folder)
            size = sum(p.numel() for p in student.parameters())
            tables.append(rows.assign(seed=seed, parameters=size))
            moved.append(bench.similarity(student).assign(method=name, seed=seed, before=start["after"]))
            found.students[name, seed] = student
    found.rows, found.moved = pd.concat(tables, ignore_index=True), pd.concat(moved, ignore_index=True)
    return found


def last_epochs(rows: pd.DataFrame) -> pd.DataFrame:
    """The last epoch of every method and seed: what is compared, with no choice made on test images."""
    return rows.groupby(["seed", "method"], sort=False).tail(1)


def make_method(name: str, pair: Pair, options: str = "") -> Method:
    """The method `name` of METHODS for this pair, with its part of `options`. Raises UnknownName, BadValue."""
    if name not in METHODS:
        raise UnknownName(f"there is no method {name!r}. {suggest(name, METHODS)}")
    return replace(METHODS[name](pair, **read_options(options).get(name, {})), name=name)


def read_options(text: str) -> dict[str, dict[str, object]]:
    """{method: {option: value}} of a text like "nst.kernel=gaussian,at.power=1".

    Raises UnknownName; BadValue for a value of another type than the option's, and for numbers that it cannot be.
    """
    found: dict[str, dict[str, object]] = {}
    once([part.partition("=")[0].strip() for part in names(text)])
    for part in names(text):
        key, equals, value = part.partition("=")
        method, dot, option = key.strip().partition(".")
        if not (equals and dot):
            raise BadValue(f"options: {part!r} is not of the form method.option=value, as in nst.kernel=gaussian.")
        if method not in METHODS:
            raise UnknownName(f"options: there is no method {method!r}. {suggest(method, METHODS)}")
        found.setdefault(method, {})[option.strip()] = _option(method, option.strip(), _read(value.strip()))
    return found


def _option(method: str, name: str, value: object) -> object:
    """The value itself, after it was checked."""
    known = {p.name: p for p in inspect.signature(METHODS[method]).parameters.values() if p.kind == p.KEYWORD_ONLY}
    if name not in known:
        raise UnknownName(f"{method} has no option {name!r}. {suggest(name, known)}")
    kind, number = known[name].annotation, isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        TypeAdapter(kind).validate_python(value, strict=True)
        fits = not number or (0 <= value <= _LARGEST and (value > 0 or name in _MAY_BE_0))
    except ValidationError:
        fits = False
    if not fits:
        least = "from 0" if name in _MAY_BE_0 else "above 0,"
        needed = {str: "a text", bool: "True or False", int: f"a whole number {least} to {_LARGEST:,}"}
        raise BadValue(
            f"options: {method}.{name} is {value!r}; it must be "
            f"{needed.get(kind, f'a number {least} to {_LARGEST:,}')}. Its default is {known[name].default!r}."
        )
    return value


def method_table(pair: Pair) -> pd.DataFrame:
    """All entries of the survey, and what stands beside it, one line each.

    Those of METHODS print themselves as they would be run on this pair; for detection and re-identification, which are
    of other networks, the lines are their files' own. In the survey's order.
    """
    rows = [replace(make(pair), name=name).row() for name, make in METHODS.items()]
    rows += [imitation.ROW, fd_gan.ROW, efficient_detection.ROW]
    number = {"key": lambda entry: entry.replace("", "0").astype(int), "kind": "stable", "ignore_index": True}
    return pd.DataFrame(rows).sort_values("entry", **number)


class _Bench:
    """One seed: its teachers, images and first student. For a rehearsal teachers are not trained, and images few."""

    def __init__(self, p: DistillationRun, dataset: Dataset, seed: int, rehearsal: bool = False):
        self.p, self.dataset, self.seed, self.device = p, dataset, seed, p.place["device"]
        self.rehearsal = rehearsal
        train = dataset.train.limit(p.labelled, seed, dataset.classes) if p.labelled else dataset.train
        train = train.select(torch.arange(min(max(_FEW, p.batch_size), len(train)))) if rehearsal else train
        self.plan = p.plan(seed)
        self.few = replace(dataset, train=train)
        self.train, self.test = loaders(self.few, p.batch_size, seed, p.augment, self.device, self.plan.dtype)
        self.teachers = [Teacher(self._placed(self._teacher(k)), self.train) for k in range(p.teachers)]
        first = dataset.test.select(torch.arange(min(p.images, len(dataset.test))))
        self.compared = self.test.over(first, batch_size=min(500, len(first)))

    def student(self) -> nn.Module:
        """The untrained student; its seed is none of a teacher's, which may be of the same kind."""
        return self._placed(self._build(self.p.student, seed=10_000 + self.seed).to(self.plan.dtype))

    def pair(self, student: nn.Module) -> Pair:
        return Pair(student, tuple(self.teachers), *self._positions)

    @cached_property
    def _positions(self) -> tuple[Positions, Positions]:
        few = next(iter(self.train.plain())).images[:2]
        return positions(self.student(), few), positions(self.teachers[0].net, few)

    def rehearse(self) -> None:
        """Compare the groups of layers, and try a step of every method."""
        self.similarity(self.student())
        for name in names(self.p.method, METHODS):
            student = self.student()
            method = self._method(name, self.pair(student))
            check_fit(student, self.teachers, method, self.train, self.plan)
            student = method.prepare(student, self.teachers[0].net) if method.prepare else student
            rehearse(student, self.teachers, method, self.train, self.plan)

    def distilled(self, name: str, folder: Path) -> tuple[nn.Module, pd.DataFrame]:
        student = self.student()
        return distill(
            student, self.teachers, self._method(name, self.pair(student)), self.train, self.plan, test=self.test,
            look_every=self.p.look_every, folder=folder / f"{name}-s{self.seed}", label=f"{name}, seed {self.seed}",
        )  # fmt: skip

    def _method(self, name: str, pair: Pair) -> Method:
        method = make_method(name, pair, self.p.options)
        return capped(method, pair, next(iter(self.train.plain())), self.p.cap) if self.p.cap else method

    def similarity(self, student: nn.Module) -> pd.DataFrame:
        """Debiased CKA of student and first teacher at the ends of paired groups, on pooled test activations."""
        groups = self.pair(self.student()).groups
        layers = ([tap.removesuffix(":map") for tap in side] for side in zip(*groups, strict=True))
        table = compare(self.teachers[0].net, student, self.compared, *layers, fold="pool")
        values = [table.iloc[k, k] for k in range(len(groups))]
        return pd.DataFrame({"layer": [s for _, s in groups], "after": values})

    def _teacher(self, number: int) -> nn.Module:
        p = self.p
        if self.rehearsal and not (p.teacher_checkpoint and number == 0):
            return self._build(p.teacher, seed=0).to(self.plan.dtype).eval()
        if p.teacher_checkpoint and number == 0:
            net = load_network(self._build(p.teacher, seed=0), p.teacher_checkpoint)
            return net.to(self.plan.dtype).eval()
        return trained(p.teacher, self.dataset, self.seed + 1000 * number, **p.teacher_recipe(),
                       device=str(self.device))  # fmt: skip

    def _build(self, name: str, seed: int) -> nn.Module:
        d = self.dataset
        return build(name, **d.form, seed=seed)

    def _placed(self, net: nn.Module) -> nn.Module:
        # On a GPU convolutions in bfloat16 are fastest with the channels last.
        layout = torch.channels_last if self.device.type == "cuda" else torch.preserve_format
        return net.to(self.device, memory_format=layout)


def _read(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
