"""The parameters of a notebook, checked in a running IPython and through papermill's command line."""

import ctypes
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Literal

import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from pydantic import PositiveInt, model_validator
from traitlets.config import Config

from reptrans.errors import BadValue, LayerNotFound, UnknownName
from reptrans.notebook import Parameters, listed, names, once, parameters, parts, show, some_names, spread, summary


class P(Parameters):
    layer: Literal["bn1", "bn2"] = "bn1"
    steps: PositiveInt = 10
    rate: float = 0.1
    layers: str = "all"


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A fresh IPython that counts as the running one for the length of a test and writes nothing outside it."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    InteractiveShell.clear_instance()
    started = InteractiveShell.instance(config=Config({"HistoryManager": {"hist_file": ":memory:"}}))
    yield started
    started.restore_sys_module_state()
    InteractiveShell.clear_instance()


def run(shell, *cells):
    for cell in cells:
        shell.run_cell(cell, store_history=True).raise_error()


def test_values_come_from_the_notebook(shell):
    run(shell, "layer = 'bn2'\nrate = 1\nother = 3", "# Parameters\nsteps = 20\nlayers = '1,2'\n")
    assert parameters(P) == P(layer="bn2", steps=20, rate=1.0, layers="1,2")


def test_every_problem_is_listed(shell):
    run(shell, "steps = 0\nrate = 'fast'", "# Parameters\nlayr = 'bn2'\nlayer: str = 'bn9'\n")
    with pytest.raises(UnknownName) as caught:
        parameters(P)
    assert str(caught.value) == (
        "4 parameters are not as the notebook needs:\n"
        "  layr = 'bn2': there is no such parameter. Did you mean 'layer' or 'layers'? "
        "Possible: layer, steps, rate, layers\n"
        "  layer = 'bn9': Did you mean 'bn1' or 'bn2'? Input should be 'bn1' or 'bn2'\n"
        "  steps = 0: Input should be greater than 0\n"
        "  rate = 'fast': Input should be a valid number\n"
        "papermill --help-notebook explains every parameter"
    )


@pytest.mark.parametrize("value", ["1000.0", "True", "'3'", "None"])
def test_nothing_but_an_integer_is_an_integer(shell, value):
    run(shell, f"steps = {value}")
    with pytest.raises(BadValue) as caught:
        parameters(P)
    assert f"  steps = {value}: Input should be a valid integer\n" in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_are_finite(shell, value):
    run(shell, f"rate = float('{value}')")
    with pytest.raises(BadValue) as caught:
        parameters(P)
    assert f"  rate = {value}: Input should be a finite number\n" in str(caught.value)


def test_a_corrected_cell_replaces_the_mistyped_one(shell):
    run(shell, "# Parameters\nlayr = 'bn2'", "# Parameters\nlayer = 'bn2'")
    assert parameters(P).layer == "bn2"


def test_later_variables_are_not_parameters(shell):
    run(shell, "# Parameters\nlayer = 'bn2'", "accuracy = 1.0")
    assert parameters(P).layer == "bn2"


def test_a_field_without_value_and_a_rule_between_fields(shell):
    class Needed(Parameters):
        data: str

    class Rule(P):
        @model_validator(mode="after")
        def short(self):
            if self.steps > 5 and self.rate > 1:
                raise BadValue("rate above 1 needs steps of at most 5")
            return self

    with pytest.raises(BadValue) as caught:
        parameters(Needed)
    assert "  data: not set. Give it a value\n" in str(caught.value)
    run(shell, "rate = 2.0")
    with pytest.raises(BadValue) as caught:
        parameters(Rule)
    assert str(caught.value) == (
        "1 parameter is not as the notebook needs:\n  rate above 1 needs steps of at most 5\n"
        "papermill --help-notebook explains every parameter"
    )


def test_the_notebook_shows_the_message_alone(shell, capsys):
    shell.user_ns |= {"P": P, "parameters": parameters}
    result = shell.run_cell("steps = 0\np = parameters(P)", store_history=True)
    assert isinstance(result.error_in_exec, BadValue)
    assert capsys.readouterr().out == f"BadValue: {result.error_in_exec}\n"


def test_outside_a_notebook():
    InteractiveShell.clear_instance()
    with pytest.raises(BadValue) as caught:
        parameters(P)
    assert str(caught.value) == (
        "no notebook is running here, so there are no variables to read. Write P(name=value, ...) instead."
    )


NOTEBOOK = [
    'layer: str = "bn1"  # where to cut',
    "from typing import Literal\n"
    "from reptrans.notebook import Parameters, parameters\n"
    "class P(Parameters):\n"
    '    layer: Literal["bn1", "bn2"] = "bn1"\n'
    "p = parameters(P)",
    "print('layer', p.layer)",
]


def test_papermill_refuses_an_unknown_name(tmp_path):
    """One notebook, started with a right and with a mistyped name."""
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK]
    cells[0].metadata["tags"] = ["parameters"]
    spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=spec), tmp_path / "in.ipynb")
    good = papermill(tmp_path, "layer", "bn2")
    assert good.returncode == 0, good.stderr
    outputs = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[-1].outputs
    assert [output.text for output in outputs] == ["layer bn2\n"]
    bad = papermill(tmp_path, "layr", "bn2")
    assert bad.returncode == 1
    assert (
        "UnknownName: 1 parameter is not as the notebook needs:\n"
        "  layr = 'bn2': there is no such parameter. Did you mean 'layer'? Possible: layer\n"
        "papermill --help-notebook explains every parameter"
    ) in bad.stderr
    assert "notebook.py" not in bad.stderr


def papermill(folder: Path, name: str, value: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "papermill", "in.ipynb", "out.ipynb", "--no-progress-bar", "-p", name, value]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_names():
    assert names("bn1, bn3,") == ["bn1", "bn3"]
    assert names("all", ["bn1", "bn3"]) == ["bn1", "bn3"]
    assert names("bn3", ["bn1", "bn3"]) == ["bn3"]
    with pytest.raises(UnknownName) as caught:
        names("bn1,fc2", ["bn1", "fc"])
    assert str(caught.value) == "there is no 'fc2'. Did you mean 'fc'? Possible: all, bn1, fc"


def test_a_shown_table_is_rounded_and_without_a_bare_count(capsys):
    show(pd.DataFrame({"layer": ["bn1", "bn2"], "score": [0.123456, -1e-9], "images": [10, 20]}))
    assert capsys.readouterr().out.split("\n") == [
        "layer  score  images",
        "  bn1 0.1235      10",
        "  bn2 0.0000      20",
        "",
    ]


def test_a_shown_table_keeps_names_of_rows(capsys):
    show(pd.Series([0.5, None], index=["a", "b"], name="score"), digits=2)
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["score"], ["a", "0.50"], ["b"]]


def test_a_shown_table_has_readers_names(capsys):
    show(pd.DataFrame({"front_layer": ["bn1"], "cross_entropy": [0.5]}), digits=1)
    assert capsys.readouterr().out.splitlines()[0].split("  ") == ["layer of the front", "cross-entropy (nats)"]


def test_spread_says_mean_sd_and_count():
    rows = pd.DataFrame({"layer": ["b", "b", "a"], "score": [0.1, 0.3, -0.0001], "none": [float("nan")] * 3})
    table = spread(rows, ["layer"], ["score", "none"], digits=2)
    assert table.to_dict("list") == {
        "layer": ["b", "a"],
        "score": ["0.20\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.14", "0.00"],
        "none": ["", ""],
        "n": [2, 1],
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.8, 0.83], "0.815 ± 0.021"),
        ([0.9, 1.04], "0.970 ± 0.099"),
        ([0.9, 1.041], "0.97 ± 0.10"),
        ([260.0, 300.0], "280 ± 28"),
        ([6.0, 8.0], "7.0 ± 1.4"),
        ([1.0, 1.00001], "1.000 ± 0.000"),
        ([1.0, 1.0], "1.000 ± 0.000"),
        ([0.5], "0.500"),
    ],
)
def test_spread_shows_two_digits_of_the_sd(values, expected):
    table = spread(pd.DataFrame({"layer": "a", "score": values}), ["layer"], ["score"])
    assert table["score"][0].replace("\N{NO-BREAK SPACE}", " ") == expected


def test_spread_gives_a_column_the_same_decimals():
    rows = pd.DataFrame({"layer": list("aabbc"), "score": [0.8, 0.83, 0.5, 0.7, 1.0]})
    found = [text.replace("\N{NO-BREAK SPACE}", " ") for text in spread(rows, ["layer"], ["score"])["score"]]
    assert found == ["0.815 ± 0.021", "0.600 ± 0.141", "1.000"]


def test_halves_are_rounded_as_python_rounds_them(capsys):
    show(pd.DataFrame({"share": [np.float64(1 / 40)]}, index=["a"]), digits=2)
    assert capsys.readouterr().out.split() == ["share", "a", "0.03"]  # of NumPy: 0.02


def test_heads_are_for_readers(capsys):
    table = pd.DataFrame({"rows_name": ["a_1", "b"], "p": [0.0001, None], "with_depth": [0.5, 0.25]})
    show(table.set_index("rows_name").rename_axis(columns="what"), digits=3)
    head, row, undecided = capsys.readouterr().out.splitlines()[:3]
    assert head.split() == ["rows", "name", "p", "with", "depth"]
    assert row.split() == ["a_1", "<0.001", "0.500"]
    assert undecided.split() == ["b", "0.250"]


class Digits(Parameters):
    layer: str = "bn1"
    seeds: str = "0,1"
    classes: str = "0147"


@pytest.mark.parametrize(("name", "value", "text"), [("layer", 3, "3"), ("seeds", 12, "12"), ("seeds", "0,2", "0,2")])
def test_a_number_that_papermill_made_is_the_text_again(shell, name, value, text):
    run(shell, f"# Parameters\n{name} = {value!r}\n")
    assert getattr(parameters(Digits), name) == text


@pytest.mark.parametrize(
    ("name", "value"),
    [("classes", 147), ("classes", 3), ("layer", 1.1), ("layer", 1e5), ("layer", True), ("seeds", None)],
)
def test_where_the_text_is_lost_the_message_says_how_to_give_it(shell, name, value):
    run(shell, f"# Parameters\n{name} = {value!r}\n")
    with pytest.raises(BadValue) as caught:
        parameters(Digits)
    assert str(caught.value).splitlines()[1] == (
        f"  {name} = {value!r}: a text is needed. Put it in quotes; to papermill, give it by -r {name} TEXT"
    )


@pytest.mark.parametrize("value", [10**12, -(10**12), 10**20, 1e11])
def test_numbers_beyond_all_use_are_refused(shell, value):
    name = "steps" if isinstance(value, int) and value > 0 else "rate"
    run(shell, f"{name} = {value!r}")
    with pytest.raises(BadValue) as caught:
        parameters(P)
    assert f"  {name} = {value!r}: numbers are taken from -1,000,000,000 to 1,000,000,000\n" in str(caught.value)


@pytest.mark.parametrize("text", ["bn1,bn1", "bn1, bn3 ,bn1", '"bn1",bn1', "all,all"])
def test_a_name_that_is_there_twice_is_refused(text):
    with pytest.raises(BadValue, match="^'(bn1|all)' is named twice. Name each once: (bn1|bn1,bn3|all)$"):
        names(text, ["bn1", "bn3", "all"])


def test_things_of_several_parts_are_told_by_them():
    assert once([("a", "b"), ("a", "c")]) == [("a", "b"), ("a", "c")]
    with pytest.raises(BadValue, match="^'a and b' is named twice. Name each once: a and b$"):
        once([("a", "b"), ("a", "b")])
    with pytest.raises(BadValue, match="^'7' is named twice. Name each once: 7$"):
        once([7, 7])


@pytest.mark.parametrize("entries", [["a,b/x.pt", "c.pt"], ['say "a"', "'b'"], ["a b", "line\nbreak"], ["bn1"], []])
def test_a_comma_list_gives_back_what_it_was_made_of(entries):
    assert names(listed(entries)) == parts(listed(entries)) == entries


@pytest.mark.parametrize("text", ["", " , ", '""'])
def test_no_name_at_all(text):
    assert names(text) == []
    with pytest.raises(BadValue) as caught:
        some_names(text, ["kd", "at"])
    assert str(caught.value) == "no name is given. Give one, or several joined by commas. Possible: all, kd, at"


def test_errors_of_the_package_are_their_message_alone(shell, capsys):
    shell.user_ns |= {"error": LayerNotFound("no layer 'bn9'.\nDid you mean 'bn1'?")}
    shell.run_cell("def deep(): raise error\ndeep()", store_history=True)
    assert capsys.readouterr().out == "LayerNotFound: no layer 'bn9'.\nDid you mean 'bn1'?\n"
    shell.run_cell("1 / 0", store_history=True)
    assert "Traceback" in capsys.readouterr().out


def test_a_summary_is_numbers():
    rows = pd.DataFrame({"kind": ["b", "b", "a"], "accuracy": [0.25, 0.75, 0.5], "loss": [1.0, None, 2.0]})
    table = summary(rows, ["kind"], ["accuracy", "loss"])
    assert list(table.columns) == ["kind", "accuracy_mean", "accuracy_sd", "loss_mean", "loss_sd", "n"]
    assert table["kind"].tolist() == ["b", "a"] and table["n"].tolist() == [2, 1]
    assert table["accuracy_mean"].tolist() == [0.5, 0.5]
    assert table["accuracy_sd"].iloc[0] == pytest.approx(0.125**0.5) and pd.isna(table["accuracy_sd"].iloc[1])
    assert table["loss_mean"].tolist() == [1.0, 2.0] and table["loss_sd"].isna().all()


def test_freed_memory_stays_with_the_process(shell):
    parameters(P)
    libc, faults, size = ctypes.CDLL(None), [], 2**27
    libc.malloc.restype = ctypes.c_void_p
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(ctypes.c_size_t(size))
        ctypes.memset(block, 1, size)
        libc.free(ctypes.c_void_p(block))
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[1] < 30 or platform.libc_ver()[0] != "glibc"
