"""The survey of distillation methods, as its own objects tell it: `taxonomy` is the table of all entries, `looks` draws
where a method looks, `measured` and `verdicts` give what was measured beside what was claimed.

Transforms, taps, distances and stages are read from the methods, gains and verdicts from the outputs of stored runs.
"""

import re
from collections.abc import Collection
from functools import cache
from pathlib import Path

import nbformat
import torch
from author_year import Labels, who
from diagram import Diagram, drawn
from docutils import nodes
from docutils.statemachine import StringList
from pybtex.database import parse_file
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from reptrans.data import load_dataset
from reptrans.distillation import METHODS, Method, Pair, Stage
from reptrans.distillation.distill import loaders
from reptrans.distillation.methods import efficient_detection, fd_gan, imitation
from reptrans.matching import Match, Teacher, label
from reptrans.models import build

BOOK = Path(__file__).resolve().parent.parent
ALL, CIFAR = "runs/feature_distillation_all.ipynb", "runs/feature_distillation_cifar10.ipynb"
DETECTION, REID = "runs/detection_distillation_tuned.ipynb", "../notebooks/reid_distillation.ipynb"
NOTEBOOK = {DETECTION: "../notebooks/detection_distillation.ipynb", REID: REID}

# Those of other networks than a pair of classifiers: their module, and the function that the page links to.
APART = {"imitation": (imitation, "imitation_loss"), "efficient": (efficient_detection, "bounded_errors"),
         "fd_gan": (fd_gan, "terms")}  # fmt: skip
NAMES = {
    "kd": "KD", "ofd": "OFD", "imitation": "Fine-grained imitation", "sskd": "SSKD", "lp": "LP", "fd_gan": "FD-GAN",
    "nst": "NST", "fitnets": "FitNets", "at": "AT, activations", "at_gradient": "AT, gradients", "ft": "FT",
    "lsl": "LSL", "fsp": "FSP", "pkt": "PKT", "ab": "AB", "efficient": "Efficient detection", "jacobian": "Jacobians",
    "dk2": "DK²PNet", "feed": "FEED", "sp": "SP", "rkd": "RKD", "cc": "CC", "vid": "VID", "dkd": "DKD",
    "review": "Review",
}  # fmt: skip
OVER = {"plain": "labels alone", "kd": "KD"}
TOGETHER = "KD, together with it"
SETS = {ALL: "digits", CIFAR: "CIFAR-10", DETECTION: "digits in scenes (AP)", REID: "stick figures (mAP)"}
WORDS = ("over", "verdict", "position", "teacher transform", "student transform", "distance", "what is lost", "stages")
HEADER = ("entry", "method", "gain", *WORDS)


@cache
def pair() -> Pair:
    """Student and three teachers as in the stored run, untrained: methods need their shapes and layers alone."""
    loader, _ = loaders(load_dataset("digits", image_size=None, limit=6), 20, 0, "none", "cpu", torch.float32)

    def net(width: int, seed: int):
        return build(f"cnn3_w{width}", num_classes=10, in_channels=1, image_size=(8, 8), seed=seed)

    teachers = [Teacher(net(16, seed).eval(), loader) for seed in range(3)]
    return Pair.of(net(4, 9), teachers, next(iter(loader.plain())).images)


@cache
def method(name: str) -> Method:
    return METHODS[name](pair())


def matches(made: Method) -> list[Match]:
    """What a method compares before the answers, and the answers where it compares nothing else."""
    found = [match for stage in made.stages for match in stage.matches if match not in stage.answers]
    return found or [match for stage in made.stages for match in stage.matches]


def place(made: Method) -> str:
    """Where the student is looked at, in words."""
    p, taps = pair(), [match.student_taps for match in matches(made)]
    groups, before = [s for _, s in p.groups], [s for _, s in p.before]
    known = {
        (tuple(groups),): "the end of every group, joined",
        tuple((s,) for s in groups): "the end of every group",
        tuple((s,) for s in before): "before the ReLU of every group",
        tuple(zip((s for _, s in p.starts), groups, strict=True)): "first and last layer of every group",
        ((groups[-1],),): "the end of the last group",
        ((groups[(len(groups) - 1) // 2],),): "a middle layer",
        ((p.embedding[1],),): "what the classifier gets",
        (("out",),): "the answers",
        (("out", "labels"),): "the answers",
        (("grad:loss",),): "the image, by the gradient of the loss",
        (("grad:logit",),): "the image, by the gradient of one answer",
        ((*groups, p.embedding[1]),): "every group and what the classifier gets",
    }
    return known.get(tuple(dict.fromkeys(taps)), "layers that the method chooses")


def course(made: Method) -> str:
    """Its stages in words: what is minimised, and what moves."""
    found = [_stage(stage) for stage in made.stages]
    return " → ".join(f"{found.count(s)} × {s}" if found.count(s) > 1 else s for s in dict.fromkeys(found))


def _stage(stage: Stage) -> str:
    parts = {"labels": len(stage.losses) > len(stage.matches), "answers": stage.answers,
             "match": [match for match in stage.matches if match not in stage.answers]}  # fmt: skip
    head = "the head" if not stage.matches else "one more group"
    moves = {"all": "whole student", "reached": "layers below it", "new": head, "connectors": "connector"}
    return f"{' + '.join(name for name, there in parts.items() if there)} ({moves[stage.train]})"


def together(found: list[Match], side: str) -> str:
    return ", ".join(dict.fromkeys(label(getattr(match, side)) for match in found))


@cache
def described(name: str) -> dict[str, str]:
    """The words of one line of the table."""
    if name in APART:
        row = APART[name][0].ROW
        return row | {"position": row["position (student)"], "what is lost": row["loses"]}
    made = method(name)
    found = matches(made)
    return {
        "entry": "" if made.entry is None else str(made.entry), "paper": made.paper, "what is lost": made.loses,
        "teacher transform": together(found, "teacher_transform"),
        "student transform": together(found, "student_transform"),
        "position": place(made), "distance": together(found, "distance"), "stages": course(made),
    }  # fmt: skip


@cache
def entries() -> list[str]:
    """The survey's entries in its order, by their names here."""
    numbered = [name for name in [*METHODS, *APART] if described(name)["entry"]]
    return sorted(numbered, key=lambda name: int(described(name)["entry"]))


@cache
def gains(run: str) -> dict[tuple[str, str], dict[str, str]]:
    """{(method or score, what it is compared with): gain, low, high, n, verdict}, as a stored run prints them."""
    found = {}
    for cell in nbformat.read(BOOK / run, 4).cells:
        for output in cell.get("outputs", []):
            lines = output.get("data", {}).get("text/plain", "").splitlines()
            header = lines[0].split() if lines else []
            if {"gain", "low", "high", "n", "verdict"} <= set(header):
                found |= dict(_gain(header, line) for line in lines[1:])
    return found


def _gain(header: list[str], line: str) -> tuple[tuple[str, str], dict[str, str]]:
    values = line.split()
    row = dict(zip(header[: header.index("n") + 1], values, strict=False))
    row["verdict"] = re.search(r"[a-z ]*$", line)[0].strip()
    return (values[0], row.get("over", "")), row


def measured(name: str) -> list[tuple[str, str, dict[str, str]]]:
    """(run, what it is compared with, gain) of a method, the row for the table first."""
    if name in APART:
        run, key = {"fd_gan": (REID, ("mAP", ""))}.get(name, (DETECTION, (name, "plain")))
        return [(run, "verification alone" if run == REID else "labels alone", gains(run)[key])]
    rows = [(run, key, row) for run in (ALL, CIFAR) for key, row in gains(run).items()]
    return [
        (run, OVER[over] if who == name else TOGETHER, row)
        for run, (who, over), row in rows
        if who in (name, f"{name}+kd")
    ]


def interval(row: dict[str, str]) -> str:
    """gain [low, high] with minus signs."""
    return f"{row['gain']} [{row['low']}, {row['high']}]".replace("-", "−")


@cache
def papers() -> dict:
    return parse_file(BOOK / "references.bib").entries


def paper(key: str, language: str = "en") -> str:
    """Author and year, linked to the paper."""
    entry = papers()[key]
    fields = entry.fields
    doi, eprint = fields.get("doi"), fields.get("eprint")
    link = fields.get("url") or (f"https://doi.org/{doi}" if doi else f"https://arxiv.org/abs/{eprint}")
    return f"[{who(entry, language)} {fields['year']}]({link})"


def number(name: str) -> str:
    """The entry's number, with a letter where one entry is two methods."""
    own = described(name)["entry"]
    same = [other for other in entries() if described(other)["entry"] == own]
    return own + "abc"[same.index(name)] * (len(same) > 1)


def line(name: str) -> dict[str, str]:
    """One line of the table, as Markdown."""
    _, over, row = measured(name)[0]
    words = described(name)
    head = {"entry": number(name), "method": f"[{NAMES[name]}](#method-{name}), {paper(words['paper'])}"}
    return words | head | {"gain": interval(row), "over": over, "verdict": row["verdict"]}


def as_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in each)} |" for each in lines]


class Generated(SphinxDirective):
    """A directive that writes Markdown."""

    def parsed(self, lines: list[str], words: Collection[str] | None = None) -> list[nodes.Node]:
        """The nodes of these lines; of a table, cells below a header that is not in `words` stay as they are in every
        language."""
        for run in SETS:
            self.env.note_dependency(str(BOOK / run))
        holder = nodes.container()
        self.state.nested_parse(StringList(lines, self.env.doc2path(self.env.docname)), 0, holder)
        for paragraph in holder.findall(nodes.paragraph):
            paragraph.source, paragraph.line = self.get_source_info()
            paragraph["translatable"] = words is not None
        for row in holder.findall(nodes.row):
            if isinstance(row.parent, nodes.tbody):
                header = [entry.astext() for entry in row.parent.parent.next_node(nodes.thead).findall(nodes.entry)]
                for title, entry in zip(header, row.children, strict=True):
                    for paragraph in entry.findall(nodes.paragraph):
                        paragraph["translatable"] = title in words
        return holder.children


class Taxonomy(Generated):
    """The survey as one table, a line for each method, sorted by a click on a column's title."""

    def run(self) -> list[nodes.Node]:
        rows = [[line(name)[title] for title in HEADER] for name in entries()]
        table, *_ = self.parsed(as_table(list(HEADER), rows), {"method", *WORDS})
        table["classes"] += ["taxonomy"]
        hint = self.parsed(["The table is wider than the page: scroll it sideways. →"], set())
        for paragraph in hint:
            paragraph["classes"] += ["taxonomy-hint"]
        return [*hint, nodes.container("", table, is_div=True, classes=["taxonomy-box"])]


class Looks(Generated):
    """`looks` NAME: where a method looks, with links to its paper, code and notebook."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        return [drawn(name, *_diagram(name)), *self.parsed([_links(name)])]


class Measured(Generated):
    """`measured` NAME: what stored runs print of a method."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        rows = [
            [over, interval(row), row["verdict"], f"[{SETS[run]}]({run})", row["n"]]
            for run, over, row in measured(self.arguments[0])
        ]
        header = ["compared with", "gain", "verdict", "data", "seeds"]
        return self.parsed(as_table(header, rows), {"compared with", "data", "verdict"})


class Verdicts(Generated):
    """What the survey says of each method, its lines being NAME | words | translation, beside what was measured.

    In Spanish there is no column of translations.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        header = ["method", "the survey", "translated", "gain", "over", "verdict"]
        rows = [self.row(*map(str.strip, text.split("|"))) for text in self.content]
        if self.config.language == "es":
            header, rows = _without(2, header, rows)
        return self.parsed(as_table(header, rows), {"method", "translated", "over", "verdict"})

    def row(self, name: str, words: str, translation: str) -> list[str]:
        told = line(name)
        link = f"[{NAMES[name]}](#method-{name})"
        return [link, f"«{words}»", translation, told["gain"], told["over"], told["verdict"]]


def _without(column: int, header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    return header[:column] + header[column + 1 :], [row[:column] + row[column + 1 :] for row in rows]


def _diagram(name: str) -> tuple:
    return (None, None) if name in APART else (method(name), pair())


def _links(name: str) -> str:
    """Paper, code and notebook."""
    run = measured(name)[0][0]
    if name in APART:
        module, function = APART[name]
        target = f"{module.__name__}.{function}"
    else:
        made = METHODS[name]
        target = f"{made.__module__}.{made.__name__}"
    notebook = NOTEBOOK.get(run, "../notebooks/feature_distillation.ipynb")
    cited = paper(described(name)["paper"], Labels.language)  # a line of links is no sentence for a translator
    return f"{cited} · {{py:func}}`~{target}` · [{Path(notebook).name}]({notebook})"


def setup(app: Sphinx) -> dict:
    app.add_node(Diagram, html=(Diagram.open, Diagram.close))
    app.add_directive("taxonomy", Taxonomy)
    app.add_directive("looks", Looks)
    app.add_directive("measured", Measured)
    app.add_directive("verdicts", Verdicts)
    app.add_css_file("survey.css")
    app.add_js_file("survey.js")
    return {"parallel_read_safe": True}
