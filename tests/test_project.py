"""The project's own files: versions that go together, forms and workflows that say what they should."""

import json
import tomllib

import constraints
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = constraints.ROOT
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
GITHUB = ROOT / ".github"


def pinned() -> dict[str, Requirement]:
    lines = constraints.FILE.read_text("utf-8").splitlines()
    return {found.name: found for found in map(Requirement, (line for line in lines if not line.startswith("#")))}


def test_the_stored_versions_are_exact_and_satisfy_what_the_project_asks_for():
    pins = pinned()
    assert all(str(pin.specifier).startswith("==") for pin in pins.values())
    versions = {name: str(pin.specifier).removeprefix("==") for name, pin in pins.items()}
    for wanted in constraints.asked_for():
        if wanted.name in versions:
            assert wanted.specifier.contains(versions[wanted.name], prereleases=True), wanted
    needed = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert needed - set(versions) == set()


def test_constraints_are_made_of_what_is_installed():
    found = constraints.installed()
    assert {"torch", "numpy", "pandas", "ruff"} <= set(found) and list(found) == sorted(found)
    assert all("+" not in version for version in found.values())


@pytest.mark.parametrize("form", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem)
def test_forms_are_what_the_site_reads(form):
    read = yaml.safe_load(form.read_text("utf-8"))
    if form.stem == "config":
        return
    assert {"name", "description", "body"} <= set(read)
    fields = [field for field in read["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) and all(f["attributes"]["label"] for f in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_matrix_has_every_python_and_all_three_choices_of_versions():
    matrix = yaml.safe_load((GITHUB / "workflows" / "matrix.yml").read_text("utf-8"))["jobs"]["unit"]["strategy"][
        "matrix"
    ]
    assert all(python in SpecifierSet(PROJECT["requires-python"]) for python in matrix["python"])
    assert matrix["python"] == [f"3.{minor}" for minor in range(11, 15)]
    assert {"newest", "oldest", "constraints"} == {*matrix["versions"], *(one["versions"] for one in matrix["include"])}


def test_the_oldest_versions_of_the_matrix_are_those_of_the_project():
    text = (GITHUB / "workflows" / "matrix.yml").read_text("utf-8")
    for wanted in map(Requirement, PROJECT["dependencies"]):
        if wanted.name in ("torch", "torchvision"):
            assert f"{wanted.name}=={str(wanted.specifier).removeprefix('>=')}.*" in text


def test_a_release_is_described_as_it_is_cited():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    described = json.loads((ROOT / ".zenodo.json").read_text("utf-8"))
    assert described["title"] == cited["title"] and described["license"] == cited["license"]
    assert set(described["keywords"]) <= set(cited["keywords"])
    release = (GITHUB / "workflows" / "release.yml").read_text("utf-8")
    line = f'version = "{PROJECT["version"]}"'
    assert line in (ROOT / "pyproject.toml").read_text("utf-8").splitlines() and 'version = \\"' in release
