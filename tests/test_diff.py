"""What differs between two networks: parts against closed forms, a planted difference named first, reasons for gaps."""

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from reptrans import packaged
from reptrans.__main__ import main
from reptrans.checkpoints import trained
from reptrans.data import load_dataset
from reptrans.data.split import Split
from reptrans.errors import BadCheckpoint, BadData, BadValue, CannotCut, ShapeMismatch, UnknownName
from reptrans.experiments import answers, diff
from reptrans.experiments.diff import DiffRun, answers_compared, differences
from reptrans.experiments.sides import Side, _network_in, sides
from reptrans.experiments.verdict import barriers, verdict
from reptrans.merging.units import permuted, unit_groups
from reptrans.models import build
from reptrans.notebook import checked
from reptrans.runs import Run

FEW = DiffRun(layers=3, orders=20, images=60, fit_images=100, scored=100, pictures=4, steps=3)


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def net(digits):
    return trained("cnn3_w8", digits, 0)


def pair(net, other, data, more=None):
    return Side("A", "a", net, data), Side("B", "b", other, more or data)


def answering(letter, data, given):
    """A side whose network gives these answers."""
    side = Side(letter, "", nn.Identity(), data)
    vars(side)["logits"] = 9.0 * F.one_hot(given, data.num_classes).double()
    return side


# Shares


def test_the_effect_of_two_shares():
    yes, no = torch.ones(1000, dtype=torch.bool), torch.zeros(1000, dtype=torch.bool)
    found = answers.paired(yes, no)
    assert found["a"] == 1 and found["b"] == 0 and found["difference"] == 1 and found["high"] == 1
    assert 0.98 * math.pi < found["effect"] < math.pi
    half = torch.arange(1000) % 2 == 0
    assert answers.paired(half, half)["effect"] == 0 and answers.paired(half, ~half)["effect"] == 0
    turned = answers.paired(no, yes)
    assert turned["effect"] == found["effect"] and (turned["low"], turned["high"]) == (-1, -found["low"])


def test_few_images_and_many_tests_make_an_effect_smaller():
    few, many = (answers.paired(*(torch.arange(n) % 4 < k for k in (3, 1))) for n in (20, 2000))
    assert 0 < few["effect"] < many["effect"] < 2 * (math.asin(0.75**0.5) - math.asin(0.5))
    some = torch.arange(200) % 4 < 3, torch.arange(200) % 4 < 1
    assert answers.paired(*some, tests=100)["effect"] < answers.paired(*some)["effect"]
    assert answers.paired(torch.arange(20) < 1, torch.arange(20) < 0)["effect"] == 0


def test_the_interval_is_that_of_agresti_and_min():
    x = torch.tensor([True] * 30 + [False] * 70)
    y = torch.tensor([True] * 10 + [False] * 70 + [True] * 20)
    b, c, n = 20.5, 20.5, 102
    reach = 1.959964 * math.sqrt(b + c - (b - c) ** 2 / n) / n
    found = answers.paired(x, y)
    assert (found["low"], found["high"]) == pytest.approx((-reach, reach), abs=1e-6)


# Answers


def test_a_class_that_is_called_another_is_named_first(digits):
    labels = digits.test.labels
    wrong = labels.clone()
    threes = (labels == 3).nonzero()[:, 0]
    wrong[threes[: round(0.84 * len(threes))]] = 7
    found = answers_compared(answering("A", digits, labels), answering("B", digits, wrong))
    first = verdict(found)[0]
    assert first.about == ("class", "3", "7")
    assert str(first).startswith('B calls 84 % of the images of class 3 "7", A 0 % (')
    rows = found["classes"].set_index("class")
    assert (rows["effect"].drop("3") == 0).all() and rows.loc["3", "b"] == pytest.approx(0.16, abs=0.01)


def test_two_classes_that_are_exchanged_make_one_sentence(digits):
    labels = digits.test.labels
    order = torch.tensor([0, 1, 2, 7, 4, 5, 6, 3, 8, 9])
    first, second, *_ = verdict(answers_compared(answering("A", digits, order[labels]), answering("B", digits, labels)))
    assert first.about[1:] in {("3", "7"), ("7", "3")}
    assert "the other way round, A calls 100 % of the images of class" in str(first)
    assert second.about == ("accuracy",)


def test_errors_in_all_classes_are_an_accuracy_and_no_class(digits):
    labels = digits.test.labels
    wrong = torch.where(torch.arange(len(labels)) % 3 == 0, (labels + 1 + torch.arange(len(labels)) % 9) % 10, labels)
    found = answers_compared(answering("A", digits, labels), answering("B", digits, wrong))
    assert verdict(found)[0].about == ("accuracy",)
    told = found["accuracies"].set_index("what")["value"]
    assert told["A is right"] == 1 and told["only A is right"] == told["answers differ"] == pytest.approx(
        1 / 3, abs=0.01
    )
    assert told["error consistency"] == 0  # who never errs has no errors to share


def test_answers_that_follow_a_known_factor_are_named_first():
    data = load_dataset("shapes:shape:images=20:difficulty=0", image_size=8)
    colours = load_dataset("shapes:colour:images=20:difficulty=0", image_size=8).test.labels
    labels = data.test.labels
    found = answers_compared(answering("A", data, labels), answering("B", data, colours))
    assert verdict(found)[0].about == ("factor", "colour", "B")
    top = found["factors"].iloc[0]
    assert (top["factor"], top["follower"], top["a"], top["b"]) == ("colour", "B", 0, 1)
    assert top["n"] == (colours != labels).sum()
    half = torch.where(torch.rand(len(labels), generator=torch.Generator().manual_seed(0)) < 0.5, colours, labels)
    found = answers_compared(answering("A", data, labels), answering("B", data, half))
    assert verdict(found)[0].about == ("factor", "colour", "B")


def test_a_factor_that_only_goes_with_a_class_is_none(digits):
    labels = digits.test.labels
    found = answers_compared(answering("A", digits, labels), answering("B", digits, labels.where(labels != 3, 7)))
    assert (found["factors"]["effect"] == 0).all()


def test_values_are_exchanged_within_classes_alone():
    labels, values = torch.arange(60) % 3, torch.arange(60) // 6
    mixed = answers._within(values, labels)
    assert (mixed != values).any()
    for k in range(3):
        assert torch.equal(mixed[labels == k].sort().values, values[labels == k].sort().values)


def test_equal_answers_are_no_difference_and_one_in_a_thousand_is_small(digits):
    labels = digits.test.labels
    other = labels.clone()
    other[0] = (other[0] + 1) % 10
    told = verdict(answers_compared(answering("A", digits, labels), answering("B", digits, other)))
    assert told[0].about == ("nothing",) and "is decided to differ" in str(told[0])
    assert "differ on 0.1 % of 797 images" in str(told[1])


# Networks of closed form


def test_the_same_network_twice(digits, net):
    found = differences(*pair(net, copy.deepcopy(net), digits), FEW)
    first = verdict(found)[0]
    assert first.about == ("equal", "weights") and str(first).startswith("There is no difference")
    assert not found.missing and found["layers"]["effect"].tolist() == pytest.approx([1, 1, 1])
    assert found["stitches"]["agreement"].tolist() == [1] * 6 and found["stitches"]["share"].tolist() == [1] * 6
    assert found["weights"].apart == (0, 0) and (found["weights"].moved["before"] == 0).all()


def test_exchanged_outputs_are_named_first_and_are_a_descendant(digits, net):
    other, order = copy.deepcopy(net), torch.tensor([0, 1, 2, 7, 4, 5, 6, 3, 8, 9])
    with torch.no_grad():
        other.fc.weight.copy_(other.fc.weight[order])
        other.fc.bias.copy_(other.fc.bias[order])
    found = differences(*pair(net, other, digits), FEW)
    first = verdict(found)[0]
    assert first.about[1:] in {("3", "7"), ("7", "3")} and "the other way round" in str(first)
    apart = found["weights"]
    moved = apart.moved.set_index("layer")["after"]
    assert apart.close and moved.pop("fc") > 0.1 and (moved == 0).all()
    shares = found["line"].query("alignment == 'none' and `class` == 'all'")["share"].tolist()
    assert shares == [-0.5, 0, 0.25, 0.5, 0.75, 1, 1.5]
    threes = found["line"].query("alignment == 'none' and `class` == '3'").set_index("share")["accuracy"]
    assert threes[0.0] > 0.8 and threes[1.0] < 0.1


def test_permuted_units_are_the_same_function(digits, net):
    images = next(iter(digits.loader("train", 60, dtype=torch.float64))).images
    units = unit_groups(net, images)
    found = differences(*pair(net, permuted(net, units, units.random(torch.Generator().manual_seed(3))), digits), FEW)
    first = verdict(found)[0]
    assert first.about == ("equal", "permutation") and "same function up to a permutation" in str(first)
    assert found["layers"]["effect"].tolist() == pytest.approx([1, 1, 1])
    lost = barriers(found["line"])
    assert lost["aligned"] == 0 and lost["none"] > 0.05
    assert found["weights"].apart[0] > 0.3 and found["weights"].apart[1] < 1e-6


@pytest.mark.parametrize("seed", [1, 2])
def test_a_class_relabelled_in_training_is_named_first(digits, net, seed, tmp_path):
    labels = digits.train.labels
    relabelled = replace(digits, train=Split(digits.train.images, labels.where(labels != 3, 7)))
    other = trained("cnn3_w8", relabelled, seed, folder=tmp_path)
    assert verdict(answers_compared(*pair(net, other, digits)))[0].about == ("class", "3", "7")


# What a pair does not allow


def test_other_architectures_have_no_weights_and_best_matches(digits, net):
    other = build("cnn5_w2", **digits.form, seed=1).double().eval()
    found = differences(*pair(net, other, digits), FEW)
    assert set(found.missing) == {"weights"} and "one architecture" in found.missing["weights"]
    best = found["similarity"].effect.idxmax(axis=1)
    assert found["layers"].set_index("layer")["beside"].to_dict() == best.to_dict()
    assert set(found["stitches"]["way"]) == {"A → B", "B → A"}
    assert not any(s.about == ("weights",) for s in verdict(found))


def test_layers_that_no_stitch_joins_are_named(digits, net):
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)).double().eval()
    found = differences(*pair(net, other, digits), FEW)
    wanted = len(found["similarity"].effect.index) + len(found["similarity"].effect.columns)
    line = next(line for line in found.lacking() if line.endswith(": no map over channels joins their places."))
    assert line.startswith("Not compared, a stitch A's ") and len(found["stitches"]) + line.count("→") == wanted


def test_other_classes_leave_similarity_and_stitches(digits, net):
    other = build("cnn3_w8", num_classes=5, in_channels=1, image_size=8, seed=1).double().eval()
    found = differences(*pair(net, other, digits), FEW)
    reason = "A tells 10 classes apart and B 5."
    assert {k: v for k, v in found.missing.items() if v == reason}.keys() == {
        "accuracies", "answers", "classes", "factors", "natural", "made"}  # fmt: skip
    assert "one architecture" in found.missing["weights"] and len(found.lacking()) == 2
    assert found.lacking()[0] == f"Not compared, accuracies, answers, classes, factors, natural, made: {reason}"
    rows = found["stitches"].set_index("way")
    assert rows.loc["A → B", "share"].isna().all() and rows.loc["B → A", "share"].notna().all()
    assert rows["agreement"].between(0, 1).all() and [s.about[0] for s in verdict(found)] == ["layer", "stitch"]


def test_labels_that_do_not_fit_leave_answers(digits):
    nets = [build("cnn3_w8", num_classes=5, in_channels=1, image_size=8, seed=k).double().eval() for k in (0, 1)]
    found = differences(*pair(*nets, digits), FEW)
    assert set(found.missing) - {"made"} == {"accuracies", "classes", "line"}  # of these two, nothing need agree
    assert "A tells 5 classes apart, and digits has 10" in found.missing["accuracies"]
    assert found["answers"]["what"].tolist() == ["answers differ"] and found["natural"].images.shape[0] == 4
    assert any("Their answers differ on" in str(s) for s in verdict(found))


def test_of_an_end_that_knows_nothing_no_share_is_kept(digits, net):
    other = build("cnn3_w8", **digits.form, seed=1).double().eval()
    rows = diff.differences(*pair(net, other, digits), FEW)["stitches"].set_index("way")["share"]
    assert rows["A → B"].isna().all() and rows["B → A"].notna().all()


def test_why_units_cannot_be_aligned_is_told(digits, net, monkeypatch):
    def aligned(*_):
        raise CannotCut("its units cannot be told.")

    monkeypatch.setattr("reptrans.experiments.insides.aligned", aligned)
    found = differences(*pair(net, copy.deepcopy(net), digits), FEW)
    assert found["weights"].apart == (0,) and found.lacking() == ["Not compared, alignment: its units cannot be told."]


def test_several_true_labels_are_told():
    data = load_dataset("digits")
    several = replace(data, test=Split(data.test.images, F.one_hot(data.test.labels, 10).to(torch.uint8)),
                      train=Split(data.train.images, F.one_hot(data.train.labels, 10).to(torch.uint8)))  # fmt: skip
    found = answers_compared(*(Side(k, k, trained("cnn3_w8", data, i), several) for i, k in enumerate("AB")))
    assert "several true labels at once" in found.missing["accuracies"] and found["answers"] is not None


# Doors


def run(**given):
    return checked(DiffRun, {"dataset": "digits", "image_size": 0, **given})


def test_a_file_says_which_network_it_is_of(tmp_path, net, digits):
    trained("cnn3_w8", digits, 1, folder=tmp_path)
    own = next(tmp_path.glob("cnn3_w8-digits-s1*.safetensors"))
    torch.save({"state_dict": net.state_dict()}, tmp_path / "plain.pt")
    a, b = sides(run(a=str(own), b=str(tmp_path / "plain.pt")))
    assert a.net.conv1.weight.shape == b.net.conv1.weight.shape and a.data is b.data
    assert torch.equal(b.net.fc.weight, net.fc.weight) and not b.net.training
    again, _ = sides(run(a=f"cnn3_w8@{tmp_path / 'plain.pt'}", b=str(own)))
    assert torch.equal(again.net.fc.weight, net.fc.weight)


def test_a_name_may_hold_what_stands_between_network_and_file(tmp_path, net):
    torch.save(net.state_dict(), file := tmp_path / "epoch@9, best.pt")
    for text in (f"{file}", f"cnn3_w8@{file}", f"@{file}"):
        assert torch.equal(sides(run(a=text, b="cnn3_w8"), train=False)[0].net.fc.weight, net.fc.weight)
    for text in ("cnn3_w8@", "cnn3_w8@a@b.pt"):
        with pytest.raises((BadCheckpoint, BadValue), match=r"has the suffix ''|there is no file b\.pt"):
            sides(run(a=text, b="cnn3_w8"), train=False)


def test_a_network_that_takes_no_images_is_refused_at_the_door(tmp_path):
    (tmp_path / "nets.py").write_text("from torch import nn\n\n\ndef flat():\n    return nn.Linear(5, 10)\n")
    with pytest.raises(ShapeMismatch, match=r"Linear does not take images \(2, 1, 8, 8\)"):
        sides(run(a="cnn3_w8", b=f"{tmp_path / 'nets.py'}:flat"), train=False)


def test_classes_and_channels_are_read_off_the_weights(tmp_path, net):
    foreign = build("cnn3_w8", num_classes=4, in_channels=3, image_size=8, seed=1)
    save_file(dict(foreign.state_dict()), tmp_path / "b.safetensors")
    a, b = sides(run(a="cnn3_w8", b=f"cnn3_w8@{tmp_path / 'b.safetensors'}"))
    assert b.logits.shape[1] == 4 and b.data.channels == 3 and a.data.channels == 1
    found = differences(a, b, FEW)
    assert "in different forms" in found.missing["stitches"] and len(found["layers"]) == 3
    assert "A tells 10 classes apart and B 4." in found.missing["answers"]


FORM = {"num_classes": 10, "in_channels": 3, "image_size": (32, 32)}


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet32_l2t", "tiny10"])
def test_a_network_is_known_by_its_weights_whoever_saved_them(name):
    state = {f"model.{key}": v for key, v in build(name, **FORM | {"num_classes": 7}).state_dict().items()}
    assert _network_in("a.ckpt", state, FORM) == name  # resnet8 has a part of the names of resnet20


def test_weights_that_fit_two_networks_are_refused():
    state = build("vgg11", **FORM).state_dict()  # with other pools it is vgg9_bn
    with pytest.raises(UnknownName, match=r"fit vgg9_bn and vgg11, which do other things.*Name one: NAME@a\.pt"):
        _network_in("a.pt", state, FORM)


def test_a_checkpoint_of_the_authors_of_l2t_is_read_as_it_is(tmp_path):
    net = build("resnet32_l2t", **FORM | {"num_classes": 200, "in_channels": 1}, seed=3)
    theirs = {re.sub(r"layer(\d)\.0\.", lambda m: f"block{2 * int(m[1]) - 1}.", key): v
              for key, v in net.state_dict().items()}  # fmt: skip
    theirs = {re.sub(r"layer(\d)\.(\d)\.", lambda m: f"blocks{2 * int(m[1])}.{int(m[2]) - 1}.", key): v
              for key, v in theirs.items()}  # fmt: skip
    torch.save({"state_dict": theirs}, tmp_path / "best.pth.tar")
    a, b = sides(run(image_size=32, a=f"{tmp_path / 'best.pth.tar'}", b=f"resnet32_l2t@{tmp_path / 'best.pth.tar'}"))
    assert torch.equal(a.net.layer3[4].conv2.weight, net.layer3[4].conv2.weight.to(a.net.fc.weight))
    assert torch.equal(a.net.fc.weight, b.net.fc.weight)


def test_weights_of_no_network_of_this_package(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "odd.pt")
    with pytest.raises(UnknownName, match=r"are of none of this package's networks.*NETWORK@.*odd\.pt, where NETWORK"):
        sides(run(a=str(tmp_path / "odd.pt"), b="cnn3_w8"), train=False)
    with pytest.raises(BadCheckpoint, match=r"cnn3|CNN3|does not fit"):
        sides(run(a=f"cnn3_w8@{tmp_path / 'odd.pt'}", b="cnn3_w8"), train=False)


def test_text_is_not_for_this(tmp_path):
    (tmp_path / "lines.txt").write_text("some words\n" * 20)
    with pytest.raises(BadData, match="is text; networks of images are compared here"):
        sides(run(dataset=f"text:{tmp_path / 'lines.txt'}", a="cnn3_w8", b="cnn3_w8"), train=False)


@pytest.mark.parametrize(("more", "said"), [
    (["cnn3_w8", "resnet2O"], "There is no network 'resnet2O'. Did you mean 'resnet20'"),
    (["cnn3_w8", "nothing.pt"], "nothing.pt"),
    (["cnn3_w8", "cnn3_w8", "--data", "digit"], "there is no data set 'digit'. Did you mean 'digits'"),
    (["cnn3_w8", "cnn3_w8", "-p", "ordrs", "20"], "the notebook has no parameter 'ordrs'. Did you mean 'orders'"),
    (["cnn3_w8", "cnn3_w8", "-p", "orders", "0"], "a null of 0 orders says nothing of chance"),
    (["cnn3_w8", "cnn3_w8", "-p", "measure", "cka"], "there is no measure 'cka'"),
])  # fmt: skip
def test_what_is_wrong_is_said_before_a_kernel_starts(more, said, capsys, monkeypatch):
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("a kernel was started"))
    assert main(["diff", *more]) == 2
    assert said in capsys.readouterr().err


def test_the_verdict_is_printed_with_the_place_of_the_page(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    given = {}

    def execute(notebook, place, values, **_):
        given.update(values)
        Run("diff", values).finish("Differences", "First.\nSecond.")

    monkeypatch.setattr("papermill.execute_notebook", execute)
    assert main(["diff", "cnn3_w8", "cnn3_w8", "-p", "image_size", "0", "-p", "seed_b", "3"]) == 0
    assert given == {"a": "cnn3_w8", "b": "cnn3_w8", "planted": 0, "image_size": 0, "seed_b": 3}
    assert capsys.readouterr().out.startswith("First.\nSecond.\n\nThe page: ")
    assert next((tmp_path / "runs").glob("diff-*/report.html")).is_file()


def test_pictures_say_what_both_answer(digits, net):
    a, b = pair(net, trained("cnn3_w8", digits, 1), digits)
    found = diff.natural(a, b, FEW)
    for row in found.rows.to_dict("records"):
        assert (row["a"], row["b"]) == (a.answers[row["image"]], b.answers[row["image"]])
    assert len({(x, y) for x, y in zip(found.rows["a"], found.rows["b"], strict=True)}) == 4
    made = diff.made(a, b, FEW)
    assert made.rows["still"].tolist() == ["A", "A", "B", "B"] and len(made.starts) == 2
    change = (made.images - made.starts.repeat(2, 1, 1, 1)).flatten(1).norm(dim=1)
    assert (change <= diff.RADIUS * made.starts[0].numel() ** 0.5 + 1e-9).all() and (change > 0).all()
    assert diff.told(a, found.rows)[0] == f"A {found.rows['a'][0]}\nB {found.rows['b'][0]}"


def test_the_command_takes_its_networks_once():
    with pytest.raises(BadValue, match="a: the networks are given already"):
        packaged.diff("cnn3_w8", "cnn3_w16", given=[("a", "cnn3_w4")])
