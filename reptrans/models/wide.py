"""Wide residual networks (Zagoruyko & Komodakis, 2016): few layers, many channels, batch norm and ReLU first.

WRN-d-k has three stages of (d - 4) / 6 blocks with 16k, 32k, 64k channels. Names: conv1, layer1.0.bn1, ..., bn, relu,
avgpool, fc; each block ends with its sum, `add`, and there is no ReLU behind it.
"""

from collections import OrderedDict

from torch import Tensor, nn

from reptrans.errors import BadValue
from reptrans.models.parts import Add, Size, he_fan_out, head


class PreActivationBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, twice; where the width changes, the shortcut convolves the first ReLU's output."""

    def __init__(self, c_in: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = None if c_in == width else nn.Conv2d(c_in, width, 1, stride, bias=False)
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu1(self.bn1(x))
        branch = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return self.add(branch, x if self.shortcut is None else self.shortcut(activated))


def wide_resnet(num_classes: int, in_channels: int, image_size: Size, depth: int, width: int) -> nn.Sequential:
    """WRN-`depth`-`width` without dropout; the depth is 6n + 4."""
    if depth < 10 or (depth - 4) % 6:
        raise BadValue(
            f"wrn_{depth}_{width}: a wide residual network has 6n + 4 layers, not {depth}. Possible depths: 10, "
            "16, 22, 28, 34, 40, ..."
        )
    layers, c_in = OrderedDict(conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)), 16
    for k, channels in enumerate((16 * width, 32 * width, 64 * width), start=1):
        first, c_in = PreActivationBlock(c_in, channels, 1 if k == 1 else 2), channels
        others = (PreActivationBlock(channels, channels, 1) for _ in range((depth - 4) // 6 - 1))
        layers[f"layer{k}"] = nn.Sequential(first, *others)
    layers |= OrderedDict(bn=nn.BatchNorm2d(c_in), relu=nn.ReLU())
    net = he_fan_out(nn.Sequential(layers | head(c_in, num_classes)))
    nn.init.zeros_(net.fc.bias)
    return net
