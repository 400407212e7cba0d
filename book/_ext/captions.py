"""The caption of a cell belongs to its picture; a table that the cell shows, too, does not get it again."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class CaptionsOfPictures(SphinxTransform):
    """A figure without a picture becomes what it holds, before figures are numbered."""

    default_priority = 400

    def apply(self) -> None:
        for figure in list(self.document.findall(nodes.figure)):
            if not any(figure.findall(nodes.image)):
                figure.replace_self([part for part in figure.children if not isinstance(part, nodes.caption)])


def setup(app: Sphinx) -> dict:
    app.add_transform(CaptionsOfPictures)
    return {"parallel_read_safe": True}
