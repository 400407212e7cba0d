"""The meta-gradient by itself: closed forms on a quadratic, finite differences, and what must not depend on it."""

import math

import pytest
import torch
from l2t.networks import normal

from reptrans.errors import BadValue
from reptrans.l2t import meta_gradient

A, B, GOAL = torch.tensor([2.0, 0.5]).double(), torch.tensor([1.0, -3.0]).double(), torch.tensor([0.7, 0.2]).double()
SETTINGS = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.07, "momentum": 0.8, "weight_decay": 0.05},
    {"lr": 0.07, "momentum": 0.8, "weight_decay": 0.05, "nesterov": True},
]


def quadratic(theta, velocity, w, T, order="second", **sgd):
    """L = w . A (theta - B)² / 2, F = |theta - GOAL|² / 2, of two parameters."""
    return meta_gradient(
        lambda at: [A * (at["x"] - B).square() / 2], lambda at: (at["x"] - GOAL).square().sum() / 2,
        {"x": theta}, {"x": velocity}, [w], T=T, order=order, **sgd,
    )  # fmt: skip


def test_one_step_on_a_quadratic_in_closed_form():
    theta, w, lr = torch.tensor([0.3, -0.4]).double(), torch.tensor([1.5, 0.6]).double(), 0.1
    after = theta - lr * w * A * (theta - B)
    last = after - lr * (after - GOAL)
    expected = (last - GOAL) * (1 - lr) * (-lr * A * (theta - B))
    found = quadratic(theta, torch.zeros(2).double(), w, 1, lr=lr)
    torch.testing.assert_close(found.gradient[0], expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(found.theta["x"], last, rtol=1e-14, atol=0)
    assert found.outer_loss.item() == pytest.approx(((last - GOAL) ** 2).sum().item() / 2, rel=1e-14)
    assert found.losses[0].item() == pytest.approx((w * A * (theta - B) ** 2).sum().item() / 2, rel=1e-14)


def test_first_order_leaves_out_the_hessians_alone():
    theta, w, lr = torch.tensor([0.3, -0.4]).double(), torch.tensor([1.5, 0.6]).double(), 0.1
    points = [theta]
    for _ in range(2):
        points.append(points[-1] - lr * w * A * (points[-1] - B))
    last = points[-1] - lr * (points[-1] - GOAL)
    expected = sum((last - GOAL) * -lr * A * (x - B) for x in points[:2])
    found = quadratic(theta, torch.zeros(2).double(), w, 2, order="first", lr=lr)
    torch.testing.assert_close(found.gradient[0], expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("sgd", SETTINGS)
@pytest.mark.parametrize("T", [1, 2, 3])
def test_agrees_with_torchs_own_unrolled_sgd(T, sgd):
    """Differentiating straight through all steps, written out, is the same number."""
    theta, velocity, w = normal(2), normal(2, seed=1), normal(2, seed=2).requires_grad_()
    x, v = theta.clone().requires_grad_(), velocity
    losses = [lambda x: (w * A * (x - B).square()).sum() / 2] * T + [lambda x: (x - GOAL).square().sum() / 2]
    for loss in losses:
        d = torch.autograd.grad(loss(x), x, create_graph=True)[0] + sgd.get("weight_decay", 0) * x
        v = sgd.get("momentum", 0) * v + d
        x = x - sgd["lr"] * (d + sgd["momentum"] * v if sgd.get("nesterov") else v)
    outer = (x - GOAL).square().sum() / 2
    (expected,) = torch.autograd.grad(outer, w)
    found = quadratic(theta, velocity, w.detach(), T, **sgd)
    torch.testing.assert_close(found.gradient[0], expected, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found.theta["x"], x.detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("sgd", SETTINGS)
def test_the_steps_are_those_of_torchs_sgd(sgd):
    p = torch.nn.Parameter(normal(2))
    start, w = p.detach().clone(), torch.ones(2).double()
    optimiser = torch.optim.SGD([p], **sgd)
    for loss in [lambda: (A * (p - B).square()).sum() / 2] * 3 + [lambda: (p - GOAL).square().sum() / 2]:
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    found = quadratic(start, torch.zeros(2).double(), w, 3, **sgd)
    torch.testing.assert_close(found.theta["x"], p.detach(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("T", [1, 2, 4])
def test_finite_differences(T):
    """A loss that is no quadratic, two tensors of coefficients, a parameter that no matching reaches."""
    theta = {"a": normal(3), "b": normal(2, seed=1), "free": normal(2, seed=4)}
    velocity = {name: 0.1 * normal(*value.shape, seed=5) for name, value in theta.items()}
    weights = [normal(3, seed=2).exp(), normal(2, seed=3).exp()]

    def terms(at):
        return [(at["a"].sin() * at["b"].sum() - 0.3).square(), (at["a"][:2] * at["b"]).exp()]

    def task(at):
        return (at["a"].sum() * at["b"].tanh().sum() + at["free"].square().sum()).cosh().log()

    def at(w):
        return meta_gradient(
            terms, task, theta, velocity, w, T=T, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True
        )

    found = at(weights).gradient
    for k, weight in enumerate(weights):
        for i in range(len(weight)):
            ends = []
            for sign in (1, -1):
                moved = [value.clone() for value in weights]
                moved[k][i] += sign * 1e-5
                ends.append(at(moved).outer_loss.item())
            assert found[k][i].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6, abs=1e-9)


def test_no_matching_steps_mean_no_dependence():
    found = quadratic(normal(2), normal(2, seed=1), normal(2, seed=2), 0, lr=0.1, momentum=0.9)
    assert found.gradient[0].tolist() == [0, 0] and found.losses == []


def test_nothing_given_is_changed():
    given = [normal(2), normal(2, seed=1), normal(2, seed=2)]
    copies = [value.clone() for value in given]
    quadratic(*given, 2, lr=0.1, momentum=0.9, weight_decay=0.1)
    for value, copy in zip(given, copies, strict=True):
        assert torch.equal(value, copy) and not value.requires_grad and value.grad is None


def test_a_parameter_that_no_loss_reaches_still_decays_and_coasts():
    found = meta_gradient(
        lambda at: [at["x"].square()], lambda at: at["x"].sum(), {"x": normal(2), "free": torch.ones(1).double()},
        {"x": torch.zeros(2).double(), "free": torch.ones(1).double()}, [torch.ones(2).double()],
        T=0, lr=0.1, momentum=0.5, weight_decay=0.2,
    )  # fmt: skip
    assert found.theta["free"].item() == pytest.approx(1 - 0.1 * (0.5 * 1 + 0.2 * 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"T": -1}, "T is -1; it must be a whole number of steps from 0 on."),
        ({"T": 1.5}, "T is 1.5; it must be a whole number of steps from 0 on."),
        ({"T": 1, "order": "third"}, "order is 'third'. Possible: second, first"),
        ({"T": 1, "lr": 0.0}, "lr is 0.0; it must be a number above 0."),
        ({"T": 1, "lr": math.nan}, "lr is nan; it must be a number above 0."),
    ],
)
def test_messages(changes, message):
    with pytest.raises(BadValue) as error:
        quadratic(normal(2), normal(2), normal(2), **({"lr": 0.1} | changes))
    assert str(error.value) == message


def test_velocity_needs_the_names_of_theta():
    with pytest.raises(BadValue, match="theta has x, velocity has y; both need the same names."):
        meta_gradient(lambda at: [], lambda at: at["x"].sum(), {"x": normal(2)}, {"y": normal(2)}, [], lr=0.1)
