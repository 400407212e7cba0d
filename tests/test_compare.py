"""All pairs of layers in one pass, against the plain functions of recorded activations."""

import copy
import math
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import ResNet, VisionTransformer
from torchvision.models.resnet import BasicBlock
from torchvision.models.swin_transformer import SwinTransformer

from reptrans.errors import BadData, BadValue, LayerNotFound, ShapeMismatch, UnknownName
from reptrans.figures import heatmap
from reptrans.layers import cuttable_layers, front, record
from reptrans.similarity import MEASURES, compare, debiased_cka, fold, linear_cka, minibatch_cka, most_similar

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


@pytest.mark.parametrize("how", ["pool", "pixels"])
@pytest.mark.parametrize("name", ["debiased_cka", "pwcca", "minibatch_cka", "rsa", "linear_r2"])
def test_a_network_with_itself_is_as_with_its_copy(name, how):
    if how == "pixels" and MEASURES[name].needs != "moments":
        return
    tables = [compare(NETS[0], other, images(120).split(60), LAYERS_B, measure=name, fold=how)
              for other in (NETS[0], copy.deepcopy(NETS[0]))]  # fmt: skip
    pd.testing.assert_frame_equal(*tables, rtol=1e-9)


@pytest.mark.parametrize("kept", ["all", "some"])
@pytest.mark.parametrize("name", ["rsa", "mutual_knn"])
def test_layers_are_prepared_once(name, kept, monkeypatch):
    function, prepared = MEASURES[name].function, []
    plain = function.prepare
    monkeypatch.setattr(function, "prepare", lambda *args, **options: prepared.append(1) or plain(*args, **options))
    expected, once = compare(*NETS, images(40), LAYERS_A, LAYERS_B, name), len(prepared)
    assert once == len(LAYERS_A) + len(LAYERS_B)
    if kept == "some":  # what memory does not hold is prepared again, to the same values
        monkeypatch.setattr(sys.modules["reptrans.similarity.kept"], "MOST_BYTES", 22_000)
        assert compare(*NETS, images(40), LAYERS_A, LAYERS_B, name).equals(expected)
        assert once < len(prepared) - once <= len(LAYERS_A) * (1 + len(LAYERS_B))


def test_layers_of_one_tensor_are_kept_once(monkeypatch):
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 40, 1), nn.ReLU()), nn.Conv2d(40, 2, 1))
    module, x = sys.modules["reptrans.similarity.kept"], images()
    # Two layers of 40 features, and their product; of four there would be more.
    monkeypatch.setattr(module, "MOST_BYTES", 8 * (2 * 40**2 + 2 * 40 * 40 + 40**2))
    table = compare(net, net, [x], ["0", "0.0", "0.1"], measure="linear_cka")
    assert list(table.index) == list(table.columns) == ["0", "0.0", "0.1"]
    assert table.loc["0"].tolist() == table.loc["0.1"].tolist() and table.loc["0", "0.1"] == pytest.approx(1)


class Contiguous(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Identity()

    def forward(self, x):
        return self.second(self.first(x).contiguous())


def test_one_tensor_for_some_images_only_is_refused():
    x, net = images(), Contiguous()
    with pytest.raises(BadData, match="some layers give one tensor for some images and not for others; compare them"):
        compare(net, net, [x, x.to(memory_format=torch.channels_last)], ["first", "second"])


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
    with pytest.raises(ShapeMismatch, match="drop class tokens with class_tokens"):
        compare(Tokens(2), Tokens(2), [x], ["cut"], fold="tokens", class_tokens=(0, 1))
    with pytest.raises(ShapeMismatch, match="15 tokens are no square grid .* class_tokens=7 leaves 3 x 3"):
        compare(Tokens(2), Tokens(2), [x], ["cut"], fold="pixels", class_tokens=1)


def test_messages():
    x = images()
    with pytest.raises(
        ShapeMismatch, match=r"layer 'odd' gives \(25, 16, 3\), but other layers have 50 examples, as the b"
    ):
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
    with pytest.raises(BadValue, match="svcca has no option 'kept'. Did you mean 'keep'"):
        compare(*NETS, [x], ["0"], measure="svcca", kept=3)
    with pytest.raises(
        BadValue, match="rsa of 20000 examples: .* take 24 GiB, more than 8. Give at most 11585 examples"
    ):
        compare(*NETS, [torch.zeros(1, 3, 8, 8).expand(20000, -1, -1, -1)], ["6"], measure="rsa")
    with pytest.raises(
        BadValue, match=r"class_tokens is one number for both networks, or a pair \(a, b\); given \(1, 2, 3\)"
    ):
        compare(*NETS, [x], ["0"], class_tokens=(1, 2, 3))
    with pytest.raises(UnknownName, match="no measure 'cka'"):
        compare(*NETS, [x], ["0"], measure="cka")
    with pytest.raises(UnknownName, match="no way 'mean' to fold"):
        compare(*NETS, [x], ["0"], fold="mean")
    with pytest.raises(BadValue, match="rsa compares whole examples: fold with 'pool' or 'flatten', not with 'pixels'"):
        compare(*NETS, [x], ["0"], measure="rsa", fold="pixels")
    with pytest.raises(BadValue, match="takes its batches from the loader, not batch_size"):
        compare(*NETS, [x], ["0"], measure="minibatch_cka", batch_size=10)


def test_what_does_not_fit_is_refused_before_it_is_kept():
    wide = nn.Sequential(nn.Conv2d(3, 300, 1), nn.ReLU())
    with pytest.raises(BadValue, match=r"19200 features take 5 GiB, more than 4. .* measure='minibatch_cka'"):
        compare(wide, wide, [images()], ["0"], fold="flatten")


def test_heatmap_draws_it():
    table = compare(*NETS, [images()], LAYERS_A, LAYERS_B)
    ax = heatmap(table, "debiased CKA, pooled", limits=(0, 1))
    assert [t.get_text() for t in ax.get_yticklabels()] == LAYERS_A
    assert [t.get_text() for t in ax.get_xticklabels()] == LAYERS_B
    matplotlib.pyplot.close("all")


def seeded(kind, *args, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*args, **options).eval()


RESNET = seeded(ResNet, BasicBlock, [1, 1, 1, 1], num_classes=5)
SWIN = seeded(SwinTransformer, [4, 4], 24, [1, 1], [2, 2], [4, 4], num_classes=5)
VIT = seeded(VisionTransformer, 64, 16, 2, 2, 32, 64, num_classes=5)


def of_size(h, w, n=8):
    return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [(256, 128), (128, 256), (64, 64)])
@pytest.mark.parametrize("how", ["pool", "pixels"])
def test_rectangular_maps_have_their_channels_first(size, how):
    x = of_size(*size)
    maps = [front(RESNET, name)(x).double() for name in ("layer1", "conv1")]
    table = compare(RESNET, RESNET, [x], "layer1", "conv1", measure="linear_cka", fold=how)
    maps[1] = nn.functional.adaptive_avg_pool2d(maps[1], maps[0].shape[2:])
    assert table.iloc[0, 0] == pytest.approx(linear_cka(*(fold(v, how) for v in maps)).item(), rel=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64)])
@pytest.mark.parametrize("how", ["pool", "pixels"])
def test_channels_last_meet_channels_first(size, how):
    x = of_size(*size)
    ours, theirs = front(SWIN, "features.1")(x).double(), front(RESNET, "layer1")(x).double()
    assert ours.shape == (8, size[0] // 4, size[1] // 4, 24) and theirs.shape[2:] == ours.shape[1:3]
    expected = linear_cka(fold(ours, how, axis=-1), fold(theirs, how)).item()
    table = compare(SWIN, RESNET, [x], "features.1", "layer1", measure="linear_cka", fold=how)
    assert table.iloc[0, 0] == pytest.approx(expected, rel=1e-5)


def test_signals_have_their_channels_first():
    net = seeded(nn.Sequential, nn.Conv1d(3, 5, 3), nn.ReLU(), nn.Conv1d(5, 4, 3))
    x = torch.randn(20, 3, 30, generator=torch.Generator().manual_seed(0))
    table = compare(net, net, [x], ["0", "1"], measure="linear_cka")
    pooled = [front(net, name)(x).mean(2).double() for name in ("0", "1")]
    assert table.loc["0", "1"] == pytest.approx(linear_cka(*pooled).item(), rel=1e-5)


def test_patches_meet_pixels():
    x, layer = of_size(64, 64), "encoder.layers.encoder_layer_0"
    tokens = front(VIT, layer)(x).double()
    maps = nn.functional.adaptive_avg_pool2d(front(RESNET, "layer1")(x).double(), 4)
    expected = linear_cka(fold(tokens[:, 1:], "pixels"), fold(maps, "pixels")).item()
    for dropped in (1, (1, 0)):
        table = compare(VIT, RESNET, x, layer, "layer1", measure="linear_cka", fold="pixels", class_tokens=dropped)
        assert table.iloc[0, 0] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ShapeMismatch, match="17 tokens are no square grid .* class_tokens=1 leaves 4 x 4"):
        compare(VIT, RESNET, x, layer, "layer1", fold="pixels")


def test_layers_by_one_name_and_all():
    x = images()
    assert compare(*NETS, [x], "0").equals(compare(*NETS, [x], ["0"]))
    table = compare(*NETS, [x])
    assert list(table.index) == list(table.columns) == cuttable_layers(NETS[0])
    assert table.equals(compare(*NETS, [x], "all")) and table.equals(compare(*NETS, [x], "all", "all"))
    row = compare(*NETS, [x], "0", "all")
    pd.testing.assert_frame_equal(row, table.loc[["0"]], atol=1e-6)
    assert list(compare(NETS[0], RESNET, of_size(8, 8), "6", ("conv1", "fc")).columns) == ["conv1", "fc"]


def test_all_are_those_that_can_be_folded():
    x = of_size(64, 64)
    assert "conv_proj" in compare(VIT, VIT, x).index
    assert list(compare(VIT, VIT, x, fold="tokens").columns) == [
        "encoder.dropout", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1", "encoder.layers",
        "encoder.ln", "encoder",
    ]  # fmt: skip
    with pytest.raises(BadValue, match="Sequential has no layer to cut and to fold with 'tokens'. Name layers."):
        compare(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), VIT, x, fold="tokens")


class Text(nn.Module):
    """Embedded ids, mixed; `padded` says where padding was seen, so that a value depends on nothing else."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(50, 6), nn.Linear(6, 4)

    def forward(self, input_ids, attention_mask=None):
        return {"hidden": self.mix(self.embed(input_ids))}


def texts(sizes, length):
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 50, (size,), generator=g) for size in sizes]
    mask = torch.stack([torch.arange(length) < size for size in sizes]).long()
    padded = torch.stack([nn.functional.pad(v, (0, length - len(v))) for v in ids])
    return {"input_ids": padded, "attention_mask": mask, "labels": torch.zeros(len(sizes))}


@pytest.mark.parametrize("how", ["pool", "tokens"])
def test_keywords_and_padding_that_counts_for_nothing(how):
    a, b = seeded(Text), seeded(Text)
    nn.init.normal_(b.embed.weight, generator=torch.Generator().manual_seed(5))
    sizes = [3, 5, 7, 4, 6, 2, 7, 5]
    tables = [compare(a, b, [texts(sizes, length)], "mix", measure="linear_cka", fold=how) for length in (7, 12)]
    assert tables[0].iloc[0, 0] == pytest.approx(tables[1].iloc[0, 0], rel=1e-6)
    ids = texts(sizes, 7)["input_ids"]
    rows = [[net(row[:size][None])["hidden"][0] for row, size in zip(ids, sizes, strict=True)] for net in (a, b)]
    x, y = (torch.stack([v.mean(0) for v in side]) if how == "pool" else torch.cat(side) for side in rows)
    assert tables[0].iloc[0, 0] == pytest.approx(linear_cka(x.double(), y.double()).item(), rel=1e-5)
    whole = texts([5] * 8, 5)
    parts = [{k: v[i : i + 3] for k, v in whole.items()} for i in (0, 3, 6)]
    together = compare(a, b, parts, "mix", measure="minibatch_cka", fold="flatten")
    assert together.notna().all(axis=None)


def loaders():
    x, labels = images(), torch.zeros(50)
    yield "tensors", [x]
    yield "a tensor", x
    yield "an array", x.numpy()
    yield "arrays", [x.numpy()]
    yield "lists", [[x, labels]]
    yield "a loader of torch", DataLoader(TensorDataset(x, labels), 20)
    yield "float64", [x.double()]
    yield "a mapping", {"images": x, "labels": labels}
    for key in ("images", "pixel_values", "x", "input"):
        yield key, [{key: x, "labels": labels}]


@pytest.mark.parametrize("loader", [pair[1] for pair in loaders()], ids=[pair[0] for pair in loaders()])
def test_batches_of_any_kind(loader):
    expected = compare(*NETS, [images()], ["0", "6"])
    pd.testing.assert_frame_equal(compare(*NETS, loader, ["0", "6"]), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        ("digits", BadValue, "the loader is 'digits'. A loader gives batches"),
        (None, BadValue, "the loader is None. A loader"),
        (5, BadValue, "the loader is 5. A loader"),
        (TensorDataset(images()), BadValue, "the loader is a TensorDataset. A loader .* DataLoader do"),
        (["a", "b"], BadData, "a batch of the loader holds 'a', not a tensor"),
        ([{}], BadData, "a batch of the loader holds a mapping of nothing, not a tensor"),
        ([torch.tensor(1.0)], BadData, r"holds a batch \(\) of torch.float32, not a tensor"),
        (
            [images().byte()],
            ShapeMismatch,
            r"Sequential does not take a batch \(50, 3, 8, 8\) of torch.uint8: .* / 255 say",
        ),
        ([images()[:, :1]], ShapeMismatch, "does not take a batch .* to have 3 channels, but got 1 channels instead"),
        (
            [images()[0]],
            ShapeMismatch,
            r"takes batches \(n, …\) of 4 axes; given one of \(3, 8, 8\). Of a single example give x\[None\]",
        ),
        ([images() * math.nan], BadData, "activations of layer '0' hold NaN or infinity"),
        ({"wrong": images()}, ShapeMismatch, "Sequential does not take a mapping of wrong: .*wrong"),
    ],
)
def test_loaders_that_are_none(loader, error, message):
    with pytest.raises(error, match=message):
        compare(*NETS, loader, ["0"])


def test_networks_that_are_none():
    for nets in (("resnet20", NETS[0]), (NETS[0], None)):
        with pytest.raises(BadValue, match="a network is a torch.nn.Module"):
            compare(*nets, [images()], ["0"])


def test_large_activations_are_no_infinity():
    loud = seeded(nn.Sequential, nn.Linear(4, 3), nn.ReLU())
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    expected = compare(loud, loud, [x], ["0"], ["1"], fold="flatten", measure="minibatch_cka")
    found = compare(loud, seeded(nn.Sequential, Times(1e36), *loud), [x], ["0"], ["2"], "minibatch_cka", "flatten")
    assert np.isfinite(found.iloc[0, 0]) and expected.iloc[0, 0] > 0


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_most_similar_of_similarities_and_distances():
    table = pd.DataFrame(
        [[0.1, 0.9, math.nan], [0.3, 0.2, 0.1], [math.nan] * 3], index=["a", "b", "c"], columns=["x", "y", "z"]
    )
    assert most_similar(table, "linear_cka").to_list()[:2] == ["y", "x"]
    assert most_similar(table, "procrustes_angular").to_list()[:2] == ["x", "z"]
    assert most_similar(table, MEASURES["gulp"]).isna().to_list() == [False, False, True]
    with pytest.raises(UnknownName, match="no measure 'cka'"):
        most_similar(table, "cka")
    x = images(120)
    for name in ("linear_cka", "procrustes_angular", "rsm_frobenius"):
        itself = compare(NETS[0], NETS[0], [x], ["0", "3", "6"], measure=name)
        assert most_similar(itself, name).to_list() == ["0", "3", "6"]
