"""A diagram NAME.svg that has a dark twin NAME-dark.svg is shown with it; the theme hides the one that does not fit."""

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class DarkTwins(SphinxTransform):
    """NAME.svg is followed by NAME-dark.svg, before Sphinx gathers the images."""

    default_priority = 400

    def apply(self) -> None:
        for image in list(self.document.findall(nodes.image)):
            light = image["uri"]
            twin = light.removesuffix(".svg") + "-dark.svg"
            if light.endswith(".svg") and Path(self.env.relfn2path(twin)[1]).is_file():
                dark = image.deepcopy()
                dark["uri"] = twin
                image["classes"] += ["diagram", "only-light"]
                dark["classes"] += ["diagram", "only-dark"]
                image.parent.insert(image.parent.index(image) + 1, dark)


def setup(app: Sphinx) -> dict:
    app.add_transform(DarkTwins)
    return {"parallel_read_safe": True}
