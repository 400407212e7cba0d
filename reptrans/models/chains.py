"""Plain chains of layers, one after another: LeNet, Tiny10, Dense, two CNNs for very small images, and VGGs.

Each is an `nn.Sequential` whose names are those of the layers (conv1, bn1, relu1, ...), so it can be cut anywhere.
LeNet, Tiny10 and Dense are those of Csiszárik et al., 2021 ("Similarity and Matching of Neural Network
Representations"), with the names of the authors' checkpoints; weights start at PyTorch's defaults.
VGG networks (Simonyan & Zisserman, 2015) are for small images: stages of 3x3 convolutions and one linear layer. Names:
conv{stage}_{number}, bn..., relu..., pool{stage}. Convolutions have a bias. Linear weights start at N(0, 0.01), all
biases at 0.
"""

from collections import OrderedDict
from math import prod

from torch import nn

from reptrans.models.parts import Size, convolution, he_fan_out, head

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


def tiny10(num_classes: int, in_channels: int, image_size: Size) -> nn.Sequential:
    """Eight unpadded convolutions with batch norm, spatial mean, one linear layer."""
    return _tiny10(num_classes, in_channels, batch_norm=True)


def nbn_tiny10(num_classes: int, in_channels: int, image_size: Size) -> nn.Sequential:
    """Tiny10 without batch norm."""
    return _tiny10(num_classes, in_channels, batch_norm=False)


def _tiny10(num_classes: int, in_channels: int, *, batch_norm: bool) -> nn.Sequential:
    layers = OrderedDict()
    for k, (channels, kernel, stride) in enumerate(_TINY10, start=1):
        layers |= convolution(k, in_channels, channels, kernel, stride, batch_norm=batch_norm)
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
