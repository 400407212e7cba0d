"""Tests whose answer is known, put to measures whose answer is known too."""

import numpy as np
import pandas as pd
import pytest
import torch

from reptrans.errors import BadData, BadValue, LayerNotFound, ShapeMismatch, UnknownName
from reptrans.experiments import grounded as experiment
from reptrans.experiments.grounded import (
    PUBLISHED,
    STRUCTURAL,
    GroundedRun,
    beside_published,
    grounded,
    likeness,
    ranked,
    with_noise,
)
from reptrans.similarity import Features, compare
from reptrans.similarity.grounding import conformity, correspondence, monotonicity, separation

GROUPS = np.array(["a", "a", "b", "b", "b"])
SMALL = {"seeds": 3, "train_epochs": 1, "image_size": 8, "dataset": "shapes:shape:difficulty=0:images=60", "limit": 0,
         "noise_levels": "0,1", "cues": "0,1", "images": 60, "layers": 4,
         "contestants": 'rsa,mutual_knn,"stitch, least squares",same answers,same errors'}  # fmt: skip


def test_a_right_measure_scores_one_and_a_wrong_one_nothing():
    right = (GROUPS[:, None] == GROUPS).astype(float)
    assert separation(right, GROUPS).tolist() == conformity(right, GROUPS).tolist() == [1.0] * 5
    assert conformity(-right, GROUPS).tolist() == [0.0] * 5
    # One of four others is right and comes last; two of four come last.
    assert separation(-right, GROUPS) == pytest.approx([1 / 4] * 2 + [(1 / 3 + 2 / 4) / 2] * 3)


def test_equal_similarities_are_no_merit():
    assert conformity(np.ones((5, 5)), GROUPS).tolist() == [0.0] * 5
    assert separation(np.ones((5, 5)), GROUPS) == pytest.approx([1 / 4] * 2 + [(1 / 3 + 2 / 4) / 2] * 3)


def test_noise_scores_as_chance_does():
    g, groups = np.random.default_rng(0), np.repeat(np.arange(4), 5)
    found = [(separation(s, groups).mean(), conformity(s, groups).mean()) for s in g.normal(size=(200, 20, 20))]
    area, share = np.mean(found, 0)
    assert abs(share - 0.5) < 0.01 and 4 / 19 < area < 4 / 19 + 0.12  # the mean of precision is above the share


def test_layers_in_order_and_layers_that_find_themselves():
    depth = np.arange(5)
    near = -np.abs(depth[:, None] - depth).astype(float)
    assert monotonicity(near) == 1 and monotonicity(-near) == 0 and monotonicity(np.ones((5, 5))) == 0
    assert correspondence(near) == 1 and correspondence(np.roll(near, 1, 0)) == 0
    assert correspondence(np.ones((5, 5))) == 0
    near[0, 1] = 1
    assert correspondence(near) == 4 / 5


def test_tables_that_cannot_be_scored():
    with pytest.raises(ShapeMismatch, match=r"similarities of 5 networks are \(5, 5\); given \(4, 4\)"):
        separation(np.ones((4, 4)), GROUPS)
    with pytest.raises(BadData, match="NaN or infinity"):
        conformity(np.full((5, 5), np.nan), GROUPS)
    for groups in (["a"] * 5, ["a", "b", "b", "b", "b"]):
        with pytest.raises(BadData, match="every group needs two networks, and there have to be two"):
            separation(np.ones((5, 5)), groups)
    with pytest.raises(BadData, match="three or more; given 2"):
        monotonicity(np.ones((2, 2)))


def test_distances_are_turned_round_and_both_ways_count():
    g = torch.Generator().manual_seed(0)
    own = Features({name: torch.randn(30, 4, generator=g) for name in "abc"}, range(30))
    assert np.allclose(likeness(own, own, "gulp"), -compare(own, own, measure="gulp"))
    pwcca = compare(own, own, measure="pwcca").to_numpy()
    assert np.allclose(likeness(own, own, "pwcca"), (pwcca + pwcca.T) / 2) and not np.allclose(pwcca, pwcca.T)


def test_there_are_enough_contestants():
    assert len(STRUCTURAL) >= 30 and len(experiment.FUNCTIONAL) >= 4
    assert set(PUBLISHED) <= set(STRUCTURAL)


def test_ranks_are_shares_of_those_that_took_part():
    scores = {("t", "x"): (0.9,) * 3, ("t", "y"): (0.5,) * 3, ("t", "z"): (0.1,) * 3,
              ("u", "x"): (0.1,) * 3, ("u", "y"): (0.1, 1.1, 2.1)}  # fmt: skip
    rows = pd.DataFrame(
        [("m", test, seed, name, v) for (test, name), values in scores.items() for seed, v in enumerate(values)],
        columns=["model", "test", "seed", "contestant", "score"],
    )
    table = ranked(rows).set_index("contestant")
    # In u: x and y share the rank in the first seed, then y is the first.
    assert table["rank"].to_dict() == pytest.approx({"x": (0.25 + 0.5 + 0.5) / 3, "y": (0.5 + 0.25 + 0.25) / 3, "z": 1})
    assert table["tests"].to_dict() == {"x": 2, "y": 2, "z": 1}
    assert table.index[0] == "y" and table.loc["x", "low"] < table.loc["x", "rank"] < table.loc["x", "high"]


def test_the_published_order_correlates_fully_with_itself():
    rows = pd.DataFrame([("m", "t", s, k, -v) for k, v in PUBLISHED.items() for s in (0, 1)],
                        columns=["model", "test", "seed", "contestant", "score"])  # fmt: skip
    assert beside_published(rows)[0] == pytest.approx(1)
    with pytest.raises(BadValue, match="1 of the contestants have a published rank"):
        beside_published(rows[rows["contestant"] == "svcca"])


def test_noise_is_drawn_into_a_share_of_the_training_labels():
    dataset = GroundedRun(**SMALL).load()
    whole, half, none = (with_noise(dataset, share).train.labels for share in (1.0, 0.5, 0.0))
    assert torch.equal(none, dataset.train.labels) and torch.equal(whole, with_noise(dataset, 1.0).train.labels)
    classes = dataset.num_classes
    assert 0.5 * (1 - 2 / classes) < (half != none).double().mean() <= 0.5
    assert with_noise(dataset, 1.0).test is dataset.test


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPTRANS_DATA", str(tmp_path_factory.mktemp("grounded")))
        p = GroundedRun(**SMALL)
        yield grounded(p, p.load())[0]


def test_every_test_scores_whom_it_can(rows):
    took_part = rows.groupby("test")["contestant"].unique().map(set).to_dict()
    everyone = set(GroundedRun(**SMALL).chosen)
    for test in ("noise", "cues", "augmentation"):
        assert took_part[test] == everyone
    assert took_part["layers"] == took_part["seeds"] == {"rsa", "mutual_knn"}
    assert took_part["answers"] == {"rsa", "mutual_knn", "stitch, least squares"}
    assert len(rows) == 3 * (3 * 5 + 2 * 2 + 3) and rows["score"].between(-1, 1).all()


def test_what_does_not_fit_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    monkeypatch.setattr(GroundedRun, "trained", lambda *_: pytest.fail("trained"))
    dataset = GroundedRun(**SMALL).load()
    for change, error, message in (
        ({"layer": "relu9"}, LayerNotFound, "relu9"),
        ({"dataset": "digits"}, BadValue, "cues are drawn into shapes alone"),
        ({"models": "cnn9"}, UnknownName, "cnn9"),
    ):
        with pytest.raises(error, match=message):
            grounded(GroundedRun(**SMALL | change), dataset)
    for change, message in (
        ({"noise_levels": "0,lots"}, "shares are numbers from 0 to 1"),
        ({"cues": "1"}, "groups need two shares or more"),
        ({"augmentations": "none"}, "two augmentations or more"),
        ({"tests": "noise,truth"}, "no test 'truth'"),
        ({"contestants": "cka"}, "'cka'"),
    ):
        with pytest.raises((BadValue, UnknownName, ValueError), match=message):
            GroundedRun(**SMALL | change)
