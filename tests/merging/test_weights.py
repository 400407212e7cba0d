"""Alignment, the straight path, statistics after averaging, task vectors."""

import copy

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from reptrans.errors import BadData, BadValue, ShapeMismatch, UnknownName
from reptrans.layers.network import copy_of
from reptrans.merging import (
    align,
    aligned,
    barrier,
    interpolated,
    path_rows,
    permuted,
    reestimated,
    rescaled,
    task_vector,
    unit_groups,
    with_task_vectors,
)
from reptrans.models import build


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGES = normal(40, 1, 8, 8)


def network(name: str = "cnn3_w8", seed: int = 0) -> nn.Module:
    net = build(name, num_classes=4, in_channels=1, image_size=8, seed=seed).double()
    with torch.no_grad():  # so that its statistics are not those of a new network
        net(normal(32, 1, 8, 8, seed=seed + 10))
    return net.eval()


def batches(n: int = 3) -> list[tuple]:
    return [(normal(10, 1, 8, 8, seed=i), torch.arange(10) % 4) for i in range(n)]


def shuffled(net: nn.Module) -> nn.Module:
    units = unit_groups(net, IMAGES)
    return permuted(net, units, units.random(torch.Generator().manual_seed(5)))


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, w) for v, w in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "by"), [(name, by) for name in ("cnn3_w8", "resnet8") for by in ("weights", "activations")] +
    [("dense", "weights")],  # by activations, hidden units that are 0 on all images cannot be told apart
)  # fmt: skip
def test_a_permuted_copy_is_recovered_exactly(name, by):
    net = network(name)
    other = shuffled(net)
    assert not equal(net, other)
    found = aligned(net, other, IMAGES, by)
    assert equal(net, found)
    rows = path_rows(net, found, batches(), (0.0, 0.5, 1.0))
    assert rows["cross_entropy"].nunique() == 1


@pytest.mark.parametrize("by", ["none", "weights", "activations"])
@torch.no_grad()
def test_aligned_is_the_same_function(by):
    a, b = network(seed=0), network(seed=1)
    found = aligned(a, b, IMAGES, by)
    assert torch.allclose(found(IMAGES), b(IMAGES), rtol=0, atol=1e-10)
    assert equal(found, b) == (by == "none")


def test_activations_are_seen_a_few_images_at_a_time(monkeypatch):
    """The alignment is that of all images at once, and no pass sees more images than fit."""
    a, b, seen = network(seed=0), network(seed=1), []
    whole = aligned(a, b, IMAGES, "activations")
    read = align._read
    monkeypatch.setattr(align, "_read", lambda units, images: seen.append(len(images)) or read(units, images))
    monkeypatch.setattr(align, "_AT_ONCE", 15 * IMAGES[0].numel())
    assert equal(whole, aligned(a, b, IMAGES, "activations"))
    assert seen == [15, 15, 15, 15, 10, 10]


def test_weight_alignment_brings_weights_nearer_than_any_single_exchange():
    a, b = network(seed=0), network(seed=1)
    found = aligned(a, b, IMAGES, "weights")

    def product(net):
        return sum((p * q).sum().item() for p, q in zip(a.parameters(), net.parameters(), strict=True))

    assert product(found) > product(b)
    units = unit_groups(found, IMAGES)
    for group, size in units.sizes.items():
        swap = torch.arange(size)
        swap[[0, 1]] = swap[[1, 0]]
        assert product(permuted(found, units, {group: swap})) <= product(found) + 1e-9


def test_alignment_refuses():
    with pytest.raises(ShapeMismatch, match=r"one architecture: the first has conv1.weight \(8, 1, 3, 3\)"):
        aligned(network(), network("cnn3_w16"), IMAGES)
    with pytest.raises(ShapeMismatch, match="the second no conv1.weight"):
        interpolated(network(), network("dense"))
    with pytest.raises(BadValue, match="layer '1' computes its weight from others"):
        aligned(
            *(nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 9))) for _ in "ab"),
            IMAGES,
        )
    spun = nn.Sequential(nn.Linear(4, 6, dtype=torch.complex64), nn.Linear(6, 3, dtype=torch.complex64))
    with pytest.raises(BadValue, match=r"0\.weight of Sequential is complex"):
        aligned(spun, spun, torch.randn(8, 4, dtype=torch.complex64))
    with pytest.raises(UnknownName, match="no alignment by 'weight'. Did you mean 'weights'"):
        aligned(network(), network(), IMAGES, "weight")


def test_interpolation():
    a, b = network(seed=0), network(seed=1)
    assert equal(interpolated(a, b, 0.0), a) and equal(interpolated(a, b, 1.0), b)
    quarter = interpolated(a, b, 0.25).state_dict()
    for name in ("conv2.weight", "bn1.running_var", "fc.bias"):
        wanted = 0.75 * a.state_dict()[name] + 0.25 * b.state_dict()[name]
        assert torch.allclose(quarter[name], wanted, rtol=0, atol=1e-15)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 5, dtype=torch.cfloat))


def test_complex_weights_are_mixed_too():
    a, b = Complex(), Complex()
    assert equal(interpolated(a, b, 0.0), a) and equal(interpolated(a, b, 1.0), b)
    assert torch.allclose(interpolated(a, b, 0.25).weight, 0.75 * a.weight + 0.25 * b.weight)
    assert torch.allclose(with_task_vectors(a, [task_vector(a, b)]).weight, b.weight)


class Masked(nn.Module):
    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.register_buffer("mask", mask)


def spectral(norm) -> tuple[nn.Module, nn.Module]:
    return norm(nn.Linear(3, 2)), norm(nn.Linear(3, 2))


def pruned(kept: int) -> nn.Module:
    layer = nn.Linear(3, 2)
    return prune.custom_from_mask(layer, "weight", torch.arange(6).reshape(2, 3) % 2 == kept)


@pytest.mark.parametrize("mix", [interpolated, task_vector])
@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            [Masked(torch.tensor([True, last])) for last in (True, False)],
            r"mask \(bool\) differs .* nothing in between",
        ),
        ([Masked(torch.tensor([1, last])) for last in (1, 2)], r"mask \(int64\) differs"),
        (spectral(nn.utils.spectral_norm), "weight_u was found for the weights of one network"),
        ([pruned(0), pruned(1)], "weight_mask was found for the weights of one network"),
        (spectral(nn.utils.parametrizations.spectral_norm), "_u was found for the weights of one network"),
    ],
)
def test_what_has_nothing_in_between_is_refused(mix, pair, message):
    with pytest.raises(BadValue, match=message):
        mix(*pair)
    mix(pair[0], copy_of(pair[0]).eval())


def test_barrier_by_hand():
    rows = pd.DataFrame({"share": [0.0, 0.25, 1.0], "cross_entropy": [1.0, 4.0, 3.0], "accuracy": [0.8, 0.1, 0.4]})
    assert barrier(rows) == pytest.approx(4.0 - 1.5)
    assert barrier(rows, "accuracy") == pytest.approx(0.7 - 0.1)
    below = rows.assign(cross_entropy=[1.0, 0.5, 3.0])
    assert barrier(below) == 0.0
    with pytest.raises(UnknownName, match="no barrier in 'loss'"):
        barrier(rows, "loss")


def test_a_path_has_both_ends_and_mends_between_them():
    seen = []
    rows = path_rows(network(), network(seed=1), batches(), (1.0, 0.0, 0.5), lambda net, t: seen.append(t) or net)
    assert list(rows["share"]) == [0.0, 0.5, 1.0] and seen == [0.5]
    with pytest.raises(BadValue, match="a path begins at 0 and ends at 1"):
        path_rows(network(), network(), batches(), (0.0, 0.5))


def test_reestimated_statistics_are_those_of_the_images():
    net = network()
    state = torch.get_rng_state()
    found = reestimated(net, [IMAGES])
    first = net.conv1(IMAGES).transpose(0, 1).flatten(1)
    assert torch.allclose(found.bn1.running_mean, first.mean(1))
    assert torch.allclose(found.bn1.running_var, first.var(1))
    assert not found.training and not torch.equal(net.bn1.running_mean, found.bn1.running_mean)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), found.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(BadValue, match="no batch norm .* rescaled"):
        reestimated(network("dense"), [IMAGES])


def test_rescaling_gives_every_layer_the_mean_statistics():
    a, b = network("dense", 0), network("dense", 1)
    found = rescaled(interpolated(a, b, 0.3), a, b, [IMAGES[:25], IMAGES[25:]], 0.3)

    def outputs(net, layer):
        return net[: layer + 1](IMAGES)

    for layer, module in enumerate(a):
        if isinstance(module, nn.Linear) and layer < len(a) - 1:
            x, y, z = (outputs(net, layer) for net in (a, b, found))
            assert torch.allclose(z.mean(0), 0.7 * x.mean(0) + 0.3 * y.mean(0))
            assert torch.allclose(z.std(0), 0.7 * x.std(0) + 0.3 * y.std(0))
    assert torch.equal(found[-1].weight, interpolated(a, b, 0.3)[-1].weight)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_rescaling_scales_the_channels_of_every_convolution(kind, groups):
    x = normal(8, 4, 5, 5)[..., : 5 if "2d" in kind.__name__ else 1].squeeze(-1)
    a, b = (nn.Sequential(kind(4, 6, 3, groups=groups), nn.Flatten(2), nn.LazyLinear(2)).double() for _ in range(2))
    for net in (a, b):
        net(x)

    def statistics(net):
        return torch.stack([which(net[0](x).transpose(0, 1).flatten(1), 1) for which in (torch.mean, torch.std)])

    found = rescaled(interpolated(a, b), a, b, [x])
    assert torch.allclose(statistics(found), (statistics(a) + statistics(b)) / 2)


def test_rescaling_a_network_with_itself_changes_nothing():
    net = network("dense")
    found = rescaled(net, net, net, [IMAGES])
    assert all(torch.allclose(p, q) for p, q in zip(net.parameters(), found.parameters(), strict=True))


def test_rescaling_refuses():
    with pytest.raises(BadValue, match="has batch norm; .* reestimated"):
        rescaled(network(), network(), network(), [IMAGES])
    with pytest.raises(BadData, match="no images"):
        rescaled(network("dense"), network("dense"), network("dense"), [])
    bare = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False), nn.Linear(3, 2)).double()
    with pytest.raises(BadValue, match="layer '1' has no bias"):
        rescaled(bare, bare, bare, [IMAGES])


def tied() -> list[nn.Module]:
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    second.weight = first.weight
    return [first, second]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))], "layer '1' computes its weight or bias"),
        ([nn.utils.spectral_norm(nn.Linear(64, 64))], "layer '1' computes its weight or bias"),
        ([nn.Linear(64, 64)] * 2, "layer '1' is called several times, or shares"),
        (tied(), "layer '1' is called several times, or shares its weights with another"),
    ],
)
def test_rescaling_refuses_weights_that_are_not_a_layers_own(layers, message):
    net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 2)).double()
    with pytest.raises(BadValue, match=message):
        rescaled(net, net, net, [IMAGES])


def test_task_vectors():
    base, one, two = (network(seed=seed) for seed in range(3))
    vectors = [task_vector(base, net) for net in (one, two)]
    assert "bn1.num_batches_tracked" not in vectors[0]
    name = "conv1.weight"
    with pytest.warns(UserWarning, match="scales are 0.5, -1, which are no shares"):
        sums = with_task_vectors(base, vectors, [0.5, -1.0]).state_dict()[name]
    states = [net.state_dict()[name] for net in (base, one, two)]
    assert torch.allclose(sums, states[0] + 0.5 * (states[1] - states[0]) - (states[2] - states[0]))
    back = with_task_vectors(base, vectors[:1])
    assert all(torch.allclose(p, q) for p, q in zip(back.parameters(), one.parameters(), strict=True))
    kept = copy.deepcopy(base)
    with_task_vectors(base, vectors, 0.5)
    assert equal(kept, base)
    with pytest.raises(BadValue, match="2 task vectors and 1 scales"):
        with_task_vectors(base, vectors, [1.0])
    with pytest.raises(ShapeMismatch, match="a task vector has"):
        with_task_vectors(network("dense"), vectors)


@pytest.mark.parametrize("share", [-1.0, 1.5, 4.0])
def test_beyond_the_ends_variances_stay_those_of_the_nearer_network(share):
    a, b = network(seed=0), network(seed=1)
    for net, value in ((a, 3.0), (b, 1.0)):
        net.bn1.running_var.fill_(value)
    with pytest.warns(UserWarning, match=r"outside \[0, 1\]: the running statistics .* reestimated\(net, loader\)"):
        found = interpolated(a, b, share)
    assert torch.equal(found.bn1.running_var, (a if share < 0 else b).bn1.running_var)
    torch.testing.assert_close(found.conv1.weight, torch.lerp(a.conv1.weight, b.conv1.weight, share))
    with pytest.warns(UserWarning, match="running statistics"):
        forgetful = with_task_vectors(b, [task_vector(b, a)], share)
    assert (forgetful.bn1.running_var >= 0).all()
    with pytest.raises(BadValue, match="share is nan"):
        interpolated(a, b, float("nan"))


def test_groups_are_visited_again_only_where_a_neighbour_changed(monkeypatch):
    a, b, visits, plain = network("resnet8"), network("resnet8", 1), [], align._gain
    units = unit_groups(b, IMAGES)
    monkeypatch.setattr(align, "_gain", lambda *given: visits.append(given[-1]) or plain(*given))
    found = align._by_weights(a, b, units, 0)
    chosen = len(visits)
    monkeypatch.setattr(align, "_neighbours", lambda units, names: {group: set(units.sizes) for group in units.sizes})
    every = align._by_weights(a, b, units, 0)
    assert chosen < len(visits) - chosen and all(torch.equal(found[group], every[group]) for group in units.sizes)
