"""Inception V1 as TensorFlow's model zoo and the feature-visualisation literature have it (Szegedy et al., 2015).

Names are those of that graph: `mixed3a_pre_relu` is the concatenation of a block's four branches, `mixed3a` its ReLU.
Padding is on the right and bottom where TensorFlow pads unevenly. Deviation: the spatial mean is over the whole map
(7x7 at 224 pixels, as in the original), so that any image of at least 32 pixels will do.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from reptrans.models.parts import Size

# Channels of 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, projection after the pool. 204 in 4a is the zoo's own number.
_BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 204, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 48, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip
_POOL_AFTER = {"3b": "maxpool4", "4e": "maxpool10"}


class InceptionBlock(nn.Module):
    """Four branches side by side, concatenated over the channels before the ReLU."""

    def __init__(self, c_in: int, channels: tuple[int, ...], batch_norm: bool):
        super().__init__()
        one, reduce3, three, reduce5, five, pool = channels
        self.conv1x1 = _conv(c_in, one, 1, batch_norm)
        self.reduce3x3, self.relu3x3 = _conv(c_in, reduce3, 1, batch_norm), nn.ReLU()
        self.conv3x3 = _conv(reduce3, three, 3, batch_norm)
        self.reduce5x5, self.relu5x5 = _conv(c_in, reduce5, 1, batch_norm), nn.ReLU()
        self.conv5x5 = _conv(reduce5, five, 5, batch_norm)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.pool_reduce = _conv(c_in, pool, 1, batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        three = self.conv3x3(self.relu3x3(self.reduce3x3(x)))
        five = self.conv5x5(self.relu5x5(self.reduce5x5(x)))
        return torch.cat([self.conv1x1(x), three, five, self.pool_reduce(self.pool(x))], dim=1)


def inceptionv1(num_classes: int, in_channels: int, image_size: Size, *, batch_norm: bool = False) -> nn.Sequential:
    """Inception V1 with `mixed3a` to `mixed5b`; `batch_norm` puts one behind every convolution."""
    layers = _stem(in_channels, batch_norm)
    c_in = 192
    for name, channels in _BLOCKS.items():
        layers |= _activated(f"mixed{name}", InceptionBlock(c_in, channels, batch_norm))
        if name in _POOL_AFTER:
            layers |= _pool(_POOL_AFTER[name])
        one, _, three, _, five, pool = channels
        c_in = one + three + five + pool
    layers |= OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), logits=nn.Linear(c_in, num_classes))
    return nn.Sequential(layers)


def _stem(in_channels: int, batch_norm: bool) -> OrderedDict[str, nn.Module]:
    layers = OrderedDict(conv2d0_pad=nn.ZeroPad2d((2, 3, 2, 3)))
    layers |= _activated("conv2d0", _conv(in_channels, 64, 7, batch_norm, stride=2, padding=0)) | _pool("maxpool0")
    layers["lrn0"] = nn.LocalResponseNorm(9, alpha=1e-4, beta=0.5, k=1.0)
    layers |= _activated("conv2d1", _conv(64, 64, 1, batch_norm))
    layers |= _activated("conv2d2", _conv(64, 192, 3, batch_norm))
    layers["lrn1"] = nn.LocalResponseNorm(9, alpha=1e-4, beta=0.5, k=1.0)
    return layers | _pool("maxpool1")


def _activated(name: str, module: nn.Module) -> OrderedDict[str, nn.Module]:
    return OrderedDict({f"{name}_pre_relu": module, name: nn.ReLU()})


def _pool(name: str) -> OrderedDict[str, nn.Module]:
    # What is pooled has passed a ReLU, so padding with zeros equals padding with minus infinity.
    return OrderedDict({f"{name}_pad": nn.ZeroPad2d((0, 1, 0, 1)), name: nn.MaxPool2d(3, stride=2)})


def _conv(
    c_in: int, c_out: int, kernel: int, batch_norm: bool, *, stride: int = 1, padding: int | None = None
) -> nn.Module:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2 if padding is None else padding)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(c_out))) if batch_norm else conv
