"""The Spanish edition: every sentence has its translation, with the same formulas, code, links and numbers."""

import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import spanish  # noqa: E402
from edition import translated  # noqa: E402

PARTS = {
    "formulas": r"\$[^$]+\$",
    "code": r"`[^`]+`",
    "links": r"\]\([^)]+\)",
    "numbers": r"(?<![\w.,])\d+(?:\.\d+)?(?![\w.]*\w)",
}
CATALOGUE = [(m.id, m.string, m.fuzzy) for m in spanish.catalogue() if m.id]


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Those that the pages have now."""
    return spanish.sentences()


def test_no_sentence_lacks_its_translation(sentences):
    known = {sentence for sentence, translation, _ in CATALOGUE if translation}
    assert [sentence for sentence in sentences if sentence not in known] == [], "python book/spanish.py catalogue"


def test_no_translation_is_stale(sentences):
    assert [sentence for sentence, _, _ in CATALOGUE if sentence not in sentences] == []
    assert "#~" not in spanish.CATALOGUE.read_text("utf-8")


def test_no_translation_is_a_guess():
    assert [sentence for sentence, _, fuzzy in CATALOGUE if fuzzy] == []


def parts(text: str, what: str) -> Counter:
    """What must be the same in both languages; numbers outside of formulas, code and links."""
    if what == "numbers":
        text = re.sub("|".join(PARTS[name] for name in ("formulas", "code", "links")), " ", text)
    return Counter(re.findall(PARTS[what], text))


@pytest.mark.parametrize("what", PARTS)
def test_what_is_no_language_stays(what):
    wrong = [english for english, spanish, _ in CATALOGUE if parts(english, what) != parts(spanish, what)]
    assert wrong == []


@pytest.mark.parametrize(
    ("what", "text", "found"),
    [
        ("numbers", "73.58 %, WRN-16-2, 8 × 8 and $x^2$", ["73.58", "16", "2", "8", "8"]),
        ("formulas", "$a$ and $b^2$", ["$a$", "$b^2$"]),
        ("links", "[x](y.md#z)", ["](y.md#z)"]),
        ("code", "{py:func}`~a.b` is `c`", ["`~a.b`", "`c`"]),
    ],
)
def test_what_counts_as_no_language(what, text, found):
    assert parts(text, what) == Counter(found)


def test_what_the_edition_lacks_is_taken_from_the_book(tmp_path):
    texts = {
        "_static/same.css": "a", "es/_static/same.css": "a", "_static/other.js": "a", "es/_static/other.js": "b",
        "book/intro.html": "", "es/book/own.html": '<a href="intro.html#place"><a href="own.html"><a href="#here">'
        '<link href="../_static/same.css?v=1"><script src="../_static/other.js"><a href="https://a.org/intro.html">',
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    spanish.share(tmp_path)
    assert (tmp_path / "es/book/own.html").read_text() == (
        '<a href="../../book/intro.html#place"><a href="own.html"><a href="#here">'
        '<link href="../../_static/same.css?v=1"><script src="../_static/other.js"><a href="https://a.org/intro.html">'
    )
    assert [path.name for path in (tmp_path / "es/_static").iterdir()] == ["other.js"]


def read(site: Path, page: str) -> BeautifulSoup:
    return BeautifulSoup((site / f"{page}.html").read_text("utf-8"), "html.parser")


@pytest.mark.parametrize("page", translated())
def test_a_page_says_its_language_and_offers_the_other(book, page):
    for language, other, folder in (("en", "es", book.site), ("es", "en", book.site / "es")):
        found = read(folder, page)
        assert found.html["lang"] == language
        link = found.select_one(".language-switch a")
        assert link["hreflang"] == other
        there = (folder / page).parent / link["href"]
        assert there.resolve() == (book.site / ("es" if other == "es" else "") / f"{page}.html").resolve()
        assert there.is_file()


def test_titles_headings_and_figures_are_in_spanish(book):
    page = read(book.site / "es", "book/distillation")
    assert page.h1.text.startswith("Destilación de features")
    assert "veredicto" in [title.text for title in page.select("table.taxonomy th")]
    assert "red tutora" in [text.text for text in page.select("svg text")]


@pytest.mark.parametrize("page", ["book/distillation_attention", "book/bibliography"])
def test_what_is_written_by_the_build_is_in_spanish_too(book, page):
    for folder, licence, two in (
        (book.site, "MIT licence", "Zagoruyko and Komodakis"),
        (book.site / "es", "licencia MIT", "Zagoruyko y Komodakis"),
    ):
        found = read(folder, page)
        assert licence in found.select_one(".bd-footer-content").text
        assert two in found.article.text
    assert not any(re.search(r" and \w+,? (?:19|20)\d\d", link.text) for link in found.select("article a"))


def test_the_edition_shares_what_is_the_same(book):
    for path in (book.site / "es" / "_static").rglob("*"):
        if path.is_file():
            twin = book.site / "_static" / path.relative_to(book.site / "es" / "_static")
            assert not twin.is_file() or twin.read_bytes() != path.read_bytes(), path
