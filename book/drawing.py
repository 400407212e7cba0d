"""Small diagrams as SVG: boxes, chains of layers, arrows and labels, each in a light and a dark colour scheme.

Coordinates are pixels from the upper left corner; a box is placed by its centre. Text is the reader's own sans-serif.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import inf

MOST_WIDTH, TEXT, NOTE = 700, 14, 12.5
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# What a colour stands for is the same in every diagram: one network, the other network, what is learned or solved.
# "unused" is for what is there but plays no part.
LIGHT = {"plain": ("#f3f4f6", "#6b7280"), "one": ("#dbeafe", "#1d4ed8"), "other": ("#ffedd5", "#c2410c"),
         "new": ("#dcfce7", "#15803d"), "unused": ("none", "#9ca3af")}  # fmt: skip
DARK = {"plain": ("#2b323c", "#9ca3af"), "one": ("#1e3a5f", "#93c5fd"), "other": ("#5a3018", "#fdba74"),
        "new": ("#1c4530", "#86efac"), "unused": ("none", "#6b7280")}  # fmt: skip
INK = {"light": ("#111827", "#4b5563", "white"), "dark": ("#f3f4f6", "#cbd5e1", "none")}


@dataclass(frozen=True)
class Box:
    """A place in a drawing: its centre and its size."""

    x: float
    y: float
    w: float
    h: float

    def edge(self, other: "Box") -> tuple[float, float]:
        """Where the line to the centre of `other` leaves this box."""
        dx, dy = other.x - self.x, other.y - self.y
        share = min(self.w / 2 / abs(dx) if dx else inf, self.h / 2 / abs(dy) if dy else inf)
        return self.x + share * dx, self.y + share * dy


@dataclass
class Drawing:
    """A canvas of `width` x `height` px, to which every call below adds a shape; `alt` is for whoever cannot see it."""

    width: int
    height: int
    alt: str
    shapes: list[str] = field(default_factory=list)

    def box(self, x: float, y: float, text: str = "", kind: str = "plain", w: float = 110, h: float = 44) -> Box:
        """A rounded box with centred text, of one or several lines; `kind` is its colour."""
        corner = f'x="{x - w / 2:g}" y="{y - h / 2:g}" width="{w:g}" height="{h:g}" rx="6"'
        self.shapes.append(f'<rect class="{kind}" {corner}/>')
        self.label(x, y, text, "text")
        return Box(x, y, w, h)

    def chain(self, x: float, y: float, texts: Sequence[str], kind: str | Sequence[str] = "plain", down: bool = False,
              w: float = 64, h: float = 36, gap: float = 22) -> list[Box]:  # fmt: skip
        """Layers one after the other, joined by arrows, to the right or downwards; the first one is at (x, y).

        `kind` is one for all of them, or one for each.
        """
        dx, dy = (0, h + gap) if down else (w + gap, 0)
        kinds = [kind] * len(texts) if isinstance(kind, str) else kind
        boxes = [self.box(x + i * dx, y + i * dy, t, kinds[i], w, h) for i, t in enumerate(texts)]
        for a, b in zip(boxes, boxes[1:], strict=False):
            self.arrow(a, b)
        return boxes

    def arrow(self, a: Box, b: Box, text: str = "", kind: str = "", both: bool = False) -> None:
        """An arrow from one box to another, with `text` above its middle; `kind` "dashed" for what is only compared."""
        (x1, y1), (x2, y2) = a.edge(b), b.edge(a)
        ends = ' marker-end="url(#tip)"' + ' marker-start="url(#tip)"' * both
        self.shapes.append(f'<line class="arrow {kind}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"{ends}/>')
        if text:
            self.label((x1 + x2) / 2, (y1 + y2) / 2 - 12, text)

    def line(self, *points: tuple[float, float], kind: str = "plain") -> None:
        """A line through the points, in the colour of `kind`."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.shapes.append(f'<polyline class="line {kind}" points="{path}"/>')

    def label(self, x: float, y: float, text: str, kind: str = "note", anchor: str = "middle") -> None:
        """Text around (x, y), one line below the other; `anchor` start, middle or end."""
        lines, step = text.split("\n") if text else [], 18
        for i, line in enumerate(lines):
            place = f'x="{x:g}" y="{y + (i - (len(lines) - 1) / 2) * step + 5:g}" text-anchor="{anchor}"'
            self.shapes.append(f'<text class="{kind}" {place}>{escape(line)}</text>')

    def svg(self, scheme: str = "light") -> str:
        """The whole file, in the scheme "light" or "dark"."""
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        tip = '<path d="M0 0 L8 4 L0 8 z"/>'
        marker = '<marker id="tip" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8"'
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', f"<title>{escape(self.alt)}</title>",
            f"<style>{_style(scheme)}</style>",
            f'<defs>{marker} orient="auto-start-reverse" markerUnits="userSpaceOnUse">{tip}</marker></defs>',
            f'<rect class="page" width="{self.width}" height="{self.height}"/>', *self.shapes, "</svg>\n",
        ])  # fmt: skip


def _style(scheme: str) -> str:
    text, note, page = INK[scheme]
    kinds = LIGHT if scheme == "light" else DARK
    return "\n".join([
        f"text {{ font-family: {FONT}; font-size: {NOTE}px; fill: {note}; }}",
        f".text {{ font-size: {TEXT}px; fill: {text}; }} .strong {{ font-size: {TEXT}px; font-weight: 600; }}",
        f".page {{ fill: {page}; }} marker path {{ fill: {note}; }}",
        f".arrow {{ stroke: {note}; stroke-width: 1.6; }} .dashed, .unused {{ stroke-dasharray: 5 4; }}",
        *(f".{kind} {{ fill: {fill}; stroke: {edge}; stroke-width: 1.5; }}" for kind, (fill, edge) in kinds.items()),
        ".line { fill: none; stroke-width: 2; }",
    ])  # fmt: skip
