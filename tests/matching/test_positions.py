from collections import OrderedDict

import pytest
import torch
from torch import nn

from reptrans.errors import BadValue
from reptrans.layers import record
from reptrans.matching import positions, tapped
from reptrans.models import build

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def of(name):
    return positions(build(name, num_classes=10, in_channels=3, image_size=(32, 32), seed=0), IMAGES)


def test_a_chain_is_looked_at_where_its_sizes_change():
    found = of("cnn3_w4")
    assert found.groups == ("relu1", "relu2", "relu3")
    # One activation in a group: it starts where the group before ended.
    assert found.starts == ("relu1", "relu1", "relu2")
    assert found.before == ("relu1:in", "relu2:in", "relu3:in")
    assert found.layers == ("relu1", "relu2", "relu3")
    assert found.embedding == "fc:in" and found.source == "graph"


def test_a_residual_network_is_looked_at_stage_by_stage():
    found = of("resnet20_w1")
    assert found.groups == ("layer1", "layer2", "layer3")
    assert found.starts == ("layer1:in", "layer2.0", "layer3.0")
    assert found.before == ("layer1.2.relu:in", "layer2.2.relu:in", "layer3.2.relu:in")
    assert len(found.layers) == 10 and found.source == "table: ResNet"
    # One block in a group: it starts where the group before ended.
    assert of("resnet8").starts == ("layer1:in", "layer1", "layer2")


@pytest.mark.parametrize(
    ("name", "family", "groups", "sides"),
    [
        ("resnet18_cifar", "ResNet", "layer1 layer2 layer3 layer4", (32, 16, 8, 4)),
        ("resnet8x4", "ResNet", "layer1 layer2 layer3", (32, 16, 8)),
        ("wrn_16_2", "WideResNet", "layer1 layer2 layer3", (32, 16, 8)),
        ("vgg8", "VGG", "relu1_1 relu2_1 relu3_1 relu4_1 relu5_1", (32, 16, 8, 4, 4)),
        ("vgg13", "VGG", "relu1_2 relu2_2 relu3_2 relu4_2 relu5_2", (32, 16, 8, 4, 4)),
        ("vgg4_bn", "VGG", "relu1_1 relu2_1 relu3_1", (32, 16, 8)),
        ("torchvision/resnet18", "ResNet", "layer1 layer2 layer3 layer4", (8, 4, 2, 1)),
        ("torchvision/vgg11_bn", "VGG", "features.2 features.6 features.13 features.20 features.27", (32, 16, 8, 4, 2)),
        (
            "torchvision/mobilenet_v2", "MobileNetV2",
            "features.1 features.3 features.6 features.13 features.17", (16, 8, 4, 2, 1),
        ),
        ("torchvision/shufflenet_v2_x1_0", "ShuffleNet", "stage2 stage3 stage4", (4, 2, 1)),
        ("timm/resnet18", "ResNet", "layer1 layer2 layer3 layer4", (8, 4, 2, 1)),
        ("timm/vgg11_bn", "VGG", "features.2 features.6 features.13 features.20 features.27", (32, 16, 8, 4, 2)),
        ("timm/mobilenetv2_100", "MobileNetV2", "blocks.0 blocks.1 blocks.2 blocks.4 blocks.6", (16, 8, 4, 2, 1)),
        ("cnn3_w2", "", "relu1 relu2 relu3", (32, 16, 8)),
        ("tiny10", "", "relu1 relu2 relu3 relu4 relu5 relu6 relu8", (30, 28, 13, 11, 9, 4, 2)),
        ("torchvision/densenet121", "", "features.relu0 features.transition1.conv features.transition2.conv "
         "features.transition3.conv", (16, 8, 4, 2)),
    ],
)  # fmt: skip
def test_the_ends_of_groups_are_the_published_ones(name, family, groups, sides):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    net = build(name, num_classes=10, in_channels=3, image_size=(32, 32), seed=0).eval()
    found = positions(net, IMAGES)
    assert found.source == (f"table: {family}" if family else "graph") and found.groups == tuple(groups.split())
    taps = [*found.groups, *found.starts, *found.before, *found.layers, found.embedding]
    values = tapped(net, IMAGES, None, taps, keep_graph=False)
    assert tuple(values[tap].shape[2] for tap in found.groups) == sides
    assert len(found.groups) == len(found.starts) == len(found.before) and values[found.embedding].ndim == 2
    for end, before in zip(found.groups, found.before, strict=True):
        if family in ("ResNet", "VGG"):
            torch.testing.assert_close(values[before].relu(), values[end])
        elif family != "WideResNet":
            assert values[before].shape == values[end].shape


def test_the_groups_of_a_wide_network_are_its_raw_sums_and_the_next_batch_norm_comes_before_the_relu():
    found, net = of("wrn_16_2"), build("wrn_16_2", num_classes=10, in_channels=3, image_size=(32, 32), seed=0).eval()
    assert found.before == ("layer2.0.bn1", "layer3.0.bn1", "bn")
    assert found.starts == ("layer1:in", "layer2.0", "layer3.0")
    seen = tapped(net, IMAGES, None, [*found.groups, *found.before, "layer1.1.add", "layer3.1.add"])
    assert torch.equal(seen["layer1"], seen["layer1.1.add"]) and torch.equal(seen["layer3"], seen["layer3.1.add"])
    for end, before in zip(found.groups, found.before, strict=True):
        torch.testing.assert_close(seen[before], net.get_submodule(before)(seen[end]))


class NetworkBlock(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


def test_a_wide_network_is_known_by_the_names_of_its_authors_too():
    """conv1, block1.layer.0.bn1, ..., bn1, relu, fc."""
    own = build("wrn_16_1", num_classes=10, in_channels=3, image_size=(32, 32), seed=0)
    groups = {f"block{k}": NetworkBlock(*own.get_submodule(f"layer{k}")) for k in (1, 2, 3)}
    layers = {"conv1": own.conv1, **groups, "bn1": own.bn, "relu": own.relu, "pool": own.avgpool, "flat": own.flatten}
    found = positions(nn.Sequential(OrderedDict(layers, fc=own.fc)), IMAGES)
    assert found.source == "table: WideResNet" and found.groups == ("block1", "block2", "block3")
    assert found.before == ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")
    assert found.starts == ("block1:in", "block2.layer.0", "block3.layer.0")


def test_layers_of_the_tables_names_without_its_blocks_are_left_to_the_graph():
    def part(c_in, c_out):
        return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))

    layers = {"layer1": part(3, 4), "layer2": part(4, 5), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    assert positions(nn.Sequential(OrderedDict(layers, fc=nn.Linear(5, 10))), IMAGES).source == "graph"


def test_a_known_network_without_a_graph_keeps_its_groups_and_loses_what_comes_before_the_relu():
    class Branches(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    net = build("resnet20_w1", num_classes=10, in_channels=3, image_size=(32, 32), seed=0)
    found = positions(Branches(OrderedDict(net.named_children())), IMAGES)
    assert found.groups == found.before == ("layer1", "layer2", "layer3")
    assert found.layers == ("layer1:in", "layer1", "layer2.0", "layer2", "layer3.0", "layer3")


def test_before_the_relu_of_a_block_is_its_sum():
    net = build("resnet20_w1", num_classes=10, in_channels=3, image_size=(32, 32), seed=0).eval()
    seen = tapped(net, IMAGES, None, ["layer2.2.relu:in", "layer2.2.add", "layer2"])
    torch.testing.assert_close(seen["layer2.2.relu:in"], seen["layer2.2.add"])
    torch.testing.assert_close(seen["layer2.2.relu:in"].relu(), seen["layer2"])


class Sums(nn.Module):
    """Pre-activation: a group ends with a sum, batch norm and ReLU come after; the ReLUs are functions."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.down, self.fc = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Linear(4, 10)
        self.norm, self.join = nn.BatchNorm2d(4), nn.Identity()

    def forward(self, x):
        x = self.stem(x)
        x = self.join(x + self.conv(torch.relu(x)))
        return self.fc(self.down(torch.relu(self.norm(x))).mean((2, 3)))


def test_where_a_group_ends_with_a_sum_the_next_batch_norm_stands_before_the_relu():
    # The last layer of the first size is the batch norm itself, whose output no module rectifies.
    found = positions(Sums(), IMAGES)
    assert found.groups == ("norm", "down") and found.before == ("norm", "down")


def test_networks_without_maps_or_graph_are_refused_with_the_way_out():
    class Branches(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    for net in (build("dense", num_classes=10, in_channels=3, image_size=(32, 32), seed=0), Branches(nn.Flatten())):
        with pytest.raises(BadValue, match="Name them: Positions"):
            positions(net, IMAGES)


@pytest.mark.parametrize(
    ("name", "options", "groups", "shapes"),
    [
        (
            "hf/vit", {"num_hidden_layers": 5, "patch_size": 8},
            [f"vit.layers.{k}:map" for k in (0, 1, 3, 4)], [(32, 8, 8)] * 4,
        ),
        (
            "hf/swin", {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4},
            ["swin.encoder.layers.0.blocks.0:map", "swin.encoder.layers.1:map"], [(16, 16, 16), (32, 8, 8)],
        ),
    ],
)  # fmt: skip
def test_the_blocks_of_transformers_are_maps(name, options, groups, shapes):
    pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64} if name == "hf/vit" else {}
    net, images = build(name, image_size=64, **small | options).eval(), torch.rand(2, 3, 64, 64)
    found = positions(net, images)
    assert found.source == "blocks"
    assert list(found.groups) == groups and found.before == found.groups and found.embedding == "classifier:in"
    values = tapped(net, images, None, found.groups, keep_graph=False)
    assert [tuple(values[tap].shape[1:]) for tap in found.groups] == shapes
    tokens = record_of(net, groups[-1].removesuffix(":map"), images)
    assert torch.equal(values[groups[-1]].flatten(2).movedim(1, 2), tokens[:, -values[groups[-1]][0, 0].numel() :])


def record_of(net, layer, images):
    with record(net, layer) as activations, torch.no_grad():
        net(images)
    return activations[layer]


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("torchvision/swin_t", "features.1.1 features.3.1 features.5.5 features.7.1"),
        (
            "timm/swin_tiny_patch4_window7_224",
            "layers.0.blocks.1 layers.1.blocks.1 layers.2.blocks.5 layers.3.blocks.1",
        ),
    ],
)
def test_the_stages_of_swin_end_before_they_are_merged(name, groups):
    pytest.importorskip(name.partition("/")[0])
    net, images = (
        build(name, num_classes=10, in_channels=3, image_size=(64, 64), seed=0).eval(),
        torch.rand(2, 3, 64, 64),
    )
    found = positions(net, images)
    assert found.source == "table: Swin" and found.groups == tuple(f"{layer}:map" for layer in groups.split())
    values = tapped(net, images, None, found.groups, keep_graph=False)
    assert [tuple(values[tap].shape[1:]) for tap in found.groups] == [(96 * 2**k, 16 >> k, 16 >> k) for k in range(4)]
