"""The runs that the book stores, and the files of parameters that they are made from."""

import importlib
import importlib.util
import os
import re
import time
from pathlib import Path

import nbformat
import pytest
import torch
from papermill import PapermillExecutionError

from reptrans.errors import NotAvailable, OutOfTime, UnknownName
from reptrans.experiments.parameters import piece

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
FILES = sorted(path.stem for path in (ROOT / "book/parameters").glob("*.yaml"))
STORED = sorted(path.stem for path in (ROOT / "book/runs").glob("*.ipynb"))


def load_full():
    spec = importlib.util.spec_from_file_location("full", ROOT / "book" / "full.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FULL = load_full()


def model_of(notebook: Path):
    """What the notebook checks its parameters by."""
    source = "\n".join(cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code")
    module, name = re.search(r"from (reptrans[\w.]+) import (?:\([^)]*?|[^(\n]*?)(\w+Run)\b", source).groups()
    return getattr(importlib.import_module(module), name)


# The files as they are


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_each_notebook_has_a_full_scale(name):
    assert name in FILES


@pytest.mark.parametrize("run", FILES)
def test_all_parameters_are_accepted(run):
    model_of(FULL.notebook(run)).model_validate(FULL.parameters(run))


@pytest.mark.parametrize("run", FILES)
def test_comments_say_what_it_is_and_how_long_it_takes(run):
    title, *rest = FULL.description(run).splitlines()
    assert re.match(r"# \S", title) and rest[0] == "" and len(" ".join(rest)) > 100
    note = FULL._text(run).split("\n\n")[1]
    assert note.startswith("# ")
    if run in NOTEBOOKS:
        assert re.search(r"Expected on one GPU: .*an\s(# )?estimate.*not\s(# )?measured", note, re.DOTALL)
    else:
        assert f"{'Measured' if run in STORED else 'Expected'}: " in note


@pytest.mark.parametrize("run", FILES)
def test_the_page_names_it(run):
    link = f"[`{run}`](runs/{run}.ipynb)" if run in STORED else f"`{run}`"
    assert f"\n| {link} | " in (ROOT / "book/fullscale.md").read_text("utf-8")


@pytest.mark.parametrize("run", STORED)
def test_a_stored_run_is_what_its_file_says(run):
    assert FULL.stored(run) == FULL.parameters(run)
    cells = nbformat.read(ROOT / "book/runs" / f"{run}.ipynb", 4).cells
    assert cells[0].source == FULL.description(run)


@pytest.mark.parametrize("run", STORED)
def test_a_stored_run_was_read(run):
    text = (ROOT / "book/runs" / f"{run}.ipynb").read_text("utf-8")
    assert FULL.UNREAD not in text
    assert f"file: book/runs/{run}\n" in (ROOT / "book/_toc.yml").read_text("utf-8") + "\n"


# Which are made


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Two notebooks, three files, and no GPU."""
    for folder in ("notebooks", "book/parameters"):
        (tmp_path / folder).mkdir(parents=True)
    write_notebook(tmp_path / "notebooks/tiny.ipynb")
    write_notebook(tmp_path / "notebooks/tiny_other.ipynb")
    for run, divisor in (("tiny", 4), ("tiny_small", 2), ("tiny_other_bad", 0)):
        lines = [f"# Title of {run}", "#", "# What it is,", "# in two lines.", "", "# For you.", ""]
        text = "\n".join([*lines, f"divisor: {divisor}", 'name: "a: b"', ""])
        (tmp_path / f"book/parameters/{run}.yaml").write_text(text)
    monkeypatch.setattr(FULL, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(FULL, "pick_device", lambda name: torch.device("cuda"))


def write_notebook(path):
    md, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [md("# Tiny"), code('divisor: int = 1\nname: str = ""', metadata={"tags": ["parameters"]}),
             code("print(name, 4 // divisor)"), md("Read so."), code("print('end')")]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def test_runs_belong_to_the_notebook_that_they_are_called_like(checkout):
    found = {run: FULL.notebook(run).stem for run in ("tiny", "tiny_small", "tiny_other_bad")}
    assert found == {"tiny": "tiny", "tiny_small": "tiny", "tiny_other_bad": "tiny_other"}
    with pytest.raises(UnknownName, match="tinysmall.yaml is called like no notebook"):
        FULL.notebook("tinysmall")


@pytest.mark.parametrize("given", [[], ["tiny"], ["tiny_small", "tiny"]])
def test_full_scale_needs_a_gpu(checkout, given, capsys):
    with pytest.raises(
        NotAvailable, match="^tiny: hours or days.*make full RUN=tiny_other_bad, or any of tiny_other_b"
    ):
        FULL.chosen(given)
    assert FULL.main(given) == 2 and capsys.readouterr().err.startswith("NotAvailable: tiny: hours")
    assert FULL.chosen(["tiny_small"]) == ["tiny_small"]


def test_with_a_gpu_all_at_full_scale_are_made(checkout, gpu):
    assert FULL.chosen([]) == ["tiny"]
    assert FULL.chosen(["tiny", "tiny_small"]) == ["tiny", "tiny_small"]


def test_a_name_without_a_file(checkout):
    with pytest.raises(UnknownName, match="book/parameters has no 'tiny_smal'. Did you mean 'tiny_small'"):
        FULL.chosen(["tiny_small", "tiny_smal"])


# How they are made


def test_a_run_is_stored_with_its_own_title(checkout, gpu, capsys):
    assert FULL.main(["tiny"]) == 0
    assert "book/runs/tiny.ipynb is new; write its last text" in capsys.readouterr().out
    found = nbformat.read(checkout / "book/runs/tiny.ipynb", 4)
    nbformat.validate(found)
    assert found.cells[0].source == "# Title of tiny\n\nWhat it is,\nin two lines."
    assert found.cells[4].source == f"{FULL.UNREAD}\n\nRead so."
    assert found.cells[3].outputs[0].text == "a: b 1\n"
    assert not any({"papermill", "execution"} & set(part.metadata) for part in (found, *found.cells))
    assert found.cells[2].metadata == {
        "tags": ["injected-parameters", "hide-input"], "mystnb": {"code_prompt_show": FULL.INJECTED}
    }  # fmt: skip
    assert "version" not in found.metadata.language_info
    assert FULL.stored("tiny") == {"divisor": 4, "name": "a: b"} and FULL.chosen([]) == []


def test_links_are_those_from_its_folder():
    text = "[a](../book/api/x.md) ![b](../book/diagrams/b.svg) [c](tiny.ipynb) [d](../book/runs/tiny_small.ipynb)"
    assert FULL.moved(text) == (
        "[a](../api/x.md) ![b](../diagrams/b.svg) [c](../../notebooks/tiny.ipynb) [d](tiny_small.ipynb)"
    )


@pytest.fixture
def papermill(monkeypatch):
    """In place of papermill, without the seconds that a kernel takes to start."""

    def execute(notebook, new, parameters, **_):
        if not parameters["divisor"]:
            raise PapermillExecutionError(2, 1, "1 // 0", "ZeroDivisionError", "by zero", [])
        found = nbformat.read(notebook, 4)
        source = "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())])
        found.cells.insert(2, nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]}))
        nbformat.write(found, new)

    monkeypatch.setattr(FULL.papermill, "execute_notebook", execute)


def test_a_run_that_is_out_of_time_stops_all_and_is_no_failure(checkout, monkeypatch, capsys):
    monkeypatch.setenv("REPTRANS_UNTIL", "")
    asked = []

    def execute(notebook, *_, **__):
        asked.append(notebook.stem)
        late = time.time() + 1400 < float(os.environ["REPTRANS_UNTIL"]) < time.time() + 1500
        raise PapermillExecutionError(2, 1, "", "OutOfTime" if late else "BadValue", "the time is over.", [])

    monkeypatch.setattr(FULL.papermill, "execute_notebook", execute)
    assert FULL.main(["--budget", "25m", "tiny_other_bad", "tiny_small"]) == 0
    assert asked == ["tiny_other"] and capsys.readouterr().out.endswith("tiny_other_bad: the time is over.\n")
    assert FULL.main(["--budget", "25", "tiny_small"]) == 2
    assert capsys.readouterr().err == (
        "BadValue: the budget is '25'; give a number and a unit, s, m or h, as in 25m.\n"
    )


def test_a_piece_is_not_begun_when_it_is_late(tmp_path, monkeypatch):
    path = tmp_path / "piece.safetensors"
    monkeypatch.setenv("REPTRANS_UNTIL", str(time.time() - 1))
    with pytest.raises(OutOfTime, match="^the time given is over. What is done is kept; start the same run again"):
        piece(path, dict)
    monkeypatch.setenv("REPTRANS_UNTIL", str(time.time() + 100))
    assert piece(path, lambda: {"a": 1}) == {"a": 1}
    monkeypatch.setenv("REPTRANS_UNTIL", "0")
    assert piece(path, dict) == {"a": 1}


def test_a_failed_run_stops_no_other(checkout, papermill, capsys):
    assert FULL.main(["tiny_other_bad", "tiny_small"]) == 1
    said = capsys.readouterr().err
    assert "tiny_other_bad: ZeroDivisionError: by zero" in said and "Failed: tiny_other_bad. What they had" in said
    assert [path.name for path in (checkout / "book/runs").iterdir()] == ["tiny_small.ipynb"]


def test_a_stored_run_is_replaced_after_success_and_keeps_its_reading(checkout, gpu, papermill, capsys):
    place = checkout / "book/runs/tiny.ipynb"
    assert FULL.main([]) == 0
    found = nbformat.read(place, 4)
    found.cells[4].source = "By hand."
    nbformat.write(found, place)
    assert FULL.main(["tiny"]) == 0
    assert nbformat.read(place, 4).cells[4].source == "By hand."
    assert "check its last text" in capsys.readouterr().out

    (checkout / "book/parameters/tiny.yaml").write_text("# T\n\ndivisor: 0\n")
    before = place.read_bytes()
    assert FULL.chosen([]) == ["tiny"] and FULL.main([]) == 1
    assert place.read_bytes() == before


def test_make_names_the_runs():
    """The recipe is one line; what it does is tested above."""
    recipe = (ROOT / "Makefile").read_text("utf-8").split("\nfull: ")[1].splitlines()[1]
    assert recipe == "\t@$(BIN)/python book/full.py $(if $(BUDGET),--budget $(BUDGET)) $(RUN)"
