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
    assert found.embedding == "fc:in"


def test_a_residual_network_is_looked_at_stage_by_stage():
    found = of("resnet20_w1")
    assert found.groups == ("layer1", "layer2", "layer3")
    assert found.starts == ("relu", "layer2.0.relu", "layer3.0.relu")
    assert found.before == ("layer1.2.relu:in", "layer2.2.relu:in", "layer3.2.relu:in")
    assert len(found.layers) == 10


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
    assert list(found.groups) == groups and found.before == found.groups and found.embedding == "classifier:in"
    values = tapped(net, images, None, found.groups, keep_graph=False)
    assert [tuple(values[tap].shape[1:]) for tap in found.groups] == shapes
    tokens = record_of(net, groups[-1].removesuffix(":map"), images)
    assert torch.equal(values[groups[-1]].flatten(2).movedim(1, 2), tokens[:, -values[groups[-1]][0, 0].numel() :])


def record_of(net, layer, images):
    with record(net, layer) as activations, torch.no_grad():
        net(images)
    return activations[layer]
