"""A run's report: as PDF, pages of text in one fixed type, then the figures; and as one HTML page, with all in it."""

import base64
import io
import json
import textwrap
from html import escape
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


_STYLE = """body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif; color: #222 }
img { max-width: 100% } figure { margin: 2rem 0 } figcaption, summary { color: #555 } details { margin: 1rem 0 }
.table { overflow-x: auto } table { border-collapse: collapse; font-size: 85% } td, th { padding: .2em .8em .2em 0 }"""


def write_page(
    path: Path,
    title: str,
    reading: str,
    facts: dict[str, Any],
    rows: dict[str, pd.DataFrame],
    figures: dict[str, Figure],
) -> None:
    """The same as one page that needs no other file: what was read, a line a paragraph, then figures, and tables and
    facts to be opened."""
    parts = [f"<p>{escape(line)}</p>" for line in reading.splitlines() if line.strip()]
    for name, figure in figures.items():
        caption = escape(name.replace("_", " "))
        parts.append(
            f'<figure><img alt="{caption}" src="{_as_link(figure)}"><figcaption>{caption}</figcaption></figure>'
        )
    tables = {f"{name}: {len(table)} rows": table[:_MOST_ROWS] for name, table in rows.items()}
    tables |= {
        name: pd.DataFrame({"is": (values or {}).values()}, list(values or {})) for name, values in facts.items()
    }
    for name, table in tables.items():
        text = table.to_html(border=0, justify="left", na_rep="", float_format=_rounded,
                             index=not isinstance(table.index, pd.RangeIndex))  # fmt: skip
        parts.append(f'<details><summary>{escape(name)}</summary><div class="table">{text}</div></details>')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join([f"<h1>{escape(title)}</h1>", *parts])
    path.write_text(f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n', "utf-8")


def _as_link(figure: Figure) -> str:
    """The figure as PNG, in a link that holds it."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"


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
    shared = [column for column in table if len(table) > 1 and table[column].map(str).nunique() == 1]
    same = table[shared].astype(object).where(table[shared].notna(), "").iloc[:1].map(str).squeeze(axis=0)
    facts = _facts("", {"the same in all rows": dict(same.rename(str))})
    pages = _paged([f"{name}: {len(table)} rows", *facts]) if shared else []
    table = table.drop(columns=shared).set_axis(range(1, len(table) + 1))
    cut = f", the first {_MOST_ROWS}" if len(table) > _MOST_ROWS else ""
    form = {"line_width": _ACROSS, "max_colwidth": 40, "na_rep": "", "float_format": _rounded}
    for start in range(0, min(max(len(table), 1), _MOST_ROWS) if len(table.columns) else 0, step := _DOWN - 4):
        text = table[:_MOST_ROWS][start : start + step].to_string(**form)
        pages += [[f"{name}: {len(table)} rows{cut}", "", *group.splitlines()] for group in text.split("\n\n")]
    return pages


def _rounded(value: float) -> str:
    """Four decimals, or three digits and an exponent where those would show nothing or too much."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.2e}"


def _paged(lines: list[str]) -> list[list[str]]:
    return [lines[at : at + _DOWN] for at in range(0, max(len(lines), 1), _DOWN)]


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
