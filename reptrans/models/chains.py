"""Plain chains of layers, one after another: LeNet, Tiny10, Dense and two CNNs for very small images.

Each is an `nn.Sequential` whose names are those of the layers (conv1, bn1, relu1, ...), so it can be cut anywhere.
LeNet, Tiny10 and Dense are those of Csiszárik et al., 2021 ("Similarity and Matching of Neural Network
Representations"), with the names of the authors' checkpoints; weights start at PyTorch's defaults.
"""

from collections import OrderedDict
from math import prod

from torch import nn

from reptrans.models.parts import Size, convolution, head

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
