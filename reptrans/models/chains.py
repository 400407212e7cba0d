"""Plain chains of layers, one after another: LeNet, Tiny10, Dense, two CNNs, VGGs and Inception.

Each is an `nn.Sequential` whose names are those of the layers (conv1, bn1, relu1, ...), so it can be cut anywhere.
LeNet, Tiny10 and Dense are those of Csiszárik et al., 2021 ("Similarity and Matching of Neural Network
Representations"), with the names of the authors' checkpoints; weights start at PyTorch's defaults.
VGG networks (Simonyan & Zisserman, 2015) are for small images: stages of 3x3 convolutions and one linear layer. Names:
conv{stage}_{number}, bn..., relu..., pool{stage}. Convolutions have a bias. Linear weights start at N(0, 0.01), all
biases at 0.

Inception V1 (Szegedy et al., 2015) is as TensorFlow's model zoo and the feature-visualisation literature have it. Names
are those of that graph: `mixed3a_pre_relu` is the concatenation of a block's four branches, `mixed3a` its ReLU. Padding
is on the right and bottom where TensorFlow pads unevenly. Deviation: the spatial mean is over the whole map (7x7 at 224
pixels, as in the original), so that any image of at least 32 pixels will do.
"""

from collections import OrderedDict
from math import prod

import torch
from torch import Tensor, nn

Size = tuple[int, int]  # height and width of an image in pixels


class Add(nn.Module):
    """The sum of two tensors, as a layer with a name."""

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch + shortcut


def convolution(
    name: object, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, padding: int = 0, *, batch_norm: bool = True
) -> OrderedDict[str, nn.Module]:
    """A convolution with a bias, batch norm if wanted, and ReLU: conv{name}, bn{name}, relu{name}."""
    layers = OrderedDict({f"conv{name}": nn.Conv2d(c_in, c_out, kernel, stride, padding)})
    if batch_norm:
        layers[f"bn{name}"] = nn.BatchNorm2d(c_out)
    return layers | {f"relu{name}": nn.ReLU()}


def head(channels: int, num_classes: int) -> OrderedDict[str, nn.Module]:
    """The end of most convolutional networks: mean over space, then one linear layer."""
    return OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_classes))


def he_fan_out(net: nn.Module) -> nn.Module:
    """Draw every convolution's weight from N(0, 2 / (kernel area x output channels)) and return `net`.

    Batch norms already start at weight 1 and bias 0; linear layers and convolution biases keep PyTorch's default.
    Source: He et al., 2015, eq. 14, in the backward form.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


# Tiny10's unpadded convolutions: output channels, kernel, stride.
_TINY10 = ((16, 3, 1), (16, 3, 1), (32, 3, 2), (32, 3, 1), (32, 3, 1), (64, 3, 2), (64, 3, 1), (64, 1, 1))


def lenet(num_classes: int, in_channels: int, image_size: Size) -> nn.Sequential:
    """Two 5x5 convolutions with max pools and three linear layers; the first of these fits `image_size`."""
    height, width = (((side - 4) // 2 - 4) // 2 for side in image_size)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 6, 5), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5), relu2=nn.ReLU(), pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * height * width, 120), relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84), relu4=nn.ReLU(),
            fc3=nn.Linear(84, num_classes),
        )
    )  # fmt: skip


def tiny10(num_classes: int, in_channels: int, image_size: Size, without: str = "") -> nn.Sequential:
    """Eight unpadded convolutions, `without` "nbn_" with batch norm, spatial mean, one linear layer."""
    layers = OrderedDict()
    for k, (channels, kernel, stride) in enumerate(_TINY10, start=1):
        layers |= convolution(k, in_channels, channels, kernel, stride, batch_norm=not without)
        in_channels = channels
    return nn.Sequential(layers | head(in_channels, num_classes))


def dense(num_classes: int, in_channels: int, image_size: Size) -> nn.Sequential:
    """Three hidden linear layers of 300 units on the flattened image."""
    layers, inputs = OrderedDict(flatten=nn.Flatten()), in_channels * prod(image_size)
    for k in (1, 2, 3):
        layers[f"fc{k}"], layers[f"relu{k}"] = nn.Linear(inputs, 300), nn.ReLU()
        inputs = 300
    layers["fc4"] = nn.Linear(inputs, num_classes)
    return nn.Sequential(layers)


def cnn3(num_classes: int, in_channels: int, image_size: Size, width: int) -> nn.Sequential:
    """Three padded 3x3 convolutions of `width`, 2 and 4 times `width` channels, a 2x2 max pool between each two."""
    layers = convolution(1, in_channels, width, padding=1) | {"pool1": nn.MaxPool2d(2)}
    layers |= convolution(2, width, 2 * width, padding=1) | {"pool2": nn.MaxPool2d(2)}
    layers |= convolution(3, 2 * width, 4 * width, padding=1)
    return nn.Sequential(layers | head(4 * width, num_classes))


def cnn5(num_classes: int, in_channels: int, image_size: Size, width: int) -> nn.Sequential:
    """Five padded 3x3 convolutions: two of `width` channels, two of twice, one of four times; max pools between."""
    layers = convolution(1, in_channels, width, padding=1) | convolution(2, width, width, padding=1)
    layers |= {"pool1": nn.MaxPool2d(2)} | convolution(3, width, 2 * width, padding=1)
    layers |= convolution(4, 2 * width, 2 * width, padding=1) | {"pool2": nn.MaxPool2d(2)}
    layers |= convolution(5, 2 * width, 4 * width, padding=1)
    return nn.Sequential(layers | head(4 * width, num_classes))


_WIDTHS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {  # per stage
    8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4),
}  # fmt: skip


def vgg(num_classes: int, in_channels: int, image_size: Size, depth: int) -> nn.Sequential:
    """VGG-8 to VGG-19 with batch norm, as the distillation benchmark of Tian et al., 2020, has them.

    Stages 1 to 3 end with a max pool, and stage 4 too for images of at least 64 pixels; the fifth ends with the mean.
    """
    pools = 3 if min(image_size) < 64 else 4
    return _vgg(num_classes, in_channels, _WIDTHS, _CONVOLUTIONS[depth], pools=pools, batch_norm=True)


def vgg9(num_classes: int, in_channels: int, image_size: Size, norm: str = "") -> nn.Sequential:
    """The target network of Jang et al., 2019: eight convolutions, a max pool after each of the five stages."""
    return _vgg(num_classes, in_channels, _WIDTHS, _CONVOLUTIONS[11], pools=5, batch_norm=norm == "_bn")


def vgg4(num_classes: int, in_channels: int, image_size: Size, norm: str = "") -> nn.Sequential:
    """The smallest network of the same authors: three convolutions of 64, 128, 512 channels, each with a max pool."""
    return _vgg(num_classes, in_channels, (64, 128, 512), (1, 1, 1), pools=3, batch_norm=norm == "_bn")


def _vgg(
    num_classes: int, c_in: int, widths: tuple[int, ...], counts: tuple[int, ...], *, pools: int, batch_norm: bool
) -> nn.Sequential:
    layers = OrderedDict()
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True), start=1):
        for number in range(1, count + 1):
            layers |= convolution(f"{stage}_{number}", c_in, width, padding=1, batch_norm=batch_norm)
            c_in = width
        if stage <= pools:
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
    net = he_fan_out(nn.Sequential(layers | head(c_in, num_classes)))
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    nn.init.normal_(net.fc.weight, 0, 0.01)
    return net


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
