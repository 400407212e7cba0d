"""The page of claims, made from claims.yaml: a verdict, a strip of effects and the numbers for each, and claims.json.

A line `<!-- claims: SUBJECT -->` or `<!-- claims: SUBJECT, PART -->` of the page is replaced by those claims, and
`<!-- claims: counts -->` by the table of verdicts. The strips are drawn from the numbers as they are written.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

import yaml
from sphinx.application import Sphinx

PAGE = "book/claims"
PLACE = re.compile(r"<!-- claims: (.+) -->")
_N = r"[+-]?\d+(?:\.\d+)?"
VALUE = re.compile(
    rf"(?<![\w.-])(?P<value>{_N})(?!\w|\.\d)(?: ± (?P<sd>{_N})| \[(?P<low>{_N}), (?P<high>{_N})\])?"
    rf"(?:, published (?P<published>{_N}))?"
)
WIDTH, EDGE, LANE = 260, 8, 18  # pixels: of a strip, left free at its ends, and of one value's lane


class Axis(NamedTuple):
    """What effects are drawn on: its name, both ends, and the value that means no effect."""

    label: str
    low: float
    high: float
    mark: float | None = None

    def at(self, value: float) -> float:
        """Pixels from the left; what lies beyond an end is drawn at that end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(EDGE + share * (WIDTH - 2 * EDGE), 1)

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


class Part(NamedTuple):
    """One measured thing: `context: names values`, as it is written."""

    context: str
    names: list[str]
    values: str

    @classmethod
    def of(cls, text: str) -> "Part":
        context, rest = re.fullmatch(r"(?:([^`]*):\s)?(.*)", text).groups()
        return cls(context or "", re.findall(r"`([^`]+)`", rest), re.sub(r"`[^`]*`\s*", "", rest).strip())

    def effects(self) -> list[dict[str, float]]:
        """Of each value the value and, where they are given, sd, low, high and published."""
        found = VALUE.finditer(self.values)
        return [{name: float(text) for name, text in match.groupdict().items() if text} for match in found]


class Claim(NamedTuple):
    """A row of claims.yaml, with the subject and part that it stands under."""

    subject: str
    part: str
    id: str
    claim: str
    sources: list[str]
    verdict: str
    measured: dict[str, list[str]]
    runs: dict[str, str]
    expected: str = ""

    def strips(self, axes: dict[str, Axis]) -> Iterator[tuple[Axis, list[Part]]]:
        for name, texts in self.measured.items():
            if name in axes:
                yield axes[name], [Part.of(text) for text in texts]


class Claims(NamedTuple):
    verdicts: dict[str, str]
    axes: dict[str, Axis]
    rows: list[Claim]

    def below(self, subject: str, part: str) -> list[Claim]:
        return [row for row in self.rows if (row.subject, row.part) == (subject, part)]


def load(path: Path) -> Claims:
    data = yaml.safe_load(path.read_text("utf-8"))
    rows = [
        Claim(group["subject"], group.get("part", ""), **row) for group in data["claims"] for row in group["claims"]
    ]
    return Claims(data["verdicts"], {name: Axis(**axis) for name, axis in data["axes"].items()}, rows)


def minus(text: str) -> str:
    return escape(re.sub(r"-(?=\d)", "−", text))


def svg(height: int, *pieces: str) -> str:
    return f'<svg width="{WIDTH}" height="{height}" aria-hidden="true">{"".join(pieces)}</svg>'


def tip(axis: Axis, value: float, y: float) -> str:
    """At the end of the axis, the outline of a tip that points beyond it."""
    length = 6 if value > axis.high else -6
    return f"M{axis.at(value)} {y - 5}l{length} 5l{-length} 5"


def dot(axis: Axis, value: float, y: float) -> str:
    """A dot, or a tip if the value lies beyond the axis."""
    if axis.holds(value):
        return f'<circle cx="{axis.at(value)}" cy="{y}" r="4"/>'
    return f'<path d="{tip(axis, value, y)}z"/>'


def drawn(axis: Axis, effect: dict[str, float], y: float) -> str:
    """An interval or a spread, the value, and a diamond where a gain is published."""
    value, sd = effect["value"], effect.get("sd", 0)
    kind = "spread" if "sd" in effect else "interval"
    ends = effect.get("low", value - sd), effect.get("high", value + sd)
    line = f'<line class="{kind}" x1="{axis.at(ends[0])}" x2="{axis.at(ends[1])}" y1="{y}" y2="{y}"/>'
    line += "".join(f'<path d="{tip(axis, end, y)}"/>' for end in ends if not axis.holds(end))
    diamond = f'<path class="published" d="M{axis.at(effect.get("published", 0))} {y - 5}l5 5l-5 5l-5 -5z"/>'
    return (diamond if "published" in effect else "") + line + dot(axis, value, y)


def lane(axis: Axis, part: Part) -> str:
    """Names, strip and numbers of one part, below its context."""
    effects = part.effects()
    height = LANE * max(1, len(effects))
    mark = "" if axis.mark is None else f'<path class="mark" d="M{axis.at(axis.mark)} 0v{height}"/>'
    marks = [drawn(axis, effect, LANE * (i + 0.5)) for i, effect in enumerate(effects)]
    context = f'<p class="context">{escape(part.context)}</p>' if part.context else ""
    name = f"<code>{escape(' · '.join(part.names))}</code>" if part.names else "<span></span>"
    return f'{context}<div class="lane">{name}{svg(height, mark, *marks)}<span>{minus(part.values)}</span></div>'


def scale(axis: Axis) -> str:
    """The axis below its lanes: a line, and the numbers at both ends and at the mark."""
    ticks = [axis.low, axis.high] if axis.mark is None else [axis.low, axis.mark, axis.high]
    anchors = ["start", *["middle"] * (len(ticks) - 2), "end"]
    texts = [
        f'<text x="{axis.at(tick) + {"start": -EDGE, "end": EDGE}.get(anchor, 0)}" y="14" text-anchor="{anchor}">'
        f"{minus(f'{tick:g}')}</text>"
        for tick, anchor in zip(ticks, anchors, strict=True)
    ]
    line = f'<path class="axis" d="M{EDGE} 1H{WIDTH - EDGE}"/>'
    return f'<div class="lane scale"><span>{axis.label}</span>{svg(18, line, *texts)}</div>'


def shown(row: Claim, axes: dict[str, Axis]) -> str:
    """One claim as MyST: verdict, claim and source; strips; the runs; and the numbers, folded."""
    strips = "".join(
        f'<div class="strip">{"".join(lane(axis, part) for part in parts)}{scale(axis)}</div>'
        for axis, parts in row.strips(axes)
    )
    runs = " · ".join(f"[{label}]({target})" for label, target in row.runs.items())
    numbers = "\n".join(f"- {text}" for texts in row.measured.values() for text in texts)
    kind, fold = f"verdict-{row.verdict.replace(' ', '-')}", "" if strips else " open"
    return f"""<div class="claim {kind}" data-verdict="{row.verdict}">

(claim-{row.id})=
<span class="verdict">{row.verdict}</span> **{row.claim}** {{cite:p}}`{",".join(row.sources)}` <a class="headerlink"
href="#claim-{row.id}" title="Link to this claim">#</a>

{strips}

<details{fold}><summary>Numbers as the runs print them</summary>

{numbers}

</details>

Stored in {runs}

</div>
"""


def counts(claims: Claims) -> str:
    counted = Counter(row.verdict for row in claims.rows)
    rows = [f"| {name} | {counted[name]} | {meaning} |" for name, meaning in claims.verdicts.items()]
    return "\n".join(["| verdict | claims | meaning |", "| --- | --- | --- |", *rows])


def filled(text: str, claims: Claims) -> str:
    """The page with its places filled; a place that names no claims is an error."""

    def fill(place: re.Match) -> str:
        if place[1] == "counts":
            return counts(claims)
        subject, _, part = place[1].partition(", ")
        if not (rows := claims.below(subject, part)):
            raise LookupError(f"claims.yaml has no claims of {place[1]!r}")
        return "\n".join(shown(row, claims.axes) for row in rows)

    return PLACE.sub(fill, text)


def as_json(claims: Claims, address: str) -> list[dict]:
    """All claims for other programs, with each effect in numbers and the addresses of the runs."""

    def effects(row: Claim) -> Iterator[dict]:
        for name, texts in row.measured.items():
            for part in map(Part.of, texts) if name in claims.axes else ():
                yield from ({"axis": name, "what": part.context, "names": part.names, **e} for e in part.effects())

    def run(target: str) -> str:
        path = target.removeprefix("../") if target.startswith("../") else f"book/{target}"
        return address + path.replace(".ipynb", ".html")

    return [
        row._asdict()
        | {
            "address": f"{address}{PAGE}.html#claim-{row.id}",
            "runs": {label: run(target) for label, target in row.runs.items()},
            "effects": list(effects(row)),
        }
        for row in claims.rows
    ]


def _claims(app: Sphinx) -> Claims:
    return load(Path(app.srcdir) / f"{PAGE}.yaml")


def fill_page(app: Sphinx, page: str, source: list[str]) -> None:
    if page == PAGE:
        app.env.note_dependency(str(Path(app.srcdir) / f"{PAGE}.yaml"))
        source[0] = filled(source[0], _claims(app))


def add_script(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    if page == PAGE:
        app.add_js_file("claims.js", loading_method="defer")


def write_json(app: Sphinx, failure: Exception | None) -> None:
    if not failure and app.builder.format == "html" and PAGE in app.env.found_docs:
        data = as_json(_claims(app), app.config.html_baseurl)
        (Path(app.outdir) / f"{PAGE}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False), "utf-8")


def setup(app: Sphinx) -> dict:
    app.connect("source-read", fill_page)
    app.connect("html-page-context", add_script)
    app.connect("build-finished", write_json)
    return {"parallel_read_safe": True}
