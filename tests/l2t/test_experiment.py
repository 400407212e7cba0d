"""The notebook's experiment: who learns which classes, which pairs, what is kept, what is refused."""

import matplotlib.pyplot as plt
import pytest
import torch
from l2t.networks import batch, network, normal
from pydantic import ValidationError

from reptrans.errors import BadValue
from reptrans.experiments.l2t import L2TRun, costs, pairs_of, source_network, tasks, train_all, train_one, transfer_of
from reptrans.l2t import METHODS, channel_histogram, matching_lines, saliency
from reptrans.l2t.subsets import of_classes, smaller
from reptrans.models import build

SMALL = {"limit": 4, "epochs": 1, "seeds": 1, "batch_size": 10, "warmup": 0, "device": "cpu", "test_images": 40}
LAYERS = (["relu1", "relu2", "relu3"], ["relu1", "relu2", "relu3"])


@pytest.fixture(scope="module")
def source():
    return build("cnn3_w8", num_classes=5, in_channels=1, image_size=8, seed=3).double().eval()


def test_the_classes_are_shared_out():
    p = L2TRun(**SMALL)
    learned, target = tasks(p)
    assert learned.classes == ("0", "1", "2", "3", "4") and target.classes == ("5", "6", "7", "8", "9")
    assert target.train.labels.bincount().tolist() == [4] * 5 and len(target.test) == 40
    whole = p.model_copy(update={"limit": 0}).load()
    sevens = of_classes(whole, range(7, 8))
    assert len(sevens.test) == int((whole.test.labels == 7).sum()) and not sevens.test.labels.any()
    assert torch.equal(sevens.test.images, whole.test.images[whole.test.labels == 7])


def test_smaller_sets_are_the_first_of_each_class_and_evenly_spaced():
    whole = L2TRun(**SMALL).model_copy(update={"limit": 0}).load()
    few = smaller(whole, limit=2, test=5)
    first = [(whole.train.labels == k).nonzero().flatten()[:2] for k in range(10)]
    assert torch.equal(few.train.images, whole.train.images[torch.cat(first).sort().values])
    last = len(whole.test) - 1
    spaced = [0, round(last / 4), round(last / 2), round(last * 3 / 4), last]
    assert torch.equal(few.test.images, whole.test.images[spaced])
    assert smaller(whole, 0, 0) is whole and smaller(whole, 0, 10**6) is whole


def test_too_few_classes_for_the_target():
    with pytest.raises(BadValue) as error:
        tasks(L2TRun(**SMALL, source_classes=9))
    assert str(error.value) == (
        "source_classes is 9, but digits has 10 classes and the target needs two of them at least."
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("one_to_one", [("relu1", "relu1"), ("relu2", "relu2"), ("relu3", "relu3")]),
        ("single", [("relu3", "relu3")]),
    ],
)
def test_pairs_of_equal_sides(kind, expected):
    assert pairs_of(kind, network(0), network(1), LAYERS, batch().images) == expected
    assert len(pairs_of("all", network(0), network(1), LAYERS, batch().images)) == 9


def test_no_equal_sides_are_said_so():
    with pytest.raises(BadValue) as error:
        pairs_of("single", network(0), network(1), (["relu1"], ["relu3"]), batch().images)
    assert str(error.value) == (
        "no source layer has maps of a target layer's size, which 'single' pairs need: source relu1 (8, 8); target "
        "relu3 (2, 2). Name other layers."
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name, source, tmp_path):
    """Its own terms and no others; a second call reads what the first kept."""
    p = L2TRun(**SMALL)
    dataset = tasks(p)[1]
    target, transfer, rows = train_one(p, name, source, dataset, 0, tmp_path)
    method = METHODS[name]
    terms = {"matching": method.matching, "attention": method.attention, "answers": method.answers}
    assert {term: term in rows for term in terms} == terms
    assert ("outer_loss" in rows) == (method.what or method.where)
    assert 0 <= rows["test_accuracy"].item() <= 1 and rows["method"].item() == name
    again, _, same = train_one(p, name, source, dataset, 0, tmp_path)
    assert rows.equals(same) and len(list(tmp_path.iterdir())) == 1
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), again.parameters(), strict=True))


def test_all_methods_and_seeds_stand_in_one_table(source, tmp_path):
    p = L2TRun(**SMALL | {"seeds": 2}, methods="scratch,l2t_ww")
    rows = train_all(p, source, tasks(p)[1], tmp_path)
    assert list(zip(rows["method"], rows["seed"], strict=True)) == [
        ("scratch", 0), ("l2t_ww", 0), ("scratch", 1), ("l2t_ww", 1),
    ]  # fmt: skip
    assert rows["relu1 > relu1"].notna().tolist() == [False, True, False, True]


def test_costs_count_passes(source):
    p = L2TRun(**SMALL, methods="scratch,fm,l2t_ww")
    found = costs(p, source, tasks(p)[1]).set_index("method")
    # A step is a forward pass and two of its cost back, but for the gradient by the image.
    assert 2 < found.loc["scratch", "step"] < 3 < found.loc["fm", "step"]
    assert found.loc["scratch", "probe"] == found.loc["fm", "probe"] == 0 and found.loc["l2t_ww", "probe"] > 12


def test_the_source_is_read_from_the_authors_file(shared):
    file = shared("data/networks/l2t_ww/tinyimagenet-200-resnet32/model_best.pth.tar")
    p = L2TRun(source_model="resnet32_l2t", source_weights=str(file), dtype="float32", device="cpu")
    three = torch.zeros(1, 3, 32, 32)

    class Images:
        form = {"num_classes": 10, "in_channels": 3, "image_size": (32, 32)}

    net = source_network(p, Images())
    assert net(three).shape == (1, 200) and not net.training


def test_saliency_by_hand():
    """Of a linear network: the absolute weights of the right class, summed over channels, adding up to 1."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 3)).double()
    labels = torch.tensor([2, 0])
    found = saliency(net, normal(2, 2, 2, 2), labels)
    expected = net[1].weight[labels].reshape(2, 2, 2, 2).abs().sum(1)
    torch.testing.assert_close(found, (expected / expected.sum((1, 2), keepdim=True)).detach())


def test_lines_are_as_wide_as_lambda():
    ax = matching_lines({("a", "x"): 2.0, ("a", "y"): 0.5, ("b", "y"): 0.0}, most=4.0)
    assert [line.get_linewidth() for line in ax.lines[:3]] == [5.0, 1.25, 0.0]
    assert [text.get_text() for text in ax.texts] == ["a", "b", "x", "y"]
    with pytest.raises(BadValue, match="strengths is empty"):
        matching_lines({})
    plt.close("all")


def test_histogram_of_uniform_weights_stands_at_one():
    ax = channel_histogram({("a", "x"): torch.full((5, 4), 0.25)})
    (shape,) = ax.patches
    drawn = shape.get_xy()
    assert drawn[drawn[:, 1] > 0][:, 0].min() > 0.9 and drawn[drawn[:, 1] > 0][:, 0].max() < 1.1
    plt.close("all")


def test_methods_that_the_notebook_needs():
    with pytest.raises(ValidationError, match="l2t_ww is missing, with which the notebook compares the others"):
        L2TRun(methods="scratch,fm")
    with pytest.raises(ValidationError, match="there is no 'l2t'"):
        L2TRun(methods="scratch,l2t")


def test_a_target_that_cannot_start_from_the_source_is_refused(source):
    p = L2TRun(**SMALL, model="cnn3_w4")
    with pytest.raises(BadValue, match="none can start from it"):
        transfer_of(p, METHODS["fine_tuning"], source, tasks(p)[1], 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_what_its_name_says(name):
    method, words = METHODS[name], name.split("_")
    assert method.answers == ("lwf" in words) and method.attention == ("at" in words)
    assert method.matching == (words[0] in ("fm", "l2t")) and method.what == (words[0] == "l2t")
    assert method.where == ("ww" in words) and method.starts == (name == "fine_tuning")
    paired = method.matching or method.attention
    kind = "single" if "single" in words else "all" if {"all", "ww"} & set(words) else "one_to_one"
    assert method.pairs == (kind if paired else "")
