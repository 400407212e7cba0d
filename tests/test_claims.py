"""The book's claims: each has a verdict, every number in it is printed by a stored run it links to, the page shows all.

A number counts as printed where it stands, digit by digit, in one line of the run's outputs together with the names
that the claim gives in backticks beside it: `kd` 0.022 must be on a line of kd.
"""

import importlib.util
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import nbformat
import pytest
import yaml

BOOK = Path(__file__).resolve().parent.parent / "book"
PAGE = BOOK / "claims.md"
_spec = importlib.util.spec_from_file_location("claims", BOOK / "_ext" / "claims.py")
page = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(page)
CLAIMS = page.load(BOOK / "claims.yaml")
# Those that a rule draws from intervals, and two of rows that are still judged by their spread over seeds.
VERDICTS = ("held", "contradicted", "small", "not decided", "partly", "did not hold")

_VALUE = r"(?<![\w.-])[+-]?\d+(?:\.\d+)?"  # no part of a name such as bn3, CIFAR-10 or layer1.2
NUMBER = re.compile(rf"{_VALUE}(?: ± \d+(?:\.\d+)?| of \d+)?(?!\w|\.\d)")


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page: lists of rows, each a list of cells, the rule below the header left out."""
    found, inside = [], False
    for line in text.splitlines():
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not inside:
                found.append([])
            if set(line) - set("|- :"):
                found[-1].append(cells)
        inside = line.startswith("|")
    return found


@cache
def printed(path: Path) -> list[str]:
    """The lines that a notebook's stored outputs print."""
    outputs = [o for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" for o in cell.outputs]
    texts = [o.text if o.output_type == "stream" else o.get("data", {}).get("text/plain", "") for o in outputs]
    return "\n".join(texts).splitlines()


def numbers(text: str) -> list[str]:
    return NUMBER.findall(text.replace("−", "-").replace("\N{NO-BREAK SPACE}", " "))


def says(number: str, printed_one: str) -> bool:
    """Whether a printed number is the one wanted; of 0.99 ± 0.01 and 4 of 5 each part will do as well."""
    return number in (printed_one, *re.split(" ± | of ", printed_one))


@cache
def all_numbers(line: str) -> list[str]:
    return numbers(line)


def is_printed(part: str, lines: list[str]) -> bool:
    """Whether one line has all the numbers of `part`, in this order, and as whole words all its names in backticks."""
    names = re.findall(r"`([^`]+)`", part)
    wanted = numbers(re.sub(r"`[^`]*`|\$[^$]*\$", "", part))
    words = [re.compile(rf"(?<!\w){re.escape(name)}(?!\w)") for name in names]

    def has_all(line: str) -> bool:
        rest = iter(all_numbers(line))
        return all(any(says(number, one) for one in rest) for number in wanted)

    return any(has_all(line) and all(word.search(line) for word in words) for line in lines)


def runs(row) -> dict[str, Path]:
    return {label: (BOOK / target).resolve() for label, target in row.runs.items()}


def parts(row) -> list[str]:
    return [part for texts in row.measured.values() for part in texts]


each_row = pytest.mark.parametrize("row", CLAIMS.rows, ids=lambda row: row.id)


def test_there_are_claims():
    assert len(CLAIMS.rows) > 50


def test_each_claim_has_an_address_of_its_own():
    assert max(Counter(row.id for row in CLAIMS.rows).values()) == 1


@each_row
def test_verdict_is_one_of_those_explained(row):
    assert row.verdict in VERDICTS and tuple(CLAIMS.verdicts) == VERDICTS


@each_row
def test_claim_names_its_source(row):
    known = re.findall(r"@\w+\{(\w+),", (BOOK / "references.bib").read_text())
    assert row.sources and set(row.sources) <= set(known)


@each_row
def test_links_lead_to_stored_runs(row):
    assert runs(row), "no run is linked"
    for path in runs(row).values():
        assert path.suffix == ".ipynb" and path.is_file(), path
        assert path.parent in (BOOK / "runs", BOOK.parent / "notebooks")
        assert printed(path), f"{path.name} has no stored outputs"


@each_row
def test_every_number_is_printed_by_a_linked_run(row):
    """Each measured part has to stand in one line of one run."""
    lines = [line for path in runs(row).values() for line in printed(path)]
    for part in parts(row):
        assert is_printed(part, lines), f"{part!r} is in no line of {', '.join(runs(row))}"


@each_row
def test_a_decided_claim_has_a_number(row):
    assert row.verdict == "not decided" or any(map(numbers, parts(row)))


@each_row
def test_the_counts_beside_links_are_printed(row):
    for label, path in runs(row).items():
        for number in numbers(label):
            assert is_printed(number, printed(path)), f"{number} of {label!r}"


def first_effect(row) -> dict[str, float]:
    return page.Part.of(parts(row)[0]).effects()[0]


def contradiction(row) -> str:
    """What the verdict of a claim with an expected sign and an interval says that its first effect does not."""
    effect = first_effect(row)
    sign = {"+": 1, "-": -1}[row.expected]
    low, high = sorted((sign * effect["low"], sign * effect["high"]))
    half = sign * effect.get("published", 0) / 2
    fits = {"held": low > 0, "contradicted": high < max(0, half), "small": max(-low, high) <= 0.005}
    return "" if fits.get(row.verdict, True) else f"{row.verdict}, but the interval is [{low}, {high}]"


@pytest.mark.parametrize("row", [row for row in CLAIMS.rows if row.expected], ids=lambda row: row.id)
def test_the_verdict_does_not_contradict_its_interval(row):
    assert contradiction(row) == ""


@pytest.mark.parametrize(
    ("verdict", "expected", "part", "fits"),
    [
        ("held", "+", "0.02 [0.01, 0.03]", True),
        ("held", "+", "0.02 [-0.01, 0.03]", False),
        ("held", "-", "-0.02 [-0.03, -0.01]", True),
        ("held", "-", "0.02 [0.01, 0.03]", False),
        ("contradicted", "+", "-0.02 [-0.03, -0.01]", True),
        ("contradicted", "+", "0.00 [-0.01, 0.01]", False),
        ("contradicted", "+", "0.00 [-0.01, 0.01], published 0.04", True),
        ("small", "+", "0.001 [-0.002, 0.005]", True),
        ("small", "+", "0.001 [-0.002, 0.006]", False),
        ("not decided", "+", "0.02 [0.01, 0.03]", True),
    ],
)
def test_what_contradicts_an_interval(verdict, expected, part, fits):
    row = CLAIMS.rows[0]._replace(verdict=verdict, expected=expected, measured={"gain": [f"over it: `a` {part}"]})
    assert (contradiction(row) == "") == fits


def test_the_page_has_every_claim_once():
    text = page.filled(PAGE.read_text(), CLAIMS)
    assert sorted(re.findall(r"^\(claim-(.+)\)=$", text, re.MULTILINE)) == sorted(row.id for row in CLAIMS.rows)


def test_the_page_refuses_a_place_without_claims():
    with pytest.raises(LookupError, match="no claims of 'Stiching'"):
        page.filled("<!-- claims: Stiching -->", CLAIMS)


def test_the_summary_counts_the_claims():
    summary = next(table for table in tables(page.filled(PAGE.read_text(), CLAIMS)) if table[0][0] == "verdict")
    counted = Counter(row.verdict for row in CLAIMS.rows)
    assert {cells[0]: int(cells[1]) for cells in summary[1:]} == {verdict: counted[verdict] for verdict in VERDICTS}


@each_row
def test_what_is_drawn_is_measured(row):
    """Every part on an axis has a value, and all its values are drawn in its strip, as far right as they are large."""
    for axis, strip in row.strips(CLAIMS.axes):
        for part in strip:
            drawn = page.lane(axis, part)
            assert len(part.effects()) == drawn.count("<circle") + drawn.count('z"/>') - drawn.count('published"') > 0
    assert set(row.measured) <= {*CLAIMS.axes, "number"}


def test_effects_are_read_as_they_are_written():
    part = page.Part.of("over labels alone: `at` `plain` -0.005 [-0.013, 0.002], published 0.008")
    assert part[:2] == ("over labels alone", ["at", "plain"])
    assert part.effects() == [{"value": -0.005, "low": -0.013, "high": 0.002, "published": 0.008}]
    assert page.Part.of("`bn3` 0.944 ± 0.065, 0.9").effects() == [{"value": 0.944, "sd": 0.065}, {"value": 0.9}]


def test_an_axis_ends_where_it_says():
    axis = page.Axis("gain", -0.1, 0.1, 0)
    assert (axis.at(-0.1), axis.at(0), axis.at(0.1)) == (8, 130, 252)
    assert axis.at(0.7) == 252 and not axis.holds(0.7)
    assert "<circle" in page.dot(axis, 0.05, 9) and "<path" in page.dot(axis, 0.7, 9)


def test_the_example_of_the_page_is_an_entry():
    """What the page shows under *Add a claim* is the entry that it is copied from."""
    example = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    row = next(row for row in CLAIMS.rows if row.id == "kd-digits")
    (shown,) = yaml.safe_load(re.sub(r"(?m)^ {3}", "", example))
    assert row._replace(**shown) == row


def test_others_can_read_the_claims(book):
    data = json.loads((book.site / "book" / "claims.json").read_text("utf-8"))
    assert [claim["id"] for claim in data] == [row.id for row in CLAIMS.rows]
    kd = next(claim for claim in data if claim["id"] == "kd-digits")
    assert kd["effects"][0] == {
        "axis": "gain", "what": "over labels alone", "names": ["kd", "plain"],
        "value": 0.059, "low": 0.052, "high": 0.066, "published": 0.017,
    }  # fmt: skip
    assert kd["runs"]["digits, 32 seeds"].endswith("/book/runs/feature_distillation_all.html")


@pytest.mark.parametrize(
    ("part", "printed_line", "expected"),
    [
        ("`kd` 0.022, sd 0.024", "kd  0.022 0.024 4 of 5", True),
        ("`kd` 0.022", "kdx 0.022", False),
        ("`kd` 0.022", "at  0.022", False),
        ("0.99 ± 0.01", "a 0.99 ± 0.02  0.98 ± 0.01", False),
        ("0.99", "a 0.99 ± 0.02", True),
        ("0.9", "a 0.99", False),
        ("−0.007", "at -0.007", True),
        ("0.007", "at -0.007", False),
        ("CIFAR-10, `bn3`", "bn3 of CIFAR", True),
        ("3 of 3", "3 of 4", False),
        ("0.2, 0.1", "a 0.1 0.2", False),
        ("0.1, 0.1", "a 0.1 0.2", False),
        ("least 99 dB.", "least PSNR 99 dB)", True),
        ("62 %", "held (62% of the rows)", True),
        ("$R^2$ 0.5", "r2 0.5", True),
    ],
)
def test_what_counts_as_printed(part, printed_line, expected):
    assert is_printed(part, [printed_line]) == expected
