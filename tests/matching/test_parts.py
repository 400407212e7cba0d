"""Transforms, distances, connectors and the match that joins them."""

import math

import pytest
import torch
from torch import nn

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.matching import (
    CrossEntropy,
    Match,
    Seen,
    attention,
    conv1x1,
    conv1x1_bn,
    half_l2,
    l1,
    l2,
    norm_l2,
    resized,
    same_activation,
    soft_cross_entropy,
    softened_kl,
    term_names,
    unit,
    unit_channels,
)

DRAW = torch.Generator().manual_seed(0)
S = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=DRAW)
T = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=DRAW)


def test_distances_are_summed_in_the_image_and_averaged_over_images():
    d = T - S
    assert l2(T, S).item() == pytest.approx((d**2).sum().item() / 4)
    assert half_l2(T, S).item() == pytest.approx((d**2).sum().item() / 8)
    assert l1(T, S).item() == pytest.approx(d.abs().sum().item() / 4)
    assert norm_l2(T, S).item() == pytest.approx(sum(math.sqrt((d[k] ** 2).sum()) for k in range(4)) / 4)


def test_the_unsquared_norm_has_gradient_1_per_image_and_0_at_equality():
    s = S.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(4 * norm_l2(T, s), s)
    torch.testing.assert_close(gradient.flatten(1).norm(dim=1), torch.ones(4, dtype=torch.float64))
    mixed = torch.cat([T[:2], S[2:]]).requires_grad_()
    (gradient,) = torch.autograd.grad(norm_l2(T, mixed), mixed)
    assert gradient[:2].abs().max() == 0 and gradient[2:].abs().min() > 0 and gradient.isfinite().all()


@pytest.mark.parametrize("distance", [l2, half_l2, l1, norm_l2, softened_kl(), soft_cross_entropy()])
def test_no_gradient_reaches_the_teacher(distance):
    t, s = (x.flatten(1).clone().requires_grad_() for x in (T, S))
    distance(t, s).backward()
    assert t.grad is None and s.grad.abs().max() > 0


def test_kl_is_the_cross_entropy_less_the_entropy_and_0_at_equality():
    t, s = T.flatten(1), S.flatten(1)
    for temperature in (1.0, 4.0):
        cross, kl = soft_cross_entropy(temperature), softened_kl(temperature)
        assert kl(t, s).item() == pytest.approx((cross(t, s) - cross(t, t)).item())
        assert kl(t, t).item() == pytest.approx(0, abs=1e-12)
        # Softmax does not see what all logits have in common.
        assert cross(t, s + 3).item() == pytest.approx(cross(t, s).item())


def test_shapes_that_differ_are_named_with_the_two_ways_out():
    with pytest.raises(ShapeMismatch) as found:
        l2(T, S[:, :2])
    text = str(found.value)
    assert "(4, 3, 5, 5)" in text and "(4, 2, 5, 5)" in text and "resize=True" in text and "conv1x1_bn" in text


def test_units_have_norm_1_and_silent_features_stay_0_with_finite_gradients():
    torch.testing.assert_close(unit(S).norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert unit_channels(S).shape == (4, 3, 25)
    torch.testing.assert_close(unit_channels(S).norm(dim=2), torch.ones(4, 3, dtype=torch.float64))
    for transform in (unit, unit_channels, attention()):
        silent = torch.zeros(2, 3, 4, 4, requires_grad=True)
        value = transform(silent)
        value.sum().backward()
        assert value.abs().max() == 0 and silent.grad.isfinite().all()


def test_attention_maps_of_two_channels():
    a = torch.tensor([[[[1.0, -2.0]], [[3.0, -4.0]]]], dtype=torch.float64)
    for power, reduce, values in ((1, "sum", (4, 6)), (2, "sum", (10, 20)), (1, "max", (3, 4)), (2, "max", (9, 16))):
        expected = torch.tensor([values], dtype=torch.float64)
        torch.testing.assert_close(attention(power, reduce)(a), expected / expected.norm())


def test_attention_refuses_vectors_and_powers_of_0():
    with pytest.raises(ShapeMismatch, match="an attention map is of maps"):
        attention()(torch.randn(2, 3))
    with pytest.raises(BadValue, match="the power is above 0"):
        attention(0)
    with pytest.raises(ShapeMismatch, match="channels as samples"):
        unit_channels(torch.randn(2, 3))


def test_maps_of_two_sizes_are_averaged_down_to_the_smaller():
    big = torch.arange(16.0).reshape(1, 1, 4, 4)
    small = torch.zeros(1, 2, 2, 2)
    t, s = resized(big, small)
    torch.testing.assert_close(t, torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert torch.equal(s, small) and resized(small, big)[1].shape == (1, 1, 2, 2)
    vector = torch.zeros(1, 3)
    assert all(a is b for a, b in zip(resized(vector, big), (vector, big), strict=True))


def seen(student, target):
    return Seen((student,), (target,), target, lambda: iter([(target,)]))


def test_connectors_are_built_from_shapes():
    maps, vectors = torch.randn(4, 3, 5, 5), torch.randn(4, 3)
    for recipe, bias in ((conv1x1(), True), (conv1x1_bn(), False)):
        for x in (maps, vectors):
            target = torch.randn(4, 7, *x.shape[2:])
            module = recipe.make(seen(x, target))
            assert module(x).shape == target.shape
            first = module if bias else module[0]
            assert (first.bias is not None) == bias
    with pytest.raises(ShapeMismatch, match="a connector joins maps"):
        conv1x1().make(seen(torch.randn(4, 3, 5), torch.randn(4, 3, 5)))


def test_the_activation_of_a_target_is_seen_in_its_values():
    assert isinstance(same_activation(T.relu()), nn.ReLU) and isinstance(same_activation(T), nn.Identity)


def test_a_match_widens_half_precision_and_resizes_only_when_asked():
    t, s = T.to(torch.bfloat16), S[:, :, :3, :3].to(torch.bfloat16)
    kept = Match("a", "b", l2).values({"a": t}, {"b": s})
    assert kept[0][0].dtype == torch.float32 and kept[0][0].shape == t.shape
    asked = Match("a", "b", l2, resize=True).values({"a": t}, {"b": s})
    assert asked[0][0].shape == asked[1][0].shape == s.shape


def test_weights_may_follow_the_progress_and_terms_have_names_of_their_own():
    match = Match("a", "b", l2, weight=lambda progress: 4 - 3 * progress)
    assert match.weight_at(0.0) == 4 and match.weight_at(0.5) == 2.5
    twice = [CrossEntropy(), Match("a", "b", l2), Match("a", "b", l2), Match("a", ("b", "c"), l2)]
    assert term_names(twice) == ["cross_entropy", "squared L2 at b 1", "squared L2 at b 2", "squared L2 at b and c"]
    with pytest.raises(BadValue, match="temperature is 0"):
        softened_kl(0)
