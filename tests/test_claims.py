"""The book's table of claims: every row has a verdict, and every number in it is printed by a stored run it links to.

A number counts as printed where it stands, digit by digit, in one line of the run's outputs together with the names
that the table gives in backticks beside it: `kd` 0.022 must be on a line of kd.
"""

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat
import pytest

BOOK = Path(__file__).resolve().parent.parent / "book"
PAGE = BOOK / "claims.md"
# Those that a rule draws from intervals, and two of rows that are still judged by their spread over seeds.
VERDICTS = ("held", "contradicted", "small", "not decided", "partly", "did not hold")
HEADER = ["claim", "measured", "verdict", "run"]

_VALUE = r"(?<![\w.-])[+-]?\d+(?:\.\d+)?"  # no part of a name such as bn3, CIFAR-10 or layer1.2
NUMBER = re.compile(rf"{_VALUE}(?: ± \d+(?:\.\d+)?| of \d+)?(?!\w|\.\d)")
LINK = re.compile(r"\[([^\]]*)\]\(([^)]+)\)")


class Row(NamedTuple):
    claim: str
    measured: str
    verdict: str
    run: str


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


def claims() -> list[Row]:
    return [Row(*cells) for table in tables(PAGE.read_text()) if table[0] == HEADER for cells in table[1:]]


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


def runs(row: Row) -> dict[str, Path]:
    return {label: (BOOK / target).resolve() for label, target in LINK.findall(row.run)}


each_row = pytest.mark.parametrize("row", claims(), ids=lambda row: re.sub(r"\W+", "-", row.claim)[:60])


def test_there_are_claims():
    assert len(claims()) > 50


@each_row
def test_verdict_is_one_of_those_explained(row):
    assert row.verdict in VERDICTS


@each_row
def test_claim_names_its_source(row):
    assert "{cite" in row.claim


@each_row
def test_links_lead_to_stored_runs(row):
    assert runs(row), "no run is linked"
    for path in runs(row).values():
        assert path.suffix == ".ipynb" and path.is_file(), path
        assert path.parent in (BOOK / "runs", BOOK.parent / "notebooks")
        assert printed(path), f"{path.name} has no stored outputs"


@each_row
def test_every_number_is_printed_by_a_linked_run(row):
    """Parts of the measured cell are divided by semicolons; each has to stand in one line of one run."""
    lines = [line for path in runs(row).values() for line in printed(path)]
    for part in row.measured.split(";"):
        assert is_printed(part, lines), f"{part.strip()!r} is in no line of {', '.join(runs(row))}"


@each_row
def test_a_decided_claim_has_a_number(row):
    assert row.verdict == "not decided" or numbers(row.measured)


@each_row
def test_the_counts_beside_links_are_printed(row):
    for label, path in runs(row).items():
        for number in numbers(label):
            assert is_printed(number, printed(path)), f"{number} of {label!r}"


def test_the_summary_counts_the_rows():
    summary = next(table for table in tables(PAGE.read_text()) if table[0][0] == "verdict")
    counted = Counter(row.verdict for row in claims())
    assert {cells[0]: int(cells[1]) for cells in summary[1:]} == {verdict: counted[verdict] for verdict in VERDICTS}


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
