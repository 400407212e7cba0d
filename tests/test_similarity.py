"""Measures of representations: values agreed on by independent implementations, closed forms, streams, bad input."""

import inspect
import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from reptrans import similarity as s
from reptrans.errors import BadData, BadValue, ShapeMismatch, UnknownName
from reptrans.similarity import MEASURES, Grams, Moments, channel_blocks, checks, neighbours
from reptrans.similarity.fold import blocks, places
from reptrans.similarity.moments import PairMoments, Sums

HERE = Path(__file__).parent / "reference"
INPUTS = load_file(HERE / "similarity.safetensors")
CANONICAL = json.loads((HERE / "similarity.json").read_text("utf-8"))
PAIRS = {"XX": ("X", "X"), "XY": ("X", "Y"), "wide": ("X_wide", "Y_wide"), "noise": ("N1", "N2")}
WAYS = {
    "aligned_cosine_uncentred": s.aligned_cosine,
    "cca_mean": s.cca_mean,
    "cca_r2_mean": s.cca_r2,
    "cka_debiased": s.debiased_cka,
    "cka_linear": s.linear_cka,
    "corr_match_hard": s.hard_correlation_match,
    "corr_match_soft": s.soft_correlation_match,
    "distance_correlation": s.distance_correlation,
    "eigenspace_overlap_uncentred": s.eigenspace_overlap,
    "gulp_lambda0": s.gulp,
    "knn_jaccard_cosine_k10": s.knn_jaccard,
    "linreg_r2_first_from_second": s.linear_r2,
    "linreg_r2_second_from_first": lambda x, y: s.linear_r2(y, x),
    "permutation_angular": s.permutation_angular,
    "permutation_euclid_centred": s.permutation_euclid,
    "procrustes_angular": s.procrustes_angular,
    "procrustes_size_shape": s.procrustes_size_shape,
    "pwcca_paper": s.pwcca,
    "rank_similarity_k10": s.rank_similarity,
    "rsa_correlation_kendall_tau_a": lambda x, y: s.rsa(x, y, compare="kendall"),
    "rsa_correlation_pearson": lambda x, y: s.rsa(x, y, compare="pearson"),
    "rsa_correlation_spearman": s.rsa,
    "rsa_sqeuclidean_pearson": lambda x, y: s.rsa(x, y, "sqeuclidean", "pearson"),
    "rsm_frobenius_euclid": s.rsm_frobenius,
    "rsm_spectral_euclid": s.rsm_spectral,
    "second_order_cosine_k10": lambda x, y: s.second_order_cosine(x, y, distances=True),
    "svcca_dim10_centred": lambda x, y: s.svcca(x, y, 10),
    "svcca_var0.99": s.svcca,
}
WAYS |= {f"cka_rbf_median{t}": lambda x, y, t=t: s.rbf_cka(x, y, t) for t in (0.5, 1.0, 2.0)}
WAYS |= {f"cka_rbf_median{t}_debiased": lambda x, y, t=t: s.rbf_cka(x, y, t, debiased=True) for t in (0.5, 1.0, 2.0)}
WAYS |= {f"cka_minibatch_b{b}": lambda x, y, b=b: s.minibatch_cka(x, y, b) for b in (20, 50, 100, 200)}
FOLDED = {
    "cka_debiased_channel_means": (s.debiased_cka, "pool"),
    "cka_debiased_flatten_chw": (s.debiased_cka, "flatten"),
    "cka_debiased_pixels_as_samples": (s.debiased_cka, "pixels"),
    "cka_linear_channel_means": (s.linear_cka, "pool"),
    "cka_linear_flatten_chw": (s.linear_cka, "flatten"),
    "cka_linear_pixels_as_samples": (s.linear_cka, "pixels"),
    "linreg_r2_pixels_first_from_second": (s.linear_r2, "pixels"),
    "procrustes_angular_pixels": (s.procrustes_angular, "pixels"),
}
# With no more examples than features these are what they are whatever the data: refused here, see below.
FULL = {f"{name}/{pair}" for pair in ("wide", "noise") for name in WAYS
        if name.startswith(("linreg", "cca_", "eigenspace"))} | {"svcca_var0.99/noise"}  # fmt: skip
# The angle and the root magnify the last digits of a cosine of 1.
NEAR_ZERO = {"procrustes_angular/XX": 1e-7, "permutation_angular/XX": 1e-7, "procrustes_size_shape/XX": 1e-5,
             "permutation_euclid_centred/XX": 1e-5}  # fmt: skip


def inputs(name):
    return (INPUTS[key] for key in PAIRS[name])


def named(*prefixes):
    return [key for key in CANONICAL if key.split("/")[0] in prefixes]


@pytest.mark.parametrize("key", [key for key in named(*WAYS) if key not in FULL])
def test_agrees_with_independent_implementations(key):
    name, pair = key.split("/")
    found = WAYS[name](*inputs(pair)).item()
    assert found == pytest.approx(CANONICAL[key], rel=1e-8, abs=NEAR_ZERO.get(key, 1e-9))


@pytest.mark.parametrize("key", [key for key in named(*WAYS) if key in FULL])
def test_what_any_data_would_give_is_refused(key):
    name, pair = key.split("/")
    with pytest.raises(BadData, match="needs more examples than features: (39|40) independent features explain"):
        WAYS[name](*inputs(pair))


@pytest.mark.parametrize("key", named(*FOLDED))
def test_folds_agree_with_independent_implementations(key):
    function, how = FOLDED[key.split("/")[0]]
    x, y = (s.fold(INPUTS[name], how) for name in key.split("/")[1].split("_"))
    assert function(x, y).item() == pytest.approx(CANONICAL[key], abs=1e-10)


def test_every_stored_value_is_compared():
    elsewhere = [key for key in CANONICAL if key.split("/")[0] not in WAYS | FOLDED]
    assert {key.split("/")[1] for key in elsewhere} <= {"L1", "L1L1", "L1L2"}  # in test_agreement


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_biased_cka_of_noise_is_d_over_n_plus_d():
    values = [
        [f(normal(40, 400, seed=seed), normal(40, 400, seed=seed + 100)).item() for seed in range(20)]
        for f in (s.linear_cka, s.debiased_cka)
    ]
    biased, debiased = (sum(v) / 20 for v in values)
    assert biased == pytest.approx(400 / 440, abs=3e-3)
    assert debiased == pytest.approx(0, abs=0.01)


def test_wide_gaussian_kernel_is_linear():
    x, y = inputs("XY")
    assert s.rbf_cka(x, y, 1000.0).item() == pytest.approx(s.linear_cka(x, y).item(), abs=1e-6)


@pytest.mark.parametrize("function", [s.linear_cka, s.debiased_cka, s.procrustes_angular])
def test_by_examples_equals_by_features(function):
    x, y = normal(30, 20), normal(30, 29, seed=1)
    wide = torch.cat([x, torch.zeros(30, 40, dtype=torch.float64)], 1)
    assert function(wide, y).item() == pytest.approx(function(x, y).item(), rel=1e-11)


def test_planted_permutation_is_found():
    x = normal(60, 7)
    y = 2 * x[:, torch.randperm(7, generator=torch.Generator().manual_seed(1))] + 1
    assert s.hard_correlation_match(x, y).item() == pytest.approx(1)
    assert s.soft_correlation_match(x, y).item() == pytest.approx(1)
    assert s.permutation_angular(x, y).item() == pytest.approx(0, abs=1e-7)


def test_known_relations():
    x, y, z = normal(50, 6), normal(50, 6, seed=1), normal(50, 6, seed=2)
    for distance in (s.procrustes_angular, s.procrustes_size_shape, s.permutation_angular):
        assert distance(x, z) <= distance(x, y) + distance(y, z)
    assert s.permutation_angular(x, y) >= s.procrustes_angular(x, y)
    assert s.soft_correlation_match(x, y) >= s.hard_correlation_match(x, y)
    assert s.svcca(x, y, 6).item() == pytest.approx(s.cca_mean(x, y).item())
    assert s.svcca(x, y, 1.0).item() == pytest.approx(s.cca_mean(x, y).item())
    assert s.gulp(x, y).item() == pytest.approx(12 - 2 * 6 * s.cca_r2(x, y).item())
    whitened = s.procrustes_angular(x, y, alpha=0).item()
    assert math.cos(whitened) == pytest.approx(s.cca_mean(x, y).item())
    assert s.procrustes_angular(x, y, alpha=1 - 1e-9).item() == pytest.approx(s.procrustes_angular(x, y).item())
    jaccard, mutual = s.knn_jaccard(x, x, 3).item(), s.mutual_knn(x, x, 3).item()
    assert (jaccard, mutual) == (1, 1)
    assert s.rsa(x, x, "euclidean", "kendall").item() == pytest.approx(1)


def test_ridge_regression_is_the_normal_equations():
    x, y = (v - v.mean(0) for v in (normal(50, 4), normal(50, 6, seed=1)))
    fitted = y @ torch.linalg.solve(y.T @ y + 50 * 0.3 * torch.eye(6, dtype=torch.float64), y.T @ x)
    expected = 1 - (x - fitted).square().sum() / x.square().sum()
    assert s.linear_r2(x, y, ridge=0.3).item() == pytest.approx(expected.item(), rel=1e-10)
    assert s.linear_r2(normal(50, 4), normal(50, 60, seed=1), ridge=0.3) < 1


def test_knn_by_hand():
    angles = torch.tensor([0.0, 0.1, 0.3, 2.0, 2.2], dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin()], 1)
    y = x[[3, 1, 2, 0, 4]]  # the first and the fourth example exchange places
    # nearest in x: 1 0 1 4 3; in y: 4 3 1 1 0: only the third example keeps its neighbour
    assert s.mutual_knn(x, y, 1).item() == pytest.approx(1 / 5)
    assert s.rank_similarity(x, y, 1).item() == pytest.approx(1 / 5)


STREAMED = [name for name, record in MEASURES.items() if record.needs == "moments"]


def moments(x, y, size, debiased=True):
    m = Moments(x.shape[1], y.shape[1], debiased=debiased)
    for a, b in zip(x.split(size), y.split(size), strict=True):
        m.update(a, b)
    return m


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("name", STREAMED)
def test_moments_give_what_the_function_gives(name, offset):
    x, y = (v + offset for v in inputs("XY"))
    expected = MEASURES[name].function(x, y).item()
    for size in (30, 7, 200):
        assert moments(x, y, size).value(name).item() == pytest.approx(expected, rel=1e-10)


def test_moments_of_several_layers_hold_each_pair():
    x, y = [normal(60, d, seed=d) for d in (3, 5)], [normal(60, d, seed=d) ** 3 for d in (4, 2, 6)]
    sums = [[Sums(debiased=True) for _ in side] for side in (x, y)]
    products = {(i, j): 0.0 for i in range(2) for j in range(3)}
    for start in range(0, 60, 13):
        z = [
            [own.add(v[start : start + 13, :, None]) for own, v in zip(*side, strict=True)]
            for side in zip(sums, (x, y), strict=True)
        ]
        products = {(i, j): seen + z[0][i] @ z[1][j].T for (i, j), seen in products.items()}
    for i, j in ((0, 0), (1, 2), (0, 1)):
        for name in ("debiased_cka", "linear_cka", "pwcca"):
            expected = MEASURES[name].function(x[i], y[j]).item()
            pair = PairMoments(sums[0][i].own, sums[1][j].own, products[i, j])
            assert pair.value(name).item() == pytest.approx(expected, rel=1e-10)


def test_grams_of_unequal_batches_weigh_by_examples():
    x, y = inputs("XY")
    sizes = [20, 50, 130]
    hsic = torch.zeros(3, dtype=torch.float64)
    grams = Grams()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        n = len(a)
        u = [v @ v.T - torch.diag(v.square().sum(1)) for v in (a - a.mean(0), b - b.mean(0))]
        for place, (p, q) in enumerate(((u[0], u[1]), (u[0], u[0]), (u[1], u[1]))):  # Song et al. 2007, equation 5
            sum_form = (p * q).sum() + p.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (p.sum(0) @ q.sum(0))
            hsic[place] += n / 200 * sum_form / (n * (n - 3))
        grams.update(a, b)
    expected = hsic[0] / (hsic[1] * hsic[2]).sqrt()
    assert grams.value().item() == pytest.approx(expected.item(), rel=1e-12)
    assert grams.count == 200


def test_grams_of_all_examples_at_once_are_debiased_cka():
    x, y = inputs("XY")
    assert Grams().update(x, y).value().item() == pytest.approx(s.debiased_cka(x, y).item(), rel=1e-12)


def test_a_small_last_batch_joins_the_one_before():
    x, y = (v[:103] for v in inputs("XY"))
    expected = Grams().update(x[:50], y[:50]).update(x[50:], y[50:]).value()
    assert s.minibatch_cka(x, y, 50).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "how", "expected"),
    [
        ((5, 3, 2, 4), "pixels", (40, 3)),
        ((5, 3, 2, 4), "flatten", (5, 24)),
        ((5, 3, 2, 4), "pool", (5, 3)),
        ((5, 7, 3), "tokens", (35, 3)),
        ((5, 7, 3), "pool", (5, 3)),
        ((5, 64, 64, 32), "pool", (5, 64)),
        ((5, 9, 3), "pixels", (45, 3)),
        ((5, 3), "pixels", (5, 3)),
        ((5, 3), "flatten", (5, 3)),
    ],
)
def test_fold(shape, how, expected):
    x = normal(*shape)
    folded = s.fold(x, how)
    assert tuple(folded.shape) == expected
    assert folded.sum().item() == pytest.approx(x.sum().item() * folded.numel() / x.numel(), rel=1e-9)


def test_channels_last_are_told_by_the_axis():
    x = normal(5, 3, 4, 4)
    for how in ("pool", "pixels"):
        torch.testing.assert_close(s.fold(x.movedim(1, -1), how, axis=-1), s.fold(x, how))
    for each in (lambda v, axis: channel_blocks(v, axis), lambda v, axis: blocks(v, "pixels", (2, 2), axis)):
        torch.testing.assert_close(each(x.movedim(1, -1), -1), each(x, None))
    assert places(x.movedim(1, -1), -1) == places(x) == (4, 4)


def test_tokens_are_maps_without_their_class_tokens():
    maps = normal(5, 3, 4, 4)
    tokens = torch.cat([normal(5, 2, 3, seed=1), maps.flatten(2).mT], 1)
    for how in ("pixels", "pool"):
        torch.testing.assert_close(s.fold(tokens, how, class_tokens=2), s.fold(maps, how))
    assert s.fold(tokens, "flatten", class_tokens=2).shape == (5, 48)


def test_pixels_are_rows_of_channels():
    x = normal(2, 3, 4, 5)
    assert torch.equal(s.fold(x, "pixels")[5 * 2 + 1], x[0, :, 2, 1])
    assert torch.equal(s.fold(x.flatten(2).mT, "tokens"), s.fold(x, "pixels"))


def test_fold_messages():
    with pytest.raises(UnknownName, match="no way 'pixel' to fold. Did you mean 'pixels'"):
        s.fold(normal(2, 3, 4, 4), "pixel")
    with pytest.raises(
        ShapeMismatch, match=r"\(2, 3, 4, 4, 4\) cannot be folded by 'pixels': it is for maps \(n, c, h, w\)"
    ):
        s.fold(normal(2, 3, 4, 4, 4), "pixels")
    with pytest.raises(ShapeMismatch, match="17 tokens are no square grid .* drop them: class_tokens=1 leaves 4 x 4"):
        s.fold(normal(2, 17, 4), "pixels")
    with pytest.raises(ShapeMismatch, match=r"signals \(2, 16, 4\), \(n, c, t\), are no maps; fold them by 'tokens'"):
        s.fold(normal(2, 16, 4), "pixels", axis=1)
    with pytest.raises(BadValue, match="channels are at axis 1 or -1 of activations; given 2"):
        s.fold(normal(2, 3, 4, 4), "pool", axis=2)
    with pytest.raises(BadValue, match="class_tokens is a whole number from 0, of leading tokens to drop; given 1.5"):
        s.fold(normal(2, 17, 4), "pixels", class_tokens=1.5)
    with pytest.raises(ShapeMismatch, match=r"\(2, 3, 4, 4\) cannot be folded by 'tokens'"):
        s.fold(normal(2, 3, 4, 4), "tokens")


@pytest.mark.parametrize("name", MEASURES)
def test_bad_input_is_refused(name):
    f = MEASURES[name].function
    x, y = normal(20, 3), normal(20, 4, seed=1)
    with pytest.raises(ShapeMismatch, match=rf"{name} needs .* the same n examples; given \(20, 3\) and \(19, 4\)"):
        f(x, y[:19])
    with pytest.raises(BadData, match=f"{name} needs at least 4 examples; given 3"):
        f(x[:3], y[:3])
    for bad in (math.nan, math.inf):
        spoilt = y.clone()
        spoilt[2, 1] = bad
        with pytest.raises(BadData, match=f"{name}: the second representation holds NaN or infinity"):
            f(x, spoilt)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3])
@pytest.mark.parametrize("name", MEASURES)
def test_a_constant_representation_gives_nan(name, constant):
    f, x = MEASURES[name].function, normal(30, 3)
    dead = torch.full((30, 4), constant, dtype=torch.float64)
    assert f(x, dead).isnan()
    assert f(dead, x).isnan()
    if MEASURES[name].needs == "moments":
        assert moments(x, dead, 7).value(name).isnan()


@pytest.mark.parametrize("name", ["knn_jaccard", "rank_similarity", "second_order_cosine", "aligned_cosine", "rsa"])
def test_an_example_without_direction_gives_nan(name):
    x = normal(30, 3)
    x[4] = 0
    assert MEASURES[name].function(x, normal(30, 3, seed=1)).isnan()


@pytest.mark.parametrize("name", STREAMED)
def test_a_dead_feature_is_not_a_direction(name):
    x, y = normal(50, 4), normal(50, 3, seed=1)
    dead = torch.cat([x, torch.full((50, 1), 0.1, dtype=torch.float64)], 1)
    streamed = moments(dead, y, 9).value(name).item()
    assert streamed == pytest.approx(MEASURES[name].function(dead, y).item(), rel=1e-10)
    if name not in ("hard_correlation_match", "soft_correlation_match"):  # which count it as matching nothing
        assert streamed == pytest.approx(MEASURES[name].function(x, y).item(), rel=1e-10)


def test_messages():
    x, y = normal(20, 3), normal(20, 4, seed=1)
    with pytest.raises(UnknownName, match="no measure 'linear_cca'. Did you mean 'linear_cka'"):
        moments(x, y, 5).value("linear_cca")
    with pytest.raises(BadValue, match="rsa cannot be told from moments, it needs rows"):
        moments(x, y, 5).value("rsa")
    with pytest.raises(BadValue, match="Debiased CKA needs Moments"):
        moments(x, y, 5, debiased=False).value("debiased_cka")
    with pytest.raises(BadData, match="linear_cka needs at least 4 examples; given 3"):
        moments(x[:3], y[:3], 5).value("linear_cka")
    with pytest.raises(BadData, match="cca_mean needs more examples than features: 4 independent features"):
        moments(x[:5], y[:5], 5).value("cca_mean")
    with pytest.raises(BadData, match="at least 4 examples; given 3. Join it"):
        Grams().update(x[:3], y[:3])
    with pytest.raises(BadData, match="NaN or infinity"):
        Grams().update(x * math.nan, y)
    with pytest.raises(BadValue, match="Grams give minibatch_cka; given 'rsa'"):
        Grams().update(x, y).value("rsa")
    with pytest.raises(UnknownName, match="rsa knows no 'cosine'. Possible: correlation, euclidean, sqeuclidean"):
        s.rsa(x, y, "cosine")
    with pytest.raises(BadValue, match="k lies between 1 and the number of other examples, 19; given 20"):
        s.knn_jaccard(x, y, 20)
    with pytest.raises(BadValue, match="given 1.5"):
        s.svcca(x, y, 1.5)


def test_float32_is_as_good_as_its_rounding():
    x, y = (v + 50 for v in inputs("XY"))
    for f in (s.linear_cka, s.debiased_cka):
        assert f(x.float(), y.float()).item() == pytest.approx(
            f(x.float().double(), y.float().double()).item(), rel=2e-6
        )
    assert s.cca_mean(x.float(), y.float()).dtype == torch.float64


SCALED = [name for name, record in MEASURES.items() if "scale" in record.invariances]


@pytest.mark.parametrize("scale", [1e-36, 1e-25, 1e-12, 1e12, 1e25, 1e36])
@pytest.mark.parametrize("name", SCALED)
def test_the_scale_of_float32_does_not_matter(name, scale):
    x, y = (v[:60, :8].float() for v in inputs("XY"))
    expected = MEASURES[name](x, y).item()
    for a, b in ((x * scale, y), (x, y * scale), (x * scale, y / scale)):
        assert MEASURES[name](a, b).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        if name in STREAMED:
            assert moments(a, b, 30).value(name).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in SCALED])
def test_distances_grow_with_the_scale_in_float32(name):
    x, y = (v[:60, :8].float() for v in inputs("XY"))
    for scale in (1e-25, 1e25):
        assert MEASURES[name](x * scale, y * scale).item() / scale == pytest.approx(
            MEASURES[name](x, y).item(), rel=1e-4
        )


def test_powers_of_two_change_no_digit():
    x, y = inputs("XY")
    for name in ("linear_cka", "debiased_cka", "minibatch_cka", "rbf_cka", "mutual_knn", "cca_mean"):
        assert MEASURES[name](x * 2.0**40, y * 2.0**-30).item() == MEASURES[name](x, y).item()


def test_a_scaled_side_has_a_scaled_gradient():
    x, y = (v[:30, :5].float() for v in inputs("XY"))
    a, b = x.clone().requires_grad_(), (x * 1e20).requires_grad_()
    gradients = [torch.autograd.grad(s.linear_cka(v, y), v)[0] for v in (a, b)]
    torch.testing.assert_close(gradients[1] * 1e20, gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-90, 1e90])
def test_a_scale_that_float64_cannot_hold_is_refused(scale):
    x, y = inputs("XY")
    assert s.linear_cka(x * scale, y).item() == pytest.approx(s.linear_cka(x, y).item())
    size = "small" if scale < 1 else "large"
    refused = pytest.raises(BadData, match=f"too {size} to be squared and summed. Scale them: from 1e-70 to 1e[+]70 is")
    with refused:
        s.procrustes_size_shape(x * scale, y)
    with refused:
        moments(x * scale, y, 50).value("debiased_cka")
    with refused:
        Grams().update(x * scale, y)


def kinds_of_numbers():
    x = normal(30, 3)
    whole = (x * 100).round()
    yield "array", x.numpy(), x
    yield "reversed array", x.numpy()[::-1], x.flip(0)
    yield "lists", x.tolist(), x
    yield "table", pd.DataFrame(x.numpy()), x
    yield "integers", whole.long(), whole
    yield "large integers", whole.long() + 2**40, whole + 2**40
    yield "bytes", whole.abs().byte(), whole.abs().byte().double()
    yield "truth", x > 0, (x > 0).double()
    yield "half", x.half(), x.half().double()


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    ("given", "meant"), [k[1:] for k in kinds_of_numbers()], ids=[k[0] for k in kinds_of_numbers()]
)
def test_measures_take_whatever_holds_numbers(name, given, meant):
    y = normal(30, 3, seed=1) + meant / meant.abs().max()
    assert MEASURES[name](given, y.numpy()).item() == pytest.approx(
        MEASURES[name](meant, y).item(), rel=1e-5, nan_ok=True
    )


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


@pytest.mark.parametrize("bad", ["resnet18", None, ["a"], [[1.0], [1.0, 2.0]], {"x": 1}, _Nothing()], ids=repr)
def test_what_holds_no_numbers_is_refused_by_every_door(bad):
    x = normal(20, 3)
    doors = [lambda name=name: MEASURES[name](x, bad) for name in MEASURES]
    doors += [lambda: Moments(3, 3).update(x, bad), lambda: Grams().update(x, [bad]), lambda: s.fold(bad, "pool")]
    doors += [lambda: s.disagreement(x, bad), lambda: s.jensen_shannon(bad, x), lambda: s.agreement(x, x, bad)]
    for door in doors:
        with pytest.raises(BadData, match="a tensor, a NumPy array or lists of numbers is needed; given"):
            door()


def test_complex_numbers_are_refused():
    for door in (lambda v: s.linear_cka(v, v), lambda v: Moments(3, 3).update(v, v), lambda v: s.fold(v, "pool")):
        with pytest.raises(BadData, match=r"complex numbers. Take their parts as features: torch.view_as_real\(x\)"):
            door(normal(20, 3) + 1j)


def test_measures_are_called_with_x_and_y():
    x, y = inputs("XY")
    for record in MEASURES.values():
        assert list(inspect.signature(record.function).parameters)[:2] == ["x", "y"]
        assert record(x=x, y=y).equal(record.function(x, y))
    assert MEASURES["svcca"](x, y, keep=3) == s.svcca(x, y, 3)
    with pytest.raises(BadValue, match="svcca has no option 'keeps'. Did you mean 'keep'[?] Possible: keep"):
        MEASURES["svcca"](x, y, keeps=3)
    with pytest.raises(BadValue, match="linear_cka has no option 'keep'. It takes none."):
        MEASURES["linear_cka"](x, y, keep=3)


@pytest.mark.parametrize("name", ["knn_jaccard", "mutual_knn", "rank_similarity", "second_order_cosine"])
def test_neighbours_in_blocks(name, monkeypatch):
    x, y = inputs("XY")
    expected = MEASURES[name](x, y).item()
    monkeypatch.setattr(neighbours, "_AT_ONCE", 37 * len(x))
    assert MEASURES[name](x, y).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["rsa", "rbf_cka", "distance_correlation", "rsm_frobenius", "rsm_spectral"])
def test_distances_of_too_many_examples_are_refused_at_once(name):
    x = normal(20000, 2)
    with pytest.raises(
        BadValue, match=rf"{name} of 20000 .* take \d+ GiB, more than 8. Give at most 1\d{{4}} examples."
    ):
        MEASURES[name](x, x)


def test_too_many_features_are_refused_before_their_products(monkeypatch):
    monkeypatch.setattr(checks, "MOST_GIB", 1e-4)
    x = normal(10, 200)
    with pytest.raises(BadValue, match="the products of 200 and 200 features take 0 GiB, more than 0.0001. Pool the f"):
        s.procrustes_size_shape(x, x)
    with pytest.raises(BadValue, match="the products of 100 examples take 0 GiB"):
        s.linear_cka(normal(100, 200), normal(100, 3))


@pytest.mark.parametrize("distance", ["correlation", "euclidean", "sqeuclidean"])
def test_dissimilarities_are_what_rsa_compares(distance):
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, 5, generator=g, dtype=torch.float64) for _ in range(2))
    a, b = (s.dissimilarities(v, distance) for v in (x, y))
    assert torch.equal(a, a.T) or torch.allclose(a, a.T) and not a.diagonal().any()
    upper = torch.triu_indices(12, 12, 1)
    pearson = torch.corrcoef(torch.stack([v[upper[0], upper[1]] for v in (a, b)]))[0, 1]
    assert torch.allclose(pearson, s.rsa(x, y, distance, "pearson"))


def test_dissimilarities_that_are_none():
    with pytest.raises(BadData, match="the same in all features"):
        s.dissimilarities(torch.cat([torch.ones(1, 4), torch.randn(5, 4)]))
    with pytest.raises(UnknownName, match="no distance 'cosin'"):
        s.dissimilarities(torch.randn(5, 4), "cosin")
