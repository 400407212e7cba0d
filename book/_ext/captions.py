"""Two things that are put right before a page is written: captions belong to pictures, punctuation to its formula."""

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

CLOSING = re.compile(r"[^\s\w([{«“—–][^\s([{«“—–]*")  # what follows without a space: a comma, ").", "'s", "-th"


class CaptionsOfPictures(SphinxTransform):
    """The caption of a cell belongs to its picture; a table that the cell shows, too, does not get it again.

    A figure without a picture becomes what it holds, before figures are numbered.
    """

    default_priority = 400

    def apply(self) -> None:
        for figure in list(self.document.findall(nodes.figure)):
            if not any(figure.findall(nodes.image)):
                figure.replace_self([part for part in figure.children if not isinstance(part, nodes.caption)])


class PunctuationAtFormulas(SphinxTransform):
    """What follows a formula without a space stays on its line: browsers break after a formula as after a picture."""

    default_priority = 400

    def apply(self) -> None:
        for formula in list(self.document.findall(nodes.math)):
            text = formula.next_node(descend=False, siblings=True)
            if isinstance(text, nodes.Text) and (found := CLOSING.match(text)):
                text.parent.replace(text, nodes.Text(text[found.end() :]))
                together = nodes.inline(classes=["unbroken"])
                formula.replace_self(together)
                together += [formula, nodes.Text(found[0])]


def setup(app: Sphinx) -> dict:
    app.add_transform(CaptionsOfPictures)
    app.add_transform(PunctuationAtFormulas)
    return {"parallel_read_safe": True}
