"""A run's report, as PDF and as one HTML page: what was found, in words and figures, then what was asked, then rows."""

import base64
import json
import textwrap
from collections.abc import Iterator
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.image import imread

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
    """Write title, reading and figures, facts by heading and rounded tables to `path`; equal content gives equal
    bytes."""
    lines = [line for paragraph in reading.splitlines() for line in textwrap.wrap(paragraph, _ACROSS) or [""]]
    texts = _paged(_facts(facts)) if figures else []
    for name, table in rows.items():
        texts += _table_pages(name, table)
    # Figures are drawn before the page's own type is set, so that they look as they do elsewhere.
    images = {name: imread(BytesIO(_png(figure, 200))) for name, figure in figures.items()}
    with PdfPages(path, metadata={"CreationDate": None}) as pdf, rc_context(_FONTS):
        pages = [
            *_first_pages(title, lines if figures else [*lines, *_facts(facts)], images),
            *(_text_page(lines)[0] for lines in texts),
        ]
        for number, page in enumerate(pages, start=1):
            page.text(0.92, 0.03, f"{number}", ha="right")
            pdf.savefig(page)


def _first_pages(title: str, lines: list[str], images: dict[str, Any]) -> Iterator[Figure]:
    """Text, and the figures below it, each with its name, as large as the page is wide."""
    page, top = _text_page(lines[:_DOWN], title)
    for more in _paged(lines[_DOWN:]) if lines[_DOWN:] else []:
        yield page
        page, top = _text_page(more)
    for name, image in images.items():
        height = min(0.84 * _PAPER[0] / _PAPER[1] * image.shape[0] / image.shape[1], 0.8)
        if top - height < 0.08:
            yield page
            page, top = _text_page([])
        axes = page.add_axes((0.08, top - height, 0.84, height))
        axes.imshow(image, aspect="equal", interpolation="none")
        axes.set_axis_off()
        page.text(0.08, top - height - 0.005, name, va="top")
        top -= height + 0.04
    yield page


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
    """What `write_report` writes, as one HTML page that needs no other file: what was read, a line a paragraph, then
    figures, and tables and facts to be opened."""
    parts = [f"<p>{escape(line)}</p>" for line in reading.splitlines() if line.strip()]
    for name, figure in figures.items():
        caption = escape(name.replace("_", " "))
        link = f"data:image/png;base64,{base64.b64encode(_png(figure, 110)).decode()}"
        parts.append(f'<figure><img alt="{caption}" src="{link}"><figcaption>{caption}</figcaption></figure>')
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


def _png(figure: Figure, dots: int) -> bytes:
    """The figure, `dots` per inch."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=dots, bbox_inches="tight", facecolor="white")
    return file.getvalue()


def _facts(facts: dict[str, Any]) -> list[str]:
    """One block of `name  value` per entry of `facts`."""
    lines: list[str] = []
    for heading, values in facts.items():
        lines += ["", heading, "-" * len(heading)]
        width = max((len(key) for key in values or {}), default=0)
        for key, value in (values or {"none": " "}).items():
            text = value if value and isinstance(value, str) else json.dumps(value)
            lines += textwrap.wrap(f"{key:{width}}  {text}", _ACROSS, subsequent_indent=" " * (width + 2))
    return lines


def _table_pages(name: str, table: pd.DataFrame) -> list[list[str]]:
    """Pages of a rounded table: what all rows share is said once; the other columns in groups that fit across, each
    group led by the row's number."""
    shared = [column for column in table if len(table) > 1 and table[column].map(str).nunique() == 1]
    same = table[shared].astype(object).where(table[shared].notna(), "").iloc[:1].map(str).squeeze(axis=0)
    facts = _facts({"the same in all rows": dict(same.rename(str))})
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


def _text_page(lines: list[str], title: str = "") -> tuple[Figure, float]:
    """The page, and where on it the text ends, as a share of its height."""
    page = Figure(figsize=_PAPER, layout="none")  # whatever layout the notebook has chosen for its figures
    top = 0.95
    if title:
        wrapped = textwrap.wrap(title, 45)
        page.text(0.08, top, "\n".join(wrapped), size=16, weight="bold", va="top", family="DejaVu Sans")
        top -= 0.03 * len(wrapped) + 0.01
    page.text(0.08, top, "\n".join(lines), va="top", linespacing=1.25)
    return page, top - (len(lines) + 1) * 1.25 * 8 / 72 / _PAPER[1]
