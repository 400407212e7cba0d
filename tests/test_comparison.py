"""The experiments of the similarity and the knowledge-extension notebooks."""

import pandas as pd
import pytest
import torch

from reptrans.data import Dataset, Loader, Split
from reptrans.data.split import balanced, limited
from reptrans.experiments.extension import ExtensionRun, extend_all
from reptrans.experiments.similarity import (
    SimilarityRun,
    before_training,
    depth_distance,
    headline,
    heat_maps,
    ignores,
    measured,
    noise_trap,
    order_of,
    predictions,
    rank_agreement,
    same_layers,
)
from reptrans.similarity import MEASURES
from reptrans.stitching.frozen import rows_of

SMALL = {"front_model": "cnn3_w4", "end_model": "cnn3_w4", "image_size": 0, "layers": "conv1,relu2,conv3", "seeds": 2,
         "measures": "debiased_cka,procrustes_angular", "images": 200, "train_epochs": 1}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPTRANS_DATA", str(tmp_path_factory.mktemp("comparison")))
        p = SimilarityRun(**SMALL)
        yield p, p.load()


def test_heat_maps_within_and_between(run):
    maps = heat_maps(*run)
    within, between = (found.value for found in maps)
    assert list(within.index) == list(within.columns) == list(between.columns) == ["conv1", "relu2", "conv3"]
    for found in maps:
        shown, how = headline(found, "debiased_cka")
        assert shown is found.effect and how["limits"] == (0, 1) and how["pale"].equals(found.p_searched > 0.05)
        assert (found.low <= found.value).all(axis=None) and (found.value <= found.high).all(axis=None)
    plain = heat_maps(run[0].model_copy(update={"orders": 0}), run[1])
    assert [found.equals(maps[i].value) for i, found in enumerate(plain)] == [True, True]
    assert headline(plain[0], "debiased_cka")[1] == {"limits": (0, 1)}
    assert within.to_numpy().diagonal() == pytest.approx([1.0] * 3)
    torch.testing.assert_close(torch.tensor(within.to_numpy()), torch.tensor(within.to_numpy().T))
    assert (between.to_numpy() < 1).all()


def test_untrained_networks_are_similar_too(run):
    found = before_training(*run)
    assert list(found.index) == ["conv1", "relu2", "conv3"] and found.between(0.1, 1).all()
    assert (found - heat_maps(*run)[1].value.to_numpy().diagonal()).abs().max() > 0.01


def test_same_layers_are_the_diagonal_of_the_heat_map(run):
    values, between = same_layers(*run), heat_maps(*run)[1].value
    assert len(values) == 2 * 2 * 3
    first = values[(values["seed"] == 0) & (values["measure"] == "debiased_cka")].set_index("layer")["value"]
    assert first.to_list() == pytest.approx(between.to_numpy().diagonal().tolist(), rel=1e-9)
    assert set(values.loc[values["measure"] == "procrustes_angular", "higher_is_better"]) == {False}


def test_predictions_have_a_row_for_each_pair(run):
    answers = predictions(*run)
    assert answers["seed"].to_list() == [0, 1]
    # Two networks in both orders: what is symmetric is the same.
    assert answers["disagreement"].nunique() == 1
    assert answers["accuracy_a"].to_list() == answers["accuracy_b"].to_list()[::-1]


def test_noise_trap_follows_its_formula():
    means = noise_trap(seeds=5).groupby(["features", "kind"])["cka"].mean().unstack()
    assert (means["biased"] - means["d / (n + d)"]).abs().max() < 0.03
    assert means["debiased"].abs().max() < 0.05 and means["biased, beyond chance"].abs().max() < 0.05
    assert means.loc[500, "biased"] > 0.9


def test_rank_agreement_turns_distances_round():
    layers = ["a", "b", "c"]
    values = pd.DataFrame(
        {"seed": 0, "front_layer": layers * 2, "end_layer": "b", "measure": ["near"] * 3 + ["far"] * 3,
         "value": [1.0, 2, 3, 1, 2, 3], "higher_is_better": [True] * 3 + [False] * 3}
    )  # fmt: skip
    index = pd.MultiIndex.from_product([[0], layers, ["b"]], names=["seed", "front_layer", "end_layer"])
    ranks = rank_agreement(values, pd.Series([0.1, 0.2, 0.9], index=index)).set_index("measure")["rank_correlation"]
    assert ranks.to_dict() == {"near": pytest.approx(1.0), "far": pytest.approx(-1.0)}


def test_measures_of_any_two_layers_are_those_of_the_heat_map(run):
    cells = [("conv1", "conv3"), ("conv3", "conv1"), ("relu2", "relu2")]
    values, between = measured(*run, cells), heat_maps(*run)[1].value
    first = values[(values["seed"] == 0) & (values["measure"] == "debiased_cka")]
    assert list(zip(first["front_layer"], first["end_layer"], strict=True)) == cells
    assert first["value"].to_list() == pytest.approx([between.loc[cell] for cell in cells], rel=1e-9)


def test_distance_in_depth_counts_the_layers_between():
    cells = pd.DataFrame({"seed": 0, "front_layer": ["a", "a", "b", "c"], "end_layer": ["x", "z", "y", "x"]})
    cells = pd.concat([cells, pd.DataFrame({"seed": [0], "front_layer": ["c"], "end_layer": ["y"]})])
    found = depth_distance(cells)
    # x, z, y is the order in which the end's layers are met.
    assert found["value"].to_list() == [0, 1, 1, 2, 0]
    assert order_of(cells).to_list() == ["same place", "front earlier", "front earlier", "front later", "same place"]
    assert set(found["higher_is_better"]) == {False}


def test_ignores_reads_the_record():
    assert ignores(MEASURES["linear_r2"], "linear") == "second"
    assert ignores(MEASURES["linear_cka"], "orthogonal") == "yes"
    assert ignores(MEASURES["linear_cka"], "linear") == ""


def test_unknown_measures_and_conditions_are_refused():
    with pytest.raises(ValueError, match=r"there is no measure 'linear_cak'. Did you mean 'linear_cka'"):
        SimilarityRun(measures="linear_cak")
    with pytest.raises(ValueError, match=r"there is no condition 'lincka'. Did you mean 'lin_cka'"):
        ExtensionRun(conditions="lincka")


def test_extend_all_puts_independent_training_first_and_once(tmp_path):
    p = ExtensionRun(
        model="cnn3_w4", conditions="lin_cka,logit_cosine,lens", seeds=1, epochs=2, limit=10, layer="conv2",
        report="conv1,conv2",
    )  # fmt: skip
    rows = extend_all(p, p.load(), tmp_path)
    assert list(rows["condition"]) == [c for c in ("independent", "lin_cka", "logit_cosine", "lens") for _ in range(2)]
    at = rows[rows["layer"] == "conv2"].set_index("condition")["similarity"]
    assert at["lin_cka"] < at["independent"]
    again = extend_all(p, p.load(), tmp_path)
    pd.testing.assert_frame_equal(rows, again)


def labels_of(*counts):
    """As many labels of every class, mixed."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(
    ("counts", "most", "found"),
    [
        ((80, 90, 100), 90, (30, 30, 30)),
        ((80, 90, 100), 100, (33, 33, 33)),
        ((5, 100), 60, (5, 55)),
        ((0, 40, 40), 20, (0, 10, 10)),
        ((0, 3, 100, 0), 50, (0, 3, 47, 0)),
        ((2, 2, 2), 6, (2, 2, 2)),
        ((2, 3, 2), 500, (2, 3, 2)),
        ((9, 9, 9), 2, (1, 1, 1)),
    ],
)
def test_a_subset_has_as_many_of_each_class_as_there_are(counts, most, found):
    labels = labels_of(*counts)
    chosen = balanced(labels, most)
    assert torch.equal(chosen, chosen.sort().values)
    assert torch.bincount(labels[chosen], minlength=len(counts)).tolist() == list(found)
    if len(set(found)) == 1 and sum(counts) > most:
        assert torch.equal(chosen, limited(labels, found[0]))
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 1, 1).contiguous()
    loader = Loader(Split(images, labels), 2, mean=(0.0,), std=(1 / 255,))
    (rows,) = rows_of((torch.nn.Identity(),), loader, most)
    assert torch.equal(rows[:, 0].round().long(), chosen)


def test_a_subset_of_yes_or_no_labels_is_the_first_images():
    assert balanced(torch.ones(9, 40), 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert balanced(torch.ones(9, 40), 60).tolist() == list(range(9))


def set_of(kind):
    """A data set of two classes, one of them rare; or of three labels at once."""
    images = torch.randint(0, 256, (90, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = labels_of(6, 84) if kind == "rare" else (images[:, 0, 0, :3] > 127).to(torch.uint8)
    classes = ("a", "b") if kind == "rare" else ("a", "b", "c")
    return Dataset(kind, *[Split(images, labels)] * 2, classes, (0.5,), (0.3,))


@pytest.mark.parametrize("kind", ["rare", "several"])
def test_rare_classes_and_several_labels(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    p, dataset = SimilarityRun(**SMALL | {"images": 50, "seeds": 2, "layers": "conv1,conv3"}), set_of(kind)
    within = heat_maps(p, dataset)[0].value
    assert within.to_numpy().diagonal() == pytest.approx([1.0] * 2)
    answers = predictions(p, dataset)
    assert answers["disagreement"].between(0, 1).all() and answers["accuracy_a"].between(0, 1).all()
