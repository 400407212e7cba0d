"""The bibliography under the names by which the text cites: author and year, and a letter where two have the same."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx
from sphinxcontrib.bibtex.style.referencing import PersonStyle
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle

AND = {"en": " and ", "es": " y "}


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


class Style(PlainStyle):
    """The style plain, with these labels in place of numbers."""

    default_label_style = Labels


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


def setup(app: Sphinx) -> dict:
    Labels.language = app.config.language or "en"
    register_plugin("pybtex.style.formatting", "author_year", Style)
    app.connect("builder-inited", prepare)
    return {"parallel_read_safe": True}
