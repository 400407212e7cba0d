"""Objectives: values by hand, gradients by hand, and what is refused."""

import pytest
import torch
from torch import nn

from reptrans.errors import BadValue, ShapeMismatch, UnknownName
from reptrans.inputs import class_logit, match, weighted
from reptrans.inputs.objective import value_and_gradient


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(nn.Module):
    """Outputs (n, k) = flattened images times a fixed matrix."""

    def __init__(self, classes: int = 5, seed: int = 0, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(scale * normal(12, classes, seed=seed))

    def forward(self, images):
        return images.flatten(1) @ self.weight


IMAGES = normal(2, 3, 2, 2, seed=3)


def test_class_logit_is_the_constant_less_the_output():
    net = Linear()
    assert torch.allclose(class_logit(net, 2, 200.0)(IMAGES), 200 - net(IMAGES)[:, 2])
    assert torch.allclose(class_logit(net, [2, 4])(IMAGES), -net(IMAGES)[[0, 1], [2, 4]])


def test_the_constant_drops_out_of_the_gradient():
    net = Linear()
    gradients = [value_and_gradient(class_logit(net, 1, c), IMAGES)[1] for c in (0.0, 200.0)]
    assert torch.equal(*gradients)
    assert torch.allclose(gradients[0].flatten(1), -net.weight[:, 1].expand(2, -1))


@pytest.mark.parametrize(
    ("distance", "expected"),
    [("l1", (1 + 2) / (3 + 4)), ("l2", (1 + 4) / (9 + 16)), ("cosine", 1 - 36 / (5 * 52**0.5))],
)
def test_distances_are_relative_to_the_target(distance, expected):
    u, v = torch.tensor([[4.0, 6.0]]).double().view(1, 1, 1, 2), torch.tensor([[3.0, 4.0]]).double()
    assert match(nn.Flatten(), v, distance)(u).item() == pytest.approx(expected)


def test_a_scale_makes_them_absolute():
    u, v = torch.tensor([[4.0, 6.0]]).view(1, 1, 1, 2), torch.tensor([[3.0, 4.0]])
    objective = match(nn.Flatten(), v, scale=0.5)
    assert objective(u).item() == pytest.approx(0.5 * 3)
    assert objective.errors(u).item() == pytest.approx(3 / 7)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_nothing_is_lost_at_the_target(distance):
    net = Linear()
    losses, gradient = value_and_gradient(match(net, net(IMAGES), distance), IMAGES)
    assert losses.abs().max() < 1e-15 and gradient.abs().max() < 1e-14


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_a_layer_scaled_by_ten_changes_nothing(distance):
    found = []
    for net in (Linear(), Linear(scale=10.0)):
        found.append(value_and_gradient(match(net, net(IMAGES.flip(0)).detach(), distance), IMAGES))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_the_target_may_be_another_network_on_the_same_images():
    one, other = Linear(seed=1), Linear(seed=2)
    objective = match(one, other)
    u, v = one(IMAGES), other(IMAGES)
    assert torch.allclose(objective(IMAGES), (u - v).abs().sum(1) / v.abs().sum(1))
    assert set(objective.networks) == {one, other}


def test_weights_act_on_gradients_of_equal_length():
    one, other = class_logit(Linear(seed=1), 0), class_logit(Linear(seed=2, scale=1000.0), 0)
    values, direction = value_and_gradient(weighted([one, other], [2.0, -1.0]), IMAGES)
    (v1, g1), (v2, g2) = (value_and_gradient(o, IMAGES) for o in (one, other))
    norms = [g.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for g in (g1, g2)]
    mean = sum(norms) / 2
    assert torch.allclose(direction, mean * (2 * g1 / norms[0] - g2 / norms[1]))
    assert torch.allclose(values, 2 * v1 - v2)


def test_plain_weights_act_on_losses():
    one, other = class_logit(Linear(seed=1), 0), class_logit(Linear(seed=2), 3)
    values, gradient = value_and_gradient(weighted([one, other], [0.5, 3.0], equal_gradients=False), IMAGES)
    (v1, g1), (v2, g2) = (value_and_gradient(o, IMAGES) for o in (one, other))
    assert torch.allclose(gradient, 0.5 * g1 + 3 * g2) and torch.allclose(values, 0.5 * v1 + 3 * v2)


def test_one_weighted_objective_is_itself():
    one = class_logit(Linear(), 0)
    for a, b in zip(value_and_gradient(weighted([one]), IMAGES), value_and_gradient(one, IMAGES), strict=True):
        assert torch.allclose(a, b)


def test_a_vanishing_gradient_is_no_nan():
    flat = class_logit(Linear(scale=0.0), 0)
    _, direction = value_and_gradient(weighted([flat, class_logit(Linear(), 0)]), IMAGES)
    assert torch.isfinite(direction).all() and direction.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: class_logit(Linear(), 5)(IMAGES), BadValue, "class 5 .* classes 0 to 4"),
        (lambda: class_logit(Linear(), [-1, 0])(IMAGES), BadValue, "class -1, 0 .* classes 0 to 4"),
        (lambda: class_logit(Linear(), [1, 2, 3])(IMAGES), ShapeMismatch, "2 images and classes of shape"),
        (lambda: class_logit(nn.Identity(), 0)(IMAGES), ShapeMismatch, r"outputs \(n, classes\)"),
        (lambda: match(Linear(), normal(2, 4))(IMAGES), ShapeMismatch, r"\(2, 5\).*\(2, 4\).*\(1, 5\)"),
        (lambda: match(Linear(), normal(3, 5))(IMAGES), ShapeMismatch, "one entry for each"),
        (lambda: match(Linear(), torch.zeros(1, 5)), BadValue, "row 0 is zero everywhere"),
        (lambda: match(Linear(), torch.full((1, 5), torch.nan)), BadValue, "NaN or infinity"),
        (lambda: match(Linear(), normal(1, 5), "l3"), UnknownName, "Possible: l1, l2, cosine"),
        (lambda: weighted([]), BadValue, "at least one"),
        (lambda: weighted([class_logit(Linear(), 0)], [1, 2]), BadValue, "1 objectives and 2 weights"),
    ],
)
def test_what_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()
