"""The experiment of the detection notebook: a small detector taught by a larger one in several ways."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from pydantic import Field, field_validator
from torchvision.models.detection import FasterRCNN

from reptrans.detection.coco import coco_scenes
from reptrans.detection.data import SceneLoader, Scenes
from reptrans.detection.detectors import detector
from reptrans.detection.digits import digit_scenes
from reptrans.detection.train import METHODS, Efficient, Imitation, train_detector
from reptrans.errors import BadData
from reptrans.experiments.parameters import Count, Exact, NotNegative, Place, Positive, Weight
from reptrans.notebook import names
from reptrans.progress import progress
from reptrans.training import Plan


class DetectionRun(Place):
    """Teacher, student, scenes, and how the one learns from the other.

    `dataset`: digits, or coco:PATH with the folders train and test in it, each in COCO's format. `classes`, `train`,
    `test`, `image_size`: digits that appear, images of each part, and their side; a folder is taken as it is.
    `limit`: the students see only so many of the training images, 0 for all.
    `methods`: names of METHODS joined by commas. `psi`, `imitation`, `warmup`; `soft`, `bounded`, `hint`, `margin`: as
    in Imitation and Efficient. `look_every`: epochs between looks at the average precision.
    """

    dtype: Exact = "auto"
    teacher: str = "small_32_64_64"
    student: str = "small_8_16_16"
    dataset: str = "digits"
    classes: str = "0147"
    train: Count = 400
    limit: NotNegative = 200
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
    batch_size: Count = 8
    look_every: Count = 3

    @field_validator("methods")
    @classmethod
    def _are_known(cls, text: str) -> str:
        names(text, METHODS)
        return text

    def load(self) -> tuple[Scenes, Scenes]:
        """The scenes to train on and those to test on. Raises BadData, BadValue."""
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
            epochs=epochs, optimiser="adam", lr=self.lr, schedule="one_cycle", precision=self.precision, portable=True,
            clip=5.0, seed=seed,
        )  # fmt: skip

    def method(self, name: str) -> Imitation | Efficient:
        """METHODS[name] with this run's numbers; a part that is switched off stays so."""
        known = METHODS[name]
        if isinstance(known, Imitation):
            return Imitation(self.imitation, self.psi, self.warmup)
        parts = {part: getattr(self, part) for part in ("soft", "bounded", "hint") if getattr(known, part)}
        return replace(known, margin=self.margin if parts else known.margin, **parts)


def distil_detectors(
    p: DetectionRun, train: Scenes, test: Scenes, folder: Path
) -> tuple[pd.DataFrame, dict[tuple[int, str], FasterRCNN]]:
    """One teacher, trained on all scenes; then for every seed and method a student, trained on the first `limit`.

    "plain" is always among the methods. The students of one seed start from the same weights and see the images in the
    same order. Rows: seed, method ("teacher" among them), epoch, the terms of `train_detector`, and ap50 every
    `look_every` epochs. Detectors by (seed, method). `folder` holds a checkpoint of each, from which an interrupted run
    goes on.
    """
    tables, found = [], {}

    def train_one(seed: int, name: str, model: str, scenes: Scenes, plan: Plan, **settings) -> None:
        net = detector(model, len(train.classes), image_size=p.image_size, seed=seed)
        rows = train_detector(
            net, _loader(p, scenes, shuffle=True, seed=seed), plan, test=_loader(p, test), look_every=p.look_every,
            seed=seed, checkpoint=folder / f"{name}_{seed}.safetensors", label=f"{name}, seed {seed}", **settings,
        )  # fmt: skip
        tables.append(rows.assign(seed=seed, method=name))
        found[seed, name] = net

    train_one(0, "teacher", p.teacher, train, p.plan(0, p.teacher_epochs))
    few = train.first(p.limit) if p.limit else train
    for seed in progress(range(p.seeds), "seeds"):
        for name in dict.fromkeys(["plain", *names(p.methods, METHODS)]):
            plan = p.plan(seed, p.epochs)
            train_one(seed, name, p.student, few, plan, method=p.method(name), teacher=found[0, "teacher"])
    return pd.concat(tables, ignore_index=True), found


def _loader(p: DetectionRun, scenes: Scenes, **settings) -> SceneLoader:
    return scenes.loader(p.batch_size, **p.place, **settings)
