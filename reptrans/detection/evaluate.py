"""How well a detector finds what is there: average precision at one overlap."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from reptrans.errors import BadValue, NotAvailable
from reptrans.training import evaluating


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
