"""Where a method looks: teacher and student as two columns of blocks, their taps, and what is compared between them.

A `Diagram` is a node whose texts are translated with the page; colours are those of survey.css, light and dark.
"""

from html import escape
from textwrap import wrap

from docutils import nodes
from sphinx import addnodes

from reptrans.distillation import Method, Pair
from reptrans.matching import Learned, Match, label

WIDTH = 480
TEACHER, STUDENT, LABELS = (92, 104), (346, 84), (446, 62)  # centre and width of each column
GRADIENTS = "grad:"
DETECTOR = ("image", "backbone", "proposals", "class scores", "box offsets")


class Diagram(addnodes.translatable, nodes.General, nodes.Element):
    """`shapes`: tuples of a kind and its numbers; `alt`: what is drawn, for whoever cannot see it."""

    def preserve_original_messages(self) -> None:
        self.setdefault("words", {})

    def apply_translated_message(self, original_message: str, translated_message: str) -> None:
        self["words"][original_message] = translated_message

    def extract_original_messages(self) -> list[str]:
        texts = [self["alt"], *(shape[1] for shape in self["shapes"] if shape[0] == "text")]
        return [text for text in dict.fromkeys(texts) if any(c.isalpha() for c in text)]

    def open(self, node: "Diagram") -> None:
        """What a translator of HTML (`self`) writes for a diagram."""
        self.body.append(as_svg(node["shapes"], node["alt"], node["height"], node.get("words", {})))

    def close(self, node: "Diagram") -> None:
        """There is nothing to close."""


class Drawing:
    """Shapes that are drawn one after the other, below `rows` of blocks in two columns."""

    def __init__(self, rows: tuple[str, ...], rectified: tuple[str, ...] = (), teachers: int = 1):
        self.shapes, self.y, self.rectified, self.clear, top = [], {}, rectified, 20, 34
        for row in rows:
            height = 40 if row in rectified else 26
            self.y[row] = (top, height)
            top += height + 16
        self.height = top
        for (x, _), side in ((TEACHER, "teacher" if teachers == 1 else "teachers"), (STUDENT, "student")):
            self.text(x, 16, side, "name")
        for k in reversed(range(teachers)):
            self.column(TEACHER, "teacher", 6 * k)
        self.column(STUDENT, "student")

    def column(self, side: tuple[int, int], kind: str, shift: int = 0) -> None:
        x, width = side[0] - shift, side[1]
        previous = None
        for row, (top, height) in self.y.items():
            if previous:
                self.path(f"M{x} {previous} V{top - 2}", "forward")
            self.shapes.append(("rect", "image" if row == "image" else kind, x - width / 2, top - shift, width, height))
            if row in self.rectified:
                self.path(f"M{x - width / 2} {top + height - 13 - shift} h{width}", f"rectified {kind}")
            if not shift:
                self.text(x, top + (13 if row in self.rectified else height / 2), row, "block", width)
            previous = top + height

    def point(self, row: str, side: tuple[int, int], before: bool = False) -> tuple[float, float]:
        """On the inner edge of a block: at its ReLU, or before it, or in its middle."""
        top, height = self.y[row]
        down = height / 2 if row not in self.rectified else height - (19 if before else 6)
        return side[0] + (1 if side is TEACHER else -1) * side[1] / 2, top + down

    def joined(self, points: list[tuple[float, float]], inward: int) -> tuple[float, float]:
        """Dots, and where there are several a bracket around them; from where the comparison starts."""
        for x, y in dict.fromkeys(points):
            self.shapes.append(("dot", "tap", x, y))
        heights = [y for _, y in points]
        if len(set(heights)) == 1:
            return points[0]
        x = points[0][0] + inward
        for y in set(heights):
            self.path(f"M{points[0][0]} {y} H{x}", "bracket")
        self.path(f"M{x} {min(heights)} V{max(heights)}", "bracket")
        return x, (min(heights) + max(heights)) / 2

    def compared(
        self, a: tuple[float, float], b: tuple[float, float], text: str = "", stages: str = "", learned: str = ""
    ) -> None:
        """A dashed line from the teacher's point to the student's; `learned` has "t", "s" for connectors there, `clear`
        of the blocks and their brackets."""
        (x1, y1), (x2, y2) = a, b
        self.path(f"M{x1} {y1} L{x2} {y2}", "compared")
        inner = TEACHER[0] + TEACHER[1] / 2, STUDENT[0] - STUDENT[1] / 2
        for side, x in (("t", inner[0] + self.clear), ("s", inner[1] - self.clear)):
            if side in learned:
                y = y1 + (y2 - y1) * (x - x1) / (x2 - x1)
                self.shapes.append(("rect", "connector", x - 7, y - 7, 14, 14))
        middle = (x1 + x2) / 2, (y1 + y2) / 2
        if text:
            above = 19 if stages or learned else 13
            self.text(middle[0], middle[1] - abs(y2 - y1) / 4 - above, text, "distance")
        if stages:
            self.number(*middle, stages)

    def alone(self, point: tuple[float, float], stage: str) -> None:
        """A stage that trains a connector of the teacher's and looks at no student."""
        x, y = point[0] - TEACHER[1] - 22, point[1]
        self.path(f"M{point[0] - TEACHER[1]} {y} H{x}", "compared")
        self.shapes.append(("rect", "connector", x - 7, y - 7, 14, 14))
        self.number(x, y - 18, stage)

    def number(self, x: float, y: float, stages: str) -> None:
        self.shapes.append(("ring", "stage", x, y))
        self.text(x, y, stages, "stage")

    def to_labels(self, stages: str, row: str = "answers") -> None:
        """The labels, beside the student's answers."""
        top, height = self.y[row]
        y = top + height / 2
        self.shapes.append(("rect", "image", LABELS[0] - LABELS[1] / 2, top, LABELS[1], height))
        self.text(LABELS[0], y, "labels", "block", LABELS[1])
        x1, x2 = STUDENT[0] + STUDENT[1] / 2, LABELS[0] - LABELS[1] / 2
        self.path(f"M{x1} {y} H{x2}", "compared")
        if stages:
            self.number((x1 + x2) / 2, y - 12, stages)

    def back(self, side: tuple[int, int]) -> None:
        """The gradient, from the answers back to the image."""
        out = -1 if side is TEACHER else 1
        x = side[0] + out * side[1] / 2
        (top, height), (first, tall) = self.y["answers"], self.y["image"]
        y1, y2 = top + height / 2, first + tall / 2
        self.path(f"M{x} {y1} C{x + out * 40} {y1} {x + out * 40} {y2} {x + out * 3} {y2}", "backward")

    def text(self, x: float, y: float, text: str, kind: str, room: float = 0) -> None:
        self.shapes.append(("text", text, kind, x, y, room))

    def path(self, d: str, kind: str) -> None:
        self.shapes.append(("path", kind, d))

    def node(self, alt: str) -> Diagram:
        return Diagram(shapes=self.shapes, alt=alt, height=self.height)


def drawn(name: str, method: Method | None, pair: Pair | None) -> Diagram:
    """The diagram of a method, from its own taps; those that are of other networks are drawn by hand."""
    return BY_HAND[name]() if method is None else of_taps(method, pair)


def of_taps(method: Method, pair: Pair) -> Diagram:
    """Every match of every stage between the columns."""
    groups = tuple(f"group {k + 1}" for k in range(len(pair.groups)))
    matches = [(n, match, stage.train) for n, stage in enumerate(method.stages, 1) for match in stage.matches]
    d = Drawing(("image", *groups, "vector", "answers"), groups, len({match.who for _, match, _ in matches}))
    places, told, many = _places(pair), set(), len(method.stages) > 1
    between = [(n, match) for n, match, train in matches if train != "connectors"]
    keys = sorted(dict.fromkeys(_taps(match) for _, match in between), key=lambda key: -key[2])
    if any(len({tap for tap in taps if tap != "labels"}) > 1 for t, s, _ in keys for taps in (t, s)):
        d.clear = 38
    for k, key in enumerate(keys):
        same = [(n, match) for n, match in between if _taps(match) == key]
        t, s, who = key
        a = d.joined([d.point(*places(tap, TEACHER)) for tap in t], 12 + 5 * (k % 3))
        b = d.joined([d.point(*places(tap, STUDENT)) for tap in s if tap != "labels"], -12 - 5 * (k % 3))
        text = " + ".join(dict.fromkeys(label(match.distance) for _, match in same))
        numbers = ", ".join(dict.fromkeys(str(n) for n, _ in same)) * many
        d.compared(_up(a, 15 * who), _up(b, 15 * who), text * (text not in told), numbers, _learned(same[0][1]))
        told.add(text)
    for n, match, train in matches:
        if train == "connectors":
            d.alone(d.point(*places(match.teacher_taps[0], TEACHER)), str(n))
    if any(tap.startswith(GRADIENTS) for _, match, _ in matches for tap in match.student_taps):
        d.back(TEACHER)
        d.back(STUDENT)
    if tasks := [str(n) for n, stage in enumerate(method.stages, 1) if len(stage.losses) > len(stage.matches)]:
        d.to_labels(", ".join(tasks) * many)
    return d.node("Two columns of blocks, teacher and student; dashed lines join what is compared.")


def _taps(match: Match) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    return match.teacher_taps, match.student_taps, match.who


def _learned(match: Match) -> str:
    """On which sides there are connectors."""
    sides = {"t": match.teacher_transform, "s": match.student_transform}
    return "".join(side for side, transform in sides.items() if isinstance(transform, Learned))


def _up(point: tuple[float, float], by: float) -> tuple[float, float]:
    return point[0], point[1] - by


def _places(pair: Pair):
    """A function from a tap and a side to the arguments of `Drawing.point`."""

    def places(tap: str, side: tuple[int, int]) -> tuple[str, tuple[int, int], bool]:
        of = pair.of_teacher if side is TEACHER else pair.of_student
        if tap.startswith(GRADIENTS):
            return "image", side, False
        if tap in (of.embedding, "out"):
            return "answers" if tap == "out" else "vector", side, False
        before = tap in of.before
        return f"group {(of.before if before else of.groups).index(tap) + 1}", side, before

    return places


def _detector() -> Drawing:
    return Drawing(DETECTOR)


def imitation() -> Diagram:
    d = _detector()
    a, b = (d.joined([d.point("backbone", side)], 0) for side in (TEACHER, STUDENT))
    d.compared(a, b, "half squared L2, near objects only", "", "s")
    for row in ("class scores", "box offsets"):
        d.to_labels("", row)
    return d.node("Teacher and student detector; their backbones' maps are compared near objects.")


def efficient() -> Diagram:
    d = _detector()
    texts = {"backbone": "squared L2", "class scores": "weighted cross-entropy", "box offsets": "bounded squared L2"}
    for row, text in texts.items():
        a, b = (d.joined([d.point(row, side)], 0) for side in (TEACHER, STUDENT))
        d.compared(a, b, text, "", "s" * (row == "backbone"))
    for row in ("class scores", "box offsets"):
        d.to_labels("", row)
    return d.node("Teacher and student detector; backbone, class scores and box offsets are compared.")


def fd_gan() -> Diagram:
    """No teacher: an encoder's code goes to a verification, and to a generator that two discriminators judge."""
    d = Drawing(())
    d.shapes.clear()
    boxes = {
        "image": ("image", 50, 60), "encoder": ("student", 140, 60), "code": ("student", 230, 60),
        "same person?": ("image", 390, 60), "pose, noise": ("image", 140, 130), "generator": ("connector", 230, 130),
        "drawn image": ("image", 330, 130), "identity?": ("teacher", 430, 105), "pose?": ("teacher", 430, 155),
    }  # fmt: skip
    for text, (kind, x, y) in boxes.items():
        width = 110 if text == "same person?" else 84
        d.shapes.append(("rect", kind, x - width / 2, y - 15, width, 30))
        d.text(x, y, text, "block", width)
    ways = (
        (92, 60, 96, 60), (182, 60, 186, 60), (272, 60, 333, 60), (230, 75, 230, 113), (182, 130, 186, 130),
        (272, 130, 286, 130), (372, 122, 386, 110), (372, 138, 386, 150),
    )  # fmt: skip
    for x1, y1, x2, y2 in ways:
        d.path(f"M{x1} {y1} L{x2} {y2}", "forward")
    d.height = 190
    return d.node("An encoder's code is verified, and given to a generator whose images two discriminators judge.")


BY_HAND = {"imitation": imitation, "efficient": efficient, "fd_gan": fd_gan}


def as_svg(shapes: list[tuple], alt: str, height: float, words: dict[str, str]) -> str:
    """The figure as HTML, its texts by way of `words`."""
    tips = "".join(
        f'<marker id="survey-{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker>'
        for name in ("tip", "back")
    )
    parts = [_shape(shape, words) for shape in shapes]
    return (
        f'<figure class="survey-figure"><svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(words.get(alt, alt))}"><defs>{tips}</defs>'
        f"{''.join(parts)}</svg></figure>\n"
    )


def _shape(shape: tuple, words: dict[str, str]) -> str:
    kind, *given = shape
    if kind == "rect":
        name, x, y, w, h = given
        return f'<rect class="{name}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4"/>'
    if kind == "path":
        return f'<path class="{given[0]}" d="{given[1]}"/>'
    if kind in ("dot", "ring"):
        name, x, y = given
        return f'<circle class="{name}" cx="{x:g}" cy="{y:g}" r="{3.5 if kind == "dot" else 8}"/>'
    return _text(*given, words)


def _text(text: str, kind: str, x: float, y: float, room: float, words: dict[str, str]) -> str:
    """Centred at (x, y); a distance grows upwards from there, line by line, and a block's text is as narrow as it."""
    text = words.get(text, text)
    lines = wrap(text, 24) if kind == "distance" else [text]
    tight = kind == "block" and 6.3 * len(text) > room - 8
    fit = f' textLength="{room - 8:g}" lengthAdjust="spacingAndGlyphs"' if tight else ""
    top = y + 4 - 12 * (len(lines) - 1)
    rows = (
        f'<text class="{kind}" x="{x:g}" y="{top + 12 * k:g}"{fit}>{escape(line)}</text>'
        for k, line in enumerate(lines)
    )
    return "".join(rows)
