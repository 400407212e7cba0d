"""Linear layers of one width for the runs input_autoencoding_narrow and _wide: narrower or wider than 8 x 8 pixels."""

from torch import nn


def narrow(num_classes: int) -> nn.Sequential:
    return of_width(48, num_classes)


def wide(num_classes: int) -> nn.Sequential:
    return of_width(128, num_classes)


def of_width(width: int, num_classes: int, inputs: int = 64, depth: int = 4) -> nn.Sequential:
    layers = [nn.Linear(inputs if k == 0 else width, width) for k in range(depth)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, num_classes))
