"""What is cited exists, what exists is cited, and a paper that the code or the book names is in the bibliography."""

import ast
import re
import sys
import unicodedata
from functools import cache
from pathlib import Path

import nbformat
import pytest
from pybtex.database import parse_file

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "book").glob("*.md"))
NOTEBOOKS = sorted([*(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "book" / "runs").glob("*.ipynb")])
MODULES = sorted((ROOT / "reptrans").rglob("*.py"))

ENTRY = re.compile(r"@\w+\{(\w+),\n(.*?)\n\}", re.DOTALL)
FIELD = re.compile(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", re.MULTILINE)
CITATION = re.compile(r"\{cite(?::[pt])?\}`([^`]+)`")
# "Li and Hoiem 2016", "Chen et al., NeurIPS 2017", "Olah, Mordvintsev & Schubert (2017)": last name given, year.
NAMED = re.compile(
    r"\b([A-ZÀ-Ž][\w’-]+)(?: et al\.?)?(?:'s)?,? \(?(?:(?:NeurIPS|CVPR|ICCV|ICML|ICLR|AAAI) )?((?:19|20)\d\d)\b"
)
NO_AUTHORS = {"VOC"}  # data sets with a year


@cache
def entries() -> dict[str, dict[str, str]]:
    found = ENTRY.findall((ROOT / "book" / "references.bib").read_text())
    return {key: dict(FIELD.findall(body)) for key, body in found}


def plain(text: str) -> str:
    """Without accents, LaTeX's or Unicode's, and braces."""
    text = re.sub(r"\\[\"'`^~H=.]\s*\{?(\w)\}?", r"\1", text)
    text = unicodedata.normalize("NFKD", text)
    return "".join(c for c in text if not unicodedata.combining(c)).replace("{", "").replace("}", "")


@cache
def texts() -> dict[str, str]:
    """All prose by file: pages, text cells, docstrings."""
    found = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
    for path in NOTEBOOKS:
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
        found[str(path.relative_to(ROOT))] = "\n".join(cells)
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in MODULES:
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, holders)]
        found[str(path.relative_to(ROOT))] = "\n".join(ast.get_docstring(node) or "" for node in nodes)
    return found


def cited() -> set[str]:
    """Keys that the texts cite, and those that the claims give as their sources."""
    claims = re.findall(r"sources: \[(.*)\]", (ROOT / "book" / "claims.yaml").read_text())
    found = [keys for text in texts().values() for keys in CITATION.findall(text)]
    return {key.strip() for keys in [*found, *claims] for key in keys.split(",")}


def known(name: str, year: int) -> bool:
    """Whether an entry's authors hold the name; a preprint may be a year older than the paper, or its year be named."""
    return any(
        re.search(rf"\b{re.escape(plain(name))}\b", plain(entry["author"])) and abs(int(entry["year"]) - year) <= 1
        for entry in entries().values()
    )


def test_every_citation_has_an_entry():
    assert cited() - set(entries()) == set()


def test_every_entry_is_cited():
    assert set(entries()) - cited() == set()


def test_no_key_stands_twice():
    keys = re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE)
    assert sorted(keys) == sorted(entries())


@pytest.mark.parametrize(("key", "entry"), entries().items(), ids=entries())
def test_entry_says_who_what_when_and_where(key, entry):
    assert {"author", "title", "year"} <= set(entry)
    assert {"booktitle", "journal", "howpublished", "publisher", "note", "eprint"} & set(entry)
    assert re.search(rf"{entry['year']}", key), f"{key} appeared in {entry['year']}"


@pytest.mark.parametrize(("key", "entry"), entries().items(), ids=entries())
def test_entry_leads_to_the_paper(key, entry):
    assert {"doi", "url", "eprint"} & set(entry), f"{key} has no doi, url or eprint"
    assert re.fullmatch(r"10\.\d{4,}/\S+", entry.get("doi", "10.1000/1"))
    assert re.fullmatch(r"https://\S+", entry.get("url", "https://a"))
    assert re.fullmatch(r"\d{4}\.\d{4,5}", entry.get("eprint", "1234.5678"))


@pytest.mark.parametrize("place", texts())
def test_every_paper_named_is_in_the_bibliography(place):
    named = {(name, int(year)) for name, year in NAMED.findall(texts()[place]) if name not in NO_AUTHORS}
    assert {(name, year) for name, year in named if not known(name, year)} == set()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Source: Li and Hoiem 2016.", "Hoiem"),
        ("(Chen et al., NeurIPS 2017)", "Chen"),
        ("Olah, Mordvintsev & Schubert (2017), lucid", "Schubert"),
        ("Székely et al. 2007", "Székely"),
        ("Tian et al.'s (2020)", "Tian"),
    ],
)
def test_names_are_found(text, name):
    assert NAMED.findall(text)[0][0] == name
    assert not NAMED.findall("in 2016 and of 1000 images")


def test_labels_are_author_and_year_and_never_the_same():
    sys.path.insert(0, str(ROOT / "book" / "_ext"))
    from author_year import Labels, lettered

    data = parse_file(ROOT / "book" / "references.bib").entries
    lettered(data.values())
    lettered(data.values())  # a build may start from an earlier one
    found = dict(zip(data, Labels().format_labels(data.values()), strict=True))
    assert len(set(found.values())) == len(found)
    assert found["heo2019overhaul"] == "Heo et al., 2019a"
    assert found["heo2019boundaries"] == "Heo et al., 2019b"
    assert found["park2019feed"] == "Park and Kwak, 2019"
    assert found["szekely2014"] == "Székely and Rizzo, 2014"
    assert found["milanifard2016"] == "Milani Fard et al., 2016"
