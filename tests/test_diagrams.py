"""The diagrams that are stored are those that the scripts draw, and can be read."""

import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
IMAGE = re.compile(r"!\[([^\]]+)\]\(\.\./book/diagrams/(\w+)\.svg\)")


def load_diagrams():
    sys.path.insert(0, str(ROOT / "book"))
    spec = importlib.util.spec_from_file_location("diagrams", ROOT / "book" / "diagrams.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(ROOT / "book"))
    return module


DIAGRAMS = load_diagrams()
DRAWN = {name: draw() for name, draw in DIAGRAMS.DIAGRAMS.items()}
each = pytest.mark.parametrize("name", DRAWN)


def test_the_folder_holds_what_the_script_draws():
    stored = {path: path.read_text("utf-8") for path in DIAGRAMS.FOLDER.glob("*.svg")}
    assert stored == DIAGRAMS.files(), "run `make diagrams`"


@each
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_diagram_is_a_picture_that_fits_the_page(name, scheme):
    root = ElementTree.fromstring(DRAWN[name].svg(scheme))
    assert int(root.get("width")) <= 700
    assert root.find("{*}title").text == DRAWN[name].alt
    assert min(map(float, re.findall(r"font-size: ([\d.]+)px", root.find("{*}style").text))) >= 12


@each
def test_every_shape_lies_inside(name):
    drawing = DRAWN[name]
    for kind, x, y, w, h in re.findall(r'<rect class="(\w+)" x="(.+?)" y="(.+?)" width="(.+?)" height="(.+?)"',
                                       "".join(drawing.shapes)):  # fmt: skip
        x, y, w, h = map(float, (x, y, w, h))
        assert x >= 0 and y >= 0 and x + w <= drawing.width and y + h <= drawing.height, kind
    for x, y, anchor, text in re.findall(r'<text .*?x="(.+?)" y="(.+?)" text-anchor="(\w+)">(.+?)<',
                                         "".join(drawing.shapes)):  # fmt: skip
        wide, x = 6.6 * len(text), float(x)  # about a letter of 13 px
        left = x - wide * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        assert left >= -4 and left + wide <= drawing.width + 4 and 0 < float(y) <= drawing.height, text


@each
def test_a_notebook_shows_it_with_the_same_words(name):
    """A diagram's description is the alt text in the notebook of its name."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4).cells
    assert (DRAWN[name].alt, name) in IMAGE.findall("\n".join(" ".join(c.source.split()) for c in cells))
