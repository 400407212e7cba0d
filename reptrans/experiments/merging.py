"""The experiment of the merging notebook: pairs of networks averaged, and students matched to teachers."""

from dataclasses import replace

import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from reptrans.data import Dataset, Loader
from reptrans.errors import BadValue
from reptrans.experiments.parameters import Count, Names, NotNegative, Positive, Thousand, TrainingParameters, Weight
from reptrans.merging.align import ALIGNMENTS, aligned
from reptrans.merging.fitting import FAIR, SOURCE, Matching, match_models
from reptrans.merging.interpolate import barrier, path_rows
from reptrans.merging.repair import reestimated
from reptrans.models import build
from reptrans.notebook import names, once, parts, some_names
from reptrans.progress import progress
from reptrans.similarity import compare
from reptrans.training import Plan


class MergingRun(TrainingParameters):
    """Pairs of networks to average, students and teachers to match, and how.

    `pairs` networks of `model` from seeds 2i and 2i + 1 are averaged; the one from seed 2i is the student of a
    `teacher` from the same seed. `widths`: networks, joined by commas, that are averaged like `model`, to see what
    width does. `train_*`: how all networks are trained, once; `checkpoints` (two for each pair) and
    `teacher_checkpoints` are files to load instead, joined by commas. `layers`: student:teacher pairs whose likeness
    is reported. `images`: of the training split, that align, re-estimate batch norm and are matched on; as many of the
    test split are held out. `test_images`: so many, chosen at random, are scored; 0 for all. `points`: on the path.
    """

    model: str = "cnn3_w16"
    teacher: str = "resnet8"
    widths: Names = "cnn3_w2,cnn3_w4,cnn3_w8,cnn3_w16"
    checkpoints: str = ""
    teacher_checkpoints: str = ""
    image_size: NotNegative = 0
    pairs: Thousand = 3
    train_epochs: Count = 6
    train_weight_decay: Weight = 5e-4
    layers: str = "bn1:layer1,bn2:layer2,bn3:layer3"
    images: int = Field(300, ge=4)
    test_images: NotNegative = 0
    points: int = Field(11, ge=3, le=10_000)
    fair_epochs: Count = 30
    fair_lr: Positive = 1e-3

    def train_plan(self, seed: int) -> Plan:
        return replace(super().train_plan(seed), weight_decay=self.train_weight_decay)

    @property
    def published(self) -> Matching:
        return replace(SOURCE, plan=replace(SOURCE.plan, portable=True))

    @property
    def fair(self) -> Matching:
        return replace(FAIR, plan=replace(FAIR.plan, epochs=self.fair_epochs, lr=self.fair_lr, portable=True))

    @field_validator("layers")
    @classmethod
    def _are_pairs(cls, text: str) -> str:
        if not all(len(pair.split(":")) == 2 for pair in some_names(text)):
            raise ValueError("layers are pairs student:teacher, joined by commas: bn1:layer1,bn2:layer2")
        return text

    @property
    def layer_pairs(self) -> list[tuple[str, str]]:
        return once([tuple(name.strip() for name in pair.split(":")) for pair in names(self.layers)])


def train_networks(p: MergingRun, dataset: Dataset) -> list[tuple[nn.Module, nn.Module, nn.Module]]:
    """(network from seed 2i, network from seed 2i + 1, teacher from seed 2i) for every pair i, trained once and kept.

    Raises, before anything is trained, BadValue where checkpoints are given, but not two networks and one teacher for
    every pair, and what the files, the layers and the alignments do not fit.
    """
    ours, theirs = names(p.checkpoints), parts(p.teacher_checkpoints)
    for given, needed, what in ((ours, 2 * p.pairs, "checkpoints"), (theirs, p.pairs, "teacher_checkpoints")):
        if given and len(given) != needed:
            raise BadValue(
                f"{what} names {len(given)} files; {p.pairs} pairs need {needed}, joined by commas, or none."
            )
    _rehearse(p, dataset, ours, theirs)
    return [
        (*(p.network(p.model, dataset, i, ours[i] if ours else "") for i in (2 * k, 2 * k + 1)),
         p.network(p.teacher, dataset, 2 * k, theirs[k] if theirs else ""))
        for k in progress(range(p.pairs), "networks")
    ]  # fmt: skip


def merge_pairs(p: MergingRun, dataset: Dataset, networks: list[tuple]) -> pd.DataFrame:
    """`path_rows` of every pair, with each alignment, and with the batch norm's statistics averaged or re-estimated."""
    scored = _scored(p, dataset)
    fitted, shares, tables = images_of(p, dataset, "train"), torch.linspace(0, 1, p.points).tolist(), []
    for number, (a, b, _) in enumerate(progress(networks, "pairs")):
        for by in ALIGNMENTS:
            other = aligned(a, b, fitted, by, seed=number)
            mends = {"averaged": None, "re-estimated": lambda net, _: reestimated(net, fitted.split(100))}
            for statistics, mend in mends.items():
                rows = path_rows(a, other, scored, shares, mend)
                tables.append(rows.assign(pair=number, alignment=by, statistics=statistics))
    return pd.concat(tables, ignore_index=True)


def barriers(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each pair, alignment and statistics: barrier in loss (nats) and accuracy, and accuracy half-way."""
    found = []
    for (pair, by, statistics), path in rows.groupby(["pair", "alignment", "statistics"], sort=False):
        middle = path.loc[(path["share"] - 0.5).abs().idxmin(), "accuracy"]
        found.append({"pair": pair, "alignment": by, "statistics": statistics, "loss_barrier": barrier(path),
                      "accuracy_barrier": barrier(path, "accuracy"), "accuracy_halfway": middle})  # fmt: skip
    return pd.DataFrame(found)


def merge_widths(p: MergingRun, dataset: Dataset) -> pd.DataFrame:
    """The `barriers` of `pairs` pairs of each network in `widths`, with its name as `model` (of one of the user's own
    that of its function) and the mean accuracy of the two ends as `accuracy_ends`."""
    tables = []
    for model in progress(names(p.widths), "widths"):
        pairs = [tuple(p.trained(model, dataset, seed) for seed in (2 * k, 2 * k + 1)) for k in range(p.pairs)]
        paths = merge_pairs(p, dataset, [(*pair, None) for pair in pairs])
        ends = paths[paths["share"].isin([0, 1])].groupby(["pair", "alignment", "statistics"])["accuracy"].mean()
        found = barriers(paths).join(ends.rename("accuracy_ends"), on=["pair", "alignment", "statistics"])
        tables.append(found.assign(model=model.rpartition(":")[2]))
    return pd.concat(tables, ignore_index=True)


def match_pairs(p: MergingRun, dataset: Dataset, networks: list[tuple]) -> tuple[pd.DataFrame, dict[str, nn.Module]]:
    """Rows of `match_models` for every student and teacher, as published and fairly; the first pair's students."""
    scored, tables, kept = _scored(p, dataset), [], {}
    fitted, held_out = (images_of(p, dataset, part) for part in ("train", "test"))
    for number, (student, _, teacher) in enumerate(progress(networks, "matchings")):
        for how, matching, images in (("published", p.published, fitted[:1]), ("fair", p.fair, fitted)):
            moved, rows = match_models(
                student, teacher, images, how=matching, held_out=held_out, task=scored, report=p.layer_pairs,
                seed=number,
            )  # fmt: skip
            tables.append(rows.assign(pair=number, how=how))
            if not number:
                kept[how] = moved
    return pd.concat(tables, ignore_index=True), kept


def images_of(p: MergingRun, dataset: Dataset, part: str) -> Tensor:
    """`p.images` images of the split, a random choice, as the networks take them."""
    loader = dataset.loader(part, p.images, shuffle=True, seed=0, **p.place)
    return next(iter(loader)).images


def _rehearse(p: MergingRun, dataset: Dataset, ours: list[str], theirs: list[str]) -> None:
    """Read all files, and align and compare untrained networks on a few images, before minutes go into training."""
    for model, files in ((p.model, ours), (p.teacher, theirs)):
        for file in files:
            p.network(model, dataset, 0, file)
    place = p.place
    a, b, teacher = (build(model, **dataset.form).to(**place).eval() for model in (p.model, p.model, p.teacher))
    images = next(iter(dataset.loader("test", min(32, len(dataset.test)), **place)))
    for name in names(p.widths):
        for by in ALIGNMENTS:
            aligned(*(build(name, **dataset.form).to(**place).eval() for _ in "ab"), images.images, by)
    for student, layer in p.layer_pairs:
        compare(a, teacher, [images], [student], [layer])
    for by in ALIGNMENTS:
        aligned(a, b, images.images, by)


def _scored(p: MergingRun, dataset: Dataset) -> Loader:
    """Batches of the test images that networks are scored on."""
    loader, n = dataset.loader("test", 500, **p.place), len(dataset.test)
    if not p.test_images:
        return loader
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: p.test_images]
    return loader.over(dataset.test.select(chosen.sort().values))
