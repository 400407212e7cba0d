"""What chance gives a measure: exact under exchanged examples, as rare as it says, and refused where there is none."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from reptrans.errors import BadData, BadValue
from reptrans.similarity import MEASURES, Calibrated, calibrate, compare, debiased_cka, fold
from reptrans.similarity.compare import _keeper
from reptrans.similarity.null import calibrated, orders

CLOSED = [name for name in MEASURES if name != "minibatch_cka"]


def related(n=60, seed=0, p=5, q=7):
    mix = torch.randn(p, q, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    x, more = noise(n, p, q, seed)
    return x, x @ mix + 3 * more


def noise(n, p, q, seed):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(n, width, generator=g, dtype=torch.float64) for width in (p, q))


def in_orders(name, layers_x, layers_y, some, how="pool"):
    kept = _keeper(name, how, {}, 20, 0, 0)
    a, b = ([f"{side}{i}" for i in range(len(v))] for side, v in (("x", layers_x), ("y", layers_y)))
    kept.add((a, b), [*layers_x, *layers_y])
    return kept.in_orders(some)


@pytest.mark.parametrize("name", CLOSED)
def test_a_null_is_the_measure_of_exchanged_rows(name):
    x, y = related()
    wide = torch.cat([y, x[:, :2] ** 2], 1)
    some = torch.cat([torch.arange(60)[None], orders(60, 3, torch.Generator().manual_seed(1))])
    found = in_orders(name, [x, wide], [y], some)
    for i, side in enumerate((x, wide)):
        for place, order in enumerate(some):
            expected = MEASURES[name](side, y[order])
            assert abs(found[place, i, 0] - expected) < 1e-12 * max(1, abs(expected)), (i, place)


@pytest.mark.parametrize("name", ["linear_cka", "debiased_cka", "procrustes_angular", "soft_correlation_match"])
def test_more_features_than_examples(name):
    x, y = noise(20, 50, 70, 0)
    some = orders(20, 3, torch.Generator().manual_seed(1))
    found = in_orders(name, [x, x[:, :4]], [y + 100], some)
    expected = [[MEASURES[name](v, (y + 100)[order]) for v in (x, x[:, :4])] for order in some]
    assert np.allclose(found[:, :, 0], expected, atol=1e-11)


@pytest.mark.parametrize("how", ["pixels", "tokens"])
def test_whole_images_are_exchanged_not_their_places(how):
    g = torch.Generator().manual_seed(0)
    shapes = ((12, 3, 4, 4), (12, 5, 2, 2)) if how == "pixels" else ((12, 3, 6), (12, 5, 6))
    x, y = (torch.randn(*shape, generator=g) for shape in shapes)
    some = orders(12, 3, g)
    found = in_orders("debiased_cka", [x], [y], some, how)
    for value, order in zip(found[:, 0, 0], some, strict=True):
        if how == "pixels":
            small = nn.functional.adaptive_avg_pool2d(x, 2)
            sides = [fold(v, "pixels").double() for v in (small, y[order])]
        else:
            sides = [v.double().transpose(1, 2).flatten(0, 1) for v in (x, y[order])]
        assert abs(value - debiased_cka(*sides)) < 1e-12


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(96, 5))


def images(n=40):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("measure", ["debiased_cka", "rsa", "minibatch_cka", "procrustes_angular"])
def test_values_are_those_without_a_null(measure):
    a, b, loader = network(0), network(1), images().split(20)
    found = compare(a, b, loader, ["0", "2"], ["4"], measure=measure, null=20)
    assert isinstance(found, Calibrated)
    assert found.value.equals(compare(a, b, loader, ["0", "2"], ["4"], measure=measure))
    assert found.p.shape == (2, 1) and ((found.p > 0) & (found.p <= 1)).all(axis=None)
    again = compare(a, b, loader, ["0", "2"], ["4"], measure=measure, null=20)
    assert found.mean.equals(again.mean)
    assert not found.mean.equals(compare(a, b, loader, ["0", "2"], ["4"], measure=measure, null=20, seed=1).mean)


def test_a_network_with_itself_is_beyond_chance_and_of_full_effect():
    net = network(0)
    found = compare(net, net, images(), ["0", "2"], null=40, fold="pool")
    assert np.allclose(np.diag(found.effect), 1) and np.allclose(np.diag(found.p), 1 / 41)
    assert found.beyond().to_numpy().diagonal().all()
    rows = found.rows()
    assert list(rows)[:3] == ["front_layer", "end_layer", "value"] and len(rows) == 4
    assert rows["value"].iloc[1] == found.value.iloc[0, 1]


def test_batches_have_their_examples_exchanged_within():
    x, y = related(40)
    kept = _keeper("minibatch_cka", "pool", {}, 30, 0, 5)
    for half in (slice(20), slice(20, 40)):
        kept.add((["x"], ["y"]), [x[half], y[half]])
    g, drawn = torch.Generator().manual_seed(5), []
    first, second = orders(20, 30, g), orders(20, 30, g)
    for a, b in zip(first, second, strict=True):
        drawn.append(float(MEASURES["minibatch_cka"](x, torch.cat([y[:20][a], y[20:][b]]), batch_size=20)))
    assert np.allclose(kept.null()[:, 0, 0], drawn)


def test_effect_z_and_p_by_hand():
    value = pd.DataFrame([[0.5, 0.1]], ["a"], ["b", "c"])
    null = torch.tensor([[0.0, 0.2], [0.2, 0.0], [0.1, 0.4], [0.1, 0.2]], dtype=torch.float64)[:, None, :]
    found = calibrated(value, null, MEASURES["debiased_cka"])
    assert found.mean.iloc[0].tolist() == pytest.approx([0.1, 0.2])
    assert found.effect.iloc[0].tolist() == pytest.approx([0.4 / 0.9, -0.1 / 0.8])
    assert found.p.iloc[0].tolist() == pytest.approx([1 / 5, 4 / 5])
    # The largest of each order: 0.2, 0.2, 0.4, 0.2.
    assert found.best == {"front_layer": "a", "end_layer": "b", "value": 0.5, "mean": pytest.approx(0.25), "score": 0.0,
                          "sd": pytest.approx(0.1), "effect": pytest.approx(0.25 / 0.75), "p": 1 / 5}  # fmt: skip
    # Of five values in order the fifth is the 95 % point: the value itself, or the largest of the others.
    assert found.score.iloc[0].tolist() == pytest.approx([0, 0])
    many = torch.linspace(-0.2, 0.18, 39).double()[:, None, None].expand(39, 1, 2)
    score = calibrated(value, many, MEASURES["debiased_cka"]).score.iloc[0].tolist()
    assert score == pytest.approx([(0.5 - 0.17) / (1 - 0.17), 0])
    distances = calibrated(value, null, MEASURES["procrustes_angular"])
    # The smallest of each order: 0, 0, 0.1, 0.1, of which all are at most 0.1.
    assert (distances.best["end_layer"], distances.best["p"]) == ("c", 1)
    assert distances.best["mean"] == pytest.approx(0.05)
    assert distances.p.iloc[0].tolist() == pytest.approx([1.0, 2 / 5])
    assert distances.effect.iloc[0].tolist() == pytest.approx([(0.1 - 0.5) / 0.1, (0.2 - 0.1) / 0.2])


# Of examples 80: features 8 to 800 are d / n from 0.1 to 10; those that need more examples than features get few.
TALL = {"cca_mean", "cca_r2", "svcca", "pwcca", "linear_r2", "gulp", "eigenspace_overlap"}


@pytest.mark.parametrize("name", list(MEASURES))
def test_noise_is_beyond_chance_as_often_as_the_level_says(name):
    widths = [(4, 12), (10, 20)] if name in TALL else [(4, 40), (80, 160)]
    found = []
    for repeat in range(60):
        p, q = widths[repeat % 2]
        x, y = noise(40, p, q, 1000 + repeat)
        found.append(calibrate(x, y, name, null=39, seed=repeat)["p"])
    # Each p is at most .05 in 1 of 20, at most .5 in half; binomial bounds that 1 in 10,000 right measures would break.
    assert (np.array(found) <= 0.05).sum() <= stats.binom.ppf(1 - 1e-4, 60, 0.05)
    low, high = stats.binom.ppf((1e-4, 1 - 1e-4), 60, 0.5)
    assert low <= (np.array(found) <= 0.5).sum() <= high


def test_the_search_over_layers_is_paid_for():
    alone, searched = 0, 0
    for repeat in range(100):
        layers = [list(noise(30, 3, 8, 50 * repeat + i)) for i in range(4)]
        kept = _keeper("debiased_cka", "pool", {}, 59, 0, repeat)
        names = [f"x{i}" for i in range(4)], [f"y{i}" for i in range(4)]
        kept.add(names, [v for v, _ in layers] + [w for _, w in layers])
        table = calibrated(pd.DataFrame(kept.values().numpy(), *names), kept.null(), MEASURES["debiased_cka"])
        alone += bool((table.p <= 0.05).any(axis=None))
        searched += bool(table.beyond().any(axis=None))
    assert searched <= stats.binom.ppf(1 - 1e-4, 100, 0.05) < 30 < alone  # 16 looks at 5 % find something in over half


def test_intervals_cover_the_value_of_many_examples():
    truth = float(debiased_cka(*related(200_000)))
    inside = 0
    for repeat in range(60):
        row = calibrate(*related(100, 10_000 + repeat), null=20, intervals=60, seed=repeat)
        inside += row["low"] <= truth <= row["high"]
        assert row["low"] <= row["value"] <= row["high"]
    assert inside >= stats.binom.ppf(1e-3, 60, 0.9)  # 95 %, and less of so few examples


def test_what_has_no_null_is_refused():
    x, y = related()
    for wrong in (1, 19, 2.5, True, -20, 10**12):
        with pytest.raises(BadValue, match="null is a number of random orders from 20 to 100,000"):
            compare(network(0), network(1), images(), null=wrong)
    with pytest.raises(BadValue, match="calibrate needs a null"):
        calibrate(x, y, null=0)
    with pytest.raises(BadValue, match="intervals stand beside a null"):
        compare(network(0), network(1), images(), intervals=50)
    with pytest.raises(BadData, match=f"5 examples have {math.factorial(5)} orders, no more than the 200 of the null"):
        calibrate(x[:5], y[:5])
    with pytest.raises(BadData, match="layers 'x' and 'y' have no null.*all the same"):
        calibrate(torch.ones(60, 3), y)
    for bad in (math.nan, math.inf):
        with pytest.raises(BadData, match="'y' hold NaN or infinity"):
            calibrate(x, torch.full_like(y, bad))
    with pytest.raises(BadValue, match="seed is 'a'; it must be a whole number from 0 on"):
        calibrate(x, y, seed="a")
    with pytest.raises(BadValue, match="100000 orders of 20000 examples take 15 GiB"):
        orders(20_000, 100_000, torch.Generator())
    with pytest.raises(BadValue, match="minibatch_cka keeps no examples, and so has no intervals"):
        calibrate(x, y, "minibatch_cka", intervals=20)
    with pytest.raises(BadData, match="halves of 7 examples are fewer than 4"):
        calibrate(x[:7], y[:7], intervals=20)
