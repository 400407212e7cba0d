"""The survey's table, figures and measurements: complete, and what the methods and the stored runs themselves say."""

import re
import sys
from pathlib import Path

import pytest
from test_claims import is_printed, printed

BOOK = Path(__file__).resolve().parent.parent / "book"
sys.path.insert(0, str(BOOK / "_ext"))

import diagram  # noqa: E402
import survey  # noqa: E402

PAGES = {page.name: page.read_text("utf-8") for page in BOOK.glob("distillation*.md")}
SHOWN = re.findall(r"```\{looks\} (\w+)", "".join(PAGES.values()))
each_entry = pytest.mark.parametrize("name", survey.entries())
each_shown = pytest.mark.parametrize("name", sorted(set(SHOWN)))


def test_the_table_has_all_entries_in_order():
    assert [survey.number(name) for name in survey.entries()] == [
        *map(str, range(1, 8)), "8a", "8b", *map(str, range(9, 18)),
    ]  # fmt: skip


@each_entry
def test_no_cell_is_empty(name):
    assert [title for title in survey.HEADER if not survey.line(name)[title]] == []


@each_entry
def test_the_gain_is_what_the_run_prints(name):
    run, _, row = survey.measured(name)[0]
    who, over = {"fd_gan": ("mAP", "")}.get(name, (name, row.get("over", "")))
    part = f"`{who}` {f'`{over}`' if over else ''} {row['gain']} {row['low']} {row['high']}"
    lines = printed((BOOK / run).resolve())
    assert is_printed(part, lines)
    assert any(row["verdict"] in line for line in lines if re.search(rf"\b{who}\b.*{re.escape(row['gain'])}", line))


@each_entry
def test_every_entry_is_told_of_once(name):
    text = "".join(page for file, page in PAGES.items() if file != "distillation.md")
    for mark in (f"(method-{name})=", f"```{{looks}} {name}\n", f"```{{measured}} {name}\n"):
        assert text.count(mark) == 1, mark


@pytest.mark.parametrize("name", [name for name in survey.METHODS if name != "plain"])
def test_a_method_names_its_paper_and_what_is_lost(name):
    method = survey.method(name)
    assert method.paper in survey.papers()
    assert method.loses


@each_entry
def test_the_place_is_one_that_has_a_name(name):
    chosen = survey.line(name)["position"] == "layers that the method chooses"
    assert chosen == (name == "lsl")


@each_shown
def test_figure_fits_its_frame(name):
    drawn = diagram.drawn(name, *survey._diagram(name))
    for kind, _, x, y, *size in (s for s in drawn["shapes"] if s[0] in ("rect", "dot", "ring")):
        w, h = size or (0, 0)
        assert 0 <= x <= x + w <= diagram.WIDTH, kind
        assert 0 <= y <= y + h <= drawn["height"], kind


@pytest.mark.parametrize("name", sorted(set(SHOWN) - set(survey.APART)))
def test_figure_has_a_line_for_every_pair_of_taps(name):
    method = survey.method(name)
    stages = [stage for stage in method.stages if stage.train != "connectors"]
    pairs = {diagram._taps(match) for stage in stages for match in stage.matches}
    alone = sum(stage.train == "connectors" for stage in method.stages)
    tasks = any(len(stage.losses) > len(stage.matches) for stage in method.stages)
    drawn = diagram.drawn(name, method, survey.pair())["shapes"]
    lines = [shape for shape in drawn if shape[:2] == ("path", "compared")]
    assert len(lines) == len(pairs) + alone + tasks


def test_texts_of_a_figure_are_translated():
    drawn = diagram.drawn("fitnets", *survey._diagram("fitnets"))
    assert "teacher" in drawn.extract_original_messages()
    text = diagram.as_svg(drawn["shapes"], drawn["alt"], drawn["height"], {"teacher": "red tutora"})
    assert ">red tutora<" in text
    assert ">teacher<" not in text


@pytest.mark.parametrize(
    ("line", "key", "verdict"),
    [
        ("   kd plain   1.000 0.059  0.052 0.066 32      32 0.000      0.017         held", ("kd", "plain"), "held"),
        (
            "  ofd plain   0.300 -0.001 -0.008 0.007 32    15 1.000             not decided",
            ("ofd", "plain"),
            "not decided",
        ),
        ("less_pose plain 1 0.013 -0.004 0.030  6       4 0.204            ", ("less_pose", "plain"), ""),
    ],
)
def test_a_printed_gain_is_read(line, key, verdict):
    header = "method over factor gain low high n better p published verdict".split()
    found, row = survey._gain(header, line)
    assert (found, row["verdict"]) == (key, verdict)
    assert float(row["low"]) < float(row["gain"]) < float(row["high"])
