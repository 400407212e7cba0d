"""The table of published taps: the blocks of every group, for the families of networks that papers distil.

WideResNet   layer1 ... or block1 ...: the raw sums, which no ReLU follows (Zagoruyko and Komodakis 2017)
ResNet       layer1 ..., of small and of large images: the last block after its ReLU; `before` has the raw sum
ShuffleNet   stage2 ... or layer1 ...: the last block, its channels shuffled
MobileNetV2  the last inverted residual of every size, which is linear; also of other networks of such blocks
VGG          the last ReLU of every block, before its pooling
Swin         the last block of every stage, its tokens as a map
But for Swin, so the benchmark's code (Tian et al. 2020) and those after it have them; of VGG they leave out block 1.
"""

import re
from itertools import groupby

from torch import nn

RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.GELU, nn.SiLU)
Groups = list[list[str]]  # taps of one group after another, each from its start to its end
_BLOCK = "(?i).*(block|bottleneck|residual)"


def published(net: nn.Module) -> tuple[str, Groups] | None:
    """(family, taps of its groups) of a network that the table knows, by its class and its layers' names; else None."""
    for family, groups in FAMILIES.items():
        if found := groups(net):
            return family, found
    return None


def _wide(net: nn.Module) -> Groups:
    groups = _stages(net, "layer|block")
    layers = (m for group in groups[:1] for m in net.get_submodule(group[-1]).modules() if not list(m.children()))
    # Batch norm comes first where a block's sum is left as it is.
    return groups if isinstance(next(layers, None), nn.BatchNorm2d) else []


def _shuffle(net: nn.Module) -> Groups:
    return _stages(net, "layer|stage") if "Shuffle" in type(net).__name__ else []


def _residual(net: nn.Module) -> Groups:
    return _stages(net, "layer")


def _inverted(net: nn.Module) -> Groups:
    blocks = _children(net, "blocks|features", "InvertedResidual|DepthwiseSeparableConv")
    if not any(_holds(net, block, "InvertedResidual") for block in blocks):
        return []
    groups = [[f"{blocks[0]}:in", blocks[0]]]
    for block in blocks[1:]:
        if any(isinstance(m, nn.Conv2d) and m.stride[0] > 1 for m in net.get_submodule(block).modules()):
            groups.append([])
        groups[-1].append(block)
    return groups


def _vgg(net: nn.Module) -> Groups:
    if hasattr(net, "relu1_1"):
        names = [name for name, _ in net.named_children() if name.startswith("relu")]
        return [list(run) for _, run in groupby(names, key=lambda name: name.partition("_")[0])]
    groups, chain = [[]], getattr(net, "features", None) if type(net).__name__ == "VGG" else None
    for name, layer in chain.named_children() if chain else ():
        if isinstance(layer, nn.MaxPool2d):
            groups.append([])
        elif isinstance(layer, RECTIFIERS):
            groups[-1].append(f"features.{name}")
    return [group for group in groups if group]


def _swin(net: nn.Module) -> Groups:
    blocks = [name for name, module in net.named_modules() if _is(module, "SwinTransformer.*Block.*")]
    return [[f"{block}:map" for block in run] for _, run in groupby(blocks, key=lambda name: name.rpartition(".")[0])]


FAMILIES = {
    "WideResNet": _wide,
    "ShuffleNet": _shuffle,
    "ResNet": _residual,
    "MobileNetV2": _inverted,
    "VGG": _vgg,
    "Swin": _swin,
}


def _stages(net: nn.Module, names: str) -> Groups:
    """layer1, layer2, ... where they hold residual blocks; the first starts with what it gets, others with a block."""
    groups = []
    for stage in (name for name, _ in net.named_children() if re.fullmatch(rf"({names})\d", name)):
        inside = [name for name, module in net.get_submodule(stage).named_modules() if name and _is(module, _BLOCK)]
        blocks = [f"{stage}.{name}" for name in inside if name.count(".") == inside[0].count(".")]
        if blocks:
            start = blocks[:1] if groups else [f"{stage}:in"]
            groups.append([*start, stage] if len(blocks) > 1 or not groups else [stage])
    return groups


def _children(net: nn.Module, parents: str, kinds: str) -> list[str]:
    """The layers right below one of the parents that are, or hold, a module of one of the kinds."""
    found = (name for name, _ in net.named_modules() if re.fullmatch(rf"({parents})\.\w+", name))
    return [name for name in found if _holds(net, name, kinds)]


def _holds(net: nn.Module, name: str, kinds: str) -> bool:
    return any(_is(module, kinds) for module in net.get_submodule(name).modules())


def _is(module: nn.Module, kinds: str) -> bool:
    return re.fullmatch(kinds, type(module).__name__) is not None
