"""VGG networks (Simonyan & Zisserman, 2015) for small images: stages of 3x3 convolutions and one linear layer.

Names: conv{stage}_{number}, bn..., relu..., pool{stage}. Convolutions have a bias. Linear weights start at
N(0, 0.01), all biases at 0.
"""

from collections import OrderedDict

from torch import nn

from reptrans.models.parts import Size, convolution, he_fan_out, head

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
