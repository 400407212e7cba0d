"""What two detectors say about the same anchors and proposals.

Detectors propose different boxes, so that their answers cannot be compared. Here the student proposes and samples,
exactly as torchvision's Faster R-CNN does in training, and the teacher is asked about the student's choice.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from reptrans.errors import BadValue, ShapeMismatch


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
