"""The survey's experiment: three splits, equal trials, options and factors, and what is reported."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from reptrans.bench import plain_trial, read_factors
from reptrans.data import Split
from reptrans.distillation import METHODS
from reptrans.errors import BadValue, UnknownName
from reptrans.experiments.distillation import (
    DistillationRun,
    beside,
    distill_all,
    gains,
    has_answers,
    make_method,
    method_table,
    read_options,
)
from reptrans.matching import CrossEntropy

SMALL = {
    "epochs": 2, "look_every": 2, "teacher_epochs": 1, "seeds": 2, "labelled": 5, "images": 60, "limit": 20,
    "batch_size": 25, "holdout": 4, "teacher": "cnn3_w4", "student": "cnn3_w2", "tuning_seeds": 1,
}  # fmt: skip


def run(folder, dataset=None, **changes):
    p = DistillationRun(**SMALL | changes)
    return distill_all(p, dataset or p.load(), folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    given = {"method": "plain,kd,nst,dk2", "options": "nst.kernel=linear", "grid": "0.1,1", "beside_kd": True}
    folder = tmp_path_factory.mktemp("run")
    return given, folder, run(folder, **given)


def test_rows_are_of_every_contestant_seed_and_epoch(found):
    *_, result = found
    contestants = ["plain", "kd", "nst", "dk2", "nst+kd", "dk2+kd"]
    assert list(result.scores) == contestants == list(result.chosen) == list(result.students)
    counts = result.rows.groupby(["method", "seed"]).size().unstack()
    assert counts.loc["plain"].tolist() == [2, 2] and counts.loc["dk2"].tolist() == [3, 3]
    assert result.scores.shape == (2, 6) and result.scores.min(axis=None) >= 0 and result.scores.max(axis=None) <= 1
    plain = result.rows.query("method == 'plain' and seed == 0")
    assert list(plain["validation_accuracy"].notna()) == [False, True]
    assert not [column for column in result.rows if column.startswith("test")]
    assert any("linear" in column for column in result.rows)
    assert result.parameters["plain"] == result.parameters["nst"] != result.parameters["dk2"]


def test_everyone_has_the_same_trials(found):
    *_, result = found
    assert set(result.trials.groupby("method").size()) == {2} and set(result.trials["seed"]) == {10_000}
    for name, factor in result.chosen.items():
        own = result.trials[result.trials["method"] == name].set_index("trial")["score"]
        assert own[factor] == own.max()


def test_all_start_from_the_same_student(found):
    *_, result = found
    for _, table in result.moved.groupby(["seed", "layer"]):
        assert table["before"].nunique() == 1 and table["after"].nunique() > 1
    assert list(result.moved["layer"].unique()) == ["relu1", "relu2", "relu3"]


def test_run_again_it_trains_nothing_and_gives_the_same(found, monkeypatch):
    given, folder, result = found
    monkeypatch.setattr("reptrans.experiments.distillation.distill_together", None)
    again = run(folder, **given)
    pd.testing.assert_frame_equal(again.rows, result.rows)
    pd.testing.assert_frame_equal(again.scores, result.scores)
    for name, student in result.students.items():
        for key, value in student.state_dict().items():
            assert torch.equal(again.students[name].state_dict()[key], value)


def test_one_by_one_they_end_as_side_by_side(tmp_path):
    both = [run(tmp_path / str(k), method="plain,kd,at", together=k) for k in (0, 1)]
    pd.testing.assert_frame_equal(both[0].scores, both[1].scores)
    pd.testing.assert_frame_equal(both[0].rows, both[1].rows, rtol=1e-6)


def test_with_a_limit_of_gradients_they_are_trained_one_by_one(tmp_path):
    assert run(tmp_path, method="plain,kd", clip=1.0).scores.shape == (2, 2)


def test_no_choice_and_no_training_depends_on_test_images(tmp_path):
    given = {"method": "plain,kd", "grid": "0.1,1"}
    digits = DistillationRun(**SMALL | given).load()
    shuffled = Split(digits.test.images.flip(0), digits.test.labels)
    one, other = (
        run(tmp_path / name, data, **given)
        for name, data in (("as is", digits), ("other", replace(digits, test=shuffled)))
    )
    assert one.chosen == other.chosen
    pd.testing.assert_frame_equal(one.trials, other.trials)
    pd.testing.assert_frame_equal(one.rows, other.rows)
    assert not one.scores.equals(other.scores)


def test_labels_that_are_not_given_are_not_used(tmp_path):
    """Validation images and the first five of each class by seed keep their labels; of the others all are shuffled."""
    given = {"method": "plain,kd,jacobian,at_gradient,dkd", "seeds": 1, "teacher_checkpoint": str(tmp_path / "net.pt")}
    from reptrans.data.split import limited
    from reptrans.models import build

    digits = DistillationRun(**SMALL | given).load().with_validation(4)
    torch.save(build("cnn3_w4", **digits.form, seed=3).state_dict(), tmp_path / "net.pt")
    known = limited(digits.train.labels, 5, 0)
    other = (digits.train.labels + 3) % 10
    other[known] = digits.train.labels[known]
    hidden = replace(digits, train=Split(digits.train.images, other))
    apart = lambda self, holdout: self  # noqa: E731 (the parts are made already)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reptrans.data.Dataset.with_validation", apart)
        # The draw of labels goes by class, so it has to be that of the true ones.
        patch.setattr("reptrans.experiments.distillation.limited", lambda *_: known)
        one, two = (run(tmp_path / str(k), data, **given) for k, data in enumerate((digits, hidden)))
    pd.testing.assert_frame_equal(one.scores, two.scores)
    pd.testing.assert_frame_equal(one.rows.drop(columns="accuracy"), two.rows.drop(columns="accuracy"), rtol=1e-9)


def test_gains_are_over_kd_where_kd_is_a_part(found, tmp_path):
    *_, result = found
    table, note = gains(result)
    over = dict(zip(table["method"], table["over"], strict=True))
    assert over == {"kd": "plain", "nst": "plain", "dk2": "plain", "nst+kd": "kd", "dk2+kd": "kd"}
    assert {"factor", "cost", "parameters", "low", "high", "p", "published", "verdict"} <= set(table)
    first = table.set_index("method").loc["nst"]
    assert first["gain"] == pytest.approx((result.scores["nst"] - result.scores["plain"]).mean())
    assert first["published"] == 0.0042 and math.isnan(table.set_index("method").loc["nst+kd", "published"])
    assert result.cost["plain"] == 1 == result.cost["kd"] and result.cost["dk2"] > 1
    table, note = gains(run(tmp_path, method="nst"))
    assert table.empty and "Without plain and kd" in note


def test_beside_kd_its_loss_stands_where_the_bare_task_stood(pair):
    method = beside(METHODS["at"](pair), pair)
    losses = method.stages[0].losses
    assert method.name == "at+kd" and has_answers(method) and not has_answers(METHODS["at"](pair))
    assert [type(loss) is CrossEntropy for loss in losses] == [True, False, False, False, False]
    assert losses[0].weight == 0.1 and losses[1].student == "out"
    assert method.stages[0].scaled == losses[2:]


def test_factors_are_read_and_refused():
    known = DistillationRun.tried()
    assert read_factors("at:0.3, sp+kd:1e-2", known) == {"at": 0.3, "sp+kd": 0.01} and read_factors("", known) == {}
    with pytest.raises(UnknownName, match="there is no method 'att'. Did you mean 'at'"):
        read_factors("att:1", known)
    for wrong in ("at:0", "at:-1", "at:nan", "at:inf", "at:", "at"):
        with pytest.raises(BadValue, match="above 0|no number"):
            read_factors(wrong, known)
    with pytest.raises(BadValue, match="'x' is no number"):
        read_factors("at:x", known)
    with pytest.raises(BadValue, match="named twice"):
        read_factors("at:1,at:2", known)


def test_plain_tries_rates_and_decays():
    assert [plain_trial(f) for f in (0.01, 0.1, 1, 3, 10)] == [(1, 0.01), (0.1, 1), (1, 1), (3, 1), (1, 10)]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"grid": "1"}, "at least two different numbers"),
        ({"grid": "1,x"}, "'x' is no number"),
        ({"holdout": 0}, "greater than 0"),
        ({"method": "plain,fitnet"}, "no method 'fitnet'"),
        ({"labelled": -1}, "greater than or equal to 0"),
        ({"factors": "at:0"}, "above 0"),
        ({"factors": "at:1", "grid": "1,2"}, "Leave one empty"),
    ],
)
def test_parameters_that_cannot_be(given, reason):
    with pytest.raises((BadValue, UnknownName), match=reason):
        DistillationRun(**given)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"holdout": 20}, "be left to train on"),
        ({"holdout": 0.001}, "takes 0 of the"),
        ({"labelled": 17}, "limit is 17, but class '0' has 16 images"),
        ({"seen": 40}, "limit is 40"),
    ],
)
def test_splits_that_cannot_be_are_refused_before_training(given, reason, tmp_path, monkeypatch):
    monkeypatch.setattr("reptrans.experiments.distillation.trained", None)
    with pytest.raises(BadValue, match=reason):
        run(tmp_path, method="plain,kd", **given)


def test_options_are_read_and_refused():
    assert read_options("nst.kernel=gaussian, at.power=1,at.like=paper") == {
        "nst": {"kernel": "gaussian"}, "at": {"power": 1, "like": "paper"}}  # fmt: skip
    with pytest.raises(BadValue, match="'nst:kernel' is not of the form method.option=value"):
        read_options("nst:kernel")
    with pytest.raises(UnknownName, match="there is no method 'nts'.*or 'nst'"):
        read_options("nts.kernel=linear")
    with pytest.raises(BadValue, match="there is no method .fitnet.. Did you mean 'fitnets'"):
        DistillationRun(method="kd,fitnet")
    with pytest.raises(BadValue):
        DistillationRun(labelled=-1)


def test_an_unknown_option_is_named_with_the_known_ones(pair):
    with pytest.raises(UnknownName, match="nst has no option 'kernal'. Did you mean 'kernel'"):
        make_method("nst", pair, "nst.kernal=linear")
    assert make_method("at", pair, "at.power=1").stages[0].matches[0].teacher_transform.label == "unit sum |A|^1"


def test_the_table_has_a_line_for_every_method(pair):
    table = method_table(pair)
    assert set(METHODS) <= set(table["method"]) and len(table) == len(METHODS) + 3
    entries = [int(e) for e in table["entry"] if e]
    assert set(entries) == set(range(1, 18)) and entries == sorted(entries)
