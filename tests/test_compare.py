"""All pairs of layers in one pass, against the plain functions of recorded activations."""

import math

import matplotlib
import pytest
import torch
from torch import nn

from reptrans.errors import BadData, BadValue, LayerNotFound, ShapeMismatch, UnknownName
from reptrans.figures import heatmap
from reptrans.layers import record
from reptrans.similarity import MEASURES, compare, debiased_cka, fold, linear_cka, minibatch_cka

matplotlib.use("Agg")
LAYERS_A, LAYERS_B = ["0", "2", "6"], ["1", "3", "5", "6"]


def network(seed, width=3):
    """Maps of 8 x 8, of 4 x 4, and vectors; a batch norm that would show training mode, an in-place ReLU."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, 5, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(80, 4),
        )  # fmt: skip


def images(n=50, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


NETS = network(1), network(2, width=4)


def recorded(net, layers, x):
    net.eval()
    with torch.no_grad(), record(net, layers, clone=True) as activations:
        net(x)
    return dict(activations)


def expected(function, how, x, pooled=lambda v, w: (v, w)):
    a, b = recorded(NETS[0], LAYERS_A, x), recorded(NETS[1], LAYERS_B, x)
    return [[function(*(fold(v, how) for v in pooled(a[i], b[j]))).item() for j in LAYERS_B] for i in LAYERS_A]


@pytest.mark.parametrize(
    "name", ["linear_cka", "debiased_cka", "pwcca", "soft_correlation_match", "rsa", "knn_jaccard"]
)
def test_one_pass_equals_the_plain_function(name):
    x = images(120)
    table = compare(*NETS, [x[:50], x[50:70], x[70:]], LAYERS_A, LAYERS_B, measure=name)
    assert list(table.index) == LAYERS_A and list(table.columns) == LAYERS_B
    double = expected(lambda v, w: MEASURES[name].function(v.double(), w.double()), "pool", x)
    torch.testing.assert_close(
        torch.tensor(table.values), torch.tensor(double, dtype=torch.float64), rtol=1e-5, atol=1e-5
    )


def test_flattened():
    x = images()
    table = compare(*NETS, x.split(25), LAYERS_A, LAYERS_B, fold="flatten")
    wanted = expected(lambda v, w: debiased_cka(v.double(), w.double()), "flatten", x)
    torch.testing.assert_close(
        torch.tensor(table.values), torch.tensor(wanted), rtol=1e-5, atol=1e-5, check_dtype=False
    )


def test_minibatches_join_a_small_last_one():
    x = images(52)
    table = compare(*NETS, x.split(25), LAYERS_A, LAYERS_B, "minibatch_cka", "flatten")
    wanted = expected(lambda v, w: minibatch_cka(v, w, 25), "flatten", x)
    torch.testing.assert_close(
        torch.tensor(table.values), torch.tensor(wanted), rtol=1e-5, atol=1e-5, check_dtype=False
    )


def smaller(v, w):
    """Maps averaged to the smaller of the two, vectors being maps of one pixel."""
    v, w = (u if u.ndim == 4 else u[:, :, None, None] for u in (v, w))
    side = min(v.shape[2], w.shape[2])
    return [nn.functional.avg_pool2d(u, u.shape[2] // side) for u in (v, w)]


def test_pixels_meet_on_the_smaller_grid():
    x = images()
    layers = ["1", "3", "6"]
    table = compare(*NETS, x.split(20), layers, measure="linear_cka", fold="pixels")
    a, b = (recorded(net, layers, x) for net in NETS)
    for i in layers:
        for j in layers:
            v, w = (fold(u, "pixels").double() for u in smaller(a[i], b[j]))
            assert table.loc[i, j] == pytest.approx(linear_cka(v, w).item(), rel=1e-6)


def test_a_network_with_itself():
    table = compare(NETS[0], NETS[0], [images()], LAYERS_A)
    assert [table.loc[k, k] for k in LAYERS_A] == pytest.approx([1, 1, 1])
    assert table.loc["0", "6"] == pytest.approx(table.loc["6", "0"])


def test_networks_are_left_as_they_were():
    nets = network(1).train(), network(2).eval()
    nets[0][1].eval()
    before = [({k: v.clone() for k, v in n.state_dict().items()}, [m.training for m in n.modules()]) for n in nets]
    compare(*nets, [images()], ["0", "6"])
    for net, (state, modes) in zip(nets, before, strict=True):
        assert [m.training for m in net.modules()] == modes
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert not any(m._forward_hooks for m in net.modules())
    with pytest.raises(LayerNotFound):
        compare(*nets, [images()], ["0", "none"])
    assert [m.training for m in nets[0].modules()] == before[0][1]


def test_images_are_the_first_of_a_batch():
    x = images()
    table = compare(*NETS, [(x, torch.zeros(50))], LAYERS_A)
    assert table.equals(compare(*NETS, [x], LAYERS_A))


class Tokens(nn.Module):
    """Maps as tokens (n, t, d); `odd` gives them for half of the images, `broken` gives NaN, `dead` zeros."""

    def __init__(self, stride):
        super().__init__()
        self.cut, self.odd, self.broken, self.dead = (nn.Identity() for _ in range(4))
        self.stride = stride

    def forward(self, x):
        tokens = self.cut(x[:, :, :: self.stride, :: self.stride].flatten(2).mT)
        self.odd(tokens[::2])
        self.broken(tokens * math.nan)
        return self.dead(tokens * 0) + tokens


def test_tokens():
    x = images()
    table = compare(Tokens(2), Tokens(2), [x], ["cut", "dead"], measure="linear_cka", fold="tokens")
    assert table.loc["cut", "cut"] == pytest.approx(1)
    assert table.isna().values.tolist() == [[False, True], [True, True]]
    with pytest.raises(ShapeMismatch, match=r"layers 'cut' and 'cut' have \(16,\) and \(64,\) tokens"):
        compare(Tokens(2), Tokens(1), [x], ["cut"], fold="tokens")
    with pytest.raises(ShapeMismatch, match="cannot be folded by 'pixels'"):
        compare(Tokens(2), Tokens(2), [x], ["cut"], fold="pixels")


def test_messages():
    x = images()
    with pytest.raises(ShapeMismatch, match=r"layer 'odd' gives \(25, 16, 3\), but other layers have 50 examples"):
        compare(Tokens(2), Tokens(2), [x], ["cut", "odd"])
    with pytest.raises(BadData, match="activations of layer 'broken' hold NaN"):
        compare(Tokens(2), Tokens(2), [x], ["cut", "broken"])
    with pytest.raises(BadData, match="Layers '0' and '6': linear_cka needs at least 4 examples; given 3"):
        compare(*NETS, [x[:3]], ["0"], ["6"], measure="linear_cka")
    with pytest.raises(BadData, match="Layers '3' and '3': cca_mean needs more examples than features: 5 independent"):
        compare(*NETS, [x[:6]], ["3"], measure="cca_mean")
    with pytest.raises(BadData, match="compare was given no images"):
        compare(*NETS, [], ["0"])
    with pytest.raises(BadValue, match="at least one layer of each network"):
        compare(*NETS, [x], [])
    with pytest.raises(UnknownName, match="no measure 'cka'"):
        compare(*NETS, [x], ["0"], measure="cka")
    with pytest.raises(UnknownName, match="no way 'mean' to fold"):
        compare(*NETS, [x], ["0"], fold="mean")
    with pytest.raises(BadValue, match="rsa compares whole examples: fold with 'pool' or 'flatten', not with 'pixels'"):
        compare(*NETS, [x], ["0"], measure="rsa", fold="pixels")
    with pytest.raises(BadValue, match="takes its batches from the loader, not batch_size"):
        compare(*NETS, [x], ["0"], measure="minibatch_cka", batch_size=10)


def test_what_does_not_fit_is_refused_before_it_is_kept():
    wide = nn.Sequential(nn.Conv2d(3, 200, 1), nn.ReLU())
    with pytest.raises(BadValue, match=r"25600 features take 5 GiB, more than 2. .* measure='minibatch_cka'"):
        compare(wide, wide, [images()], ["0"], fold="flatten")


def test_heatmap_draws_it():
    table = compare(*NETS, [images()], LAYERS_A, LAYERS_B)
    ax = heatmap(table, "debiased CKA, pooled", limits=(0, 1))
    assert [t.get_text() for t in ax.get_yticklabels()] == LAYERS_A
    assert [t.get_text() for t in ax.get_xticklabels()] == LAYERS_B
    matplotlib.pyplot.close("all")
