"""What holds for the project as a whole: who imports whom, its size, its versions, and what its files say."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import floors
import pytest
import readme_table
import yaml
from floors import LEVEL, LEVELS, MODULE, ROOT, imported_units, unit_of

import reptrans

MOST_LINES = 20_420


def forbidden(unit: str, imported: set[str]) -> set[str]:
    """Those of the imported units that are neither `unit` itself nor on a line above it."""
    level = LEVEL.get(unit, len(LEVELS))
    return {other for other in imported if other != unit and LEVEL.get(other, len(LEVELS)) >= level}


def test_every_file_has_its_place_in_the_order():
    assert {unit_of(path) for path in MODULE.rglob("*.py")} - set(LEVEL) == set()


@pytest.mark.parametrize("path", sorted(MODULE.rglob("*.py")), ids=lambda path: str(path.relative_to(MODULE)))
def test_imports_point_down(path):
    package = ".".join(("reptrans", *path.relative_to(MODULE).parts[:-1]))
    arrows = imported_units(path.read_text("utf-8"), package)
    assert forbidden(unit_of(path), arrows) == set()


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from reptrans.errors import BadValue", "reptrans", {"errors"}),
        ("import reptrans.layers.cut as cut, torch", "reptrans", {"layers"}),
        ("from reptrans import similarity, Stitch", "reptrans", {"similarity", "__init__"}),
        ("import reptrans", "reptrans", {"__init__"}),
        ("def f():\n    from reptrans.runs import Run", "reptrans", {"runs"}),
        ("from . import data", "reptrans", {"data"}),
        ("from .cka import linear_cka", "reptrans.similarity", {"similarity"}),
        ("from ..training import fit", "reptrans.similarity", {"training"}),
        ("from torch import nn", "reptrans", set()),
    ],
)
def test_imports_are_found_however_they_are_written(source, package, expected):
    assert imported_units(source, package) == expected


@pytest.mark.parametrize(
    ("unit", "imported", "wrong"),
    [
        ("checkpoints", {"training", "data", "errors", "checkpoints"}, set()),
        ("training", {"checkpoints"}, {"checkpoints"}),
        ("layers", {"data"}, {"data"}),
        ("stitching", {"l2t", "runs", "training"}, {"l2t", "runs"}),
        ("errors", {"unheard_of"}, {"unheard_of"}),
    ],
)
def test_wrong_arrows_are_noticed(unit, imported, wrong):
    assert forbidden(unit, imported) == wrong


def lines_of_code(path: Path) -> int:
    """Lines that hold code: no docstrings, comments or blank lines, which should never be spared."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body[0].value.value = ""
    return len(ast.unparse(tree).splitlines())


def test_module_stays_small():
    lines = {path.relative_to(ROOT): lines_of_code(path) for path in MODULE.rglob("*.py")}
    assert sum(lines.values()) < MOST_LINES, lines


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["version"] == project["version"]
    assert getattr(reptrans, "__version__", project["version"]) == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_conda_environment_has_no_list_of_its_own():
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    assert [entry for entry in wanted if isinstance(entry, dict)] == [{"pip": ["-e .[dev]"]}]
    assert [re.split("[=<>]", entry)[0] for entry in wanted if isinstance(entry, str)] == ["python", "pip"]


def test_the_architecture_page_is_that_of_the_imports():
    _, table, _ = readme_table.split(floors.PAGE.read_text("utf-8"), floors.BEGIN, floors.END)
    assert table == floors.described(), "run `make readme`"
    for dark, picture in floors.PICTURES.items():
        assert picture.read_text("utf-8") == floors.drawn(dark), "run `make readme`"


def test_readme_table_is_that_of_the_notebook():
    _, table, _ = readme_table.split(readme_table.README.read_text("utf-8"))
    assert table == readme_table.parameter_table(readme_table.NOTEBOOK), "run `make readme`"


# A folder of somebody's machine: at the start of a path, so that addresses and relative paths are no matter.
MACHINE_PATH = re.compile(r"(?<![\w.~$})/-])(?:/(?:home|root|Users|work|mnt|opt|tmp|private|content)/\w|[A-Z]:\\\\?\w)")


def project_files() -> list[Path]:
    """All files that git tracks or would track."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True) if shutil.which("git") else None
    if listed is None or listed.returncode:
        pytest.skip("not a git checkout, so there is no list of the project's files")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_folder_of_one_machine():
    found = []
    for path in project_files():
        content = path.read_bytes()
        if b"\0" in content or "_static" in path.parts:
            continue
        for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}: {line[:100]}"] if MACHINE_PATH.search(line) else []
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("root='" + "/home" + "/ada/data'", True),
        ("at " + "/tmp" + "/ipykernel_7/1.py", True),
        ("C:" + "\\data", True),
        ("https://example.org/home/page", False),
        ("../work/data", False),
        ("~/work/data", False),
        ("/path/to/network.pt", False),
    ],
)
def test_machine_paths_are_told_from_others(text, is_one):
    assert bool(MACHINE_PATH.search(text)) is is_one


HEAVY = "IPython pydantic pandas sklearn scipy matplotlib seaborn captum papermill"


def test_what_editors_see_is_what_there_is():
    tree = ast.parse((MODULE / "__init__.py").read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {(node.module, alias.asname) for node in block.body for alias in node.names}
    assert seen == {(home, name) for home, names in reptrans._HOMES.items() for name in names}


def test_the_library_imports_torch_and_nothing_of_the_upper_floor():
    code = (
        f"import sys; from reptrans import Stitch, compare, METHODS\n"
        f"print([name for name in {HEAVY.split()} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


LIBRARY = [unit for level in LEVELS[: LEVELS.index("detection reid") + 1] for unit in level.split()]


@pytest.mark.parametrize("unit", LIBRARY)
def test_the_library_knows_no_parameters_of_notebooks(unit):
    files = (MODULE / unit).rglob("*.py") if (MODULE / unit).is_dir() else [MODULE / f"{unit}.py"]
    imported = {name.split(".")[0] for file in files for name in imported_names(file)}
    assert not imported & {"pydantic", "IPython", "papermill"}


def imported_names(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
