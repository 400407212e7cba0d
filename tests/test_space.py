"""Class-by-class outputs: values by hand, and a baseline whose mean is known."""

import pytest
import torch
from torch import nn

from reptrans.errors import BadData, BadValue, ShapeMismatch, UnknownName
from reptrans.similarity.space import (
    centred_cosine,
    class_outputs,
    compare_spaces,
    mutual_share,
    nearest,
    neighbour_agreement,
    permutation_baseline,
    self_classification,
)

X = torch.tensor([[9.0, 2.0, 1.0, 0.0], [3.0, 9.0, 1.0, 0.0], [0.0, 5.0, 4.0, 1.0], [1.0, 0.0, 2.0, 9.0]])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_outputs_are_rows_in_the_order_of_classes():
    net = nn.Sequential(nn.Dropout(0.9), nn.Flatten(), nn.Linear(4, 3, bias=False)).double().train()
    images = normal(3, 1, 2, 2)
    found = class_outputs(net, images)
    assert found.dtype == torch.float64 and net.training
    assert torch.allclose(found, images.flatten(1) @ net[2].weight.T)
    several = torch.stack([images, 3 * images], 1)
    assert torch.allclose(class_outputs(net, several), 2 * found)


def test_cosine_of_centred_rows():
    x = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    assert centred_cosine(x, x) == pytest.approx(1)
    assert centred_cosine(x, 3 * x + torch.tensor([[5.0], [-2.0]])) == pytest.approx(1)
    assert centred_cosine(x, -x) == pytest.approx(-1)
    assert centred_cosine(x, torch.tensor([[1.0, -1.0], [-1.0, 1.0]])) == pytest.approx(0)
    assert centred_cosine(x, torch.tensor([[1.0, -1.0], [0.0, 0.0]])) == pytest.approx(0.5**0.5)


def test_neighbours_by_hand():
    assert nearest(X).flatten().tolist() == [1, 0, 1, 2]
    assert nearest(X, 2)[2].tolist() == [1, 3]
    points = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    assert nearest(points, by="distance").flatten().tolist() == [1, 0, 1]
    assert nearest(torch.ones(3, 3)).flatten().tolist() == [1, 0, 0]


def test_edges_are_directed():
    assert mutual_share(nearest(X)) == 0.5  # 0 and 1 choose each other; 2 and 3 are not chosen back
    assert mutual_share(torch.tensor([[1], [0], [3], [2]])) == 1
    assert mutual_share(torch.tensor([[1], [2], [0]])) == 0


def test_agreement_by_hand():
    a, b = torch.tensor([[1, 2], [0, 2], [0, 1], [0, 1]]), torch.tensor([[2, 1], [2, 3], [3, 1], [2, 3]])
    assert neighbour_agreement(a, a) == 1
    assert neighbour_agreement(a, b) == pytest.approx((2 + 1 + 1 + 0) / 8)
    with pytest.raises(ShapeMismatch, match="tables of neighbours"):
        neighbour_agreement(a, b[:, :1])


@pytest.mark.parametrize("k", [1, 3])
def test_permutation_gives_k_of_the_others(k):
    x, y = (nearest(normal(10, 10, seed=seed), k) for seed in (0, 1))
    found = permutation_baseline(x, y, 4000, seed=2)
    assert float(found.mean()) == pytest.approx(k / 9, abs=5 * float(found.std()) / 4000**0.5)
    assert torch.equal(found[:50], permutation_baseline(x, y, 50, seed=2))


def test_renaming_classes_keeps_a_table_a_table_of_neighbours():
    """With three classes in a circle, half of all renamings turn it round."""
    circle = torch.tensor([[1], [2], [0]])
    found = permutation_baseline(circle, circle, 2000)
    assert set(found.tolist()) == {0.0, 1.0}
    assert float(found.mean()) == pytest.approx(0.5, abs=0.05)


def test_self_classification():
    assert self_classification(X) == 0.75
    assert self_classification(torch.eye(4)) == 1


def test_a_space_beside_itself_and_beside_another():
    x = normal(12, 12) + 5 * torch.eye(12)
    rows = compare_spaces(x, x, permutations=99).set_index("quantity")
    for name in ("centred_cosine", "rsa", "neighbours_logit_1", "neighbours_distance_5"):
        assert rows.loc[name, "value"] == pytest.approx(1)
    assert rows.loc["neighbours_logit_5", "p"] == 0.01
    chance = permutation_baseline(nearest(x, 5), nearest(x, 5), 99)
    assert rows.loc["neighbours_logit_5", ["chance", "chance_sd"]].tolist() == [chance.mean(), chance.std()]
    assert rows.loc["self_x", "value"] == self_classification(x)
    assert rows.loc["mutual_distance_y", "value"] == mutual_share(nearest(x, 1, "distance"))
    other = compare_spaces(x, normal(12, 12, seed=3), permutations=99).set_index("quantity")
    assert abs(other.loc["centred_cosine", "value"]) < 0.5
    assert other.loc["neighbours_logit_5", "p"] > 0.01
    assert "neighbours_logit_5" not in set(compare_spaces(x[:5, :5], x[:5, :5], permutations=9)["quantity"])


def test_refusals():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ShapeMismatch, match=r"2 classes have images, but the network's outputs are \(3,\)"):
        class_outputs(net, torch.zeros(2, 1, 2, 2))
    with pytest.raises(ShapeMismatch, match=r"does not take images \(3, 1, 3, 3\)"):
        class_outputs(net, torch.zeros(3, 1, 3, 3))
    with pytest.raises(BadData, match="NaN"):
        class_outputs(net, torch.full((3, 1, 2, 2), torch.nan))
    with pytest.raises(ShapeMismatch, match="of the same classes"):
        centred_cosine(torch.eye(3), torch.eye(4))
    with pytest.raises(BadValue, match="each has 1 to 3 neighbours"):
        nearest(X, 4)
    with pytest.raises(UnknownName, match="Did you mean 'distance'"):
        nearest(X, 1, "distances")
