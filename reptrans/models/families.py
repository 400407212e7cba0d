"""The table of the project's own networks: which names there are, who makes them, how small an image may be."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from reptrans.errors import BadValue, ShapeMismatch, UnknownName, suggest
from reptrans.models import chains, resnet


@dataclass(frozen=True)
class Family:
    """Networks whose name matches `pattern`; the groups of the pattern are passed on to `make`."""

    pattern: str
    make: Callable[..., nn.Module]  # (num_classes, in_channels, image_size, *groups, **options)
    listed: str  # the names shown to people, separated by spaces
    smallest: int = 1  # the least side of an image, in pixels, for which every map keeps at least one pixel

    def options(self) -> list[str]:
        parameters = inspect.signature(self.make).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


_K = r"([1-9]\d*)"
FAMILIES = (
    Family("lenet", chains.lenet, "lenet", smallest=16),
    Family("(nbn_)?tiny10", chains.tiny10, "tiny10 nbn_tiny10", smallest=27),
    Family("dense", chains.dense, "dense"),
    Family(f"cnn3_w{_K}", chains.cnn3, "cnn3_w8 cnn3_w16 cnn3_w32", smallest=4),
    Family(f"cnn5_w{_K}", chains.cnn5, "cnn5_w8 cnn5_w16", smallest=4),
    Family("inceptionv1", chains.inceptionv1, "inceptionv1", smallest=32),
    Family(
        f"resnet20(?:_w{_K})?",
        resnet.resnet20_w,
        "resnet20 resnet20_w1 resnet20_w2 resnet20_w3 resnet20_w4 resnet20_w5",
    ),
    Family("resnet(8|14|32|44|56|110)", resnet.thin_resnet, "resnet8 resnet14 resnet32 resnet44 resnet56 resnet110"),
    Family("resnet(8|32)x4", resnet.resnet_x4, "resnet8x4 resnet32x4"),
    Family("resnet32_l2t", resnet.resnet32_l2t, "resnet32_l2t"),
    Family(
        "resnet(18|34|50|101)_cifar",
        resnet.resnet_cifar,
        "resnet18_cifar resnet34_cifar resnet50_cifar resnet101_cifar",
    ),
    Family(f"wrn_{_K}_{_K}", resnet.wide_resnet, "wrn_16_1 wrn_16_2 wrn_28_2 wrn_28_4 wrn_28_10 wrn_40_1 wrn_40_2"),
    Family("vgg4(_bn)?", chains.vgg4, "vgg4 vgg4_bn", smallest=8),
    Family("vgg9(_bn)?", chains.vgg9, "vgg9 vgg9_bn", smallest=32),
    Family("vgg(8|11|13|16|19)", chains.vgg, "vgg8 vgg11 vgg13 vgg16 vgg19", smallest=8),
)


def model_names() -> list[str]:
    """The names of this package's own networks; in cnn3_w{k}, cnn5_w{k}, resnet20_w{k} and wrn_{depth}_{k} k is any."""
    return [name for family in FAMILIES for name in family.listed.split()]


def make(name: str, num_classes: int, in_channels: int, image_size: tuple[int, int], options: dict) -> nn.Module:
    """The named network with freshly drawn weights; all that can be wrong is refused before anything is drawn."""
    family, groups = _find(name)
    _check_options(name, family, options)
    if min(image_size) < family.smallest:
        raise ShapeMismatch(
            f"{name} needs images of at least {family.smallest} x {family.smallest} pixels, image_size is "
            f"{image_size[0]} x {image_size[1]}. Load the data with a larger image_size, or choose a network without "
            "a smallest size, resnet20 for one, or cnn3_w16, which takes images from 4 x 4 on."
        )
    return family.make(num_classes, in_channels, image_size, *groups, **options)


def _find(name: str) -> tuple[Family, list[int | str]]:
    for family in FAMILIES:
        if match := re.fullmatch(family.pattern, name):
            return family, [int(g) if g.isdigit() else g for g in match.groups() if g is not None]
    raise UnknownName(
        f"There is no network {name!r}. {suggest(name, model_names(), 'Networks')}; also cnn3_w{{k}}, cnn5_w{{k}}, "
        "resnet20_w{k} and wrn_{depth}_{k} of any k, torchvision/NAME, timm/NAME, hf/TYPE, and module:function or "
        "path/to/file.py:function of your own."
    )


def _check_options(name: str, family: Family, options: dict) -> None:
    for option in options:
        if option not in family.options():
            possible = suggest(option, family.options(), "Its options") if family.options() else "It has none."
            raise BadValue(f"{name} has no option {option!r}. {possible}")
