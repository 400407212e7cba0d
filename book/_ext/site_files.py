"""What every page says of itself, and what the built site leaves out.

Each page gets a description, a preview and a footer with version, date, licence and citation. When the site is built it
gets a sitemap, and loses what no reader needs: maps of minified files, Font Awesome's script, whose icons are in the
theme's fonts too, the search index on pages other than the search, and a second title for print. Lists of arguments,
which Sphinx writes as definitions without terms, become lines, and empty header cells plain ones.
"""

import re
from datetime import date
from html import escape
from pathlib import Path

import yaml
from babel.dates import format_date
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

# Of the theme's pages: what is taken out or put right, with what stands in its place.
PAGE_EDITS = [
    (re.compile(r'<script[^>]*src="[^"]*fontawesome\.js[^"]*"></script>\n?'), ""),
    (re.compile(r'<div id="jb-print-docs-body".*?(?=<div id="searchbox">)', re.DOTALL), ""),
    (re.compile(r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>"), r'<span class="sig-lines">\n\1</span>'),
    (re.compile(r'<dd>(<em class="sig-param">.*)</dd>'), r"<span>\1</span>"),
    (re.compile(r"<th></th>"), "<td></td>"),
    (re.compile(r"<summary>(?=<span class=\"toctree-toggle\")"), '<summary aria-label="Pages below">'),
]
SEARCH_SCRIPTS = re.compile(
    r'<script src="[^"]*(?:_static/(?:searchtools|language_data)|searchindex)\.js"></script>\n?'
)
# Results of a search are quoted from the text of a page, without its buttons.
SEARCH_EDITS = [
    ('[role="main"]', "article.bd-article"),
    ('[".headerlink", "script", "style"]', '[".headerlink", "script", "style", ".tag_parameters"]'),
]


def citation(source: Path) -> dict:
    return yaml.safe_load((source / "CITATION.cff").read_text("utf-8"))


def name_version(app: Sphinx, config: Config) -> None:
    config.version = config.release = str(citation(Path(app.srcdir))["version"])


def described(doctree: nodes.document | None, length: int = 200) -> str:
    """The first real paragraph of a page, cut at a word."""
    paragraphs = doctree.findall(nodes.paragraph) if doctree else ()
    text = next((p.astext() for p in paragraphs if len(p.astext()) > 40), "")
    text = " ".join(text.split())
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def kind(page: str) -> str:
    """What kind of page it is, for its title: a subject's method, notebook and runs have similar names."""
    kinds = {"notebooks": " · notebook", "book/runs": " · stored run", "book/api": " · reference"}
    return kinds.get(page.rpartition("/")[0], "")


def preview(app: Sphinx, page: str, title: str, doctree: nodes.document | None) -> str:
    """Tags for search engines, and for those who show a link as a card."""
    address = app.config.html_baseurl
    english = address.removesuffix(f"{app.config.language}/")  # an edition has no copy of what the book has
    shown = [app.builder.images.get(image["uri"]) for image in doctree.findall(nodes.image)] if doctree else []
    picture = next((f"{address}_images/{name}" for name in shown if name), f"{english}_static/cards/stitching.png")
    text = described(doctree) or app.config.project
    tags = {"og:title": title, "og:type": "article", "og:url": f"{address}{page}.html", "og:site_name": "reptrans"}
    tags |= {"og:description": text, "og:image": picture}
    tags = [f'<meta property="{name}" content="{escape(value)}" />' for name, value in tags.items()]
    return "\n".join([f'<meta name="description" content="{escape(text)}" />', *tags])


# What is said of a version without a date, the licence, and what two links say.
FOOTERS = {
    "en": ("unreleased", "{} licence", "How to cite", "Changes"),
    "es": ("sin publicar", "licencia {}", "Cómo citar", "Cambios"),
}


def footer(cited: dict, intro: str, changes: str, language: str = "en") -> str:
    when, licence, cite, changed = FOOTERS[language]
    if released := cited.get("date-released"):
        when = format_date(date.fromisoformat(released), "long", {"en": "en_GB"}.get(language, language))
    return (
        f"reptrans {cited['version']}, {when} · {licence.format(cited['license'])} · "
        f'<a href="{intro.rstrip("#")}#citing">{cite}</a> · <a href="{changes}">{changed}</a>'
    )


def tell(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    title = re.sub(r"<[^>]+>", "", context.get("title") or "reptrans") + kind(page)
    context["title"] = title
    context["metatags"] = context.get("metatags", "") + "\n" + preview(app, page, title, doctree)
    path = context["pathto"]
    pages = path("book/intro"), path("book/changes")
    context["theme_extra_footer"] = footer(citation(Path(app.srcdir)), *pages, app.config.language or "en")


def lightened(html: str, searches: bool = False) -> str:
    """A page without what it does not need; the page that searches keeps the scripts for it."""
    html = html if searches else SEARCH_SCRIPTS.sub("", html)
    for pattern, instead in PAGE_EDITS:
        html = pattern.sub(instead, html)
    return html


def sitemap(address: str, pages: list[str]) -> str:
    places = "\n".join(f"<url><loc>{address}{page}</loc></url>" for page in pages)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{places}\n</urlset>\n'
    )


def finish(app: Sphinx, failure: Exception | None) -> None:
    if failure or app.builder.format != "html":
        return
    site = Path(app.outdir)
    for path in [*site.rglob("*.map"), *site.rglob("*.ttf"), site / "_static" / "scripts" / "fontawesome.js"]:
        path.unlink(missing_ok=True)
    pages = sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)
    for path in pages:
        path.write_text(lightened(path.read_text("utf-8"), path.name == "search.html"), "utf-8")
    search = site / "_static" / "searchtools.js"
    text = search.read_text("utf-8")
    for old, new in SEARCH_EDITS:
        text = text.replace(old, new)
    search.write_text(text, "utf-8")
    names = [path.relative_to(site).as_posix() for path in pages]
    address = app.config.html_baseurl
    (site / "sitemap.xml").write_text(sitemap(address, [n for n in names if n != "search.html"]), "utf-8")
    (site / "robots.txt").write_text(f"User-agent: *\nAllow: /\nSitemap: {address}sitemap.xml\n", "utf-8")


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", name_version)
    app.connect("html-page-context", tell)
    app.connect("build-finished", finish)
    return {"parallel_read_safe": True}
