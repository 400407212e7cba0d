"""The atlas: its numbers are those of the experiments it puts together, and its statistics those of closed forms."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm, rankdata, spearmanr
from scipy.stats import t as student_t

from reptrans.distillation import distill
from reptrans.errors import BadData, BadValue, LayerNotFound, ShapeMismatch
from reptrans.experiments.atlas import AtlasRun, atlas, check
from reptrans.experiments.ranks import partial_correlation, profiles, rank_correlations
from reptrans.experiments.similarity import rank_agreement, same_layers

SMALL = {"front_model": "cnn3_w4", "end_model": "cnn3_w4", "layers": "conv1,pool1,relu2,relu3", "seeds": 2,
         "measures": "debiased_cka,procrustes_angular", "images": 100, "train_epochs": 1, "student": "cnn3_w2",
         "student_layers": "relu2,relu3", "student_epochs": 6, "batch_size": 10, "labelled": 3,
         "pictures": 2, "steps": 5}  # fmt: skip
LAYERS = SMALL["layers"].split(",")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPTRANS_DATA", str(folder))
        p = AtlasRun(**SMALL)
        dataset = p.load()
        yield p, dataset, folder, atlas(p, dataset, lambda name: folder / name)


def test_all_layers_are_all_that_a_student_can_be_matched_with(run):
    p, dataset, *_ = run
    given = p.model_copy(update={"layers": "all"})
    every = ["conv1", "bn1", "relu1", "pool1", "conv2", "bn2", "relu2", "pool2", "conv3", "bn3", "relu3", "avgpool"]
    assert check(given, dataset) == every  # not "flatten", which gives vectors
    with pytest.raises(ShapeMismatch, match="A pair needs two layers of maps"):
        check(given.model_copy(update={"student_layers": "relu2,flatten"}), dataset)


def values_of(rows: pd.DataFrame, quantity: str, seed: int) -> list[float]:
    return rows[(rows["quantity"] == quantity) & (rows["seed"] == seed)].set_index("layer")["value"][LAYERS].to_list()


def test_every_layer_and_seed_has_every_quantity_once(run):
    p, _, _, rows = run
    expected = ["debiased_cka", "procrustes_angular", "stitch A→B", "stitch B→A", "distillation gain", "image kept",
                "pair weight"]  # fmt: skip
    assert list(pd.unique(rows["quantity"])) == expected
    assert len(rows) == len(expected) * 2 * 4
    assert not rows.duplicated(["seed", "layer", "quantity"]).any()
    assert rows["value"].notna().all()
    assert rows.groupby("layer", sort=False)["depth"].unique().map(list).to_dict() == {
        "conv1": [0], "pool1": [3], "relu2": [6], "relu3": [10]}  # fmt: skip
    assert set(rows.loc[~rows["higher_is_better"], "quantity"]) == {"procrustes_angular"}
    assert set(rows.loc[rows["kind"] == "cheap", "quantity"]) == set(expected[:2])


def test_measures_are_those_of_the_comparison(run):
    p, dataset, _, rows = run
    for name, group in same_layers(p, dataset).groupby(["measure", "seed"]):
        assert values_of(rows, *name) == pytest.approx(group["value"].to_list(), rel=1e-12)


def test_stitches_go_from_a_to_b_and_back(run):
    p, dataset, _, rows = run
    from reptrans.experiments.stitched import Stitching
    from reptrans.experiments.stitching import network_pairs

    settings = p.stitching(p.layers)
    seed, *sides = network_pairs(settings, dataset)[1]
    a, b = (side.get() for side in sides)
    for name, front, end in (("stitch A→B", a, b), ("stitch B→A", b, a)):
        stitching = Stitching(front, end, [(layer, layer) for layer in LAYERS], dataset, settings, seed=seed)
        reached = [stitching.stitch(layer, layer).rows["relative_accuracy"].item() for layer in LAYERS]
        assert values_of(rows, name, 1) == pytest.approx(reached, abs=1e-12)
    assert values_of(rows, "stitch A→B", 1) != values_of(rows, "stitch B→A", 1)


def test_gain_is_the_taught_student_minus_the_plain_one_from_the_same_start(run):
    p, dataset, _, rows = run
    from dataclasses import replace

    from reptrans.checkpoints import trained
    from reptrans.distillation import METHODS, Method, Pair, Stage, loaders
    from reptrans.matching import CrossEntropy, Positions, Teacher
    from reptrans.models import build

    few = replace(dataset, train=dataset.train.limit(3, 1, dataset.classes))
    plan = p.distillation().plan(1)
    train, test = loaders(few, p.batch_size, 1, "none", torch.device("cpu"), torch.float64)
    net = trained("cnn3_w4", dataset, 1, plan=p.stitching("conv1").train_plan(1), batch_size=50)

    def student():
        return build("cnn3_w2", num_classes=10, in_channels=1, image_size=(8, 8), seed=10_001).double()

    def reached(method):
        _, rows = distill(student(), teacher, method, train, plan, factor=p.factor, watch={"test": test})
        return rows["test_accuracy"].iloc[-1]

    teacher, at = Teacher(net, train), {"relu3": Positions(("relu3",), (), (), (), "")}
    at["pool1"] = Positions(("pool1",), (), (), (), "")
    pair = Pair(student(), (teacher,), at["relu3"], at["pool1"])
    gain = reached(METHODS["sp"](pair)) - reached(Method("plain", [Stage([CrossEntropy()])]))
    assert values_of(rows, "distillation gain", 1)[1] == pytest.approx(gain, abs=1e-12)


def test_images_and_pair_weights_are_those_of_their_experiments(run):
    p, dataset, folder, rows = run
    from reptrans.experiments.autoencoding import autoencode
    from reptrans.experiments.l2t import L2TRun, train_one

    for layer, value in zip(LAYERS, values_of(rows, "image kept", 0), strict=True):
        found = autoencode(p.autoencoding(str(folder / "front-s0.safetensors"), [layer], len(dataset.test))).rows
        assert list(found["image"]) == ["0", "398"]
        assert value == pytest.approx(found["correlation"].mean(), rel=1e-9)
    l2t = p.l2t(LAYERS)
    assert isinstance(l2t, L2TRun) and (l2t.epochs, l2t.batch_size, l2t.source_layers) == (6, 10, p.layers)
    from dataclasses import replace

    from reptrans.checkpoints import load_network
    from reptrans.models import build

    net = load_network(build("cnn3_w4", num_classes=10, in_channels=1, image_size=(8, 8)).double(),
                       folder / "front-s0.safetensors")  # fmt: skip
    few = replace(dataset, train=dataset.train.limit(3, 0, dataset.classes))
    last = train_one(l2t, "l2t_ww", net.eval(), few, 10_000, folder / "again")[2].iloc[-1]
    expected = [(last[f"{layer} > relu2"] + last[f"{layer} > relu3"]) / 2 for layer in LAYERS]
    assert values_of(rows, "pair weight", 0) == pytest.approx(expected, rel=1e-9)
    assert len(set(expected)) == 4


def test_goes_on_from_what_is_stored(run, monkeypatch):
    p, dataset, folder, rows = run
    for name in ("same_layers", "autoencode", "distill", "train_one"):
        monkeypatch.setattr(f"reptrans.experiments.atlas.{name}", None)
    pd.testing.assert_frame_equal(atlas(p, dataset, lambda name: folder / name), rows)


def test_two_checkpoints_and_few_test_images(run, tmp_path):
    p, dataset, folder, rows = run
    own = {
        "front_checkpoint": str(folder / "front-s1.safetensors"),
        "end_checkpoint": str(folder / "end-s1.safetensors"),
    }
    one = p.model_copy(update=own | {"seeds": 1, "test_images": 50, "method": "nst", "epochs": 1, "student_epochs": 1})
    found = atlas(one, dataset, lambda name: tmp_path / name)
    assert "stitch B→A, trained" in set(found["quantity"])
    gains = np.array(values_of(found, "distillation gain", 0)) * 50
    assert gains == pytest.approx(np.round(gains), abs=1e-9)


REFUSED = [
    ({"layers": "conv1,conv2"}, BadValue,
     "2 layers are named (conv1, conv2), and a rank correlation needs 4 at least. Name more of them."),
    ({"method": "kd"}, BadValue,
     "the method 'kd' looks at out of the teacher, and here conv1 alone should teach. Choose another, for instance sp, "
     "nst or at."),
    ({"method": "plain"}, BadValue,
     "the method 'plain' looks at no layer of the teacher, and here conv1 alone should teach. Choose another, for "
     "instance sp, nst or at."),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_trained(run, tmp_path, change, error, message):
    p, dataset, *_ = run
    with pytest.raises(error) as caught:
        atlas(p.model_copy(update=change), dataset, lambda name: tmp_path / name)
    assert str(caught.value) == message
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_refused(run, tmp_path):
    p, dataset, *_ = run
    with pytest.raises(LayerNotFound, match="'conv9'"):
        atlas(p.model_copy(update={"layers": "conv1,conv2,conv3,conv9"}), dataset, lambda name: tmp_path / name)
    with pytest.raises(LayerNotFound, match="'relu9'"):
        atlas(p.model_copy(update={"student_layers": "relu9"}), dataset, lambda name: tmp_path / name)
    with pytest.raises(ValueError, match=r"there is no method 'spp'. Did you mean 'fsp' or 'sp'"):
        AtlasRun(method="spp")
    with pytest.raises(ValueError, match="there is no method 'sp,nst'"):
        AtlasRun(method="sp,nst")
    with pytest.raises(ValueError, match=r"there is no measure 'linear_cak'"):
        AtlasRun(measures="linear_cak")


def table(x, y, depth=None, higher_is_better=True) -> pd.DataFrame:
    """Rows of one cheap quantity x and one expensive y, both (seeds, layers)."""
    x, y = np.atleast_2d(x), np.atleast_2d(y)
    depth = range(x.shape[1]) if depth is None else depth
    return pd.DataFrame([
        {"seed": s, "layer": f"l{n:03}", "depth": depth[n], "kind": kind, "quantity": name, "value": float(v[s, n]),
         "higher_is_better": higher_is_better or kind != "cheap"}
        for kind, name, v in (("cheap", "x", x), ("expensive", "y", y)) for s, n in np.ndindex(x.shape)
    ])  # fmt: skip


def test_one_seed_is_spearman_with_ties_too():
    g = np.random.default_rng(0)
    x, y = g.integers(0, 4, 9), g.integers(0, 4, 9)
    found = rank_correlations(table(x, y)).iloc[0]
    assert found["rho"] == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert found["rho"] == found["least"] == found["most"]
    assert (found["cheap"], found["expensive"], found["layers"], found["seeds"]) == ("x", "y", 9, 1)
    turned = rank_correlations(table(x, y, higher_is_better=False)).iloc[0]
    assert turned["rho"] == pytest.approx(-found["rho"], abs=1e-12)


def test_pooled_is_the_mean_of_seeds_and_that_of_rank_agreement():
    g = np.random.default_rng(1)
    x, y = g.standard_normal((2, 3, 8))
    # Seeds of other scales and places: only ranks within the seed count.
    rows = table(x * [[1], [100], [0.01]] + [[0], [50], [7]], y)
    each = [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    found = rank_correlations(rows).iloc[0]
    assert found["rho"] == pytest.approx(np.mean(each), abs=1e-12)
    assert (found["least"], found["most"]) == pytest.approx((min(each), max(each)), abs=1e-12)
    cheap, dear = (rows[rows["kind"] == kind] for kind in ("cheap", "expensive"))
    agreement = rank_agreement(
        cheap.rename(columns={"quantity": "measure", "layer": "front_layer"}).assign(end_layer="b"),
        dear.assign(end_layer="b").set_index(["seed", "layer", "end_layer"])["value"],
    )
    assert agreement["rank_correlation"].to_list() == pytest.approx(each, abs=1e-12)


def test_given_depth_is_the_correlation_of_what_lines_through_depth_leave():
    g = np.random.default_rng(2)
    x, y = g.standard_normal((2, 12)) + 0.3 * np.arange(12)
    depth = np.array([0, 2, 3, 7, 8, 9, 11, 12, 13, 20, 21, 40])
    z = rankdata(depth)
    left = [rankdata(v) - np.polyval(np.polyfit(z, rankdata(v), 1), z) for v in (x, y)]
    found = rank_correlations(table(x, y, depth), "depth").iloc[0]
    assert found["rho"] == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-12)
    assert found["given"] == "depth"


def test_partial_correlation_by_hand():
    assert partial_correlation(0.5, 0.6, 0.8) == pytest.approx((0.5 - 0.48) / 0.48)
    assert partial_correlation(0.48, 0.6, 0.8) == pytest.approx(0)
    assert partial_correlation(0.5, 0.0, 0.0) == 0.5
    assert np.isnan(partial_correlation(0.5, 1.0, 0.5))


def test_depth_alone_explains_what_only_follows_depth():
    g = np.random.default_rng(3)
    n = 400
    x, y = (rankdata(np.arange(n) + 60 * g.standard_normal(n)) for _ in range(2))
    raw, given = (rank_correlations(table(x, y), kind, replicates=200).iloc[0] for kind in ("", "depth"))
    assert raw["low"] > 0.7
    assert given["low"] < 0 < given["high"] and abs(given["rho"]) < 0.15


def test_nothing_is_said_where_nothing_varies_or_all_is_depth():
    x, y = np.arange(6.0), np.array([3.0, 1, 2, 6, 4, 5])
    assert rank_correlations(table(x, np.ones(6)))[["rho", "low", "high"]].isna().all(axis=None)
    assert rank_correlations(table(x, y), "depth")[["rho", "low", "high"]].isna().all(axis=None)
    perfect = rank_correlations(table(x, x**3)).iloc[0]
    assert perfect["rho"] == pytest.approx(1) and np.isnan(perfect["low"]) and np.isnan(perfect["high"])


@pytest.mark.parametrize(("given", "freedom"), [("", 6), ("depth", 5)])
def test_interval_of_one_seed_by_hand(given, freedom):
    x, y = np.array([1.0, 3, 2, 5, 4, 8, 6, 7]), np.array([3.0, 1, 2, 4, 8, 5, 7, 6])
    generator = np.random.default_rng(3)
    generator.dirichlet([1.0], 40)
    drawn = []
    for w in generator.dirichlet(np.ones(8), 40):
        r = np.cov([x, y, np.arange(8)], aweights=w, ddof=0)
        r = r / np.sqrt(np.outer(r.diagonal(), r.diagonal()))
        drawn.append(np.arctanh(partial_correlation(r[0, 1], r[0, 2], r[1, 2]) if given else r[0, 1]))
    found = rank_correlations(table(x, y), given, replicates=40, seed=3, level=0.9).iloc[0]
    reach = student_t.ppf(0.95, freedom) * np.std(drawn) * np.sqrt(9 / 7)
    expected = np.tanh(np.arctanh(found["rho"]) + np.array([-reach, reach]))
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected), abs=1e-9)


def test_interval_narrows_with_layers_as_theory_says():
    # Spearman's standard error without relation is 1 / sqrt(n - 1).
    g = np.random.default_rng(4)
    found = rank_correlations(table(*g.standard_normal((2, 400)))).iloc[0]
    reach = (np.arctanh(found["high"]) - np.arctanh(found["low"])) / 2
    assert reach == pytest.approx(norm.ppf(0.975) / np.sqrt(399), rel=0.15)


def test_interval_widens_where_seeds_disagree():
    g = np.random.default_rng(5)
    x = np.tile(np.arange(30.0), (4, 1))
    y = x + 8 * g.standard_normal(x.shape)
    alike = rank_correlations(table(x, y), replicates=500).iloc[0]
    y[3] = -y[3]
    apart = rank_correlations(table(x, y), replicates=500).iloc[0]
    assert apart["high"] - apart["low"] > 3 * (alike["high"] - alike["low"])
    assert apart["least"] < -0.5 < 0.5 < apart["most"]


@pytest.mark.parametrize(("given", "truth"), [("", 0.0), ("", 0.6), ("depth", 0.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(given, truth):
    """8 layers of 3 seeds: a part of each value is the layer's in all seeds, a part the seed's own."""
    g = np.random.default_rng(6)
    held, times = 0, 150
    # Of normal variables with correlation r, Spearman's is 6 / pi arcsin(r / 2); the layers share 1 / 1.09 of variance.
    expected = 6 / np.pi * np.arcsin(truth / 1.09 / 2)
    for _ in range(times):
        layer = g.standard_normal((2, 8))
        layer[1] = truth * layer[0] + np.sqrt(1 - truth**2) * layer[1]
        x, y = layer[:, None] + 0.3 * g.standard_normal((2, 3, 8)) + (0.3 * np.arange(8) if given else 0)
        found = rank_correlations(table(x, y), given, replicates=200).iloc[0]
        held += found["low"] <= expected <= found["high"]
    assert 0.90 <= held / times <= 0.995


def test_same_seed_same_interval():
    rows = table(*np.random.default_rng(7).standard_normal((2, 3, 7)))
    pd.testing.assert_frame_equal(rank_correlations(rows, seed=1), rank_correlations(rows, seed=1))
    assert rank_correlations(rows, seed=1)["low"].item() != rank_correlations(rows, seed=2)["low"].item()


def test_profiles_say_what_depth_and_other_seeds_foretell():
    g = np.random.default_rng(8)
    x, y = np.tile(np.arange(6.0), (3, 1)), g.standard_normal((3, 6))
    found = profiles(table(x, y, higher_is_better=False)).set_index("quantity")
    each = [spearmanr(y[i], y[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found["with_depth"].to_list() == pytest.approx([-1, np.mean([spearmanr(v, x[0]).statistic for v in y])])
    assert found["between_seeds"].to_list() == pytest.approx([1, np.mean(each)])
    assert profiles(table(x[0], y[0]))["between_seeds"].isna().all()


def test_ranks_need_every_value_and_know_two_controls():
    rows = table(*np.random.default_rng(9).standard_normal((2, 2, 5)))
    message = "there is no value of 'y' at layer 'l002' of seed 1; ranks need all of them."
    gone = rows[~((rows["quantity"] == "y") & (rows["seed"] == 1) & (rows["layer"] == "l002"))]
    for holed in (gone, rows.assign(value=rows["value"].where(rows.index.isin(gone.index)))):
        with pytest.raises(BadData) as caught:
            rank_correlations(holed)
        assert str(caught.value) == message
    with pytest.raises(BadValue) as caught:
        rank_correlations(rows, "dept")
    assert str(caught.value) == "given is 'dept'; possible: '' for nothing, 'depth' for the layer's depth held fixed."
