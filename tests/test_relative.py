"""Relative representations and the stitch through anchors: closed-form values, invariances, and what is lost."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reptrans.errors import BadValue, ShapeMismatch
from reptrans.layers import end, front
from reptrans.stitching import Stitch, StitchedNetwork, inverse_relative, relative


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(n, seed=9):
    return torch.linalg.qr(drawn(n, n, seed=seed)).Q


def test_relative_by_hand():
    x = torch.tensor([[3.0, 4.0], [0.0, -2.0], [0.0, 0.0]])
    anchors = torch.tensor([[10.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    root = 0.5**0.5
    expected = torch.tensor([[0.6, 0.8, 1.4 * root], [0.0, -1.0, -root], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(relative(x, anchors), expected)


def test_centred_relative_by_hand():
    anchors = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    torch.testing.assert_close(relative(torch.tensor([[2.0, 5.0], [5.0, 5.0]]), anchors, centre=True),
                               torch.tensor([[0.0, 0.0], [-(0.5**0.5), 0.5**0.5]]))  # fmt: skip


@pytest.mark.parametrize("centre", [False, True])
def test_relative_does_not_see_rotation_scale_and_where_it_centres_shift(centre):
    x, anchors, turn, shift = drawn(20, 5), drawn(7, 5, seed=1), rotation(5), drawn(5, seed=2)
    plain = relative(x, anchors, centre)
    torch.testing.assert_close(relative(3 * x @ turn, 3 * anchors @ turn, centre), plain)
    moved = relative(x + shift, anchors + shift, centre)
    assert torch.allclose(moved, plain) is centre


@pytest.mark.parametrize(("p", "q", "k"), [(5, 5, 6), (5, 5, 200), (5, 8, 30)])
def test_inverse_is_exact_for_a_rotated_scaled_and_shifted_space(p, q, k):
    turn, shift = rotation(q)[:p], drawn(q, seed=3)
    x = drawn(50, p, seed=4) + 1

    def of(v):
        return 2.5 * v @ turn + shift

    anchors = drawn(k, p, seed=5)
    found = inverse_relative(anchors, of(anchors), rtol=1e-6)
    torch.testing.assert_close(x @ found.weight.T + found.bias, of(x))
    torch.testing.assert_close(found.weight, 2.5 * turn.T)


def test_too_few_anchors_keep_what_they_span():
    a = drawn(4, 6)
    found = inverse_relative(a, a, rtol=1e-6)
    basis = torch.linalg.qr((a - a.mean(0)).T[:, :3]).Q
    torch.testing.assert_close(found.weight, basis @ basis.T)
    torch.testing.assert_close(a @ found.weight.T + found.bias, a)


def test_mapped_activations_have_the_fronts_cosines_as_far_as_the_ends_anchors_allow():
    a, b, x = drawn(5, 8), drawn(5, 8, seed=1), drawn(30, 8, seed=2)
    found = inverse_relative(a, b, rtol=1e-9)
    a, b, x, y = a - a.mean(0), b - b.mean(0), x - a.mean(0), x @ found.weight.T + found.bias - b.mean(0)
    lengths, anchors = x.norm(dim=1, keepdim=True) * b.norm() / a.norm(), F.normalize(b)
    allowed = anchors @ torch.linalg.pinv(anchors)  # five centred anchors span four dimensions
    torch.testing.assert_close(y @ anchors.T / lengths, relative(x, a) @ allowed)


def test_rtol_leaves_out_directions_in_which_the_ends_anchors_hardly_vary():
    a = drawn(300, 4)
    b = a * torch.tensor([1.0, 1.0, 1.0, 1e-3], dtype=torch.float64)
    kept, left = (inverse_relative(a, b, rtol=rtol).weight for rtol in (0.0, 0.1))
    assert kept[3].norm() > 100 * left[3].norm()
    assert torch.linalg.matrix_rank(left) == 3


def test_every_place_of_maps_is_an_anchor():
    a, b = drawn(3, 5, 4, 4), drawn(3, 6, 4, 4, seed=1)
    rows = [v.movedim(1, -1).flatten(0, -2) for v in (a, b)]
    for part in ("weight", "bias"):
        torch.testing.assert_close(getattr(inverse_relative(a, b), part), getattr(inverse_relative(*rows), part))


def test_a_network_with_turned_channels_is_stitched_by_anchors_alone():
    torch.manual_seed(0)
    net_1 = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 10)).double().eval()
    net_2 = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 10)).double().eval()
    net_2.load_state_dict(net_1.state_dict())
    turn = rotation(6)
    with torch.no_grad():
        net_2[0].weight.copy_(torch.einsum("ij,jchw->ichw", 2 * turn, net_1[0].weight))
        net_2[0].bias.copy_(2 * turn @ net_1[0].bias)
    images = drawn(8, 3, 8, 8)
    f, g = front(net_1, "0"), front(net_2, "0")
    a, b = f(images[:2]), g(images[:2])
    found = inverse_relative(a, b, rtol=1e-6)
    stitch = Stitch(a.shape[1:], b.shape[1:]).double().set(found.weight, found.bias)
    torch.testing.assert_close(StitchedNetwork(f, stitch, end(net_2, "0"))(images), net_2(images))


def test_messages():
    with pytest.raises(ShapeMismatch, match=r"rows of the same features; given \(3, 4\) and \(2, 5\)."):
        relative(drawn(3, 4), drawn(2, 5))
    with pytest.raises(ShapeMismatch, match=r"\(3, 4\) has 3 of them, \(2, 5, 2, 2\) has 8."):
        inverse_relative(drawn(3, 4), drawn(2, 5, 2, 2))
    with pytest.raises(BadValue, match="At least 2 anchors and an rtol of 0 or more, below 1, are needed; given 1 and"):
        inverse_relative(drawn(1, 4), drawn(1, 4))
    with pytest.raises(BadValue, match="given 3 and 1"):
        inverse_relative(drawn(3, 4), drawn(3, 4), rtol=1)
    with pytest.raises(BadValue, match="All 3 anchors are the same on one side"):
        inverse_relative(drawn(3, 4), torch.ones(3, 4))
