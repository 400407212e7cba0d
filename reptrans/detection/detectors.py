"""Detectors: torchvision's Faster R-CNN over a small backbone, or one of torchvision's own."""

from torch import Tensor, nn
from torchvision.models import detection as zoo
from torchvision.models import get_model, list_models
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from reptrans.errors import BadValue, UnknownName, choose, suggest
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
