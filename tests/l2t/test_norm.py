"""Batch norm with a cheap second derivative: torch's values and derivatives, and when it steps in."""

import pytest
import torch
from l2t.networks import normal
from torch import nn
from torch.nn import functional as F

from reptrans.l2t.probe import CheaperNorms, batch_norm


@pytest.mark.parametrize("shape", [(4, 3, 5, 2), (6, 3), (3, 3, 4)])
def test_first_and_second_derivatives(shape):
    given = [value.requires_grad_() for value in (normal(*shape), normal(3, seed=1), normal(3, seed=2))]
    assert torch.autograd.gradcheck(lambda *a: batch_norm(*a), given)
    assert torch.autograd.gradgradcheck(lambda *a: batch_norm(*a), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_torch_far_from_zero_mean(dtype):
    x, w, b, v = (
        f.to(dtype)
        for f in (normal(8, 3, 4, 4) * 2 + 5, normal(3, seed=1), normal(3, seed=2), normal(8, 3, 4, 4, seed=3))
    )
    found = []
    for norm in (batch_norm, lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True)):
        leaves = [value.clone().requires_grad_() for value in (x, w, b)]
        y = norm(*leaves)
        first = torch.autograd.grad(y.sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad((first[0] * v).sum() + first[1].square().sum() + first[2].sum(), leaves)
        found.append([y, *first, *second])
    for own, torchs in zip(*found, strict=True):
        torch.testing.assert_close(
            own, torchs, rtol=1e-10 if dtype == torch.float64 else 2e-4, atol=1e-9 if dtype == torch.float64 else 2e-4
        )


@pytest.mark.parametrize(
    ("training", "tracks", "steps_in"), [(True, False, True), (True, True, False), (False, True, False)]
)
def test_steps_in_where_the_batch_alone_counts(training, tracks, steps_in):
    norm = nn.BatchNorm2d(3, track_running_stats=tracks).double().train(training)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = normal(4, 3, 2, 2).requires_grad_()
    expected = F.batch_norm(
        x,
        *([None, None] if training else [norm.running_mean, norm.running_var]),
        norm.weight,
        norm.bias,
        training=training,
    )
    with CheaperNorms():
        y = norm(x)
    assert (type(y.grad_fn).__name__ == "_NormBackward") is steps_in
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    if tracks and not training:
        assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
