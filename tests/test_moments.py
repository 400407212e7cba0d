"""Streamed moments against the plain formulas, and linear CKA."""

import pytest
import torch

from reptrans.errors import BadData, BadValue, ShapeMismatch
from reptrans.similarity import Moments, channel_axis, channel_blocks, linear_cka


def data(n=200, p=5, q=3, offset=0.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=g, dtype=torch.float64) + offset
    return x, x[:, :q] * 2 + torch.randn(n, q, generator=g, dtype=torch.float64) - offset


def streamed(x, y, size):
    m = Moments(x.shape[1], y.shape[1])
    for i in range(0, len(x), size):
        m.update(x[i : i + size], y[i : i + size])
    return m


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_stream_equals_the_formulas(offset):
    x, y = data(offset=offset)
    m, joint = streamed(x, y, 7), torch.cat([x, y], 1)
    covariance = torch.cov(joint.T, correction=0)
    torch.testing.assert_close(torch.cat([m.mean_x, m.mean_y]), joint.mean(0), rtol=1e-13, atol=1e-12)
    for found, true in ((m.xx, covariance[:5, :5]), (m.xy, covariance[:5, 5:]), (m.yy, covariance[5:, 5:])):
        torch.testing.assert_close(found, true, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(m.correlation, torch.corrcoef(joint.T)[:5, 5:], rtol=1e-9, atol=1e-9)


def test_what_was_read_between_batches_is_read_anew():
    x, y = data(offset=50.0)
    whole, m = streamed(x, y, 10), Moments(5, 3).update(x[:60], y[:60])
    first = m.pair
    assert m.xy is m.xy and m.correlation.shape == (5, 3)
    m.update(x[60:], y[60:])
    assert m.count == whole.count == 200 and first.count == 60
    torch.testing.assert_close(first.xy, streamed(x[:60], y[:60], 60).xy)
    torch.testing.assert_close(m.xy, whole.xy, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(m.mean_y, whole.mean_y, rtol=1e-12, atol=1e-12)


def test_maps_count_every_place_as_a_sample():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 4, 3, 2, generator=g), torch.randn(6, 2, 3, 2, generator=g)
    m = Moments(4, 2).update(channel_blocks(x), channel_blocks(y))
    rows = [v.movedim(1, -1).flatten(0, 2).double() for v in (x, y)]
    assert m.count == 36
    torch.testing.assert_close(m.xy, streamed(*rows, 36).xy)


def test_float32_input_is_summed_in_float64():
    x, y = data(n=5000, offset=1000.0)
    found, true = streamed(x.float(), y.float(), 100).xx, streamed(x.float().double(), y.float().double(), 5000).xx
    assert ((found - true).abs().max() / true.abs().max()).item() < 1e-10


def test_constant_feature_correlates_with_nothing():
    x, y = data()
    x[:, 0] = 3.0
    assert streamed(x, y, 50).correlation[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((8, 5), 1), ((8, 7, 5), 2), ((8, 16, 4, 4), 1), ((8, 4, 4, 16), 1), ((8, 64, 64, 32), 1), ((8, 2, 3, 4, 5), 1)],
)
def test_the_usual_axis_of_channels_does_not_depend_on_sizes(shape, axis):
    assert channel_axis(shape) == axis
    assert channel_blocks(torch.zeros(shape)).shape[:2] == (8, shape[axis])
    assert channel_blocks(torch.zeros(shape), -1).shape[:2] == (8, shape[-1])


def test_channel_cka_is_cka_of_the_rows():
    x, y = data()
    assert streamed(x, y, 30).linear_cka.item() == pytest.approx(linear_cka(x, y).item(), rel=1e-12)


def test_cka_values_and_invariances():
    x, y = data(p=4, q=4)
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))).Q
    value = linear_cka(x, y)
    assert linear_cka(x, x).item() == pytest.approx(1.0)
    assert linear_cka(3 * x @ rotation + 5, y).item() == pytest.approx(value.item(), rel=1e-12)
    assert linear_cka(y, x).item() == pytest.approx(value.item(), rel=1e-12)
    # Two centred orthogonal features share nothing with two others orthogonal to them.
    basis = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    assert linear_cka(basis[:, :1], basis[:, 1:]).item() == pytest.approx(0.0)
    assert linear_cka(basis[:, :2], basis[:, 1:]).item() == pytest.approx(0.5)


def test_cka_by_examples_equals_cka_by_features():
    x, y = data(n=6, p=40, q=30)
    a, b = x - x.mean(0), y - y.mean(0)
    by_features = (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y).item() == pytest.approx(by_features.item(), rel=1e-12)


def test_messages():
    x, y = data()
    with pytest.raises(ShapeMismatch, match=r"\(200, 5, 1\) has 200 examples of 1 places, \(10, 3, 1\) has 10 of 1"):
        Moments(5, 3).update(x, y[:10])
    with pytest.raises(ShapeMismatch, match=r"These moments are of \(4, 3\) features; a batch of \(5, 3\) came."):
        Moments(4, 3).update(x, y)
    x[3, 2] = float("nan")
    with pytest.raises(BadData, match="NaN or infinity"):
        Moments(5, 3).update(x, y)
    with pytest.raises(BadData, match="No activations were seen yet"):
        _ = Moments(5, 3).xx
    with pytest.raises(ShapeMismatch, match="same n examples"):
        linear_cka(x, y[:3])
    with pytest.raises(
        ShapeMismatch, match=r"Moments take .* given \(2, 3, 4, 4\) and \(2, 3, 1\). Give maps as channel_b"
    ):
        Moments(3, 3).update(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3))
    with pytest.raises(
        BadValue, match="the moments of 30000 and 30000 features take 20 GiB, more than 8. Pool the features"
    ):
        Moments(30000, 30000)
