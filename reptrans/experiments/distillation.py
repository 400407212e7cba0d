"""The experiment of the survey's notebook: one student by many methods, and what each of them moved."""

import ast
import inspect
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from torch import nn

from reptrans.bench import TUNING, chosen, number, plain_trial, read_factors, verdicts
from reptrans.checkpoints import load_network, trained
from reptrans.data import Batch, Dataset
from reptrans.data.split import limited
from reptrans.distillation.distill import Member, check_fit, distill_together, loaders, rehearse
from reptrans.distillation.losses import Losses, resolve
from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods import METHODS, efficient_detection, fd_gan, imitation
from reptrans.errors import BadValue, Diverged, choose
from reptrans.experiments.parameters import (
    Count,
    DatasetParameters,
    NotNegative,
    Positive,
    Thousand,
    Trained,
    Tried,
    Weight,
    named,
    piece,
)
from reptrans.matching import CrossEntropy, Positions, Teacher, positions
from reptrans.models import build
from reptrans.notebook import names, once, parts
from reptrans.progress import progress
from reptrans.randomness import drawing
from reptrans.similarity import compare
from reptrans.training import Plan, evaluate
from reptrans.training.operations import operations

# Options that may be 0: weights, and what is added. All other numbers divide, or count something.
_MAY_BE_0 = {"weight", "task", "alpha", "beta", "head", "distance", "angle", "scale", "margin", "seed"}
_LARGEST = 10**6  # no option is a number beyond it
_FEW = 64  # images of a rehearsal, or a batch
_SMALL = 20_000  # weights of a student up to which many side by side are faster on a CPU

# Gains in accuracy that are published, WRN-40-2 to WRN-16-2 on CIFAR-100 (Tian et al. 2020; DKD: Zhao et al. 2022),
# over training on labels, which reaches 0.7326 there, and of dkd over kd.
PUBLISHED = {
    "kd": 0.0166, "fitnets": 0.0032, "at": 0.0082, "sp": 0.0057, "cc": 0.0030, "vid": 0.0085, "rkd": 0.0009,
    "pkt": 0.0128, "ab": -0.0076, "ft": -0.0001, "fsp": -0.0035, "nst": 0.0042,
}  # fmt: skip
PUBLISHED_OVER_KD = {"dkd": 0.0131}


def _readable(text: str) -> str:
    read_options(text)
    return text


Options = Annotated[str, AfterValidator(_readable)]


class DistillationRun(Tried, Trained, DatasetParameters):
    """A teacher, students, the methods that stand between them, and how they are compared (see `bench`).

    `method`: names of METHODS joined by commas, or all; `beside_kd`: each of them also together with kd, as NAME+kd.
    `options`: method.option=value joined by commas, as in nst.kernel=gaussian,at.power=1.
    `limit`: training images of each class; all but those of `holdout` train the teacher. `seen`: images of each class
    that students see, 0 for all; `labelled`: how many of these have a label, drawn anew for every seed, 0 for all.
    `grid`, `factors`, `tuning_seeds`, `holdout`: see Tried. `teacher_checkpoint`: weights for the first teacher, ""
    trains it; `teachers`: how many there are, for methods that take several. `milestones`: epochs joined by commas at
    which the rate falls to a tenth, in place of `schedule`; `warmup`: epochs in which it rises. `images`: test images
    on which layers are compared; `look_every`: epochs between two looks at validation images. `together`: how many
    students are trained side by side at most, 0 for as many as pays.
    """

    image_size: NotNegative = 0
    method: named(lambda: METHODS, "method") = "plain,kd,fitnets,at,sp,rkd,ofd,dkd"
    beside_kd: bool = False
    options: Options = ""
    teacher: str = "cnn3_w16"
    student: str = "cnn3_w4"
    teacher_checkpoint: str = ""
    teachers: Thousand = 1
    teacher_epochs: Count = 15
    teacher_augment: str = "none"
    seen: NotNegative = 0
    labelled: NotNegative = 20
    seeds: Thousand = 16
    epochs: Count = 20
    lr: Positive = 0.05
    batch_size: int = Field(50, ge=2)
    milestones: str = ""
    warmup: NotNegative = 0
    clip: Weight = 0.0
    images: int = Field(500, ge=4)
    look_every: Count = 5
    together: NotNegative = 0

    def plan(self, seed: int, **more) -> Plan:
        """How the students are trained."""
        steps = tuple(int(number(part)) for part in parts(self.milestones))
        more |= {"milestones": steps, "warmup": self.warmup} | ({"schedule": "milestones"} if steps else {})
        return super().plan(seed, clip=self.clip or None, **more)

    def teacher_recipe(self) -> dict:
        """How teachers are trained: on all their images, in one cycle."""
        plan = Plan(epochs=self.teacher_epochs, lr=0.1, weight_decay=self.weight_decay, schedule="one_cycle",
                    precision=self.precision, portable=True)  # fmt: skip
        return {"plan": plan, "batch_size": self.batch_size, "augment": self.teacher_augment}

    @classmethod
    def tried(cls) -> list[str]:
        return [*METHODS, *(f"{name}+kd" for name in METHODS)]


@dataclass
class Distilled:
    """`rows`: one per contestant, seed, stage and epoch. `scores`: test accuracy of each seed (index) and contestant.

    By contestant: `parameters`, weights of the student; `over`, what it is compared with, plain, or kd where it has
    softened answers in it; `chosen`, the factor of its weights; `cost`, operations of the training over plain's;
    `students`, the first seed's. `trials`: the validation scores by which factors were chosen, empty without any.
    `moved`: CKA of student and teacher at the end of each group, before and after.
    """

    rows: pd.DataFrame
    scores: pd.DataFrame
    parameters: dict[str, int]
    over: dict[str, str]
    trials: pd.DataFrame
    chosen: dict[str, float]
    cost: dict[str, float]
    moved: pd.DataFrame
    students: dict[str, nn.Module]
    teacher: nn.Module
    pair: Pair


def distill_all(p: DistillationRun, dataset: Dataset, folder: Path) -> Distilled:
    """Every contestant with every seed under one teacher; what is done is kept in `folder`, and an interrupted run goes
    on from there.

    All contestants of a seed start from the same student and see the same images in the same order. Test images are
    looked at once, when all is trained. Raises what does not fit before anything is trained: every method is tried on
    untrained networks.
    """
    dataset = dataset.with_validation(p.holdout)
    _Bench(p, dataset, rehearsal=True).rehearse()
    bench = _Bench(p, dataset)
    trials = bench.trials(folder)
    factors = dict.fromkeys(bench.methods, 1.0) | read_factors(p.factors, p.tried())
    factors |= chosen(trials) if len(trials) else {}
    factors = {name: factors[name] for name in bench.methods}
    made = {
        name: piece(folder / f"{name}.safetensors", bench.reported, name, factor)
        for name, factor in progress(factors.items(), "methods", len(factors))
    }
    cost = {name: bench.cost(method) for name, method in bench.methods.items()}
    return Distilled(
        rows=_joined(made, "rows"),
        moved=_joined(made, "moved"),
        scores=pd.DataFrame({name: each["test_accuracy"] for name, each in made.items()}).rename_axis("seed"),
        parameters={name: each["parameters"] for name, each in made.items()},
        over={name: _rival(method) for name, method in bench.methods.items() if name != "plain"},
        trials=trials,
        chosen=factors,
        cost={name: each / cost.get("plain", math.nan) for name, each in cost.items()},
        students={name: bench.restored(name, each["student"]) for name, each in made.items()},
        teacher=bench.teachers[0].net,
        pair=bench.pair(bench.student(0)),
    )


def gains(found: Distilled) -> tuple[pd.DataFrame, str]:
    """(table, note): what each contestant gains, over plain, or, where it has kd in it, over kd; see `verdicts`.

    Without plain and kd among them there is no positive control, and so no verdict.
    """
    known = list(found.scores)
    if not {"plain", "kd"} <= set(known):
        return pd.DataFrame(), "Without plain and kd nothing shows what this comparison can see; name both."
    published = {
        name: (PUBLISHED if base == "plain" else PUBLISHED_OVER_KD).get(name, math.nan)
        for name, base in found.over.items()
    }
    table, note = verdicts(found.scores, found.over, published=published, control=("kd", "plain"))
    table.insert(2, "factor", [found.chosen[name] for name in table["method"]])
    table.insert(3, "cost", [found.cost[name] for name in table["method"]])
    table.insert(4, "parameters", [found.parameters[name] for name in table["method"]])
    return table, note


def _joined(made: dict[str, dict], what: str) -> pd.DataFrame:
    tables = [pd.DataFrame(each[what]).assign(method=name) for name, each in made.items()]
    return pd.concat(tables, ignore_index=True)


def _rival(method: Method) -> str:
    """What a method is compared with: kd where kd is a part of it."""
    return "kd" if method.name != "kd" and has_answers(method) else "plain"


def has_answers(method: Method) -> bool:
    """Whether softened answers are matched in it."""
    return any(stage.answers for stage in method.stages)


def beside(method: Method, pair: Pair) -> Method:
    """The method with kd's loss instead of the bare cross-entropy in every stage that has one, as NAME+kd."""
    task = METHODS["kd"](pair).stages[0].losses

    def with_answers(stage: Stage) -> Stage:
        bare = [loss for loss in stage.losses if isinstance(loss, CrossEntropy)]
        rest = [loss for loss in stage.losses if loss not in bare]
        return replace(stage, losses=[*task, *rest]) if bare else stage

    return replace(method, name=f"{method.name}+kd", stages=[with_answers(stage) for stage in method.stages])


def make_method(name: str, pair: Pair, options: str = "") -> Method:
    """The method `name` of METHODS for this pair, with its part of `options`. Raises UnknownName, BadValue."""
    make = choose(name, METHODS, "there is no method {}")
    return replace(make(pair, **read_options(options).get(name, {})), name=name)


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
        choose(method, METHODS, "options: there is no method {}")
        found.setdefault(method, {})[option.strip()] = _option(method, option.strip(), _read(value.strip()))
    return found


def _option(method: str, name: str, value: object) -> object:
    """The value itself, after it was checked."""
    known = {p.name: p for p in inspect.signature(METHODS[method]).parameters.values() if p.kind == p.KEYWORD_ONLY}
    kind = choose(name, known, f"{method} has no option {{}}").annotation
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
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
    return pd.DataFrame(rows, columns=list(rows[0])).sort_values("entry", **number)


class _Bench:
    """The teachers, the images and the first students of a comparison. For a rehearsal teachers are not trained, and
    images few."""

    def __init__(self, p: DistillationRun, dataset: Dataset, rehearsal: bool = False):
        self.p, self.dataset, self.device, self.rehearsal = p, dataset, p.place["device"], rehearsal
        train = dataset.train.limit(p.seen, 0, dataset.classes) if p.seen else dataset.train
        if p.labelled:
            train.limit(p.labelled, 0, dataset.classes)
        self.plan = p.plan(0)
        self.few = replace(dataset, train=train)
        if rehearsal:
            self.few = replace(self.few, train=train.select(torch.arange(min(max(_FEW, p.batch_size), len(train)))))
        self.train, self.test = loaders(self.few, p.batch_size, 0, p.augment, self.device, self.plan.dtype)
        self.watch = {"validation": self.test.over(dataset.validation)}
        self.teachers = [Teacher(self._teacher(k).to(self.device), self.train) for k in range(p.teachers)]
        first = dataset.test.select(torch.arange(min(p.images, len(dataset.test))))
        self.compared = self.test.over(first, batch_size=min(500, len(first)))

    def student(self, seed: int) -> nn.Module:
        """The untrained student; its seed is none of a teacher's, which may be of the same kind."""
        return self._build(self.p.student, seed=10_000 + seed).to(self.device, self.plan.dtype)

    def pair(self, student: nn.Module) -> Pair:
        return Pair(student, tuple(self.teachers), *self._positions)

    @cached_property
    def _positions(self) -> tuple[Positions, Positions]:
        few = next(iter(self.train.plain())).images[:2]
        return positions(self.student(0), few), positions(self.teachers[0].net, few)

    def rehearse(self) -> None:
        """Compare the groups of layers, and try a step of every method."""
        self.similarity(self.student(0))
        for method in self.methods.values():
            member = self._member(0)
            check_fit(member.student, self.teachers, method, self.train, self.plan)
            rehearse(member._replace(student=self._start(method, member.student)), method, self.plan)

    @cached_property
    def methods(self) -> dict[str, Method]:
        """What is compared, by name."""
        pair = self.pair(self.student(0))
        own = [make_method(name, pair, self.p.options) for name in names(self.p.method, METHODS)]
        more = [beside(m, pair) for m in own if self.p.beside_kd and m.name != "plain" and not has_answers(m)]
        return {method.name: method for method in own + more}

    def trials(self, folder: Path) -> pd.DataFrame:
        """Validation accuracy after the training of every contestant, trial and tuning seed; empty without grid."""
        grid = self.p.trials
        tables = [piece(folder / f"trials-{name}.safetensors", self._tried, name, grid)
                  for name in progress(self.methods if grid else [], "trials")]  # fmt: skip
        return pd.concat([pd.DataFrame(table) for table in tables], ignore_index=True) if tables else pd.DataFrame()

    def _tried(self, name: str, grid: list[float]) -> dict[str, list]:
        seeds = [TUNING + k for k in range(self.p.tuning_seeds)]
        pairs = [(trial, seed) for trial in grid for seed in seeds]
        scores = []
        for trials in [[trial] for trial in grid] if name == "plain" else [grid]:
            own = [pair for pair in pairs if pair[0] in trials]
            scores += self._validated(name, [(seed, trial) for trial, seed in own])
        trial, seed = zip(*pairs, strict=True)
        return {"method": [name] * len(pairs), "trial": list(trial), "seed": list(seed), "score": scores}

    def _validated(self, name: str, each: list[tuple[int, float]]) -> list[float]:
        """Validation accuracy at the end of each training; 0 for one that diverged, which is a trial that failed."""
        try:
            return [float(rows["validation_accuracy"].iloc[-1]) for _, rows in self._trained(name, each)]
        except Diverged:
            # Side by side, one takes the others with it.
            return [0.0] if len(each) == 1 else [self._validated(name, [pair])[0] for pair in each]

    def reported(self, name: str, factor: float) -> dict[str, object]:
        """All that is told of a contestant, as tensors, lists and numbers."""
        done = self._trained(name, [(seed, factor) for seed in range(self.p.seeds)])
        tables = [rows.assign(seed=seed) for seed, (_, rows) in enumerate(done)]
        rows = pd.concat(tables, ignore_index=True).drop(columns="method")
        moved = [
            self.similarity(student).assign(before=before, seed=seed)
            for seed, ((student, _), before) in enumerate(zip(done, self._before, strict=True))
        ]
        moved = pd.concat(moved, ignore_index=True)
        return {
            "test_accuracy": [evaluate(student, self.test, self.plan)["accuracy"] for student, _ in done],
            "rows": {column: rows[column].tolist() for column in rows},
            "moved": {column: moved[column].tolist() for column in moved},
            "student": dict(done[0][0].state_dict()),
            "parameters": sum(p.numel() for p in done[0][0].parameters()),
        }

    def restored(self, name: str, state: dict[str, torch.Tensor]) -> nn.Module:
        """The trained student of a contestant."""
        student = self._start(self.methods[name], self.student(0))
        student.load_state_dict(state)
        return student.eval()

    def cost(self, method: Method) -> float:
        """Operations of a contestant's training per epoch, its teacher's left out where they are done once for all."""
        student, built, total = self._start(method, self.student(0)), {}, 0.0
        batch = next(iter(self.train))
        for stage in method.stages:
            with drawing(0):
                losses = resolve(stage, student, self.teachers, batch, built).to(self.device, self.plan.dtype)
            built = losses.built
            total += stage.share * self._operations(losses.train(), batch)
        return total * method.rounds

    def _operations(self, losses: Losses, batch: Batch) -> int:
        taught = losses.taught(batch)

        def step():
            now = taught if self.teachers[0].keeps else losses.taught(batch)
            terms, _ = losses.terms(batch.images, batch.labels, None, now, 1.0, 0.0)
            sum(terms.values()).backward()

        return operations(step)

    @cached_property
    def _before(self) -> list[pd.Series]:
        return [self.similarity(self.student(seed))["after"] for seed in range(self.p.seeds)]

    def similarity(self, student: nn.Module) -> pd.DataFrame:
        """Debiased CKA of student and first teacher at the ends of paired groups, on pooled test activations."""
        groups = self.pair(self.student(0)).groups
        layers = ([tap.removesuffix(":map") for tap in side] for side in zip(*groups, strict=True))
        table = compare(self.teachers[0].net, student, self.compared, *layers, fold="pool")
        values = [table.iloc[k, k] for k in range(len(groups))]
        return pd.DataFrame({"layer": [s for _, s in groups], "after": values})

    def _trained(self, name: str, each: list[tuple[int, float]]) -> list[tuple[nn.Module, pd.DataFrame]]:
        """The students of these (seed, factor), so many side by side as pays."""
        method, plan = self.methods[name], self._plan(name, each[0][1])
        # A limit of gradients would be one for all of them.
        size = 1 if plan.clip else self.p.together or (len(each) if self._small else 1)
        done = []
        for start in range(0, len(each), size):
            members = [
                self._member(seed, 1.0 if name == "plain" else factor) for seed, factor in each[start : start + size]
            ]
            done += distill_together(members, method, plan, watch=self.watch, look_every=self.p.look_every, label=name)
        return done

    def _plan(self, name: str, factor: float) -> Plan:
        """The plan of a contestant; plain, which has no weights to try, takes other rates and decays instead."""
        rate, decay = plain_trial(factor) if name == "plain" else (1.0, 1.0)
        return replace(self.plan, lr=self.plan.lr * rate, weight_decay=self.plan.weight_decay * decay)

    @property
    def _small(self) -> bool:
        """Whether students side by side are faster: on a CPU small ones alone, as its grouped convolutions are slow."""
        return self.device.type == "cuda" or sum(p.numel() for p in self.student(0).parameters()) <= _SMALL

    def _member(self, seed: int, factor: float = 1.0) -> Member:
        loader = self.train.over(self.train.split, seed=seed)
        mask = torch.zeros(len(loader.split), dtype=torch.bool)
        labels = loader.split.labels
        if self.p.labelled and not self.rehearsal:
            mask[limited(labels, self.p.labelled, seed, self.dataset.classes)] = True
        return Member(self.student(seed), tuple(self.teachers), loader, seed, factor, mask if mask.any() else None)

    def _start(self, method: Method, student: nn.Module) -> nn.Module:
        return method.prepare(student, self.teachers[0].net) if method.prepare else student

    def _teacher(self, number: int) -> nn.Module:
        p = self.p
        if self.rehearsal and not (p.teacher_checkpoint and number == 0):
            return self._build(p.teacher, seed=0).to(self.plan.dtype).eval()
        if p.teacher_checkpoint and number == 0:
            net = load_network(self._build(p.teacher, seed=0), p.teacher_checkpoint)
            return net.to(self.plan.dtype).eval()
        return trained(p.teacher, self.dataset, 1000 * number, **p.teacher_recipe(), device=str(self.device))

    def _build(self, name: str, seed: int) -> nn.Module:
        return build(name, **self.dataset.form, seed=seed)


def _read(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
