"""Residual networks for small images, by depth and width.

Names follow torchvision's: conv1, bn1, relu, layer1.0.conv1, ..., layer1.0.downsample.0, ..., avgpool, fc. In every
block the sum of branch and shortcut is a layer of its own, `add`; the block's output is the ReLU of it. A block has one
`relu` that it uses after each batch norm and after the sum.

Wide residual networks (Zagoruyko & Komodakis, 2016) have few layers and many channels, batch norm and ReLU first:
WRN-d-k has three stages of (d - 4) / 6 blocks with 16k, 32k, 64k channels. Names: conv1, layer1.0.bn1, ..., bn, relu,
avgpool, fc; each block ends with its sum, `add`, and there is no ReLU behind it.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from reptrans.errors import BadValue
from reptrans.models.chains import Add, Size, he_fan_out, head


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 convolution with batch norm where the shape changes."""

    expansion = 1

    def __init__(self, c_in: int, width: int, stride: int, in_place: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(in_place)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(c_in, width, stride)
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.add(self.bn2(self.conv2(branch)), shortcut))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides) and 1x1 convolution, the last to four times the width, and a shortcut."""

    expansion = 4

    def __init__(self, c_in: int, width: int, stride: int, in_place: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(in_place)
        self.downsample = _projection(c_in, 4 * width, stride)
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        return self.relu(self.add(self.bn3(self.conv3(branch)), shortcut))


def _projection(c_in: int, c_out: int, stride: int) -> nn.Sequential | None:
    if c_in == c_out and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


def _resnet(
    num_classes: int,
    in_channels: int,
    widths: tuple[int, ...],
    blocks: tuple[int, ...],
    *,
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    stem_bias: bool = False,
    in_place: bool = False,
) -> nn.Sequential:
    """A 3x3 stem of `widths[0]` channels, then one stage per further width; every stage but the first strides by 2."""
    c_in = widths[0]
    layers = OrderedDict(
        conv1=nn.Conv2d(in_channels, c_in, 3, padding=1, bias=stem_bias),
        bn1=nn.BatchNorm2d(c_in),
        relu=nn.ReLU(in_place),
    )
    for k, (width, count) in enumerate(zip(widths[1:], blocks, strict=True), start=1):
        first, c_in = block(c_in, width, 1 if k == 1 else 2, in_place), width * block.expansion
        layers[f"layer{k}"] = nn.Sequential(first, *(block(c_in, width, 1, in_place) for _ in range(count - 1)))
    return he_fan_out(nn.Sequential(layers | head(c_in, num_classes)))


def resnet20_w(
    num_classes: int, in_channels: int, image_size: Size, width: float = 1, *, in_place: bool = True
) -> nn.Sequential:
    """ResNet-20 with `width` times 16, 32, 64 channels, as in Csiszárik et al., 2021, whose checkpoints it loads.

    Its shortcuts are 1x1 convolutions with batch norm, not the parameter-free ones of He et al., 2016. `in_place`, as
    in the authors' code, makes every ReLU overwrite its input: cheaper, but `bn1` and `add` can then be recorded only
    as copies.
    """
    widths = tuple(round(width * channels) for channels in (16, 16, 32, 64))
    return _resnet(num_classes, in_channels, widths, (3, 3, 3), in_place=in_place)


def thin_resnet(num_classes: int, in_channels: int, image_size: Size, depth: int) -> nn.Sequential:
    """ResNet-8 to ResNet-110 with 16, 32, 64 channels, as the distillation benchmark of Tian et al., 2020, has them."""
    return _resnet(num_classes, in_channels, (16, 16, 32, 64), (depth // 6,) * 3)


def resnet_x4(num_classes: int, in_channels: int, image_size: Size, depth: int) -> nn.Sequential:
    """ResNet-8x4 and ResNet-32x4: a stem of 32 channels and stages of 64, 128, 256 (same source)."""
    return _resnet(num_classes, in_channels, (32, 64, 128, 256), (depth // 6,) * 3)


def resnet32_l2t(num_classes: int, in_channels: int, image_size: Size) -> nn.Sequential:
    """ResNet-32 with a bias in the stem, the source network of Jang et al., 2019; see `from_l2t` for its weights."""
    return _resnet(num_classes, in_channels, (16, 16, 32, 64), (5, 5, 5), stem_bias=True)


def resnet_cifar(num_classes: int, in_channels: int, image_size: Size, depth: int) -> nn.Sequential:
    """ResNet-18, 34, 50, 101 with a 3x3 stem of stride 1 and no early pooling.

    The last batch norm of every block starts at weight 0, so that a block starts as its shortcut (Goyal et al., 2017).
    """
    block = BasicBlock if depth < 50 else Bottleneck
    blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    net = _resnet(num_classes, in_channels, (64, 64, 128, 256, 512), blocks, block=block)
    for module in net.modules():
        if isinstance(module, block):
            nn.init.zeros_((module.bn2 if block is BasicBlock else module.bn3).weight)
    return net


def from_l2t(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the authors' ResNet-32 (Jang et al., 2019) with the names of `resnet32_l2t`.

    There each stage is a first block and a list of the others (block1, blocks2.0, ...; here layer1.0, layer1.1, ...).
    Unused entries of their class (`alphas.*`) are left out.
    """

    def renamed(key: str) -> str:
        key = re.sub(r"^block([135])\.", lambda m: f"layer{(int(m[1]) + 1) // 2}.0.", key)
        return re.sub(r"^blocks([246])\.(\d+)\.", lambda m: f"layer{int(m[1]) // 2}.{int(m[2]) + 1}.", key)

    return {renamed(key): value for key, value in state.items() if key.partition(".")[0] != "alphas"}


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
