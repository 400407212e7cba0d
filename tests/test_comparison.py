"""The experiments of the similarity and the knowledge-extension notebooks."""

import pandas as pd
import pytest
import torch

from reptrans.comparison import (
    SimilarityRun,
    heat_maps,
    ignores,
    noise_trap,
    predictions,
    rank_agreement,
    same_layers,
)
from reptrans.extension import ExtensionRun, extend_all
from reptrans.similarity import MEASURES

SMALL = {"front_model": "cnn3_w4", "end_model": "cnn3_w4", "image_size": 0, "layers": "conv1,relu2,conv3", "seeds": 2,
         "measures": "debiased_cka,procrustes_angular", "images": 200, "train_epochs": 1}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPTRANS_DATA", str(tmp_path_factory.mktemp("comparison")))
        p = SimilarityRun(**SMALL)
        yield p, p.load()


def test_heat_maps_within_and_between(run):
    within, between = heat_maps(*run)
    assert list(within.index) == list(within.columns) == list(between.columns) == ["conv1", "relu2", "conv3"]
    assert within.to_numpy().diagonal() == pytest.approx([1.0] * 3)
    torch.testing.assert_close(torch.tensor(within.to_numpy()), torch.tensor(within.to_numpy().T))
    assert (between.to_numpy() < 1).all()


def test_same_layers_are_the_diagonal_of_the_heat_map(run):
    values, (_, between) = same_layers(*run), heat_maps(*run)
    assert len(values) == 2 * 2 * 3
    first = values[(values["seed"] == 0) & (values["measure"] == "debiased_cka")].set_index("layer")["value"]
    assert first.to_list() == pytest.approx(between.to_numpy().diagonal().tolist(), rel=1e-9)
    assert set(values.loc[values["measure"] == "procrustes_angular", "alike"]) == {"low"}


def test_predictions_have_a_row_for_each_pair(run):
    answers = predictions(*run)
    assert answers["seed"].to_list() == [0, 1]
    # Two networks in both orders: what is symmetric is the same.
    assert answers["disagreement"].nunique() == 1
    assert answers["accuracy_a"].to_list() == answers["accuracy_b"].to_list()[::-1]


def test_noise_trap_follows_its_formula():
    means = noise_trap(seeds=5).groupby(["features", "kind"])["cka"].mean().unstack()
    assert (means["biased"] - means["d / (n + d)"]).abs().max() < 0.03
    assert means["debiased"].abs().max() < 0.05
    assert means.loc[500, "biased"] > 0.9


def test_rank_agreement_turns_distances_round():
    layers = ["a", "b", "c"]
    values = pd.DataFrame(
        {"seed": 0, "layer": layers * 2, "measure": ["near"] * 3 + ["far"] * 3, "value": [1.0, 2, 3, 1, 2, 3],
         "alike": ["high"] * 3 + ["low"] * 3}
    )  # fmt: skip
    index = pd.MultiIndex.from_product([[0], layers], names=["seed", "layer"])
    ranks = rank_agreement(values, pd.Series([0.1, 0.2, 0.9], index=index)).set_index("measure")["rank_correlation"]
    assert ranks.to_dict() == {"near": pytest.approx(1.0), "far": pytest.approx(-1.0)}


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
        model="cnn3_w4", conditions="lin_cka,logit_cosine,lens", seeds=1, epochs=2, limit=10, report="conv1,conv2"
    )
    rows = extend_all(p, p.load(), tmp_path)
    assert list(rows["condition"]) == [c for c in ("independent", "lin_cka", "logit_cosine", "lens") for _ in range(2)]
    at = rows[rows["layer"] == "conv2"].set_index("condition")["similarity"]
    assert at["lin_cka"] < at["independent"]
    again = extend_all(p, p.load(), tmp_path)
    pd.testing.assert_frame_equal(rows, again)
