"""The notebook's experiment: who learns which classes, which pairs, what is kept, what is refused."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from l2t.networks import batch, network, normal

from reptrans.data import Split
from reptrans.data.dataset import of_classes, smaller
from reptrans.errors import BadValue, Diverged, UnknownName
from reptrans.experiments.l2t import (
    L2TRun,
    Transferred,
    agreement,
    best_fixed,
    costs,
    drawn,
    gains,
    pairs_of,
    source_network,
    strengthened,
    tasks,
    train_all,
    train_one,
    transfer_of,
    trials,
)
from reptrans.l2t import METHODS, evenness, on_bright, saliency
from reptrans.models import build

SMALL = {
    "limit": 4, "epochs": 1, "seeds": 1, "batch_size": 10, "warmup": 0, "device": "cpu", "test_images": 40,
    "holdout": 20, "tuning_seeds": 1,
}  # fmt: skip
FEW = "scratch,at,fm_all,l2t_ww"
LAYERS = (["relu1", "relu2", "relu3"], ["relu1", "relu2", "relu3"])


@pytest.fixture(scope="module")
def source():
    return build("cnn3_w8", num_classes=5, in_channels=1, image_size=8, seed=3).double().eval()


def test_the_classes_are_shared_out():
    p = L2TRun(**SMALL)
    learned, target = tasks(p)
    assert learned.classes == ("0", "1", "2", "3", "4") and target.classes == ("5", "6", "7", "8", "9")
    assert drawn(p, target, 1).train.labels.bincount().tolist() == [4] * 5 and len(target.test) == 40
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


def test_validation_images_are_none_that_any_network_learns_from():
    """Each image has a number of its own in a corner: the target's parts share none, nor does the source see any."""
    p = L2TRun(**SMALL)
    _, target = tasks(p)
    assert target.validation.labels.bincount().tolist() == [20] * 5
    few = [drawn(p, target, seed) for seed in (1, 2, 10_001)]
    parts = [
        {image.numpy().tobytes() for image in part.images} for part in (target.validation, *(d.train for d in few))
    ]
    assert [len(part) for part in parts] == [100, 20, 20, 20]
    assert not any(parts[0] & part for part in parts[1:])
    assert parts[1] != parts[2] and all(d.validation is target.validation and d.test is target.test for d in few)
    again = drawn(p, target, 1).train
    assert torch.equal(again.images, few[0].train.images) and torch.equal(again.labels, few[0].train.labels)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name, source, tmp_path):
    """Its own terms and no others; a second call reads what the first kept."""
    p = L2TRun(**SMALL | {"epochs": 3, "look_every": 2})
    dataset = drawn(p, tasks(p)[1], 1)
    target, transfer, rows = train_one(p, name, source, dataset, 1, tmp_path)
    method = METHODS[name]
    terms = {"matching": method.matching, "attention": method.attention, "answers": method.answers}
    assert {term: term in rows for term in terms} == terms
    assert ("outer_loss" in rows) == (method.what or method.where)
    assert list(rows["validation_accuracy"].notna()) == [False, True, True] and set(rows["method"]) == {name}
    assert not [column for column in rows if column.startswith("test")]
    again, _, same = train_one(p, name, source, dataset, 1, tmp_path)
    assert rows.equals(same) and len(list(tmp_path.iterdir())) == 1
    assert all(torch.equal(a, b) for a, b in zip(target.parameters(), again.parameters(), strict=True))


@pytest.fixture(scope="module")
def found(source, tmp_path_factory):
    p = L2TRun(**SMALL | {"seeds": 2, "tuning_seeds": 2}, methods=FEW, grid="0.1,1")
    folder = tmp_path_factory.mktemp("run")
    return p, folder, train_all(p, source, tasks(p)[1], folder)


def test_all_methods_and_seeds_stand_in_one_table(found):
    _, _, result = found
    names = FEW.split(",")
    assert list(zip(result.rows["seed"], result.rows["method"], strict=True)) == [(s, m) for s in (1, 2) for m in names]
    assert result.rows["relu1 > relu1"].notna().tolist() == [False, False, True, True] * 2
    for table in (result.scores, result.validation, result.looks):
        assert list(table) == names and list(table.index) == [1, 2] and table.index.name == "seed"
        assert 0 <= table.min(axis=None) <= table.max(axis=None) <= 1
    last = result.rows.pivot(index="seed", columns="method", values="validation_accuracy")
    pd.testing.assert_frame_equal(last[names], result.validation, check_names=False)
    pairs = result.pairs.groupby("seed").size()
    assert pairs.to_dict() == {1: 9, 2: 9} and result.pairs["evenness"].between(1 / 32, 1 + 1e-9).all()


def test_everyone_has_the_same_trials_on_seeds_of_their_own(found):
    _, _, result = found
    assert set(result.trials.groupby("method").size()) == {4}
    assert set(result.trials["seed"]) == {10_001, 10_002} and not set(result.trials["seed"]) & set(result.scores.index)
    means = result.trials.groupby(["method", "trial"])["score"].mean()
    assert all(means[name, factor] == means[name].max() for name, factor in result.chosen.items())


def test_what_was_done_is_kept_and_no_weights_are(found, source, monkeypatch):
    p, folder, result = found
    assert {path.name.split("-")[0] for path in folder.iterdir()} == {"trial", "report"}
    assert len(list(folder.iterdir())) == 4 * 4 + 2 * 4
    monkeypatch.setattr("reptrans.experiments.l2t.fit", None)
    again = train_all(p, source, tasks(p)[1], folder)
    for name in ("rows", "scores", "validation", "trials", "pairs", "looks"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(result, name))


def test_no_choice_and_no_training_depends_on_test_images(source, tmp_path):
    """With labels of the test images that would favour another trial, all but the last scores stay the same."""
    p = L2TRun(**SMALL | {"epochs": 4, "test_images": 0}, methods=FEW, grid="0.01,10")
    dataset = tasks(p)[1]
    betrayed = replace(dataset, test=Split(dataset.test.images.flip(0), (dataset.test.labels + 1) % 5))
    one, other = (train_all(p, source, data, tmp_path / str(k)) for k, data in enumerate((dataset, betrayed)))
    assert one.chosen == other.chosen and best_fixed(one) == best_fixed(other)
    pd.testing.assert_frame_equal(one.trials, other.trials)
    pd.testing.assert_frame_equal(one.rows, other.rows)
    pd.testing.assert_frame_equal(one.looks, other.looks)
    assert not one.scores.equals(other.scores)


def test_trials_look_at_no_test_image(source, tmp_path):
    p = L2TRun(**SMALL, methods="scratch,fm_all,l2t_ww", grid="0.1,1")
    assert (
        len(
            trials(
                p, source, replace(tasks(p)[1], test=Split(torch.zeros(0, 1, 8, 8), torch.zeros(0).long())), tmp_path
            )
        )
        == 6
    )


def test_frozen_factors_are_used(source, tmp_path, monkeypatch):
    p = L2TRun(**SMALL, methods=FEW, factors="fm_all:0.3, scratch:0.1,lwf:3")
    asked = []

    def kept(q, name, *_):
        asked.append((name, round(q.lr, 6), round(q.beta, 6), round(q.attention_weight, 6)))
        return {
            "rows": {"a": []},
            "pairs": {},
            **dict.fromkeys(("test_accuracy", "validation_accuracy", "on_bright"), 0.5),
        }

    monkeypatch.setattr("reptrans.experiments.l2t._kept", kept)
    result = train_all(p, source, tasks(p)[1], tmp_path)
    assert result.chosen == {"scratch": 0.1, "at": 1.0, "fm_all": 0.3, "l2t_ww": 1.0} and result.trials.empty
    assert asked == [
        ("scratch", 0.01, 0.5, 1),
        ("at", 0.1, 0.5, 1),
        ("fm_all", 0.1, 0.15, 0.3),
        ("l2t_ww", 0.1, 0.5, 1),
    ]


@pytest.mark.parametrize("name", METHODS)
def test_a_trial_changes_the_strength_or_how_one_without_trains(name, source):
    """Of every term beside the task's, by that factor; of none else."""
    p = L2TRun(**SMALL)
    dataset = drawn(p, tasks(p)[1], 1)
    few = next(iter(dataset.loader("train", 8, **p.place)))

    def terms(q):
        transfer = transfer_of(q, METHODS[name], source, dataset, 1)[1].eval()
        return {term: value.item() for term, value in transfer(few)[0].items()}

    base, more = terms(p), terms(strengthened(p, name, 0.3))
    assert more == pytest.approx({t: v * (1 if t == "cross_entropy" else 0.3) for t, v in base.items()})
    q = strengthened(p, name, 0.3)
    assert METHODS[name].weighted == (q.lr == p.lr) and q.weight_decay == p.weight_decay
    assert METHODS[name].weighted == (strengthened(p, name, 10).weight_decay == p.weight_decay)


def test_a_trial_that_diverges_has_failed(source, tmp_path, monkeypatch):
    def diverges(p, name, *_):
        if p.beta > 1:
            raise Diverged("far away")
        return None, None, pd.DataFrame({"validation_accuracy": [0.4]})

    monkeypatch.setattr("reptrans.experiments.l2t.train_one", diverges)
    p = L2TRun(**SMALL, methods="scratch,fm_all,l2t_ww", grid="1,10")
    found = trials(p, source, tasks(p)[1], tmp_path).pivot(index="method", columns="trial", values="score")
    assert found.loc["fm_all"].tolist() == found.loc["l2t_ww"].tolist() == [0.4, 0]
    assert found.loc["scratch"].tolist() == [0.4, 0.4]


def made(seeds: int = 4, **means: float) -> Transferred:
    """Scores of some methods: their means, and what differs by seed."""
    by_seed = pd.Series([0.01 * (k % 2) for k in range(seeds)], index=range(1, seeds + 1))
    scores = pd.DataFrame({name: mean + (0.5 + k % 3) * by_seed for k, (name, mean) in enumerate(means.items())})
    nothing = pd.DataFrame()
    return Transferred(nothing, scores, 1 - scores, nothing, dict.fromkeys(means, 0.3), nothing, nothing)


MEANS = {
    "scratch": 0.5,
    "fine_tuning": 0.7,
    "at": 0.6,
    "fm": 0.61,
    "lwf": 0.9,
    "fm_all": 0.65,
    "l2t_w": 0.7,
    "l2t_ww": 0.66,
}


def test_gains_are_over_scratch_and_over_the_same_pairs_unlearned():
    found = made(**MEANS)
    table, note = gains(found)
    assert not note and list(table) == [
        "method", "over", "factor", "gain", "low", "high", "n", "better", "p", "published", "verdict",
    ]  # fmt: skip
    assert list(zip(table["method"], table["over"], strict=True)) == [
        *((name, "scratch") for name in MEANS if name != "scratch"),
        # The best by validation, which here is the worst by test.
        ("l2t_w", "fm"), ("l2t_ww", "fm_all"), ("l2t_ww", "at"),
    ]  # fmt: skip
    expected = (found.scores["l2t_ww"] - found.scores["fm_all"]).mean()
    assert table.query("over == 'fm_all'")["gain"].item() == pytest.approx(expected)
    assert set(table["factor"]) == {0.3} and table["published"].isna().all() and (table["n"] == 4).all()
    assert best_fixed(found) == "at" and best_fixed(made(scratch=0.5, fm_all=0.6, lwf=0.9, l2t_ww=0.6)) == ""


def test_without_the_control_there_are_no_verdicts():
    table, note = gains(made(**MEANS | {"fine_tuning": 0.5}))
    assert "fine_tuning does not beat scratch here" in note and set(table["verdict"]) == {""}
    weak = {"scratch": 0.5, "at": 0.6, "fm_all": 0.5, "l2t_ww": 0.8}
    assert (
        "fm_all does not beat scratch here" in gains(made(**weak))[1] and not gains(made(**weak | {"fm_all": 0.6}))[1]
    )
    assert "at least two seeds" in gains(made(1, **MEANS))[1]


def test_agreement_by_hand():
    table = pd.DataFrame({"pair": list("abc") * 3, "seed": [1] * 3 + [2] * 3 + [3] * 3,
                          "x": [1, 2, 3, 10, 20, 30, 3, 2, 1]})  # fmt: skip
    assert agreement(table, "x") == pytest.approx((1 - 1 - 1) / 3)
    assert math.isnan(agreement(table[table["seed"] == 1], "x"))
    equal = pd.DataFrame({"pair": list("abc"), "seed": [4] * 3, "x": [1, 1, 1]})
    assert agreement(pd.concat([table, equal]), "x") == agreement(table, "x")


def test_evenness_and_bright_shares_by_hand():
    assert evenness(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])).tolist() == pytest.approx(
        [1, 0.25, 0.5]
    )
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).double()
    raw = torch.tensor([[[[9, 9], [0, 0]]]], dtype=torch.uint8)
    weight = net[1].weight[1].abs()
    found = on_bright(net, normal(1, 1, 2, 2), torch.tensor([1]), raw)
    assert found.item() == pytest.approx((weight[:2].sum() / weight.sum()).item())


def test_costs_count_passes(source):
    p = L2TRun(**SMALL, methods="scratch,fm,fm_all,l2t_ww")
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


def test_the_source_is_trained_as_long_as_asked(monkeypatch, source):
    asked = {}
    monkeypatch.setattr("reptrans.experiments.l2t.trained", lambda *_, **more: asked.update(more) or source)
    p = L2TRun(**SMALL, source_epochs=7)
    assert source_network(p, tasks(p)[0]) is source
    assert (asked["plan"].epochs, asked["plan"].precision, asked["plan"].portable) == (7, "float64", True)


def test_saliency_by_hand():
    """Of a linear network: the absolute weights of the right class, summed over channels, adding up to 1."""
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 3)).double()
    labels = torch.tensor([2, 0])
    found = saliency(net, normal(2, 2, 2, 2), labels)
    expected = net[1].weight[labels].reshape(2, 2, 2, 2).abs().sum(1)
    torch.testing.assert_close(found, (expected / expected.sum((1, 2), keepdim=True)).detach())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"methods": "scratch,fm_all"}, "l2t_ww is missing, with which the notebook compares the others"),
        ({"methods": "scratch,l2t_ww"}, "fm_all is missing"),
        ({"methods": "scratch,l2t"}, "there is no 'l2t'"),
        ({"grid": "1"}, "at least two different numbers"),
        ({"grid": "1,1"}, "at least two different numbers"),
        ({"grid": "1,x"}, "'x' is no number"),
        ({"factors": "fm:0"}, "above 0"),
        ({"factors": "fm:nan"}, "above 0"),
        ({"factors": "fm"}, "not of the form method:number"),
        ({"factors": "fm:1,fm:2"}, "named twice"),
        ({"factors": "fmm:1"}, "there is no method 'fmm'. Did you mean 'fm'"),
        ({"grid": "0.1,1", "factors": "fm:1"}, "Leave one empty"),
        ({"holdout": 0}, "greater than 0"),
        ({"tuning_seeds": 0}, "greater than or equal to 1"),
        ({"look_every": 0}, "greater than or equal to 1"),
    ],
)
def test_parameters_that_cannot_be(given, reason):
    with pytest.raises((BadValue, UnknownName), match=reason):
        L2TRun(**given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"holdout": 1000}, "At least one must be held out"),
        ({"holdout": 0.001}, "takes 0 of the"),
        ({"holdout": 2.5}, "a whole number of examples"),
        ({"limit": 139}, "limit is 139, but class '5' has"),
    ],
)
def test_images_that_are_not_there_are_said_before_any_training(given, reason, monkeypatch):
    monkeypatch.setattr("reptrans.experiments.l2t.fit", None)
    with pytest.raises(BadValue, match=reason):
        tasks(L2TRun(**SMALL | given))


def test_a_target_that_cannot_start_from_the_source_is_refused(source):
    p = L2TRun(**SMALL, model="cnn3_w4")
    with pytest.raises(BadValue, match="none can start from it"):
        tasks(p)
    with pytest.raises(BadValue, match="none can start from it"):
        transfer_of(p, METHODS["fine_tuning"], source, drawn(p, tasks(L2TRun(**SMALL))[1], 0), 0)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_what_its_name_says(name):
    method, words = METHODS[name], name.split("_")
    assert method.answers == ("lwf" in words) and method.attention == ("at" in words)
    assert method.matching == (words[0] in ("fm", "l2t")) and method.what == (words[0] == "l2t")
    assert method.where == ("ww" in words) and method.starts == (name == "fine_tuning")
    paired = method.matching or method.attention
    kind = "single" if "single" in words else "all" if {"all", "ww"} & set(words) else "one_to_one"
    assert method.pairs == (kind if paired else "")
    assert method.weighted == (name not in ("scratch", "fine_tuning"))
    assert method.fixed == (name in ("at", "lwf_at", "fm_single", "fm"))
