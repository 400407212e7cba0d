"""Train a detector, alone, imitating a teacher, or with its classes, boxes and a hint; and how well it detects."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

from reptrans.detection.data import SceneLoader
from reptrans.detection.detectors import (
    Choice,
    View,
    anchors_of,
    backbone_maps,
    compared_channels,
    student_view,
    teacher_view,
)
from reptrans.distillation.methods.efficient_detection import classification, hint_connector, hint_loss, regression
from reptrans.distillation.methods.imitation import imitation_connector, imitation_loss, imitation_masks
from reptrans.errors import BadValue, NotAvailable
from reptrans.training import Plan, evaluating, fit
from reptrans.training.loop import Objective


@dataclass(frozen=True)
class Imitation:
    """Fine-grained feature imitation (entry 2): its weight, psi, and the share of the training before it acts."""

    weight: float = 0.01
    psi: float = 0.5
    warmup: float = 0.05


@dataclass(frozen=True)
class Efficient:
    """Classes, boxes and a hint (entry 14); 0 switches a part off.

    `soft`: 1 - mu. `bounded`: nu. `hint`: gamma, of the hint's mean over an image's c * h * w entries. `background`:
    w of that class. `margin`: m.
    """

    soft: float = 0.5
    bounded: float = 0.5
    hint: float = 0.5
    background: float = 1.5
    margin: float = 0.01


PLAIN = Efficient(soft=0.0, bounded=0.0, hint=0.0)
METHODS = {
    "plain": PLAIN,
    "imitation": Imitation(),
    "efficient": Efficient(),
    "soft": Efficient(bounded=0.0, hint=0.0),
    "bounded": Efficient(soft=0.0, hint=0.0),
    "hint": Efficient(soft=0.0, bounded=0.0),
}


def train_detector(
    student: FasterRCNN, loader: SceneLoader, plan: Plan, *, method: Imitation | Efficient = PLAIN,
    teacher: FasterRCNN | None = None, test: SceneLoader | None = None, look_every: int = 1, seed: int = 0,
    checkpoint: str | Path | None = None, label: str = "",
) -> pd.DataFrame:  # fmt: skip
    """Train `student` in place, moved to where the loader's images are; one row per epoch, as `fit` gives them.

    `method`: by default PLAIN, of METHODS in `reptrans.detection.train`, which needs no teacher. Terms: rpn_class,
    rpn_box, box_class, box_box over sampled anchors and proposals; imitation or hint beside them, with its weight.
    `test`: its average precision at IoU 0.5, column ap50, every `look_every` epochs and at the end.
    The teacher stays in eval mode and gets no gradients. `seed` is that of the connectors; `checkpoint` as in `fit`.
    Raises BadValue without a teacher where the method needs one, BadValue or ShapeMismatch for one that does not fit.
    """
    student.to(loader.device, loader.dtype)
    connectors = nn.ModuleDict()
    if method != PLAIN:
        if teacher is None:
            raise BadValue(f"{method} needs a teacher: give teacher=, a trained detector.")
        teacher.to(loader.device, loader.dtype)
        connectors = _connectors(student, teacher, method, loader, seed)
    modules = {"student": student} | ({"connectors": connectors} if len(connectors) else {})

    def on_test(epoch: int) -> dict[str, float]:
        due = test is not None and (epoch % look_every == 0 or epoch == plan.epochs)
        return {"ap50": average_precision(student, test)} if due else {}

    with evaluating(*[teacher] * (teacher is not None)):
        objective = _objective(student, teacher, method, connectors)
        return fit(objective, modules, loader, plan, checkpoint=checkpoint, every_epoch=on_test, label=label)


def detection_terms(
    view: View, choice: Choice, teacher: View | None = None, method: Efficient = PLAIN
) -> dict[str, Tensor]:
    """The four terms of both modules; with PLAIN, torchvision's own losses."""
    terms = {}
    for name, own, truth, other in (
        ("rpn", view.regions, choice.anchors_truth, teacher and teacher.regions),
        ("box", view.classes, choice.proposals_truth, teacher and teacher.classes),
    ):
        logits, offsets = other or (None, None)
        objects = truth.labels > 0
        terms[f"{name}_class"] = classification(own.logits, truth.labels, logits, method.soft, method.background)
        terms[f"{name}_box"] = regression(
            own.offsets, truth.offsets, objects, offsets, method.bounded, method.margin
        )  # fmt: skip
    return terms


def masks_of(net: FasterRCNN, images: ImageList, maps: dict[str, Tensor], targets: list, psi: float) -> list[Tensor]:
    """The imitation masks of a batch, (n, h, w) for each level; images and targets as `net.transform` returns them."""
    anchors = anchors_of(net, images, maps)
    masks = [imitation_masks(anchors, target["boxes"], psi) for target in targets]
    return [torch.stack(level) for level in zip(*masks, strict=True)]


def _objective(student, teacher, method: Imitation | Efficient, connectors: nn.ModuleDict) -> Objective:
    def objective(batch, progress):
        images, targets = student.transform(batch.images, batch.targets)
        view, choice = student_view(student, images, targets)
        own = {name: connectors[name](level) for name, level in view.maps.items() if name in connectors}
        if method == PLAIN:
            return detection_terms(view, choice), {}
        if isinstance(method, Imitation):
            with torch.no_grad():
                other = _places(backbone_maps(teacher, images))
            masks = masks_of(student, images, view.maps, targets, method.psi)
            loss = imitation_loss(_places(own), other, torch.cat([mask.flatten(1) for mask in masks], 1))
            weight = method.weight if progress >= method.warmup else 0.0
            return detection_terms(view, choice) | {"imitation": weight * loss}, {}
        other = teacher_view(teacher, images, choice)
        terms = detection_terms(view, choice, other, method)
        if own:
            hints = [hint_loss(level, other.maps[name]) / other.maps[name][0].numel() for name, level in own.items()]
            terms["hint"] = method.hint * sum(hints) / len(hints)
        return terms, {}

    return objective


def _places(maps: dict[str, Tensor]) -> Tensor:
    """All levels' places side by side, (n, c, places)."""
    return torch.cat([level.flatten(2) for level in maps.values()], 2)


def _connectors(student, teacher, method, loader: SceneLoader, seed: int) -> nn.ModuleDict:
    """One connector for each level, or none; what the method needs of the two detectors is checked on the way."""
    epoch = loader.epoch
    batch = next(iter(loader))
    loader.epoch = epoch
    heads = isinstance(method, Efficient)
    with evaluating(student, teacher):
        images, _ = student.transform(batch.images)
        channels = compared_channels(student, teacher, images, heads=heads)
    if heads and not method.hint:
        return nn.ModuleDict()
    make = hint_connector if heads else imitation_connector
    made = {name: make(*pair, seed=seed + number) for number, (name, pair) in enumerate(channels.items())}
    return nn.ModuleDict(made).to(loader.device, loader.dtype)


def detect(net: FasterRCNN, loader: Iterable) -> list[dict[str, Tensor]]:
    """What the detector finds in each of the loader's images, in its order, on the CPU, the network in eval mode.

    One dict an image: boxes (m, 4) in its pixels, labels (m,) from 1, scores (m,) in (0, 1], the highest first.
    """
    epoch, found = loader.epoch, []
    try:
        with evaluating(net), torch.no_grad():
            for batch in loader:
                found += [{name: value.cpu() for name, value in one.items()} for one in net(batch.images)]
    finally:
        loader.epoch = epoch
    return found


def precision_metric() -> type:
    """torchmetrics' MeanAveragePrecision. Raises NotAvailable where it, or pycocotools, is not installed."""
    try:
        import pycocotools  # noqa: F401  what it computes with
        from torchmetrics.detection import MeanAveragePrecision
    except ImportError as error:
        raise NotAvailable(f"{error.name} is not installed: pip install 'reptrans[detection]'.") from error
    return MeanAveragePrecision


def average_precision(net: FasterRCNN, loader: Iterable, overlap: float = 0.5) -> float:
    """Mean over classes of the area under precision over recall, in [0, 1]; a box counts from IoU `overlap` on.

    As in PASCAL VOC, each true box is found at most once and duplicates are errors; the area is the COCO evaluation's
    (torchmetrics): precision made monotone, averaged over 101 recalls, where VOC integrates it: up to 0.01 apart.
    Classes that no image has do not count. Raises BadValue.
    """
    if not 0 < overlap <= 1:
        raise BadValue(f"overlap is {overlap}; an intersection over union lies above 0 and up to 1.")
    metric = precision_metric()(iou_thresholds=[overlap], backend="pycocotools")
    found = detect(net, loader)
    split = loader.split
    for position, one in enumerate(found):
        true = {"boxes": split.boxes[position].float(), "labels": split.labels[position] + 1}
        metric.update([{**one, "boxes": one["boxes"].float(), "scores": one["scores"].float()}], [true])
    return float(metric.compute()["map"])
