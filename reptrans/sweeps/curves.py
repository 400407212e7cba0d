"""One figure of a sweep: a number of its rows over a swept parameter."""

import pandas as pd
from matplotlib.axes import Axes

from reptrans.errors import BadData
from reptrans.figures import layer_curves

_MOST = 8  # lines in one picture
_FIRST = ("matching", "method", "measure", "condition")  # what tells the rows of a run apart, where there is a choice


def draw(
    rows: pd.DataFrame, swept: list[str], x: str | None = None, y: str | None = None, hue: str | None = None
) -> Axes:
    """Draw `y` over `x`, a line for each value of `hue`; markers and bars as in `layer_curves`.

    Where nothing is said, `x` is the first parameter that was swept; `y` the accuracy, else the first number that was
    measured; `hue` what tells the rows of a run apart (a method, a matching, a matching at a layer), else the second
    parameter that was swept. Of more than eight lines those with the largest means are drawn. Bars are over the seeds,
    or over the runs where rows have no seed. The title says which lines are left out, and what else is averaged over.

    Raises:
        UnknownName: a column that the rows do not have.
        BadData: rows without a number to draw.
    """
    swept = [name for name in swept if name in rows and _kinds(rows[name]) > 1]
    swept = [name for name in swept if name != "seed"] or swept or ["run"]  # seeds are what bars are over
    x, y = x or swept[0], y or _measured(rows, swept)
    mixed = [] if {x, hue or x} - set(rows) else _mixed(rows, [x, *([hue] if hue else [])])
    if mixed and not hue:
        hue, lines = " / ".join(mixed), rows[mixed].astype(str).agg(" / ".join, axis=1)
        rows, mixed = rows.assign(**{hue: lines}), []
    hue = hue or next((name for name in swept if name != x and _kinds(rows[name]) <= _MOST), None)
    over = [name for name in dict.fromkeys([*swept, *mixed]) if name not in (x, hue)]
    said = [f"mean over {', '.join(over)}"] if over else []
    if hue in rows and _kinds(rows[hue]) > _MOST:
        said.append(f"of {_kinds(rows[hue])} lines the {_MOST} with the largest {y}")
        rows = rows[rows[hue].isin(rows.groupby(hue)[y].mean().nlargest(_MOST).index)]
    ax = layer_curves(rows, x=x, y=y, hue=hue, spread="seed" if "seed" in rows and "seed" not in (x, hue) else "run")
    ax.set_title("; ".join(filter(None, [ax.get_title(), *said])))
    return ax


def _mixed(rows: pd.DataFrame, fixed: list[str]) -> list[str]:
    """The columns of text that vary inside a run where those of `fixed` do not: what a mean would mix."""
    texts = [name for name in rows if pd.api.types.is_string_dtype(rows[name]) and name not in fixed]
    found = [name for name in ("run", "seed", *fixed) if name in rows]
    given = len(found)
    for name in sorted(texts, key=lambda name: name not in _FIRST):
        if name not in found and (rows.groupby(found, dropna=False)[name].nunique(dropna=False) > 1).any():
            found.append(name)
    return found[given:]


def _measured(rows: pd.DataFrame, swept: list[str]) -> str:
    """The column that most likely is the result."""
    numbers = [name for name in rows.select_dtypes("number") if name not in swept and rows[name].notna().any()]
    fractions = [name for name in numbers if pd.api.types.is_float_dtype(rows[name]) and _kinds(rows[name]) > 1]
    candidates = [*(name for name in ("accuracy", "test_accuracy") if name in numbers), *fractions, *numbers]
    if not candidates:
        raise BadData("the rows hold no number to draw besides the parameters.")
    return candidates[0]


def _kinds(column: pd.Series) -> int:
    return column.nunique(dropna=False)
