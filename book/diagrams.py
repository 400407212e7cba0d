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
    d.label(396, 92, "x", "strong")
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


@diagram
def feature_distillation() -> Drawing:
    d = Drawing(
        680, 260,
        "An image goes through the teacher and through the student. At one layer of each, the features are transformed "
        "and compared; this distance and the cross-entropy with the label train the student.",
    )  # fmt: skip
    image = d.box(45, 130, "image", w=66)
    teacher = d.chain(160, 50, ["layer", "layer", "layer", "answer"], "one", w=76)
    student = d.chain(160, 210, ["layer", "layer", "answer"], "other", w=76)
    distance, label = d.box(300, 130, "distance d", w=110), d.box(545, 210, "label", w=70)
    loss = d.box(560, 130, "loss L", "new", w=90)
    d.arrow(image, teacher[0])
    d.arrow(image, student[0])
    d.arrow(teacher[2], distance)
    d.arrow(student[1], distance)
    d.arrow(student[2], label, "cross-entropy", "dashed", both=True)
    d.arrow(distance, loss)
    d.arrow(label, loss)
    d.label(350, 90, "its features, transformed", anchor="start")
    d.label(298, 176, "its features, transformed", anchor="start")
    d.label(300, 20, "teacher: large, trained, frozen")
    d.label(260, 244, "student: small, trained by the loss")
    return d


@diagram
def detection_distillation() -> Drawing:
    d = Drawing(
        680, 250,
        "Teacher and student see the same image with one object. Of each feature map only the places near the object "
        "are compared; all others are left out.",
    )  # fmt: skip
    image = d.box(75, 125, w=110, h=110)
    d.box(90, 135, "object", "new", w=58, h=44)
    d.label(75, 195, "image")
    maps = {}
    for y, name, kind in ((65, "teacher", "one"), (185, "student", "other")):
        network = d.box(220, y, name, kind, w=86)
        d.arrow(image, network)
        places = {(i, j): (340 + 26 * i, y - 26 + 26 * j) for i in range(6) for j in range(3)}
        near = [(3, 1), (4, 1), (3, 2), (4, 2)]
        boxes = {at: d.box(*xy, kind=kind if at in near else "unused", w=24, h=24) for at, xy in places.items()}
        d.arrow(network, boxes[0, 1])
        d.label(510, y, f"the {name}'s map", anchor="start")
        maps[name] = boxes
    d.arrow(maps["teacher"][3, 2], maps["student"][3, 1], kind="dashed", both=True)
    d.arrow(maps["teacher"][4, 2], maps["student"][4, 1], kind="dashed", both=True)
    d.label(510, 125, "compared only\nnear the object", "strong", anchor="start")
    return d


@diagram
def reid_distillation() -> Drawing:
    d = Drawing(
        690, 220,
        "An encoder turns the image into a code. A generator draws the person from this code, a map of another pose "
        "and noise; the drawing is compared with a real image in that pose. The generator never sees the first image.",
    )  # fmt: skip
    image, encoder, code, generator, fake = (
        d.box(x, 60, text, kind, w=w)
        for x, text, kind, w in (
            (50, "image", "plain", 72), (175, "encoder E", "one", 100), (310, "code", "new", 80),
            (455, "generator G", "other", 116), (615, "drawing", "plain", 86),
        )
    )  # fmt: skip
    pose, noise, real = d.box(420, 165, "pose map", w=90), d.box(515, 165, "noise", w=64), d.box(615, 165, "real", w=70)
    for a, b in ((image, encoder), (encoder, code), (code, generator), (generator, fake), (pose, generator),
                 (noise, generator)):  # fmt: skip
        d.arrow(a, b)
    d.arrow(fake, real, kind="dashed", both=True)
    d.label(310, 105, "shall tell who,\nnot in which pose")
    d.label(420, 203, "another pose")
    d.label(615, 203, "same person, so posed")
    return d


@diagram
def l2t_ww() -> Drawing:
    d = Drawing(
        690, 260,
        "Every layer of the source is joined to every layer of the target by a weight; some are large and some are "
        "small. After a few trial steps with these weights the loss of the task says how the weights should change.",
    )  # fmt: skip
    source = d.chain(110, 55, ["layer 1", "layer 2", "layer 3"], "one", w=84, gap=40)
    target = d.chain(110, 205, ["layer 1", "layer 2", "layer 3"], "other", w=84, gap=40)
    large = [(0, 0), (1, 1), (2, 1)]
    for i, a in enumerate(source):
        for j, b in enumerate(target):
            d.arrow(a, b, kind="" if (i, j) in large else "dashed")
    trial, task = d.box(570, 205, "a few trial steps", w=130), d.box(570, 130, "loss of the task", w=130)
    weights = d.box(570, 55, "weights λ and w", "new", w=130)
    d.arrow(target[2], trial)
    d.arrow(trial, task)
    d.arrow(task, weights)
    d.arrow(weights, source[2])
    d.label(234, 22, "source: trained on another task, frozen")
    d.label(234, 242, "target: learns the new task")
    d.label(392, 130, "solid: large λ\ndashed: small λ", anchor="start")
    return d


@diagram
def knowledge_extension() -> Drawing:
    d = Drawing(
        680, 250,
        "The old network is frozen. A small map tries to predict the new network's layer from the old one's and wants "
        "their similarity high; the new network wants it low, and still has to answer rightly.",
    )  # fmt: skip
    image = d.box(45, 125, "image", w=66)
    old = d.chain(150, 50, ["layer", "layer", "layer", "answer"], "one", w=70)
    new = d.chain(150, 200, ["layer", "layer", "layer", "answer"], "other", w=70)
    follow = d.box(334, 118, "A", "new", w=60, h=34)
    d.arrow(image, old[0])
    d.arrow(image, new[0])
    d.arrow(old[2], follow)
    d.arrow(follow, new[2], kind="dashed", both=True)
    d.label(375, 118, "A follows: similarity S up", anchor="start")
    d.label(375, 158, "the new network leaves: S down", anchor="start")
    d.label(285, 20, "old network, frozen")
    d.label(285, 236, "new network")
    d.arrow(new[3], d.box(616, 200, "label", w=66), "cross-entropy", "dashed", both=True)
    return d


@diagram
def input_autoencoding() -> Drawing:
    d = Drawing(
        640, 270,
        "The image goes through the layers up to one of them, which gives the target. Another image, at first noise, "
        "goes through the same layers; the distance D of both activations moves it.",
    )  # fmt: skip
    ends = {}
    for y, name, activations in ((50, "image a", "f(a)"), (180, "x: noise\nat first", "f(x)")):
        image = d.box(55, y, name, "new" if y > 100 else "plain", w=86, h=50)
        layers = d.chain(180, y, ["layer", "layer", "layer"], "one", w=70)
        ends[y] = d.box(480, y, activations, w=80)
        d.arrow(image, layers[0])
        d.arrow(layers[2], ends[y])
    d.arrow(ends[50], ends[180], kind="dashed", both=True)
    d.label(495, 115, "distance D", "strong", anchor="start")
    d.label(272, 115, "the same layers, frozen")
    d.line((480, 202), (480, 240), (55, 240))
    d.arrow(Box(55, 240, 0, 0), image)
    d.label(272, 256, "D moves x, not the weights")
    return d


@diagram
def model_similarity() -> Drawing:
    d = Drawing(
        680, 270,
        "One image goes through two networks. Each sends back the direction in which the logit of a class grows; the "
        "image moves along their weighted sum.",
    )  # fmt: skip
    image, total = d.box(60, 120, "image", "new", w=80), d.box(600, 120, "weighted\nsum", "new", w=96, h=52)
    for y, name, kind, weight in ((50, "network 1", "one", "w₁"), (190, "network 2", "other", "w₂")):
        network = d.box(195, y, name, kind, w=100)
        logit, gradient = d.box(320, y, "logit of k", w=90), d.box(455, y, "direction", w=90)
        d.arrow(image, network)
        d.arrow(network, logit)
        d.arrow(logit, gradient)
        d.arrow(gradient, total)
        d.label(545, y, f"times {weight}")
    d.label(390, 120, "both brought to equal length")
    d.line((600, 146), (600, 240), (60, 240))
    d.arrow(Box(60, 240, 0, 0), image)
    d.label(330, 256, "moves the image")
    return d


@diagram
def model_merging() -> Drawing:
    d = Drawing(
        690, 250,
        "Two networks in weight space, with a straight path between them. Without alignment the accuracy falls to "
        "chance half-way; after the units of the second network are put into the order of the first it stays high.",
    )  # fmt: skip
    for y, name, order, kind in (
        (50, "network a", "1234", "one"), (120, "network b", "3142", "other"), (190, "b, aligned", "1234", "other")
    ):  # fmt: skip
        d.label(15, y, name, anchor="start")
        for place, unit in enumerate(order):
            d.box(125 + 44 * place, y, unit, kind, w=36, h=36)
    d.label(190, 226, "the units of one layer")
    d.line((360, 40), (360, 205), (670, 205))
    d.line((365, 60), (410, 66), (450, 90), (490, 150), (515, 180), (540, 150), (580, 90), (620, 66), (665, 60),
           kind="other")  # fmt: skip
    d.line((365, 58), (515, 68), (665, 58), kind="new")
    d.label(515, 45, "aligned")
    d.label(515, 195, "as it is")
    d.label(352, 28, "accuracy", anchor="start")
    d.label(362, 226, "a", "strong")
    d.label(515, 226, "half-way")
    d.label(665, 226, "b", "strong")
    return d


if __name__ == "__main__":
    main()
