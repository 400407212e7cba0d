"""The book builds without a single warning, and each page says what a reader or a search engine looks for."""

import importlib
import pkgutil
import re
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import yaml

import reptrans

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "https://reptrans.github.io/reptrans/"


def test_strict_build(book):
    assert book.complaint == ""


@pytest.mark.parametrize("page", ["index.html", "book/intro.html", "book/stitching.html"])
def test_page_is_there(book, page):
    assert (book.site / page).is_file()


def public_modules() -> list[str]:
    """The package, its files and folders, and what lies below distillation, where every method is a file."""
    found = [module.name for module in pkgutil.walk_packages(reptrans.__path__, "reptrans.")]
    depth = {name: name.count(".") for name in found}
    return ["reptrans", *(n for n in found if depth[n] == 1 or n.startswith("reptrans.distillation.methods."))]


@pytest.mark.parametrize("name", [name for name in public_modules() if name != "reptrans.__main__"])
def test_reference_has_every_public_name(book, name):
    pages = "".join(page.read_text("utf-8") for page in (book.site / "book" / "api").glob("*.html"))
    assert f'id="module-{name}"' in pages, f"name it in a page of book/api, by `.. automodule:: {name}`"
    public = [] if name == "reptrans" else getattr(importlib.import_module(name), "__all__", [])
    assert [entry for entry in public if f'id="{name}.{entry}"' not in pages] == []


@cache
def pages(site: Path) -> dict[str, str]:
    """All pages but the front doors, which only lead on to another."""
    found = [path for path in site.rglob("*.html") if "_static" not in path.parts and path.name != "index.html"]
    return {path.relative_to(site).as_posix(): path.read_text("utf-8") for path in found}


@pytest.fixture
def extension(monkeypatch):
    """extension("site_files"): that module of book/_ext."""
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    yield importlib.import_module
    for name in ("site_files", "see_also", "claims"):
        sys.modules.pop(name, None)


def test_versions_agree(book):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["urls"]["Book"] + "/" == ADDRESS
    assert str(cited["version"]) == project["version"]
    intro = (ROOT / "book" / "intro.md").read_text("utf-8")
    assert re.findall(r"version (\S+?),|version = \{(\S+)\}", intro) == [
        (project["version"], ""),
        ("", project["version"]),
    ]


@pytest.mark.parametrize(
    "said",
    [
        '<meta name="description" content="',
        '<meta property="og:title" content="',
        f'<meta property="og:image" content="{ADDRESS}',
        f'<link rel="canonical" href="{ADDRESS}',
        f"reptrans {tomllib.loads((ROOT / 'pyproject.toml').read_text('utf-8'))['project']['version']}, ",
    ],
)
def test_every_page_says(book, said):
    assert [name for name, text in pages(book.site).items() if said not in text] == []


@pytest.mark.parametrize(
    ("english", "spanish"),
    [
        ('#citing">How to cite</a>', '#citing">Cómo citar</a>'), ("MIT licence", "licencia MIT"),
        ('">Changes</a>', '">Cambios</a>'),
    ],
)  # fmt: skip
def test_every_footer_says_in_its_language(book, english, spanish):
    found = pages(book.site).items()
    assert [name for name, text in found if (spanish if name.startswith("es/") else english) not in text] == []


def test_previews_show_pictures_that_exist(book):
    shown = {re.search(rf'og:image" content="{ADDRESS}([^"]+)', text)[1] for text in pages(book.site).values()}
    assert [name for name in shown if not (book.site / name).is_file()] == []


def test_captions_belong_to_pictures(book):
    figures = [f for text in pages(book.site).values() for f in re.findall("<figure.*?</figure>", text, re.DOTALL)]
    assert figures and all("<img" in figure or "<svg" in figure for figure in figures)


def test_titles_tell_pages_apart(book):
    titles = {name: re.search("<title>(.*?)</title>", text)[1] for name, text in pages(book.site).items()}
    counts = Counter((name.startswith("es/"), title) for name, title in titles.items())
    assert [title for (_, title), count in counts.items() if count > 1] == []
    assert "· notebook" in titles["notebooks/stitching.html"]


def test_the_sitemaps_have_every_page(book):
    maps = "".join(path.read_text("utf-8") for path in book.site.rglob("sitemap.xml"))
    fronts = {path.relative_to(book.site).as_posix() for path in book.site.rglob("index.html")}
    searches = {"search.html", "es/search.html"}
    assert sorted(re.findall(rf"<loc>{ADDRESS}(.*?)</loc>", maps)) == sorted({*pages(book.site), *fronts} - searches)
    assert f"Sitemap: {ADDRESS}sitemap.xml" in (book.site / "robots.txt").read_text("utf-8")


@pytest.mark.parametrize("pattern", ["*.map", "*.ttf", "fontawesome.js"])
def test_files_that_nobody_needs_are_left_out(book, pattern):
    assert list(book.site.rglob(pattern)) == []


@pytest.mark.parametrize(
    "left_out", ["fontawesome.js", "jb-print-docs-body", "<th></th>", "<summary><span", "<dl>\n<dd>"]
)
def test_parts_that_nobody_needs_are_left_out(book, left_out):
    assert [name for name, text in pages(book.site).items() if left_out in text] == []


def test_only_the_search_loads_the_index(book):
    assert {name for name, text in pages(book.site).items() if "searchindex.js" in text} == {
        "search.html",
        "es/search.html",
    }


def test_results_of_a_search_are_quoted_from_the_text(book):
    script = (book.site / "_static" / "searchtools.js").read_text("utf-8")
    assert "article.bd-article" in script and '[role="main"]' not in script and ".tag_parameters" in script
    assert all(
        '<article class="bd-article"' in text for name, text in pages(book.site).items() if "search.html" not in name
    )


def test_lists_of_arguments_become_lines(extension):
    html = '<dt>f(<dl>\n<dd><em class="sig-param">a</em>,</dd>\n<dd><em class="sig-param">b</em>,</dd>\n</dl>)</dt>'
    assert extension("site_files").lightened(html) == (
        '<dt>f(<span class="sig-lines">\n<span><em class="sig-param">a</em>,</span>\n'
        '<span><em class="sig-param">b</em>,</span>\n</span>)</dt>'
    )


def test_notebooks_lead_to_their_method_runs_and_claims(extension, book):
    see_also = extension("see_also")
    part = next(part for part in see_also.parts(ROOT / "book" / "_toc.yml") if "notebooks/grounded" in part)
    assert see_also.related("book/runs/grounded_architectures", part) == {
        "Method": ["book/similarity"],
        "Notebook": ["notebooks/grounded"],
    }
    found = see_also.related("notebooks/similarity", part)
    assert found == {"Method": ["book/similarity"], "Stored runs": ["book/runs/similarity_tiny10"]}
    run = pages(book.site)["book/runs/similarity_tiny10.html"]
    assert 'href="../claims.html#claim-cka-same-layer"' in run and "Claims tested here: " in run
    assert "see-also" not in pages(book.site)["book/howto.html"]
