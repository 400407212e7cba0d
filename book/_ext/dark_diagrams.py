"""A diagram of book/diagrams is shown with its dark twin, of which the theme hides the one that does not fit."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class DarkTwins(SphinxTransform):
    """NAME.svg is followed by NAME-dark.svg, before Sphinx gathers the images."""

    default_priority = 400

    def apply(self) -> None:
        for image in list(self.document.findall(nodes.image)):
            light = image["uri"]
            if "diagrams/" in light and light.endswith(".svg"):
                dark = image.deepcopy()
                dark["uri"] = light.removesuffix(".svg") + "-dark.svg"
                image["classes"] += ["diagram", "only-light"]
                dark["classes"] += ["diagram", "only-dark"]
                image.parent.insert(image.parent.index(image) + 1, dark)


def setup(app: Sphinx) -> dict:
    app.add_transform(DarkTwins)
    return {"parallel_read_safe": True}
