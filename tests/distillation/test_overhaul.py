import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from reptrans.distillation.distill import distill
from reptrans.distillation.methods.values import (
    MarginReLU,
    margin_of,
    margin_relu,
    norm_at,
    normal_margin,
    ofd,
    partial_l2,
)
from reptrans.errors import BadValue, ShapeMismatch
from reptrans.matching import Seen, positions
from reptrans.models import build
from reptrans.training import Plan

STORED = load_file(Path(__file__).parent.parent / "reference/distillation_stages.safetensors")


def margin(scale: float, shift: float) -> float:
    return normal_margin(*torch.tensor([[scale], [shift]], dtype=torch.float64)).item()


def test_the_distance_by_hand_with_its_gradient():
    target = MarginReLU(torch.tensor([-1.0]))(torch.tensor([[[1.0, -0.5, -2.0, 0.5]]]))
    assert target.flatten().tolist() == [1, -0.5, -1, 0.5]
    student = torch.tensor([[[0.2, -0.7, -0.3, 1.5]]], requires_grad=True)
    value = partial_l2(target, student)
    value.backward()
    assert value.item() == pytest.approx(2.13)
    assert student.grad.flatten().tolist() == pytest.approx([-1.6, 0, 1.4, 2])


def test_nothing_counts_where_student_is_below_a_negative_target_only():
    target, student = torch.tensor([[-1.0, -1.0, 1.0, 0.0]]), torch.tensor([[-3.0, -0.5, -3.0, -2.0]])
    assert [partial_l2(t[None, None], s[None, None]).item() for t, s in zip(target[0], student[0], strict=True)] == [
        0, 0.25, 16, 0,
    ]  # fmt: skip


def test_where_the_teacher_is_positive_it_is_the_squared_distance():
    t, s = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind(0)
    assert partial_l2(t.abs(), s).item() == pytest.approx((t.abs() - s).square().sum().item() / 3, rel=1e-14)
    assert partial_l2(MarginReLU(torch.full((4,), -0.4, dtype=t.dtype))(t), t).item() == 0, "0 at equality"


@pytest.mark.parametrize(
    ("scale", "shift", "expected"),
    [
        (1, 0, -0.7978845608),
        (2, 1, -1.2821557),
        (-2, 1, -1.2821557),
        (1, 4, -3),
        (-2, 8, -6),
        (0, -1, -1),
        (0, 0, 0),
        (0, 2, 0),
    ],
)
def test_the_margin_in_closed_form(scale, shift, expected):
    assert margin(scale, shift) == pytest.approx(expected, abs=1e-6)


def test_the_margin_falls_back_where_negative_values_are_rare():
    edge = -torch.special.ndtri(torch.tensor(0.001, dtype=torch.float64)).item()
    density = torch.exp(torch.tensor(-(edge**2) / 2)).item() / math.sqrt(2 * math.pi)
    assert margin(1, edge + 1e-6) == -3
    assert margin(1, edge - 1e-6) == pytest.approx(edge - density / 0.001, rel=1e-3)


def test_the_margin_is_the_mean_of_the_negative_values_of_normal_numbers():
    x = 2 * torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    assert margin_of(x.split(30_000)).item() == pytest.approx(margin(2, 1), abs=0.02)
    assert margin_of([x]).item() == pytest.approx(x[x < 0].mean().item(), rel=1e-12)


def test_margins_from_values_are_per_channel_and_0_where_none_is_negative():
    maps = torch.tensor([[[[1.0, -1.0]], [[2.0, 3.0]]], [[[-3.0, 0.0]], [[0.0, 5.0]]]])
    assert margin_of([maps]).tolist() == margin_of(maps.split(1)).tolist() == [-2, 0]
    kept = MarginReLU(margin_of([maps]))(maps)
    assert kept[:, 0].flatten().tolist() == [1, -1, -2, 0] and torch.equal(kept[:, 1], maps[:, 1])


def test_margins_and_distance_agree_with_the_authors_code():
    found = normal_margin(STORED["bn_weight"].double(), STORED["bn_bias"].double())
    torch.testing.assert_close(found, STORED["margin.paper"], rtol=1e-9, atol=0)
    torch.testing.assert_close(found.float(), STORED["margin"], rtol=1e-4, atol=1e-6)
    student = STORED["s2"].double().requires_grad_()
    value = 4 * partial_l2(MarginReLU(found)(STORED["u2"].double()), student)
    value.backward()
    assert value.item() == pytest.approx(STORED["ofd.paper"].item(), rel=1e-6)
    torch.testing.assert_close(student.grad.float(), STORED["ofd.grad"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tap", "expected"),
    [
        ("cnn3_w2", "relu2:in", "bn2"), ("cnn3_w2", "bn2", "bn2"), ("cnn3_w2", "relu2", None),
        ("resnet20_w1", "layer1", None), ("wrn_16_1", None, nn.BatchNorm2d),
    ],
)  # fmt: skip
def test_the_batch_norm_is_found_in_the_graph(name, tap, expected):
    net = build(name, num_classes=10, in_channels=3, image_size=(32, 32), seed=0)
    if tap is None:
        taps = positions(net, torch.rand(2, 3, 32, 32)).before
        assert all(isinstance(norm_at(net, tap), expected) for tap in taps[1:])
    else:
        assert norm_at(net, tap) is (expected and net.get_submodule(expected))


def test_without_batch_norm_the_margin_is_measured_and_the_label_says_so():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    recipe, values = margin_relu(net, "1:in"), torch.randn(6, 2, 3, 3)
    assert recipe.label == "margin ReLU (from data)"
    seen = Seen((values,), (values,), None, lambda: iter([(values[:4],), (values[4:],)]))
    torch.testing.assert_close(recipe.make(seen).margin, margin_of([values]))
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False), nn.ReLU())
    recipe = margin_relu(plain, "2:in")
    assert recipe.label == "margin ReLU"
    assert recipe.make(seen).margin.tolist() == pytest.approx([-math.sqrt(2 / math.pi)] * 2)


def test_the_network_that_cannot_be_traced_is_measured():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(x) if x.sum() > 0 else x

    assert margin_relu(Branching(), "relu:in").label == "margin ReLU (from data)"


def test_a_vector_is_taken_as_one_value_for_each_channel():
    x = torch.tensor([[1.0, -4.0], [-2.0, -1.0]])
    assert MarginReLU(torch.tensor([-1.0, -2.0]))(x).tolist() == [[1, -2], [-1, -1]]
    with pytest.raises(ShapeMismatch, match="after their transforms"):
        partial_l2(x, x[:, :1])


def test_the_method_halves_the_weight_from_the_last_group_on(pair):
    (stage,) = ofd(pair, alpha=0.8).stages
    assert [match.weight for match in stage.matches] == [0.2, 0.4, 0.8]
    assert [match.student for match in stage.matches] == ["relu1:in", "relu2:in", "relu3:in"]
    assert stage.teacher == "batch" and ofd(pair, mode="eval").stages[0].teacher == "eval"
    assert ofd(pair).row()["teacher transform"] == "margin ReLU"
    with pytest.raises(BadValue, match="the teacher's mode is 'train'"):
        distill(
            pair.student, pair.teachers, ofd(pair, mode="train"), pair.teachers[0].loader, Plan(precision="float64")
        )


def test_a_training_makes_every_term_smaller(pair):
    plan = Plan(epochs=6, lr=0.05, precision="float64")
    _, rows = distill(pair.student, pair.teachers, ofd(pair, alpha=1e-2), pair.teachers[0].loader, plan)
    for column in rows.filter(like="partial"):
        assert rows[column].iloc[-1] < rows[column].iloc[0]
