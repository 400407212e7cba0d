"""Maps of what an answer rests on, against their closed forms, and how they are compared."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reptrans.attribution import attention_maps, map_agreement, map_correlation, saliency_maps
from reptrans.errors import LayerNotFound, ShapeMismatch
from reptrans.models import build


def test_saliency_of_a_linear_network_is_its_weight():
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double()
    maps = saliency_maps(net, torch.randn(5, 2, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]))
    weight = net[1].weight.detach().reshape(3, 2, 2, 2).abs().sum(1)
    assert torch.allclose(maps, weight[[0, 1, 2, 0, 1]])


def test_map_correlation():
    x = torch.randn(3, 4, 4, dtype=torch.float64)
    assert torch.allclose(map_correlation(x, 2 * x + 1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(map_correlation(x, -x), -torch.ones(3, dtype=torch.float64))
    assert map_correlation(x, torch.ones_like(x)).isnan().all()
    with pytest.raises(ShapeMismatch, match="maps of the same images"):
        map_correlation(x, x[:2])


def test_grad_cam_is_the_weighted_sum_of_maps():
    net = build("cnn3_w4", num_classes=10, in_channels=1, image_size=(8, 8), seed=0).double().eval()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    labels = torch.tensor([1, 2, 3])
    maps = net[:11](images).detach().requires_grad_()
    assert type(net[10]).__name__ == "ReLU"
    (gradient,) = torch.autograd.grad(net[11:](maps).gather(1, labels[:, None]).sum(), maps)
    expected = F.relu((gradient.mean((2, 3), keepdim=True) * maps).sum(1))
    torch.testing.assert_close(attention_maps(net, "relu3", images, labels), expected.detach())
    with pytest.raises(LayerNotFound, match="has no layer 'relu33'"):
        attention_maps(net, "relu33", images, labels)
    with pytest.raises(ShapeMismatch, match="not maps"):
        attention_maps(net, "fc", images, labels)


class Tokens(torch.nn.Sequential):
    def forward(self, x):
        return self[2](self[1](self[0](x).flatten(2).movedim(1, 2)).mean(1))


def test_grad_cam_of_tokens_is_that_of_their_map():
    net = Tokens(torch.nn.Conv2d(1, 4, 2, 2), torch.nn.Linear(4, 3), torch.nn.Linear(3, 5)).double()
    images, labels = torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.tensor([3, 1])
    weights = net[2].weight[labels] / 16
    tokens = net[1](net[0](images).flatten(2).movedim(1, 2))
    expected = (tokens * weights[:, None]).sum(2).relu().unflatten(1, (4, 4))
    torch.testing.assert_close(attention_maps(net, "1:map", images, labels), expected.detach())


def test_maps_agree_by_their_cosine_at_the_smaller_size():
    a = torch.rand(2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(map_agreement(a, 3 * a), torch.ones(2, dtype=torch.float64))
    small = F.avg_pool2d(a[:, None], 2)[:, 0]
    torch.testing.assert_close(map_agreement(a, small), torch.ones(2, dtype=torch.float64))
    assert map_agreement(a, torch.zeros_like(a)).abs().max() == 0
