"""Networks of other widths than the package names.

For the runs input_autoencoding_narrow and _wide: linear layers narrower or wider than 8 x 8 pixels. For
model_merging_widths: ResNet-20 with a quarter and a half of its channels.
"""

from torch import nn

from reptrans.models.resnet import resnet20_w


def resnet20_quarter(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return resnet20_w(num_classes, in_channels, image_size, 1 / 4)


def resnet20_half(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return resnet20_w(num_classes, in_channels, image_size, 1 / 2)


def narrow(num_classes: int) -> nn.Sequential:
    return of_width(48, num_classes)


def wide(num_classes: int) -> nn.Sequential:
    return of_width(128, num_classes)


def of_width(width: int, num_classes: int, inputs: int = 64, depth: int = 4) -> nn.Sequential:
    layers = [nn.Linear(inputs if k == 0 else width, width) for k in range(depth)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, num_classes))
