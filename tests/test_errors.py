"""What is said of names that are not there: near ones first, however they are spelt."""

import inspect

import pytest

from reptrans import MEASURES, METHODS, Loader, Plan, Split, StitchingSettings, load_dataset
from reptrans.errors import BadValue, Table, UnknownName, near, own_arguments
from reptrans.l2t import METHODS as TRANSFERS


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("BN3", ["bn1", "bn3", "fc"], "Did you mean 'bn3'? "),
        ("CKA", ["linear_cka", "rsa", "debiased_cka"], "Did you mean 'debiased_cka' or 'linear_cka'? "),
        ("optimizer", ["optimiser", "lr"], "Did you mean 'optimiser'? "),
        ("normalize", ["normalise"], "Did you mean 'normalise'? "),
        ("color", ["colour", "shape"], "Did you mean 'colour'? "),
        ("x", ["xyz", "y"], ""),
        (3, ["a"], ""),
    ],
)
def test_near_names_are_found_in_any_spelling(name, options, said):
    assert near(name, options) == said


def test_near_names_are_no_more_than_asked_for():
    assert near("layer", [f"layer{i}" for i in range(9)], most=2).count("'layer") == 2
    assert near("aye", [f"layer{i}" for i in range(9)], most=2).count("'layer") == 2


@pytest.mark.parametrize(
    ("table", "name", "said"),
    [
        (METHODS, "KD", "there is no method of distillation 'KD'. Did you mean 'kd'? Possible: plain, kd, "),
        (
            MEASURES,
            "CKA",
            "there is no measure 'CKA'. Did you mean 'debiased_cka' or 'linear_cka' or 'minibatch_cka'? ",
        ),
        (TRANSFERS, "L2T-WW", "there is no method of transfer 'L2T-WW'. Did you mean 'l2t_w' or 'l2t_ww'"),
    ],
)
def test_tables_say_what_they_have(table, name, said):
    with pytest.raises(UnknownName) as caught:
        table[name]
    assert str(caught.value).startswith(said)
    assert name not in table and table.get(name) is None


def test_a_table_is_a_dict():
    table = Table("fruit", {"apple": 1})
    assert table["apple"] == 1 and dict(table) == {"apple": 1}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: Plan(optimizer="adam"), "Plan has no argument 'optimizer'. Did you mean 'optimiser'? Possible: "),
        (lambda: Plan(learning_rate=1), "Plan has no argument 'learning_rate'. Possible: epochs, optimiser, lr, "),
        (lambda: load_dataset("digits").loader("train", batchsize=3), "Loader has no argument 'batchsize'. Did you "
         "mean 'batch_size'? Possible: split, batch_size, "),
        (lambda: METHODS["nst"](None, kernal="linear"), "nst has no argument 'kernal'. Did you mean 'kernel'? "),
    ],
)  # fmt: skip
def test_a_misspelt_argument_is_answered_by_its_near_names(call, said):
    with pytest.raises(BadValue) as caught:
        call()
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": "adam"}, "optimizer = 'adam': there is no such parameter. Did you mean 'optimiser'?"),
        ({"init": "psinv"}, "init = 'psinv': Did you mean 'ps_inv'? Input should be 'random', "),
        ({"epochs": "3"}, "epochs = '3': Input should be a valid integer"),
    ],
)
def test_a_class_of_settings_says_it_as_a_notebook_does(given, said):
    with pytest.raises((BadValue, UnknownName)) as caught:
        StitchingSettings(**given)
    first, line = str(caught.value).splitlines()
    assert first == "1 parameter is not as StitchingSettings needs:"
    assert line.startswith(f"  {said}") and "pydantic" not in line


def test_what_is_wrapped_still_shows_what_it_takes():
    assert list(inspect.signature(Plan).parameters)[:2] == ["epochs", "optimiser"]
    assert list(inspect.signature(Loader).parameters)[:2] == ["split", "batch_size"]
    assert own_arguments(len)([1, 2]) == 2
    assert issubclass(Loader, object) and Loader.__name__ == "Loader" and Split.__name__ == "Split"
