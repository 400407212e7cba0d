"""Detectors: torchvision's Faster R-CNN over a small backbone, or one of torchvision's own; and what two of them say.

Detectors propose different boxes, so that their answers cannot be compared. Here the student proposes and samples,
exactly as torchvision's Faster R-CNN does in training, and the teacher is asked about the student's choice.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import detection as zoo
from torchvision.models import get_model, list_models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign

from reptrans.errors import BadValue, ShapeMismatch, UnknownName, choose, suggest
from reptrans.randomness import drawing

_ANCHORS = (0.2, 0.3, 0.42)  # heights of the small detector's anchors, shares of the image's side
_POOLED = 4
_KNOWN = [name for name in list_models(module=zoo) if name.startswith("fasterrcnn")]


def detector(name: str, classes: int, *, image_size: int = 64, seed: int = 0) -> FasterRCNN:
    """A Faster R-CNN with fresh weights drawn with `seed`, for `classes` classes besides the background.

    `name`: "small_32_64_64", the widths of three stages, each halving the image: stride 8, three anchors at each place,
    made for images of `image_size` pixels, to which the longer side is scaled; or "torchvision/NAME" for one of
    torchvision's Faster R-CNNs, whose own sizes hold. Raises UnknownName, BadValue.
    """
    if classes < 1:
        raise BadValue(f"classes is {classes}; a detector needs at least one besides the background.")
    with drawing(seed):
        if name.startswith("torchvision/"):
            return _from_torchvision(name.removeprefix("torchvision/"), classes).float()
        return _small(_widths(name), classes, image_size).float()


class Backbone(nn.Module):
    """Images (n, 3, h, w) to maps (n, c, h / 8, w / 8): three stages of stride 2 and one more convolution."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        ins, strides = (3, *widths), (2, 2, 2, 1)
        outs = (*widths, widths[-1])
        self.stages = nn.Sequential(*(_stage(*sizes) for sizes in zip(ins, outs, strides, strict=True)))
        self.out_channels = widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images)


def _stage(channels: int, width: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


def _small(widths: tuple[int, int, int], classes: int, image_size: int) -> FasterRCNN:
    backbone = Backbone(widths)
    sizes = tuple(round(share * image_size) for share in _ANCHORS)
    hidden = 2 * widths[-1]
    return FasterRCNN(
        backbone,
        min_size=image_size, max_size=image_size, size_divisible=8, image_mean=[0.4] * 3, image_std=[0.25] * 3,
        rpn_anchor_generator=AnchorGenerator((sizes,), ((1.4,),)),
        rpn_pre_nms_top_n_train=60, rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_train=24, rpn_post_nms_top_n_test=24, rpn_batch_size_per_image=64,
        box_roi_pool=MultiScaleRoIAlign(["0"], _POOLED, sampling_ratio=1),
        box_head=TwoMLPHead(widths[-1] * _POOLED**2, hidden),
        box_predictor=zoo.faster_rcnn.FastRCNNPredictor(hidden, classes + 1),
        box_batch_size_per_image=24, box_detections_per_img=20,
    )  # fmt: skip


def _widths(name: str) -> tuple[int, int, int]:
    kind, *widths = name.split("_")
    if kind != "small" or len(widths) != 3 or not all(w.isdecimal() and int(w) > 0 for w in widths):
        options = ["small_8_16_16", "small_32_64_64", *(f"torchvision/{known}" for known in _KNOWN)]
        raise UnknownName(f"there is no detector {name!r}. {suggest(name, options)} (any three widths)")
    return tuple(int(width) for width in widths)


def _from_torchvision(name: str, classes: int) -> FasterRCNN:
    choose(name, _KNOWN, "torchvision has no Faster R-CNN {}")
    return get_model(name, weights=None, weights_backbone=None, num_classes=classes + 1)


class Answers(NamedTuple):
    """One module's logits (r, k), the background's first, and offsets (r, 4) for the true class."""

    logits: Tensor
    offsets: Tensor


class Truth(NamedTuple):
    """The labels (r,) of the same rows, 0 for the background, and the offsets (r, 4) that lead to the true box."""

    labels: Tensor
    offsets: Tensor


class Choice(NamedTuple):
    """Which anchors (rows of all images' anchors) and which proposals (per image) were sampled, and what is true."""

    anchors: Tensor
    anchors_truth: Truth
    proposals: list[Tensor]
    proposals_truth: Truth


class View(NamedTuple):
    """One detector's backbone maps, finest first, and its two modules' answers about a Choice."""

    maps: dict[str, Tensor]
    regions: Answers
    classes: Answers


def backbone_maps(net: FasterRCNN, images: ImageList) -> dict[str, Tensor]:
    """The maps (n, c, h, w) that feed the region proposals, by level."""
    maps = net.backbone(images.tensors)
    return {"0": maps} if isinstance(maps, Tensor) else dict(maps)


def anchors_of(net: FasterRCNN, images: ImageList, maps: dict[str, Tensor]) -> list[Tensor]:
    """The anchors of each level, (h, w, k, 4), the same for all images of a batch."""
    levels = list(maps.values())
    counts = net.rpn.anchor_generator.num_anchors_per_location()
    sizes = [(*level.shape[-2:], count) for level, count in zip(levels, counts, strict=True)]
    anchors = net.rpn.anchor_generator(images, levels)[0].split([h * w * k for h, w, k in sizes])
    return [part.reshape(*size, 4) for part, size in zip(anchors, sizes, strict=True)]


def student_view(net: FasterRCNN, images: ImageList, targets: list[dict[str, Tensor]]) -> tuple[View, Choice]:
    """The student's answers, and the choice of anchors and proposals that they are about.

    `images`, `targets`: as `net.transform` returns them. Draws from the global random state, as torchvision does.
    """
    maps = backbone_maps(net, images)
    scores, offsets, counts = _regions(net, maps)
    anchors = net.rpn.anchor_generator(images, list(maps.values()))
    proposed = net.rpn.box_coder.decode(offsets.detach(), anchors).view(len(anchors), -1, 4)
    proposals, _ = net.rpn.filter_proposals(proposed, scores, images.image_sizes, counts)
    labels, matched = net.rpn.assign_targets_to_anchors(anchors, targets)
    chosen = torch.cat([torch.cat(part).nonzero().flatten() for part in net.rpn.fg_bg_sampler(labels)])
    truth = torch.cat(net.rpn.box_coder.encode(matched, anchors))[chosen]
    regions = Truth(torch.cat(labels)[chosen].long(), truth.to(offsets.dtype))
    proposals, _, labels, truth = net.roi_heads.select_training_samples(proposals, targets)
    choice = Choice(chosen, regions, proposals, Truth(torch.cat(labels), torch.cat(truth)))
    return _view(net, images, maps, scores, offsets, choice), choice


def teacher_view(net: FasterRCNN, images: ImageList, choice: Choice) -> View:
    """The teacher's answers about the student's choice, without gradients. Raises ShapeMismatch for other anchors."""
    with torch.no_grad():
        maps = backbone_maps(net, images)
        scores, offsets, _ = _regions(net, maps)
        return _view(net, images, maps, scores, offsets, choice)


def compared_channels(
    student: FasterRCNN, teacher: FasterRCNN, images: ImageList, *, heads: bool
) -> dict[str, tuple[int, int]]:
    """The channels of both backbones' maps, level by level, of two detectors that can be compared; both in eval mode.

    Raises BadValue for other images, ShapeMismatch for maps of another size or, with `heads`, other anchors or classes.
    """
    for what in ("min_size", "max_size", "image_mean", "image_std", "size_divisible"):
        own, other = getattr(student.transform, what), getattr(teacher.transform, what)
        if own != other:
            raise BadValue(f"the student's images have {what} {own}, the teacher's {other}; both must see the same.")
    with torch.no_grad():
        maps = [backbone_maps(net, images) for net in (student, teacher)]
    sizes = [[tuple(level.shape[-2:]) for level in found.values()] for found in maps]
    if sizes[0] != sizes[1]:
        raise ShapeMismatch(f"the student's backbone maps are {sizes[0]} high and wide, the teacher's {sizes[1]}.")
    channels = {name: (level.shape[1], maps[1][name].shape[1]) for name, level in maps[0].items()}
    if not heads:
        return channels
    anchors = [torch.cat([a.flatten(0, 2) for a in anchors_of(net, images, m)])
               for net, m in zip((student, teacher), maps, strict=True)]  # fmt: skip
    if anchors[0].shape != anchors[1].shape or not torch.equal(*anchors):
        raise ShapeMismatch(
            f"the two detectors have different anchors ({len(anchors[0])} and {len(anchors[1])} in an image), so their "
            "region proposals cannot be compared. Give both the same anchor sizes and ratios."
        )
    outputs = [net.roi_heads.box_predictor.cls_score.out_features for net in (student, teacher)]
    if outputs[0] != outputs[1]:
        raise ShapeMismatch(f"the student has {outputs[0] - 1} classes, the teacher {outputs[1] - 1}.")
    return channels


def _regions(net: FasterRCNN, maps: dict[str, Tensor]) -> tuple[Tensor, Tensor, list[int]]:
    """The region module's scores (a, 1), offsets (a, 4) for the anchors of all images; anchors of each level."""
    scores, offsets = net.rpn.head(list(maps.values()))
    counts = [level[0].numel() for level in scores]
    return *concat_box_prediction_layers(scores, offsets), counts


def _view(net: FasterRCNN, images: ImageList, maps: dict[str, Tensor], scores: Tensor, offsets: Tensor, choice: Choice):
    score = scores.reshape(-1, 1)[choice.anchors]
    # One logit z against nothing is two logits, 0 for the background and z.
    regions = Answers(torch.cat([torch.zeros_like(score), score], 1), offsets[choice.anchors])
    heads = net.roi_heads
    pooled = heads.box_roi_pool(maps, choice.proposals, images.image_sizes)
    logits, boxes = heads.box_predictor(heads.box_head(pooled))
    labels = choice.proposals_truth.labels
    boxes = boxes.reshape(len(labels), -1, 4)[torch.arange(len(labels), device=labels.device), labels]
    return View(maps, regions, Answers(logits, boxes))
