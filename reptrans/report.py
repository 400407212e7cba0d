"""A run's report as PDF: pages of text in one fixed type, then the figures, each on a page of its own size."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

_PAPER = (8.27, 11.69)  # inches, A4
_ACROSS, _DOWN = 100, 68  # characters in a line, lines on a page
_MOST_ROWS = 600  # ten pages; the files hold the rest
_FONTS = {"font.family": "DejaVu Sans Mono", "font.size": 8, "text.parse_math": False, "figure.facecolor": "white"}


def write_report(
    path: Path,
    title: str,
    reading: str,
    facts: dict[str, Any],
    rows: dict[str, pd.DataFrame],
    figures: dict[str, Figure],
) -> None:
    """Write title, reading, facts by heading, rounded tables and figures to `path`; equal content gives equal bytes."""
    pages = _paged(_facts(reading, facts))
    for name, table in rows.items():
        pages += _table_pages(name, table)
    with PdfPages(path, metadata={"CreationDate": None}) as pdf:
        for number, lines in enumerate(pages, start=1):
            with rc_context(_FONTS):
                pdf.savefig(_text_page(lines, title if number == 1 else "", f"{number}"))
        for figure in figures.values():
            pdf.savefig(figure, bbox_inches="tight", facecolor="white")


def _facts(reading: str, facts: dict[str, Any]) -> list[str]:
    """The title page's lines: the reading, then one block of `name  value` per entry of `facts`."""
    lines = [line for paragraph in reading.splitlines() for line in textwrap.wrap(paragraph, _ACROSS) or [""]]
    for heading, values in facts.items():
        lines += ["", heading, "-" * len(heading)]
        width = max((len(key) for key in values or {}), default=0)
        for key, value in (values or {"none": ""}).items():
            text = value if isinstance(value, str) else json.dumps(value)
            lines += textwrap.wrap(f"{key:{width}}  {text}", _ACROSS, subsequent_indent=" " * (width + 2))
    return lines


def _table_pages(name: str, table: pd.DataFrame) -> list[list[str]]:
    """Pages of a rounded table: what all rows share is said once; the other columns in groups that fit across, each
    group led by the row's number."""
    shared = [column for column in table.columns if len(table) > 1 and table[column].map(str).nunique() == 1]
    same = {"the same in all rows": {str(c): "" if _missing(v := table[c].iloc[0]) else str(v) for c in shared}}
    pages = _paged([f"{name}: {len(table)} rows", *_facts("", same)]) if shared else []
    table = table.drop(columns=shared)
    shown = table.head(_MOST_ROWS)
    cut = f", the first {len(shown)}" if len(shown) < len(table) else ""
    heading = f"{name}: {len(table)} rows{cut}"
    for group in _groups([_column(column, shown.iloc[:, at]) for at, column in enumerate(shown.columns)]):
        count = [f"{line:>5}" for line in ["", *range(1, len(shown) + 1)]]
        head, *body = ["  ".join(cells) for cells in zip(count, *group, strict=True)]
        pages += _paged(body, [heading, "", head, "-" * len(head)])
    return pages


def _column(name: Any, values: pd.Series) -> list[str]:
    """A column's name and cells as texts of one width: numbers rounded and to the right, others left."""
    numbers = pd.api.types.is_float_dtype(values)
    cells = [str(name), *("" if _missing(v) else _rounded(v) if numbers else str(v) for v in values)]
    cells = [cell[:39] + "…" if len(cell) > 40 else cell for cell in (cell.replace("\n", " ") for cell in cells)]
    width = max(map(len, cells))
    align = str.rjust if pd.api.types.is_numeric_dtype(values) else str.ljust
    return [align(cell, width) for cell in cells]


def _rounded(value: float) -> str:
    """Four decimals, or three digits and an exponent where those would show nothing or too much."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.2e}"


def _missing(value: Any) -> bool:
    return pd.api.types.is_scalar(value) and bool(pd.isna(value))


def _groups(columns: list[list[str]]) -> list[list[list[str]]]:
    """Columns, in order, gathered into groups no wider than a line."""
    groups, used = [[]], 5
    for column in columns:
        used += len(column[0]) + 2
        if used > _ACROSS and groups[-1]:
            groups.append([])
            used = 5 + len(column[0]) + 2
        groups[-1].append(column)
    return groups


def _paged(lines: list[str], head: list[str] | None = None) -> list[list[str]]:
    head = head or []
    step = _DOWN - len(head)
    return [head + lines[at : at + step] for at in range(0, max(len(lines), 1), step)]


def _text_page(lines: list[str], title: str, number: str) -> Figure:
    page = Figure(figsize=_PAPER)
    top = 0.95
    if title:
        wrapped = textwrap.wrap(title, 45)
        page.text(0.08, top, "\n".join(wrapped), size=16, weight="bold", va="top", family="DejaVu Sans")
        top -= 0.03 * len(wrapped) + 0.01
    page.text(0.08, top, "\n".join(lines), va="top", linespacing=1.25)
    page.text(0.92, 0.03, number, ha="right")
    return page
