"""One figure of a sweep: a number of its rows over a swept parameter."""

import pandas as pd
from matplotlib.axes import Axes

from reptrans.errors import BadData
from reptrans.figures import layer_curves

_MOST = 8  # lines in one picture


def draw(
    rows: pd.DataFrame, swept: list[str], x: str | None = None, y: str | None = None, hue: str | None = None
) -> Axes:
    """Draw `y` over `x`, a line for each value of `hue`; markers and bars as in `layer_curves`.

    Where nothing is said, `x` is the first parameter that was swept; `y` the accuracy, else the first number that was
    measured; `hue` what tells the rows of a run apart (a method, a matching), else the second parameter that was
    swept. Bars are over the seeds, or over the runs where rows have no seed.

    Raises:
        UnknownName: a column that the rows do not have.
        BadData: rows without a number to draw.
    """
    swept = [name for name in swept if name in rows and _kinds(rows[name]) > 1]
    swept = [name for name in swept if name != "seed"] or swept or ["run"]  # seeds are what bars are over
    x, y = x or swept[0], y or _measured(rows, swept)
    hue = hue or _inside_runs(rows) or next((name for name in swept if name != x and _kinds(rows[name]) <= _MOST), None)
    return layer_curves(rows, x=x, y=y, hue=hue, spread="seed" if "seed" in rows and "seed" not in (x, hue) else "run")


def _measured(rows: pd.DataFrame, swept: list[str]) -> str:
    """The column that most likely is the result."""
    numbers = [name for name in rows.select_dtypes("number") if name not in swept and rows[name].notna().any()]
    fractions = [name for name in numbers if pd.api.types.is_float_dtype(rows[name]) and _kinds(rows[name]) > 1]
    candidates = [*(name for name in ("accuracy", "test_accuracy") if name in numbers), *fractions, *numbers]
    if not candidates:
        raise BadData("the rows hold no number to draw besides the parameters.")
    return candidates[0]


def _inside_runs(rows: pd.DataFrame) -> str | None:
    """The first column of text that has several values, but not many, inside one run."""
    texts = [name for name in rows if pd.api.types.is_string_dtype(rows[name]) and _kinds(rows[name]) <= _MOST]
    return next((name for name in texts if rows.groupby("run")[name].nunique().max() > 1), None)


def _kinds(column: pd.Series) -> int:
    return column.nunique(dropna=False)
