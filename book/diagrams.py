"""The diagrams of the notebooks, one function each: run this file to draw them to book/diagrams, light and dark."""

from collections.abc import Callable
from pathlib import Path

from drawing import Drawing

FOLDER = Path(__file__).resolve().parent / "diagrams"


def main() -> None:
    """Write every diagram that is not as it is stored."""
    for path, text in files().items():
        path.write_text(text, "utf-8")
    for path in {*FOLDER.glob("*.svg")} - set(files()):
        path.unlink()


def files() -> dict[Path, str]:
    """What each file of the folder should hold."""
    drawn = {name: draw() for name, draw in DIAGRAMS.items()}
    light = {FOLDER / f"{name}.svg": drawing.svg("light") for name, drawing in drawn.items()}
    return light | {FOLDER / f"{name}-dark.svg": drawing.svg("dark") for name, drawing in drawn.items()}


DIAGRAMS: dict[str, Callable[[], Drawing]] = {}


def diagram(draw: Callable[[], Drawing]) -> Callable[[], Drawing]:
    """Register a function as the diagram of the notebook of its name."""
    DIAGRAMS[draw.__name__] = draw
    return draw


# Stitching, similarity, networks, the atlas


@diagram
def stitching() -> Drawing:
    d = Drawing(620, 250, "The front of network 1, up to a layer, feeds a stitch, which feeds the end of network 2.")
    texts = ["conv1", "…", "bn3", "…", "classes"]
    one = d.chain(150, 60, texts, ["one"] * 3 + ["unused"] * 2, w=78)
    other = d.chain(150, 195, texts, ["unused"] * 3 + ["other"] * 2, w=78)
    stitch = d.box(400, 127, "stitch: W x + b", "new", w=130)
    d.arrow(d.box(48, 60, "image", w=70), one[0])
    d.arrow(one[2], stitch)
    d.arrow(stitch, other[3])
    d.label(250, 22, "front: network 1 up to the layer, frozen")
    d.label(480, 235, "end: network 2 after the layer, frozen")
    d.label(300, 112, "x", "strong")
    return d


@diagram
def diff() -> Drawing:
    d = Drawing(640, 220, "Networks A and B see the same images; answers, layers and weights are compared.")
    image, texts = d.box(48, 110, "image", w=70), ["layer", "…", "layer", "answer"]
    one, other = d.chain(160, 45, texts, "one", w=84, gap=30), d.chain(160, 175, texts, "other", w=84, gap=30)
    for first in (one[0], other[0]):
        d.arrow(image, first)
    for k, text in ((0, "similar?"), (2, "stitched?"), (3, "same errors?")):
        d.arrow(one[k], other[k], kind="dashed", both=True)
        d.label(one[k].x + 6, 110, text, anchor="start")
    d.label(274, 110, "one line\nof weights?")
    d.label(580, 45, "A", "strong")
    d.label(580, 175, "B", "strong")
    return d


# Distillation, transfer, inputs, merging


if __name__ == "__main__":
    main()
