"""The comparison of notebooks' outputs: what it forgives, and that it lets no wrong result pass.

Faults are put into copies of the outputs as they are stored, of every notebook.
"""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image
from printed import MEASURED, deviation, fault_of_picture, forgiven, plain, tolerance

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VERDICTS = {"did not hold": "held", ": held": ": did not hold", "True": "False", "none": "kd", "of 5": "of 6"}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def printed(path: Path) -> list[tuple[str, float]]:
    """(text, declared tolerance) of everything that the notebook prints as text."""
    found = []
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            found.append((plain(text), cell.metadata.get("tolerance", 0.0)))
    return found


def passes(stored: str, new: str, declared: float = 0.0) -> bool:
    return forgiven(stored, plain(new), declared) == stored


def replaced(text: str, number: re.Match, mean: float | None = None, spread: float | None = None) -> str:
    """The text with another mean and spread in place of the number, printed with as many places."""
    parts = re.split("[ \N{NO-BREAK SPACE}]±[ \N{NO-BREAK SPACE}]", number[0])
    places = len(parts[0].partition(".")[2])
    sign = "+" if number[0][0] == "+" else ""
    new = [f"{mean:{sign}.{places}f}" if mean is not None else parts[0]]
    new += [f"{spread:.{places}f}" if spread is not None else part for part in parts[1:]]
    return text[: number.start()] + "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}".join(new) + text[number.end() :]


def spreads(path: Path):
    """(text, declared, match, mean, spread) of each mean ± spread whose spread shows two digits."""
    for text, declared in printed(path):
        for number in MEASURED.finditer(text):
            mean, sign, spread = number[0].replace("\N{NO-BREAK SPACE}", " ").partition(" ± ")
            places = len(mean.partition(".")[2])
            if sign and float(spread) * 10**places >= 10:
                yield text, declared, number, float(mean), float(spread)


@each_notebook
def test_a_mean_that_moved_by_one_and_a_half_spreads_is_caught(path):
    for text, declared, number, mean, spread in spreads(path):
        for sign in (-1, 1):
            assert not passes(text, replaced(text, number, mean=mean + sign * 1.5 * spread), declared), number[0]


@each_notebook
def test_a_spread_that_doubled_is_caught(path):
    for text, declared, number, _, spread in spreads(path):
        assert not passes(text, replaced(text, number, spread=2 * spread), declared), number[0]


@each_notebook
def test_moves_inside_the_tolerance_are_not(path):
    for text, declared, number, mean, spread in spreads(path):
        moved = mean + 0.4 * spread * (1 if mean >= 0 else -1)
        assert passes(text, replaced(text, number, mean=moved), declared), number[0]
        assert passes(text, replaced(text, number, spread=0.6 * spread), declared), number[0]


@each_notebook
def test_a_sign_is_caught(path):
    for text, declared in printed(path):
        for number in MEASURED.finditer(text):
            mean = float(re.split("[ \N{NO-BREAK SPACE}]±", number[0])[0])
            if abs(mean) > tolerance(number[0].split("\N{NO-BREAK SPACE}±")[0]):
                assert not passes(text, replaced(text, number, mean=-mean), declared), number[0]


@each_notebook
def test_a_row_that_is_missing_or_doubled_is_caught(path):
    for text, declared in printed(path):
        lines = text.splitlines()
        for i, line in enumerate(lines):
            if line.strip():
                assert not passes(text, "\n".join(lines[:i] + lines[i + 1 :]), declared)
                assert not passes(text, "\n".join(lines[:i] + [line] + lines[i:]), declared)


@each_notebook
def test_two_methods_exchanged_are_caught(path):
    """The names of two neighbouring rows exchanged, the numbers left where they are."""
    for text, declared in printed(path):
        lines = text.splitlines()
        for i in range(len(lines) - 1):
            first, second = (re.match(r"\s*([A-Za-z]\w*)(?=\s)", line) for line in lines[i : i + 2])
            if first and second and first[1] != second[1]:
                new = [second[0] + lines[i][first.end() :], first[0] + lines[i + 1][second.end() :]]
                assert not passes(text, "\n".join([*lines[:i], *new, *lines[i + 2 :]]), declared)


@each_notebook
def test_another_verdict_is_caught(path):
    for text, declared in printed(path):
        for old, new in VERDICTS.items():
            if old in text:
                assert not passes(text, text.replace(old, new, 1), declared)


@pytest.mark.parametrize(
    ("stored", "new", "declared", "expected"),
    [
        ("0.81 ± 0.04", "0.83 ± 0.04", 0.0, True),
        ("0.81 ± 0.04", "0.84 ± 0.04", 0.0, False),
        ("0.81 ± 0.04", "0.81 ± 0.06", 0.0, True),
        ("0.81 ± 0.04", "0.81 ± 0.07", 0.0, False),
        ("0.81 ± 0.04", "0.81", 0.0, False),
        ("0.9523", "0.9524", 0.0, True),
        ("0.9523", "0.9525", 0.0, False),
        ("0.9523", "0.9571", 0.01, True),
        ("266 ± 28", "270 ± 30", 0.0, True),
        ("266 ± 28", "290 ± 28", 0.0, False),
        ("3 of 5", "4 of 5", 0.0, False),
        ("3 of 5", "4 of 5", 5.0, False),
        ("+0.20", "-0.20", 1.0, False),
        ("0.001", "-0.000", 0.0, True),
        ("bn3 0.5", "bn4 0.5", 1.0, False),
        ("a 0.5 b", "a 0.5 c", 1.0, False),
        ("1.2e-05", "1.3e-05", 0.0, True),
        ("1.2e-05", "1.4e-05", 0.0, False),
        ("torch 2.14.1", "torch 2.14.2", 1.0, False),
        ("nan", "0.5", 1.0, False),
        ("0.5", "nan", 1.0, False),
        ("x   0.55", "x 10.00", 20.0, True),
    ],
)
def test_what_is_forgiven(stored, new, declared, expected):
    assert passes(plain(stored), new, declared) is expected


def test_a_deviation_is_a_share_of_what_is_tolerated():
    assert deviation("0.80 ± 0.04", "0.81 ± 0.04") == pytest.approx(0.5)
    assert deviation("0.80 ± 0.04", "0.80 ± 0.06") == pytest.approx(1.0)
    assert deviation("0.5", "0.7", declared=0.1) == pytest.approx(2.0)


def png(size: tuple[int, int], dot: bool = True) -> str:
    image = Image.new("RGBA", size, "white")
    if dot:
        image.putpixel((1, 1), (0, 0, 0, 255))
    image.save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_pictures_have_their_size_and_something_on_them():
    stored = png((100, 80))
    assert fault_of_picture(stored, stored) == fault_of_picture(stored, png((105, 80))) == ""
    assert "(120, 80)" in fault_of_picture(stored, png((120, 80)))
    assert "nothing" in fault_of_picture(stored, png((100, 80), dot=False))


CELLS = {
    "right": ("print('0.52 ± 0.10')", "0.50 ± 0.10\n"),
    "moved": ("print('0.65 ± 0.10')", "0.50 ± 0.10\n"),
    "word": ("print('held')", "did not hold\n"),
}


def test_nbval_compares_so(tmp_path):
    """Through pytest itself: one notebook with right and wrong outputs; the message shows what is wrong alone."""
    notebook = nbformat.v4.new_notebook()
    for source, stored in CELLS.values():
        output = nbformat.v4.new_output("stream", text=stored)
        notebook.cells.append(nbformat.v4.new_code_cell(source, outputs=[output], execution_count=1))
    nbformat.write(notebook, tmp_path / "faults.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "tolerating", "faults.ipynb"]
    paths = {"PYTHONPATH": str(Path(__file__).parent), "PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True, timeout=120)
    assert "2 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "0.65 ± 0.10" in done.stdout and "'held" in done.stdout


@each_notebook
def test_no_result_is_left_out_of_the_comparison(path):
    for cell in nbformat.read(path, 4).cells:
        assert not [tag for tag in cell.metadata.get("tags", []) if tag.startswith(("nbval-", "raises-"))]
        assert "NBVAL" not in cell.source and "PYTEST_VALIDATE" not in cell.source
