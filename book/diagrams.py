"""The diagrams of the notebooks, one function each: run this file to draw them to book/diagrams, light and dark."""

from collections.abc import Callable
from pathlib import Path

from drawing import Box, Drawing

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
    d.label(346, 100, "x", "strong")
    return d


@diagram
def similarity() -> Drawing:
    d = Drawing(
        640,
        210,
        "The same images go through two networks; at one layer of each the activations are matrices X and Y, "
        "and a measure makes one number of them.",
    )
    images, measure = d.box(55, 105, "images", w=80), d.box(582, 105, "measure\nof X and Y", "new", w=100, h=50)
    for y, kind, name in ((55, "one", "X"), (155, "other", "Y")):
        layers = d.chain(170, y, ["conv1", "…", "bn4"], kind, w=66, gap=20)
        matrix = d.box(440, y, f"{name}: images\n× features", kind, w=110, h=50)
        d.arrow(images, layers[0])
        d.arrow(layers[-1], matrix)
        d.arrow(matrix, measure)
    d.label(256, 20, "network 1")
    d.label(256, 192, "network 2")
    return d


@diagram
def chance() -> Drawing:
    d = Drawing(
        640,
        240,
        "Two matrices with the images as rows in the same order give the value; with the rows of one in another order "
        "they give what chance gives.",
    )
    for x, order, title in ((60, "1234", "the value"), (390, "3142", "chance, again and again")):
        for i, (one, other) in enumerate(zip("1234", order, strict=True)):
            d.box(x + 20, 60 + 32 * i, f"image {one}", "one", w=76, h=26)
            d.box(x + 140, 60 + 32 * i, f"image {other}", "other", w=76, h=26)
            d.line((x + 62, 60 + 32 * i), (x + 98, 60 + 32 * i), kind="unused")
        d.label(x + 80, 20, title, "strong")
        d.label(x + 20, 190, "X")
        d.label(x + 140, 190, "Y")
        d.label(x + 80, 218, "s(X, Y)" if order == "1234" else "s(X, Y in another order)")
    return d


@diagram
def grounded() -> Drawing:
    d = Drawing(
        620,
        230,
        "Networks of two groups that were trained on different labels; a good measure finds two networks of one group "
        "more similar than two of different groups.",
    )
    one = [d.box(150 + 190 * i, 60, f"network {i + 1}", "one", w=104) for i in range(2)]
    other = [d.box(150 + 190 * i, 180, f"network {i + 3}", "other", w=104) for i in range(2)]
    d.arrow(one[0], one[1], "more similar", both=True)
    d.arrow(other[0], other[1], "more similar", both=True)
    d.arrow(one[0], other[0], "", "dashed", both=True)
    d.arrow(one[1], other[1], "", "dashed", both=True)
    d.label(245, 120, "less similar")
    d.label(500, 60, "group 1: right labels", anchor="middle")
    d.label(500, 180, "group 2: random labels", anchor="middle")
    return d


@diagram
def invariances() -> Drawing:
    d = Drawing(
        660,
        230,
        "An image and another one that network a cannot tell from it, its metamer, both go into network b; STIR asks "
        "whether b can tell them apart.",
    )
    image, meta = d.box(60, 60, "image", w=84), d.box(60, 170, "metamer", "new", w=84)
    a, b = d.box(260, 115, "network a\nup to a layer", "one", w=124), d.box(440, 115, "network b", "other", w=104)
    for picture in (image, meta):
        d.arrow(picture, a)
    d.label(260, 48, "the same activations:\nthat is how the metamer is made")
    d.arrow(Box(440, 30, 10, 10), b)
    d.arrow(Box(440, 200, 10, 10), b)
    d.label(440, 18, "image")
    d.label(440, 214, "metamer")
    d.arrow(b, d.box(590, 115, "STIR:\nsimilar to b?", w=116, h=52))
    return d


@diagram
def atlas() -> Drawing:
    d = Drawing(
        680,
        250,
        "Every layer of two networks is measured in two ways, by cheap measures of similarity and by expensive "
        "experiments; the atlas asks whether the first predict the second.",
    )
    d.chain(75, 45, ["conv1", "relu1", "…", "relu3"], "one", down=True, w=80, h=34, gap=18)
    d.label(75, 238, "every layer")
    cheap = d.box(300, 70, "cheap: measures\nof similarity (seconds)", "plain", w=190, h=56)
    costly = d.box(300, 180, "expensive: stitch, distil,\nreconstruct (hours)", "plain", w=190, h=56)
    for box in (cheap, costly):
        d.arrow(Box(75, 125, 80, 34), box)
    ask = d.box(570, 125, "the same order\nof layers?", "new", w=140, h=56)
    d.arrow(cheap, ask)
    d.arrow(costly, ask)
    return d


@diagram
def training() -> Drawing:
    d = Drawing(
        660,
        190,
        "A batch of images goes through the network, the loss compares its answers with the labels, and the gradient "
        "changes the weights; one round is a step.",
    )
    batch, net, loss = d.chain(80, 70, ["batch\nof images", "network", "loss"], ["plain", "one", "other"], w=110, h=50,
                               gap=80)  # fmt: skip
    labels = d.box(600, 70, "labels", w=80)
    d.arrow(labels, loss)
    back = d.box(365, 155, "gradient changes the weights", "new", w=240, h=36)
    d.arrow(loss, back)
    d.arrow(back, net)
    d.label(365, 52, "answers")
    return d


# Distillation, transfer, inputs, merging


if __name__ == "__main__":
    main()
