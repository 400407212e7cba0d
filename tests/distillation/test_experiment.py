"""The survey's experiment: options, caps on weights, shared teachers, and what is reported."""

from dataclasses import replace

import pandas as pd
import pytest
from pydantic import ValidationError

from reptrans.distillation import METHODS
from reptrans.distillation.cap import capped
from reptrans.distillation.distill import resolve
from reptrans.errors import BadValue, UnknownName
from reptrans.experiments.distillation import (
    DistillationRun,
    distill_all,
    last_epochs,
    make_method,
    method_table,
    read_options,
)

SMALL = {
    "epochs": 3, "look_every": 2, "teacher_epochs": 1, "seeds": 2, "labelled": 5, "images": 60, "limit": 20,
    "batch_size": 25,
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    p = DistillationRun(method="plain,kd,nst,dk2", options="nst.kernel=linear", teacher="cnn3_w4", **SMALL)
    return p, folder, distill_all(p, p.load(), folder)


def test_rows_are_of_every_seed_method_and_epoch(found):
    p, _, result = found
    counts = result.rows.groupby(["seed", "method"]).size()
    assert set(counts) == {3, 4} and len(counts) == 2 * 4
    plain = result.rows.query("method == 'plain' and seed == 0")
    assert list(plain["test_accuracy"].notna()) == [False, True, True]
    last = last_epochs(result.rows)
    assert len(last) == 8 and last["test_accuracy"].between(0, 1).all()
    assert last.set_index(["seed", "method"]).loc[(0, "dk2"), "stage"] == 2
    assert any("linear" in column for column in result.rows)


def test_all_methods_of_a_seed_start_from_the_same_student(found):
    *_, result = found
    for _, table in result.moved.groupby(["seed", "layer"]):
        assert table["before"].nunique() == 1 and table["after"].nunique() > 1
    assert list(result.moved["layer"].unique()) == ["relu1", "relu2", "relu3"]
    sizes = last_epochs(result.rows).groupby("method")["parameters"].unique()
    assert sizes["plain"] == sizes["nst"] and sizes["dk2"] != sizes["plain"]


def test_run_again_it_gives_the_same_rows(found):
    p, folder, result = found
    again = distill_all(p, p.load(), folder)
    pd.testing.assert_frame_equal(again.rows, result.rows)
    pd.testing.assert_frame_equal(again.moved, result.moved)


def test_options_are_read_and_refused():
    assert read_options("nst.kernel=gaussian, at.power=1,at.like=paper") == {
        "nst": {"kernel": "gaussian"}, "at": {"power": 1, "like": "paper"}}  # fmt: skip
    with pytest.raises(BadValue, match="'nst:kernel' is not of the form method.option=value"):
        read_options("nst:kernel")
    with pytest.raises(UnknownName, match="there is no method 'nts'.*or 'nst'"):
        read_options("nts.kernel=linear")
    with pytest.raises(ValidationError, match="there is no method .fitnet.. Did you mean 'fitnets'"):
        DistillationRun(method="kd,fitnet")
    with pytest.raises(ValidationError):
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


def terms(method, pair, batch):
    objective = resolve(method.stages[0], pair.student, pair.teachers, batch).double().eval()
    return list(objective(batch)[0].values())


def test_a_capped_method_counts_at_first_the_share_of_the_task_and_no_more(pair):
    batch = next(iter(pair.teachers[0].loader.plain()))
    heavy, light = METHODS["at"](pair, like="authors"), METHODS["at"](pair, beta=1e-3)
    task, *matched = terms(capped(heavy, pair, batch, 0.25), pair, batch)
    assert sum(matched).item() == pytest.approx(0.25 * task.item())
    # All matches by one factor.
    before = terms(heavy, pair, batch)[1:]
    assert (matched[0] / before[0]).item() == pytest.approx((matched[2] / before[2]).item())
    assert capped(light, pair, batch, 0.25).stages == light.stages
    # What stands without the task, and softened logits, are left alone.
    for name in ("fitnets", "kd", "sskd", "plain"):
        method = METHODS[name](pair)
        assert capped(method, pair, batch, 1e-6).stages == list(method.stages)


def test_weights_that_change_are_capped_as_they_change(pair):
    method = METHODS["at"](pair, like="authors")
    growing = type(method.stages[0])([method.stages[0].losses[0], *(replaced(m) for m in method.stages[0].matches)])
    batch = next(iter(pair.teachers[0].loader.plain()))
    (stage,) = capped(type(method)("x", [growing]), pair, batch, 0.1).stages
    weights = [stage.matches[0].weight_at(p) for p in (0.0, 0.5)]
    assert weights[1] == pytest.approx(weights[0] * 0.5)


def replaced(match):
    return replace(match, weight=lambda progress: 1000 * (1 - progress))
