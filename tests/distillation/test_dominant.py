import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reptrans.distillation.distill import distill
from reptrans.distillation.method import Method
from reptrans.distillation.methods.values import dk2, dominant, rank_one, with_dominant
from reptrans.errors import BadValue, UnknownName
from reptrans.matching import soft_cross_entropy
from reptrans.models import build
from reptrans.training import Plan

PLAN = Plan(epochs=6, lr=0.05, precision="float64")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conv(c=3, n=4, k=3, **settings) -> nn.Conv2d:
    made = nn.Conv2d(c, n, k, dtype=torch.float64, **settings)
    made.weight.data = normal(*made.weight.shape)
    return made


def kernels(layer: nn.Sequential) -> torch.Tensor:
    """The kernels a_nc D_c (n, c, k, k) of a dominant layer."""
    depthwise, pointwise = layer
    return pointwise.weight * depthwise.weight[:, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"padding": 1}, {"stride": 2, "padding": 1}, {"dilation": 2}, {"bias": False}, {"padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)  # fmt: skip
def test_a_dominant_layer_is_a_convolution_with_kernels_a_times_d(settings):
    full = conv(**settings)
    layer = dominant(full)
    full.weight.data = kernels(layer).detach()
    x = normal(2, 3, 9, 8, seed=1)
    torch.testing.assert_close(layer(x), full(x), rtol=1e-12, atol=1e-13)


def test_it_has_39_parameters_for_108():
    full = conv(bias=False)
    count = [sum(p.numel() for p in net.parameters()) for net in (dominant(full), full)]
    assert count == [39, 108]


@pytest.mark.parametrize("size", [(4, 3, 3, 3), (2, 5, 5, 3), (20, 2, 3, 3)])
def test_its_error_is_that_of_the_singular_values_left_out(size):
    weight = normal(*size)
    d, a = rank_one(weight)
    assert d.shape == (size[1], *size[2:]) and a.shape == size[:2]
    error = (weight - a[:, :, None, None] * d).square().sum((0, 2, 3))
    values = torch.linalg.svdvals(weight.transpose(0, 1).flatten(2))
    torch.testing.assert_close(error, values[:, 1:].square().sum(1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(d.flatten(1).norm(dim=1), a.norm(dim=0))
    # No other kernel of one channel comes closer.
    for seed in range(5):
        other = d + 0.1 * normal(*d.shape, seed=seed)
        best = torch.einsum("nckl,ckl->nc", weight, other) / other.square().sum((1, 2))
        assert ((weight - best[:, :, None, None] * other).square().sum((0, 2, 3)) > error).all()


def test_kernels_of_rank_1_are_kept():
    full = conv(padding=1)
    full.weight.data = normal(4, 3, 1, 1) * normal(1, 3, 3, 3, seed=2)
    x = normal(2, 3, 6, 6, seed=1)
    torch.testing.assert_close(dominant(full)(x), full(x), rtol=1e-12, atol=1e-13)
    zero = conv(padding=1)
    zero.weight.data.zero_()
    assert all(torch.isfinite(p).all() for p in dominant(zero).parameters())


def test_a_network_is_copied_with_its_names():
    net = build("resnet20_w1", num_classes=5, in_channels=3, image_size=(8, 8), seed=0).double().requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    made = with_dominant(net)
    above = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]
    assert above and all(isinstance(made.get_submodule(name), nn.Sequential) for name in above)
    assert {n for n, _ in net.named_modules()} <= {n for n, _ in made.named_modules()}
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad for p in made.parameters()) and not any(p.requires_grad for p in net.parameters())
    assert made(normal(2, 3, 8, 8)).shape == (2, 5)
    assert sum(p.numel() for p in made.parameters()) < sum(p.numel() for p in net.parameters())


def test_shared_grouped_and_derived_layers():
    class Own(nn.Conv2d):
        pass

    shared = nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(shared, shared, nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1), Own(2, 2, 3))
    made = with_dominant(net)
    assert made[0] is made[1] and isinstance(made[0], nn.Sequential)
    assert [type(layer) for layer in made[2:]] == [nn.Conv2d, nn.Conv2d, Own]
    assert isinstance(with_dominant(shared), nn.Sequential)
    with pytest.raises(BadValue, match="one group, but this one has 4"):
        dominant(net[2])
    with pytest.raises(BadValue, match="Linear has no convolution above 1x1"):
        with_dominant(nn.Linear(3, 3))


def test_pre_regression_is_entropy_and_divergence_and_ignores_shifts():
    t, s = normal(2, 3, 4, 5, 5).unbind(0)
    for tau in (1.0, 3.0):
        distance = soft_cross_entropy(tau)
        p, q = ((x / tau).flatten(1).log_softmax(1) for x in (t, s))
        entropy = -(p.exp() * p).sum(1).mean()
        divergence = F.kl_div(q, p, log_target=True, reduction="batchmean")
        assert distance(t, s).item() == pytest.approx((entropy + divergence).item(), rel=1e-12)
        assert distance(t, t).item() == pytest.approx(entropy.item(), rel=1e-12)
        assert distance(t, s + 5).item() == pytest.approx(distance(t - 3, s).item(), rel=1e-12)


def test_the_stages(pair):
    first, second = dk2(pair, temperature=2.0, share=0.3).stages
    assert (first.train, second.train, first.share, second.share) == ("reached", "all", 0.3, 1.0)
    assert [(m.teacher, m.student) for m in first.matches] == [(f"relu{k}", f"relu{k}") for k in (1, 2, 3)]
    assert first.matches[0].distance.label == "cross-entropy at T=2"
    assert [loss.title for loss in dk2(pair, with_kd=True).stages[1].losses] == ["cross_entropy", "kd"]
    with pytest.raises(UnknownName, match="no student from 'pupil'. .*teacher, student"):
        dk2(pair, student_from="pupil")


@pytest.mark.parametrize("student_from", ["teacher", "student"])
def test_a_training_of_the_compressed_copy(pair, student_from):
    states = [copy.deepcopy(net.state_dict()) for net in (pair.teacher, pair.student)]
    loader, method = pair.teachers[0].loader, dk2(pair, student_from=student_from)
    student, rows = distill(pair.student, pair.teachers, method, loader, PLAN)
    for net, state in zip((pair.teacher, pair.student), states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert student.conv3[1].out_channels == {"teacher": 16, "student": 8}[student_from]
    for column in rows.filter(like="cross-entropy at"):
        values = rows[column].dropna()
        assert values.iloc[-1] < values.iloc[0]


def test_pre_regression_leaves_the_head_to_the_bit(pair):
    method = dk2(pair)
    first = Method("dk2", method.stages[:1], prepare=method.prepare)
    student, _ = distill(pair.student, pair.teachers, first, pair.teachers[0].loader, PLAN)
    start = method.prepare(pair.student, pair.teacher).state_dict()
    same = {name.split(".")[0] for name, value in student.state_dict().items() if torch.equal(value, start[name])}
    assert same == {"fc"}
