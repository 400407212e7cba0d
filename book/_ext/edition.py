"""Two languages: a link from each page to the same page in the other one, and from the Spanish edition, which has only
a part of the book, to whatever is in English alone.
"""

import re
from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

BOOK = Path(__file__).resolve().parent.parent
ENGLISH = "../../"  # from a Spanish page to the folder of the English book
NAMES = {"en": "English", "es": "Español"}
METHODS = "reptrans.distillation.methods."


def translated() -> list[str]:
    """The pages that are in both languages."""
    toc = yaml.safe_load((BOOK / "_toc_es.yml").read_text("utf-8"))
    return [toc["root"], *(chapter["file"] for chapter in toc["chapters"])]


class WithoutWords(SphinxTransform):
    """Formulas, code and numbers are the same in every language, and no sentences for a translator."""

    default_priority = 8  # before sentences are collected and replaced

    def apply(self) -> None:
        blocks = (node for node in self.document.findall(nodes.TextElement) if not isinstance(node, nodes.Inline))
        for node in blocks:
            words = re.sub(r"\$[^$]*\$|`[^`]*`|\{[^}]*\}|\]\([^)]*\)", "", node.rawsource)
            if isinstance(node, nodes.math_block) or not re.search(r"[^\W\d_]{2}", words):
                node["translatable"] = False


def lead_out(app: Sphinx, doctree: nodes.document) -> None:
    """Links of the Spanish edition to pages that it lacks lead to the English book."""
    if app.config.language != "es":
        return
    for link in list(doctree.findall(addnodes.pending_xref)):
        if address := english(link, app.env.found_docs):
            link.replace_self(nodes.reference("", "", *link.children, refuri=address, internal=True))


def english(link: addnodes.pending_xref, own: set[str]) -> str:
    """Where in the English book a link leads; "" for one within the edition."""
    target, place = link["reftarget"], link.get("reftargetid")
    if link["refdomain"] == "doc" and target not in own:
        return f"{ENGLISH}{target}.html" + (f"#{place}" if place else "")
    if link["refdomain"] == "py" and target.startswith(METHODS):
        return f"{ENGLISH}book/api/methods.html#{target}"
    return ""


def offer(app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None) -> None:
    """The other language, above a page that is in both, and for search engines."""
    if page not in translated() or "body" not in context:
        return
    other, book = "en" if app.config.language == "es" else "es", app.config.html_baseurl.removesuffix("es/")
    address = f"{ENGLISH}{page}.html" if other == "en" else f"../es/{page}.html"
    link = f'<a href="{address}" hreflang="{other}" lang="{other}">{NAMES[other]}</a>'
    context["body"] = f'<p class="language-switch">{link}</p>\n{context["body"]}'
    if book:
        whole = f"{book}{'es/' * (other == 'es')}{page}.html"
        context["metatags"] += f'\n<link rel="alternate" hreflang="{other}" href="{whole}"/>'


def setup(app: Sphinx) -> dict:
    app.add_transform(WithoutWords)
    app.connect("doctree-read", lead_out)
    app.connect("html-page-context", offer, priority=900)
    return {"parallel_read_safe": True}
