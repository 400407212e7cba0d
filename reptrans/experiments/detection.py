"""The experiment of the detection notebook: a small detector taught by a larger one in several ways."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pandas as pd
from pydantic import Field, field_validator
from torchvision.models.detection import FasterRCNN

from reptrans.bench import TUNING, chosen, plain_trial, read_factors
from reptrans.detection.data import SceneLoader, Scenes, coco_scenes, digit_scenes
from reptrans.detection.detectors import detector
from reptrans.detection.train import (
    METHODS,
    PLAIN,
    Efficient,
    Imitation,
    average_precision,
    precision_metric,
    train_detector,
)
from reptrans.errors import BadData
from reptrans.experiments.parameters import Count, Exact, NotNegative, Place, Positive, Tried, Weight
from reptrans.files import file_name
from reptrans.notebook import names
from reptrans.progress import progress
from reptrans.training import Plan


class DetectionRun(Tried, Place):
    """Teacher, student, scenes, and how the one learns from the other.

    `dataset`: digits, or coco:PATH with the folders train and test in it, each in COCO's format. `classes`, `train`,
    `test`, `image_size`: digits that appear, images of each part, and their side; a folder is taken as it is.
    `limit`: the students see only so many of the training images, 0 for all.
    `methods`: names of METHODS joined by commas. `psi`, `imitation`, `warmup`; `soft`, `bounded`, `hint`, `margin`: as
    in Imitation and Efficient. `look_every`: epochs between looks at validation scenes. `grid`, `factors`,
    `tuning_seeds`: see Tried; `holdout`: of all training scenes so many, or that share of them, for validation alone.
    """

    dtype: Exact = "auto"
    teacher: str = "small_32_64_64"
    student: str = "small_8_16_16"
    dataset: str = "digits"
    classes: str = "0147"
    train: Count = 400
    limit: NotNegative = 0
    holdout: Positive = 100.0
    test: Count = 150
    image_size: int = Field(64, ge=32)
    methods: str = "plain,imitation,efficient"
    psi: float = Field(0.5, ge=0, lt=1)
    imitation: Weight = 0.1
    warmup: float = Field(0.05, ge=0, le=1)
    soft: float = Field(0.5, ge=0, le=1)
    bounded: Weight = 0.5
    hint: Weight = 0.5
    margin: Weight = 0.01
    seeds: Count = 3
    teacher_epochs: Count = 12
    epochs: Count = 15
    lr: Positive = 0.004
    weight_decay: Weight = 1e-4
    batch_size: Count = 8
    look_every: Count = 3

    @field_validator("methods")
    @classmethod
    def _are_known(cls, text: str) -> str:
        names(text, METHODS)
        return text

    @classmethod
    def tried(cls) -> list[str]:
        return list(METHODS)

    def load(self) -> tuple[Scenes, Scenes, Scenes]:
        """The scenes to train on, for validation, and to test on. Raises BadData, BadValue, NotAvailable."""
        precision_metric()
        train, test = self._loaded()
        held = round(self.holdout if self.holdout >= 1 else self.holdout * len(train))
        return *train.divided(held), test

    def _loaded(self) -> tuple[Scenes, Scenes]:
        if self.dataset == "digits":
            digits = {"classes": self.classes, "size": self.image_size}
            return digit_scenes(self.train, **digits), digit_scenes(self.test, part="test", **digits)
        if not self.dataset.startswith("coco:"):
            raise BadData(f"there are no scenes {self.dataset!r}. Possible: digits, coco:PATH")
        folder = Path(self.dataset.removeprefix("coco:"))
        train, test = coco_scenes(folder / "train"), coco_scenes(folder / "test")
        if train.classes != test.classes:
            raise BadData(f"the classes of {folder / 'train'} are {train.classes}, those of test {test.classes}.")
        return train, test

    def plan(self, seed: int, epochs: int) -> Plan:
        return Plan(
            epochs=epochs, optimiser="adam", lr=self.lr, weight_decay=self.weight_decay, schedule="one_cycle",
            precision=self.precision, portable=True, clip=5.0, seed=seed,
        )  # fmt: skip

    def method(self, name: str) -> Imitation | Efficient:
        """METHODS[name] with this run's numbers; a part that is switched off stays so."""
        known = METHODS[name]
        if isinstance(known, Imitation):
            return Imitation(self.imitation, self.psi, self.warmup)
        parts = {part: getattr(self, part) for part in ("soft", "bounded", "hint") if getattr(known, part)}
        return replace(known, margin=self.margin if parts else known.margin, **parts)


Trained = tuple[FasterRCNN, pd.DataFrame]  # a detector and the rows of its epochs


@dataclass(frozen=True)
class Detected:
    """What a comparison of detectors gave.

    `rows`: an epoch of a training each: seed, method ("teacher" among them), epoch, the terms of `train_detector`, and
    every `look_every` epochs ap50 on validation scenes. `scores`: ap50 on test scenes at the end, seeds by methods;
    `teacher`: the teacher's. `networks`: detectors by (seed, method). `trials`: validation scores by which factors were
    chosen, empty where there were none; `chosen`: {method: factor}.
    """

    rows: pd.DataFrame
    scores: pd.DataFrame
    teacher: float
    networks: dict[tuple[int, str], FasterRCNN]
    trials: pd.DataFrame
    chosen: dict[str, float]


def distil_detectors(p: DetectionRun, train: Scenes, validation: Scenes, test: Scenes, folder: Path) -> Detected:
    """One teacher, trained on all of `train`; then for every seed and method a student, trained on the first `limit`.

    "plain" is always among the methods. The students of one seed start from the same weights and see the images in the
    same order. Where there is a grid, every method has its trials before, on seeds of their own. Each network meets the
    test scenes once, at its end. `folder` holds a checkpoint of each, from which an interrupted run goes on.
    """
    look = _loader(p, validation)

    def trained(seed: int, name: str, model: str, scenes: Scenes, plan: Plan, **settings) -> Trained:
        net = detector(model, len(train.classes), image_size=p.image_size, seed=seed)
        rows = train_detector(
            net, _loader(p, scenes, shuffle=True, seed=seed), plan, test=look, look_every=p.look_every, seed=seed,
            checkpoint=folder / f"{file_name(name)}_{seed}.safetensors", label=f"{name}, seed {seed}", **settings,
        )  # fmt: skip
        return net, rows.assign(seed=seed, method=name)

    def student(seed: int, name: str, factor: float, label: str) -> Trained:
        q = strengthened(p, name, factor)
        return trained(seed, label, p.student, few, q.plan(seed, p.epochs), method=q.method(name), teacher=teacher)

    teacher, first = trained(0, "teacher", p.teacher, train, p.plan(0, p.teacher_epochs))
    few = train.first(p.limit) if p.limit else train
    methods = list(dict.fromkeys(["plain", *names(p.methods, METHODS)]))
    jobs = list(product(methods, p.trials, range(TUNING + 1, TUNING + 1 + p.tuning_seeds)))
    scored = [
        (name, trial, seed, student(seed, name, trial, f"{name} times {trial:g}")[1]["ap50"].iloc[-1])
        for name, trial, seed in (progress(jobs, "trials") if jobs else ())
    ]
    trials = pd.DataFrame(scored, columns=["method", "trial", "seed", "score"])
    known = chosen(trials) if jobs else read_factors(p.factors, METHODS)
    factors = dict.fromkeys(methods, 1.0) | {name: factor for name, factor in known.items() if name in methods}
    students = {(seed, name): student(seed, name, factors[name], name)
                for seed in progress(range(p.seeds), "seeds") for name in methods}  # fmt: skip
    networks = {key: net for key, (net, _) in students.items()}
    rows = pd.concat([first, *(table for _, table in students.values())], ignore_index=True)
    unseen = _loader(p, test)
    scores = pd.Series({key: average_precision(net, unseen) for key, net in networks.items()}).unstack(sort=False)
    return Detected(
        rows, scores.rename_axis(index="seed"), average_precision(teacher, unseen),
        {(0, "teacher"): teacher} | networks, trials, factors,
    )  # fmt: skip


def strengthened(p: DetectionRun, name: str, factor: float) -> DetectionRun:
    """The parameters of a method with `factor` times its weights; of plain students, see `plain_trial`.

    The share that soft classes have ends at 1.
    """
    if METHODS[name] == PLAIN:
        rate, decay = plain_trial(factor)
        return p.model_copy(update={"lr": p.lr * rate, "weight_decay": p.weight_decay * decay})
    if isinstance(METHODS[name], Imitation):
        return p.model_copy(update={"imitation": p.imitation * factor})
    more = {"soft": min(1.0, p.soft * factor), "bounded": p.bounded * factor, "hint": p.hint * factor}
    return p.model_copy(update=more)


def _loader(p: DetectionRun, scenes: Scenes, **settings) -> SceneLoader:
    return scenes.loader(p.batch_size, **p.place, **settings)
