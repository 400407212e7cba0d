"""The bibliography under the names by which the text cites: author and year, and a letter where two have the same."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator

from docutils import nodes
from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.sorting import BaseSortingStyle
from pybtex.style.template import Node, field, names, optional, sentence, words
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinxcontrib.bibtex.citation_target import parse_citation_targets
from sphinxcontrib.bibtex.style.referencing import PersonStyle
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle

AND = {"en": " and ", "es": " y "}
LAST = {"en": ", and ", "es": " y "}  # before the last of several authors
IN, EDITION = {"en": "In", "es": "En"}, {"en": "edition", "es": "edición"}


def who(entry: Entry, language: str = "en") -> str:
    """The authors, as in the text: one or two names, or the first with et al."""
    names = ["".join(str(part) for part in person.rich_last_names) for person in entry.persons["author"]]
    return f"{names[0]} et al." if len(names) > 2 else AND[language].join(names)


class Labels(BaseLabelStyle):
    """Heo et al., 2019a"""

    language = "en"

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        for entry in sorted_entries:
            yield f"{who(entry, self.language)}, {entry.fields['year']}"


class Order(BaseSortingStyle):
    """By the labels: authors without regard to braces, accents and capitals, then the year with its letter."""

    def sorting_key(self, entry: Entry) -> tuple[str, str]:
        letters = unicodedata.normalize("NFKD", who(entry))
        return "".join(c for c in letters if not unicodedata.combining(c)).lower(), entry.fields["year"]


class Style(PlainStyle):
    """The style plain, with these labels in place of numbers, in this order, and in the language of the labels."""

    default_label_style = Labels
    default_sorting_style = Order

    def format_names(self, role: str, as_sentence: bool = True) -> Node:
        language = Labels.language
        found = names(role, sep=", ", sep2=AND[language], last_sep=LAST[language])
        return sentence[found] if as_sentence else found

    def format_edition(self, entry: Entry) -> Node:
        return optional[words[field("edition"), EDITION[Labels.language]]]

    def get_inproceedings_template(self, entry: Entry) -> Node:
        template = super().get_inproceedings_template(entry)
        where = next(part for part in template.children if isinstance(part, Node) and part.children[0] == "In")
        where.children[0] = IN[Labels.language]
        return template


def lettered(entries: Iterable[Entry]) -> None:
    """2019a, 2019b, … in place of the years of entries whose authors and year are the same, in the order of titles."""
    same = defaultdict(list)
    for entry in entries:
        entry.fields["year"] = entry.fields["year"][:4]
        same[who(entry), entry.fields["year"]].append(entry)
    for group in same.values():
        for letter, entry in zip("abcdefgh", sorted(group, key=lambda entry: entry.fields["title"]), strict=False):
            entry.fields["year"] += letter * (len(group) > 1)


def prepare(app: Sphinx) -> None:
    """Letters at the years, and in sentences the "and" of their language."""
    cited = app.env.get_domain("cite")
    lettered(cited.bibdata.data.entries.values())
    cited.reference_style = AuthorYearReferenceStyle(person=PersonStyle(sep2=AND[Labels.language]))


def count_once(app: Sphinx, doctree: nodes.document) -> None:
    """Forget citations that are not on the page: a translated sentence was read before, in English and by itself."""
    cited, page = app.env.get_domain("cite"), app.env.docname
    found = [node for node in doctree.findall(pending_xref) if node["refdomain"] == "cite"]
    there = {(name, tuple(parse_citation_targets(node["reftarget"]))) for node in found for name in node["ids"]}
    own = {(ref.citation_ref_id, tuple(ref.targets)): ref for ref in cited.citation_refs if ref.docname == page}
    others = [ref for ref in cited.citation_refs if ref.docname != page]
    cited.data["citation_refs"] = others + [ref for which, ref in own.items() if which in there]


def setup(app: Sphinx) -> dict:
    Labels.language = app.config.language or "en"
    register_plugin("pybtex.style.formatting", "author_year", Style)
    app.connect("builder-inited", prepare)
    app.connect("doctree-read", count_once)
    return {"parallel_read_safe": True}
