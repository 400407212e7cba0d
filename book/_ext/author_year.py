"""The bibliography under the names by which the text cites: author and year, and a letter where two have the same."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle
from sphinx.application import Sphinx


def who(entry: Entry) -> str:
    """The authors, as in the text: one or two names, or the first with et al."""
    names = ["".join(str(part) for part in person.rich_last_names) for person in entry.persons["author"]]
    return f"{names[0]} et al." if len(names) > 2 else " and ".join(names)


class Labels(BaseLabelStyle):
    """Heo et al., 2019a"""

    def format_labels(self, sorted_entries: Iterable[Entry]) -> Iterator[str]:
        for entry in sorted_entries:
            yield f"{who(entry)}, {entry.fields['year']}"


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


def letter(app: Sphinx) -> None:
    lettered(app.env.get_domain("cite").bibdata.data.entries.values())


def setup(app: Sphinx) -> dict:
    register_plugin("pybtex.style.formatting", "author_year", Style)
    app.connect("builder-inited", letter)
    return {"parallel_read_safe": True}
