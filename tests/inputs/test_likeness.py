"""Two networks' class images: what the columns mean, and that the same parameters give the same rows."""

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from reptrans.data import load_dataset
from reptrans.errors import BadValue
from reptrans.experiments.model_similarity import ModelSimilarityRun, compare_models, first_of_each
from reptrans.inputs import class_logit, correlation, match
from reptrans.inputs.objective import value_and_gradient

SMALL = {"models": "cnn3_w8,cnn3_w16", "judge": "cnn3_w8", "image_size": 8, "limit": 40, "seeds": 1, "steps": 40,
         "variation": 1.0, "inside": 5.0}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="module")
def found(folder):
    p = ModelSimilarityRun(**SMALL)
    return compare_models(p, p.load(), folder)


def test_the_first_image_of_each_class():
    data = load_dataset("digits", image_size=8)
    images = first_of_each(data)
    index = [data.test.labels.tolist().index(k) for k in range(10)]
    assert torch.equal(images, data.test.images[index].double() / 255)


def test_there_is_a_row_for_each_of_all(found):
    assert found.made.groupby("kind", sort=False).size().to_dict() == dict.fromkeys(
        ["one", "other", "both", "difference", "natural"], 10
    )
    assert found.gradients["place"].tolist() == ["noise", "natural", "both"]
    assert found.matched.groupby("target", sort=False).size().to_dict() == {"generated": 10, "natural": 10}
    assert all(table.notna().all(axis=None) for table in (found.made, found.gradients, found.matched))


def test_the_judge_is_no_copy(found):
    one, _, judge = found.networks[0]
    images = found.images[0, "natural"]
    assert not torch.allclose(one(images), judge(images))


def test_probabilities_are_of_the_class_meant(found):
    for who, net in zip(("one", "other", "judge"), found.networks[0], strict=True):
        told = F.softmax(net(found.images[0, "both"]), 1).diagonal().tolist()
        assert found.made.query("kind == 'both'")[f"p_{who}"].tolist() == pytest.approx(told)
    right = found.networks[0][2](found.images[0, "one"]).argmax(1) == torch.arange(10)
    assert found.made.query("kind == 'one'")["right"].tolist() == right.double().tolist()


def test_reached_is_what_the_networks_answer(found):
    rows = found.made.set_index("kind")
    one, other = rows["p_one"] > 0.5, rows["p_other"] > 0.5
    for kind, wanted in (("one", one), ("other", other), ("both", one & other), ("difference", one & ~other)):
        assert rows.loc[kind, "reached"].tolist() == wanted[kind].tolist()
    assert rows.loc["natural", "reached"].all() and 0 < rows["reached"].mean() <= 1


def test_images_do_what_they_are_made_for(found):
    p = found.made.groupby("kind")[["p_one", "p_other"]].mean()
    assert p.loc["one", "p_one"] > p.loc["one", "p_other"] and p.loc["other", "p_other"] > p.loc["other", "p_one"]
    assert p.loc["both"].min() > 0.5
    assert p.loc["difference", "p_one"] - p.loc["difference", "p_other"] > 0.3


def test_cosines_by_hand(found):
    one, other, _ = found.networks[0]
    images = found.images[0, "natural"]
    g, h = ([value_and_gradient(class_logit(net, k), images)[1].flatten(1) for k in range(10)] for net in (one, other))
    table = torch.tensor([[F.cosine_similarity(g[i], h[j]).mean() for j in range(10)] for i in range(10)])
    row = found.gradients.query("place == 'natural'").iloc[0]
    assert row["same_class"] == pytest.approx(table.diagonal().mean().item(), abs=1e-6)
    apart = table[~torch.eye(10, dtype=torch.bool)].mean().item()
    assert row["other_class"] == pytest.approx(apart, abs=1e-6)


def test_matched_outputs(found):
    a, x, own = (found.images[0, kind] for kind in ("one", "generated, matched", "other"))
    rows = found.matched.query("target == 'generated'")
    net = found.networks[0][1]
    assert rows["relative_error"].tolist() == pytest.approx(match(net, net(a))(x).tolist())
    assert rows["correlation_matched"].tolist() == pytest.approx(correlation(x, a).tolist())
    assert rows["correlation_own"].tolist() == pytest.approx(correlation(own, a).tolist())
    assert rows["relative_error"].mean() < 0.3


def test_the_same_parameters_give_the_same_rows(found, folder):
    p = ModelSimilarityRun(**SMALL)
    again = compare_models(p, p.load(), folder)
    for name in ("made", "gradients", "matched"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(again, name))


def test_two_networks_are_needed():
    with pytest.raises(BadValue, match="two names are compared"):
        ModelSimilarityRun(models="resnet8")
