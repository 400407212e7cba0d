"""Nulls of stitching, on networks so small that what they must reach is known."""

import copy

import pytest
import torch
from torch import nn

from reptrans.data import Loader, Split
from reptrans.errors import BadData, BadValue
from reptrans.stitching import null, stitch_from_noise, stitch_from_others, train_stitch
from reptrans.training import Plan

PLACE = {"mean": (0.0,), "std": (1.0,), "dtype": torch.float64}


def loaders(images, labels, **options):
    """Fit and score set: the first and the second half."""
    half = len(labels) // 2
    parts = (Split(images[:half], labels[:half]), Split(images[half:], labels[half:]))
    return tuple(Loader(part, 50, **(PLACE | options)) for part in parts)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def vectors():
    """Three classes, two of three examples of the first, told apart without an error by a network of two layers."""
    labels = torch.tensor([0, 1, 0, 2, 0, 0]).repeat(100)
    noise = 0.1 * torch.randn(600, 6, dtype=torch.float64, generator=generator(1))
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(6)), net[1].weight.copy_(torch.eye(6)[:3])
        net[0].bias.zero_(), net[1].bias.zero_()
    return net, loaders(torch.eye(6, dtype=torch.float64)[labels] + noise, labels)


@pytest.fixture
def maps():
    """Two classes whose maps differ in where they are bright, and in nothing else."""
    labels = torch.tensor([0, 1]).repeat(100)
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    images = torch.stack([left, left.flip(1)])[labels][:, None]
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(16, 2)).double()
    with torch.no_grad():
        net[0].weight.fill_(1), net[0].bias.zero_(), net[2].bias.zero_()
        net[2].weight.copy_(torch.stack([left, left.flip(1)]).flatten(1).repeat(1, 4))
    return net, loaders(images, labels)


@pytest.mark.parametrize("channels", [None, 2])
def test_noise_without_spread_is_the_class(vectors, channels):
    found = stitch_from_noise(vectors[0], "0", vectors[1], spread=0, channels=channels, generator=generator())
    assert found == (1.0, 1.0, 1.0, 2 / 3)


def test_more_spread_leaves_less_and_in_the_end_chance(vectors):
    shares = [0.0, 0.6, 0.8]
    few = [stitch_from_noise(vectors[0], "0", vectors[1], spread=s, generator=generator()).accuracy for s in shares]
    assert few == sorted(few, reverse=True) and 0.75 < few[2] < few[1] < 1, "chance is 0.67"
    nothing = stitch_from_noise(vectors[0], "0", vectors[1], spread=1, generator=generator())
    assert nothing.accuracy == pytest.approx(nothing.chance, abs=0.02)


def test_one_channel_map_cannot_tell_places_apart_and_a_dense_map_can(maps):
    net, both = maps
    over_channels, dense = (
        stitch_from_noise(net, "0", both, spread=0, flatten=flatten, generator=generator()) for flatten in (False, True)
    )
    assert over_channels.accuracy == over_channels.chance == 0.5
    assert dense.accuracy == dense.end_accuracy == 1


def test_training_goes_on_from_least_squares_with_noise_for_images(maps):
    seen = []

    def training(network, loader):
        batch = next(iter(loader))
        seen.append((batch.images.shape, batch.labels.tolist(), network(batch.images).shape))
        assert [name for name, p in network.named_parameters() if p.requires_grad] == ["stitch.weight", "stitch.bias"]
        return train_stitch(network, loader, Plan(epochs=20, lr=0.1, optimiser="adam", precision="float64"))

    found = stitch_from_noise(
        maps[0], "0", maps[1], spread=0, channels=7, flatten=True, generator=generator(), training=training
    )
    assert seen == [((50, 7, 2, 2), [0, 1] * 25, (50, 2))] and found.accuracy == 1

    def spoil(network, loader):
        network.stitch.set(-network.stitch.weight, -network.stitch.bias)

    spoilt = stitch_from_noise(maps[0], "0", maps[1], spread=0, flatten=True, generator=generator(), training=spoil)
    assert spoilt.accuracy == 0


def test_training_sees_the_fit_set_as_its_loader_gives_it(vectors):
    net, (fit, score) = vectors
    seen = []
    fit = fit.over(fit.split, shuffle=True, seed=3, drop_last=True, batch_size=70)
    stitch_from_others(
        (net, net), ("0", "0"), (fit, score), generator=generator(),
        training=lambda _, loader: seen.append((loader.shuffle, len(loader), loader.epoch)),
    )  # fmt: skip
    assert seen == [(True, 4, 0)]


def test_activations_of_other_examples_leave_chance(vectors):
    net, both = vectors
    found = stitch_from_others((net, net), ("0", "0"), both, generator=generator())
    assert found.end_accuracy == 1 and found.accuracy == pytest.approx(found.chance, abs=0.02)


def test_it_is_the_order_alone_that_leaves_chance(vectors, monkeypatch):
    net, both = vectors
    monkeypatch.setattr(null.torch, "randperm", lambda n, generator: torch.arange(n))
    assert stitch_from_others((net, net), ("0", "0"), both, generator=generator()) == (1.0, 1.0, 1.0, 2 / 3)


def test_tokens_have_their_channels_last():
    labels = torch.tensor([0, 1]).repeat(50)
    images = torch.eye(2, dtype=torch.float64)[labels][:, None].expand(-1, 3, -1).clone()
    net = nn.Sequential(nn.Linear(2, 2), nn.Flatten(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2)), net[0].bias.zero_(), net[2].bias.zero_()
        net[2].weight.copy_(torch.eye(2).repeat(1, 3))
    shapes = []
    found = stitch_from_noise(net, "0", loaders(images, labels), spread=0, channels=5, generator=generator(),
                              training=lambda _, loader: shapes.append(next(iter(loader)).images.shape))  # fmt: skip
    assert shapes == [(50, 3, 5)] and found.accuracy == 1


def test_networks_stay_as_they_are_and_seeds_repeat(vectors):
    net, both = vectors
    before = copy.deepcopy(net.state_dict())
    first, again, other = (
        stitch_from_noise(net.train(), "0", both, spread=0.9, generator=generator(seed)) for seed in (0, 0, 1)
    )
    assert first == again != other
    stitch_from_others((net, net), ("0", "0"), both, generator=generator())
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_messages(vectors):
    net, both = vectors
    with pytest.raises(BadValue, match="spread is the noise's share of the variance, from 0 to 1; given 1.5."):
        stitch_from_noise(net, "0", both, spread=1.5, generator=generator())
    with pytest.raises(BadValue, match="channels is 0; it must be a whole number from 1 on."):
        stitch_from_noise(net, "0", both, spread=0.5, channels=0, generator=generator())
    several = loaders(torch.rand(8, 6, dtype=torch.float64), torch.ones(8, 3, dtype=torch.uint8))
    with pytest.raises(BadData, match="These nulls are of images with one label each."):
        stitch_from_others((net, net), ("0", "0"), several, generator=generator())
