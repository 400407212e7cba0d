"""Hygiene of the notebooks as they are stored: what `make outputs` makes and the book publishes.

The book is built without running anything, so that a notebook without outputs, or with a traceback, would be published
as it is.
"""

import importlib
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from papermill import inspect_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MOST_LINES, MOST_COLUMNS, MOST_BYTES = 25, 79, 1_000_000

RUNS = sorted((ROOT / "book" / "runs").glob("*.ipynb"))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", [*NOTEBOOKS, *RUNS], ids=lambda path: f"{path.parent.name}-{path.stem}")


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" and cell.source.strip()]


def outputs(path: Path) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(path) for output in cell.outputs]


@pytest.mark.parametrize("name", ["stitching", "training"])
def test_the_promised_notebooks_are_there(name):
    assert name in [path.stem for path in NOTEBOOKS]


@each_notebook
def test_is_valid_nbformat_4_5(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)


@each_notebook
def test_kernel_is_that_of_any_environment(path):
    assert nbformat.read(path, 4).metadata.kernelspec.name == "python3"


@each_notebook
def test_holds_no_traces_of_the_run(path):
    notebook = nbformat.read(path, 4)
    assert not {"papermill", "widgets"} & set(notebook.metadata)
    assert not [cell.id for cell in notebook.cells if {"papermill", "execution"} & set(cell.metadata)]


@each_notebook
def test_says_for_which_versions_its_outputs_hold(path):
    """In its metadata, by hand: `outputs_hold_for`, widened after `tests/portable.py` was run with another version."""
    ranges = nbformat.read(path, 4).metadata.get("outputs_hold_for", {})
    assert set(ranges) == {"python", "torch", "torchvision"}, f"{path.name} does not say for which versions it holds"
    for name, text in ranges.items():
        assert SpecifierSet(text), f"{path.name}: {name} {text!r} is no range of versions"
    oldest = {re.split("[><=]", need)[0]: need for need in PROJECT["dependencies"] if ">" in need}
    for name in ("torch", "torchvision"):
        assert ranges[name].split(",")[0] == oldest[name].removeprefix(name), f"{path.name}: {name}"


@each_notebook
def test_was_run_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1)), "run `make outputs`"


@each_notebook
def test_shows_results_and_no_complaints(path):
    found = outputs(path)
    assert found, "no outputs are stored; run `make outputs`"
    assert not [o.evalue for o in found if o.output_type == "error"]
    assert not [o.text for o in found if o.get("name") == "stderr"]


@each_notebook
def test_is_small_enough_for_a_page(path):
    assert path.stat().st_size < MOST_BYTES


@each_notebook
def test_has_one_cell_of_parameters(path):
    tags = [tag for cell in nbformat.read(path, 4).cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1
    assert "injected-parameters" not in tags, "stored from a run with -p; run `make outputs`"


@each_notebook
def test_every_parameter_is_typed_and_explained(path):
    declared = inspect_notebook(path)
    assert declared
    assert not [name for name, entry in declared.items() if entry["inferred_type_name"] == "None"], "no type"
    assert not [name for name, entry in declared.items() if not entry["help"].strip()], "no comment"


@each_notebook
def test_the_parameters_are_those_that_are_checked(path):
    source = "\n".join(cell.source for cell in code_cells(path))
    module, model = re.search(r"from (reptrans[\w.]+) import (?:\([^)]*?|[^(\n]*?)(\w+Run)\b", source).groups()
    assert list(inspect_notebook(path)) and set(inspect_notebook(path)) == set(
        getattr(importlib.import_module(module), model).model_fields
    )


@each_notebook
def test_code_fits_the_page(path):
    cells = code_cells(path)
    sources = [cell.source.splitlines() for cell in cells]
    # The cell of parameters is a list, hidden in the book; it is as long as there are parameters.
    for cell, lines in zip(cells, sources, strict=True):
        assert "parameters" in cell.metadata.get("tags", []) or len(lines) <= MOST_LINES, lines[0]
    assert not [line for lines in sources for line in lines if len(line) > MOST_COLUMNS]


@each_page
def test_every_picture_has_words(path):
    """Beside an alt text, which says what is seen, a caption, which says what is plotted."""
    pictured = [cell for cell in code_cells(path) if any("image/png" in o.get("data", {}) for o in cell.outputs)]
    words = [cell.metadata.get("mystnb", {}) for cell in pictured]
    missing = [
        cell.source.splitlines()[0]
        for cell, each in zip(pictured, words, strict=True)
        if not each.get("image", {}).get("alt", "").strip() or not each.get("figure", {}).get("caption", "").strip()
    ]
    assert not missing


@each_notebook
def test_is_in_the_book(path):
    assert f"notebooks/{path.stem}" in entries_of_the_book()


def entries_of_the_book() -> list[str]:
    """Every file of the table of contents, at whatever depth."""
    found, waiting = [], [yaml.safe_load((ROOT / "book" / "_toc.yml").read_text("utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            found += [node[key] for key in ("root", "file") if key in node]
        if isinstance(node, dict | list):
            waiting += node.values() if isinstance(node, dict) else node
    return found
