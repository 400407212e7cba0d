import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from reptrans.distillation.distill import distill
from reptrans.distillation.method import Method
from reptrans.distillation.methods.translated import (
    Paraphraser,
    encoder,
    factor_distance,
    ft,
    paraphraser,
    reconstruction,
    translator,
)
from reptrans.errors import BadValue, ShapeMismatch, UnknownName
from reptrans.matching import Learned, Seen
from reptrans.training import Plan

STORED = load_file(Path(__file__).parent.parent / "reference/distillation_stages.safetensors")
PLAN = Plan(epochs=10, lr=0.05, precision="float64")


def factors(seed=0):
    return torch.randn(2, 3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind(0)


def seen(teacher, student):
    return Seen((student,), (teacher,), teacher, lambda: iter(()))


def with_weights(net: nn.Sequential, name: str) -> nn.Sequential:
    convs = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    for k, conv in enumerate(convs):
        assert conv.weight.shape == STORED[f"{name}.conv{k}.weight"].shape
        conv.weight.data, conv.bias.data = STORED[f"{name}.conv{k}.weight"], STORED[f"{name}.conv{k}.bias"]
    return net


@pytest.mark.parametrize(("p", "expected"), [(1, 2), (2, 2**0.5), (3, 2 ** (1 / 3))])
def test_disjoint_unit_factors(p, expected):
    a, b = torch.eye(2, dtype=torch.float64).mul(3).reshape(2, 1, 2, 1, 1)
    assert factor_distance(p, "paper")(a, b).item() == pytest.approx(expected, rel=1e-14)
    assert factor_distance(p, "authors")(a, b).item() == pytest.approx(2 / 2, rel=1e-14)


@pytest.mark.parametrize("p", [1, 1.5, 2])
def test_opposite_factors_are_twice_their_norm_apart(p):
    f, _ = factors()
    expected = sum(2 * (x / x.norm()).norm(p) for x in f.flatten(1)) / 3
    assert factor_distance(p, "paper")(f, -f).item() == pytest.approx(expected.item(), rel=1e-13)
    student = f.clone().requires_grad_()
    value = factor_distance(p, "paper")(f, student)
    value.backward()
    assert value.item() == 0 and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("like", ["paper", "authors"])
def test_a_scale_of_any_image_changes_nothing(like):
    a, b = factors()
    distance, scale = factor_distance(1, like), torch.tensor([0.01, 1, 50], dtype=a.dtype)[:, None, None, None]
    student = b.clone().requires_grad_()
    value = distance(a, student)
    assert value.item() == pytest.approx(distance(a * scale, b * scale.flip(0)).item(), rel=1e-12)
    value.backward()
    assert abs((student.grad * student).sum().item()) < 1e-12 < student.grad.norm().item()


def test_a_silent_factor_gives_finite_numbers():
    student = torch.zeros(2, 3, 2, 2, requires_grad=True)
    for p in (1, 2):
        factor_distance(p, "paper")(torch.zeros(2, 3, 2, 2), student).backward()
        assert torch.isfinite(student.grad).all()


def test_it_agrees_with_the_authors_code_and_the_paper():
    student, teacher = STORED["fac_s"].double().requires_grad_(), STORED["fac_t"].double()
    value = factor_distance()(teacher, student)
    value.backward()
    assert value.item() == pytest.approx(STORED["ft"].item(), rel=1e-5)
    torch.testing.assert_close(student.grad.float(), STORED["ft.grad"], rtol=1e-4, atol=1e-8)
    assert factor_distance(1, "paper")(teacher, student).item() == pytest.approx(STORED["ft.paper"].item(), rel=1e-9)
    # Channels squared and averaged first would be attention transfer on factors.
    assert value.item() != pytest.approx(0.08785544, rel=0.1)


def test_the_networks_agree_with_the_authors_code():
    for name, x, c in (("factor", STORED["t3"], 32), ("translated", STORED["s3"], 24)):
        x = x.clone().requires_grad_()
        value = with_weights(encoder(c, 16), name)(x)
        torch.testing.assert_close(value, STORED[name], rtol=1e-4, atol=1e-6)
        value.sum().backward()
        torch.testing.assert_close(x.grad, STORED[f"{name}.grad"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("c", "rate", "k"), [(8, 0.5, 4), (5, 0.5, 2), (6, 1.0, 6), (10, 0.25, 2)])
def test_shapes(c, rate, k):
    teacher, student = torch.randn(2, c, 4, 3), torch.randn(2, 7, 4, 3)
    module = paraphraser(rate).make(seen(teacher, student))
    assert module.encoder(teacher).shape == (2, k, 4, 3) and module(teacher).shape == teacher.shape
    factor = module.encoder(teacher)
    assert translator().make(seen(factor, student))(student).shape == factor.shape
    shapes = [tuple(layer.weight.shape[:2]) for layer in module.decoder if isinstance(layer, nn.ConvTranspose2d)]
    assert shapes == [(k, k), (k, c), (c, c)]
    assert all(layer.negative_slope == 0.1 for layer in [*module.encoder, *module.decoder][1::2])


def test_the_reconstruction_loss_is_of_the_residual():
    x = torch.randn(2, 4, 3, 3)
    net = Paraphraser(4)
    residual = x - net.decoder(net.encoder(x))
    assert torch.equal(net(x), residual)
    assert reconstruction()(residual, None).item() == pytest.approx(residual.abs().mean().item())
    assert reconstruction("paper")(residual, None).item() == pytest.approx(residual.square().mean().item())


def test_the_stages(pair):
    method = ft(pair)
    first, second = method.stages
    assert (first.train, second.train, first.share, second.share) == ("connectors", "all", 0.1, 1)
    assert second.matches[0].weight == 500 and ft(pair, like="paper").stages[1].matches[0].weight == 1
    assert first.matches[0].teacher == second.matches[0].teacher == "relu3"
    assert method.row()["teacher transform"] == "paraphraser, unit factor (k=0.5)"


def test_bad_options(pair):
    with pytest.raises(UnknownName, match="no variant 'mean' of factor transfer. .*Possible: paper, authors"):
        ft(pair, like="mean")
    with pytest.raises(BadValue, match="p is 0.5"):
        ft(pair, p=0.5)
    for rate in (0, 1.5):
        with pytest.raises(BadValue, match="rate is .*share of the teacher's channels"):
            ft(pair, rate=rate)
    with pytest.raises(BadValue, match="rate 0.1 of 4 channels leaves none"):
        paraphraser(0.1).make(seen(torch.randn(1, 4, 2, 2), torch.randn(1, 3, 2, 2)))
    with pytest.raises(ShapeMismatch):
        factor_distance()(torch.randn(1, 4, 2, 2), torch.randn(1, 3, 2, 2))


def kept(recipe: Learned, built: list) -> None:
    """Let the recipe's modules be seen."""
    make = recipe.make

    def making(seen):
        built.append(make(seen))
        return built[-1]

    object.__setattr__(recipe, "make", making)


def test_the_paraphraser_learns_in_stage_1_and_rests_in_stage_2(pair):
    loader, before, built = pair.teachers[0].loader, copy.deepcopy(pair.student.state_dict()), []
    method = ft(pair, share=0.5)
    kept(method.stages[0].matches[0].teacher_transform, built)
    student, rows = distill(pair.student, pair.teachers, Method("ft", method.stages[:1]), loader, PLAN)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert rows["paraphraser"].iloc[-1] < 0.9 * rows["paraphraser"].iloc[0]

    factors = []
    kept(method.stages[1].matches[0].teacher_transform, factors)
    _, rows = distill(student, pair.teachers, method, loader, PLAN)
    # The first of each was made for the rehearsal.
    assert factors[1] is built[3].encoder, "the factor is what the paraphraser of stage 1 makes"
    one, both = (module.state_dict() for module in built[1::2])
    assert all(torch.equal(both[name], value) for name, value in one.items()), "not moved by stage 2, bit for bit"
    column = rows.filter(like="unit vectors").iloc[:, 0].dropna()
    assert column.iloc[-1] < column.iloc[0]
