"""Which runs a sweep has: the combinations of a grid, the lines of a CSV file, or every line with every combination.

Everything is checked against the notebook's cell of parameters, before the first run starts.
"""

import ast
import csv
from collections.abc import Iterable, Mapping
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

from papermill import inspect_notebook

from reptrans.errors import BadData, BadValue, choose

Point = dict[str, Any]
Grid = Mapping[str, str | Iterable[Any]]

MOST = 10**6  # runs of one sweep; a program may set it higher


def points(notebook: str | Path, grid: Grid | None = None, table: str | Path | None = None) -> list[Point]:
    """The parameters of every run, each once, in the order given; the last name of the grid moves fastest.

    `grid`: name -> values, or name -> text of the form of one line of CSV: "bn1,bn3" is two values, and a value that
    holds a comma stands in double quotes, '"bn1,bn3"'. `table`: a CSV file, its columns named like parameters; an empty
    cell leaves the notebook's default. A text becomes a number or a truth value where the notebook's parameter is one.

    Raises:
        UnknownName: a name that is no parameter of the notebook.
        BadValue: a text that is no value of the parameter's type; a name given twice; nothing given; more than
            1,000,000 runs.
        BadData: a notebook or table that cannot be read.
    """
    known = declared(notebook)
    grid = {name: _split(name, values) for name, values in (grid or {}).items()}
    lines = _lines(Path(table)) if table else [{}]
    if twice := set(grid) & {name for line in lines for name in line}:
        raise BadValue(f"{', '.join(sorted(twice))}: given both in {table} and by name. Leave one of them out.")
    if not grid and not table:
        raise BadValue(f"nothing to sweep over. Name parameters and their values: {', '.join(known)}")
    if (count := len(lines) * prod(map(len, grid.values()))) > MOST:
        raise BadValue(f"these are {count:,} runs or more; a sweep has {MOST:,} at most. Give fewer values.")
    combined = [line | dict(zip(grid, values, strict=True)) for line in lines for values in product(*grid.values())]
    found = [{name: typed(name, value, known) for name, value in point.items()} for point in combined]
    return list({repr(point): point for point in found}.values())


def declared(notebook: str | Path) -> dict[str, type | None]:
    """The notebook's parameters: name -> type, None where the type is none of text, number and truth value.

    Raises BadData for a file that is no notebook, or has no parameters.
    """
    try:
        found = inspect_notebook(str(notebook))
    except (OSError, ValueError) as error:
        raise BadData(f"{notebook} cannot be read as a notebook: {error}") from error
    if not found:
        raise BadData(f"{notebook} has no parameters: no cell with the tag 'parameters', or nothing is set in it.")
    return {name: _type(entry) for name, entry in found.items()}


def _type(entry: Mapping[str, Any]) -> type | None:
    """The annotated type, or that of the default where there is no annotation."""
    named = entry["inferred_type_name"]
    name = type(_literal(entry["default"])).__name__ if named == "None" else named
    return {"str": str, "int": int, "float": float, "bool": bool}.get(name)


def _literal(text: str) -> Any:
    """What `text` is as Python, and `text` itself where it is none."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _split(name: str, values: str | Iterable[Any]) -> list[Any]:
    if isinstance(values, str):
        values = next(csv.reader([values], skipinitialspace=True), [])
    values = list(islice(values, MOST + 1))
    if not values:
        raise BadValue(f"{name}: no value is given. An empty text is written as '\"\"'.")
    return values


def _lines(table: Path) -> list[Point]:
    """The lines of a CSV file, as text, without their empty cells."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            lines = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadData(f"{table} cannot be read as CSV: {error}") from error
    if not lines:
        raise BadData(f"{table} has no lines below its first, which names the parameters.")
    for number, line in enumerate(lines, start=2):
        if None in line or None in line.values():
            raise BadData(f"{table}, line {number}: {len(reader.fieldnames)} cells are needed, one for each name.")
    return [{name: cell for name, cell in line.items() if cell != ""} for line in lines]


def typed(name: str, value: Any, known: Mapping[str, type | None]) -> Any:
    """A text as a value of the parameter's type, see `points`; `known` as `declared` gives it."""
    kind = choose(name, known, "the notebook has no parameter {}")
    if not isinstance(value, str) or kind is str:
        return value
    if kind is None:
        return _literal(value)
    try:
        return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (ValueError, KeyError):
        needed = {int: "a whole number", float: "a number", bool: "True or False"}[kind]
        raise BadValue(f"{name} = {value!r}: {needed} is needed") from None
