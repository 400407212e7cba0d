"""What every notebook shares: parameters checked before any work, progress where somebody watches, quiet output.

In a notebook:

    class P(Parameters):
        layer: Literal["bn1", "bn2"] = "bn1"
        seed: int = 0

    p = parameters(P)
"""

import csv
import ctypes
import io
import math
import platform
import re
import reprlib
from collections.abc import Iterable, Sequence
from functools import partial
from symtable import symtable
from typing import Any, TypeVar

import pandas as pd
from IPython import get_ipython
from IPython.display import display
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic.fields import FieldInfo

from reptrans.errors import BadValue, ReptransError, UnknownName, near, suggest
from reptrans.labels import label

__all__ = [
    "Parameters",
    "as_text",
    "checked",
    "listed",
    "names",
    "once",
    "parameters",
    "parts",
    "show",
    "some_names",
    "spread",
    "style",
    "summary",
]

HELP = "papermill --help-notebook explains every parameter"

MOST = 10**9  # no parameter is a number beyond it

_P_VALUES = (label("p"), label("p_searched"))

_Item = TypeVar("_Item")


class Parameters(BaseModel):
    """The parameters of a notebook: unknown names are refused and nothing is converted, except an int to a float.

    So the text "1,2" stays a text, 1e3 is no integer, True is no number, and NaN, infinity and numbers beyond `MOST`
    are refused. Raises UnknownName, BadValue, either with all that is wrong.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def __init__(self, **given: Any):
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _refusal(type(self), error, type(self).__name__) from None

    __init__.__pydantic_base_init__ = True  # it only words errors, so pydantic's own validation need not come here

    @field_validator("*")
    @classmethod
    def _is_no_slip(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and abs(value) > MOST:
            raise ValueError(f"numbers are taken from {-MOST:,} to {MOST:,}")
        return value


_Model = TypeVar("_Model", bound=Parameters)


def parameters(model: type[_Model]) -> _Model:
    """Check the variables of the running notebook against `model` and return them as one value.

    Looked at are the variables named like the model's fields, and every name assigned in the cell that papermill
    puts in (its first line is `# Parameters`), so that a mistyped `-p` name is refused. papermill makes the number 3 of
    `-p layer 3`, which becomes the text "3" again where a text is needed.

    Raises:
        UnknownName: a name that is no field of the model.
        BadValue: a value the model refuses; or no notebook is running. Either lists all that is wrong at once.
    """
    _keep_memory()
    shell = get_ipython()
    if shell is None:
        raise BadValue(
            f"no notebook is running here, so there are no variables to read. Write {model.__name__}(name=value, ...) "
            "instead."
        )
    fields, variables = model.model_fields, shell.user_ns
    given = {name: variables.get(name) for name in _injected(variables.get("In", [])) if name not in fields}
    given |= {name: _as_typed(variables[name], field) for name, field in fields.items() if name in variables}
    return checked(model, given)


def checked(model: type[_Model], given: dict[str, Any]) -> _Model:
    """The values `given` by name as one value, where no notebook is running. Raises as `parameters` does."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _refusal(model, error, "the notebook", f"\n{HELP}") from None


def names(text: str, options: Iterable[str] | None = None) -> list[str]:
    """The names in a comma list: "bn1, bn3" gives ["bn1", "bn3"]; with `options`, "all" gives every one of them.

    A name that holds a comma stands in double quotes, as in a line of CSV; see `listed`.

    Raises:
        UnknownName: a name that is not among `options`.
        BadValue: a name that stands there twice.
    """
    chosen = once(parts(text))
    if options is None:
        return chosen
    options = list(options)
    if chosen == ["all"]:
        return options
    for name in chosen:
        if name not in options:
            raise UnknownName(f"there is no {name!r}. {suggest(name, ['all', *options])}")
    return chosen


def some_names(text: str, options: Iterable[str] | None = None) -> list[str]:
    """`names`, at least one; BadValue for an empty list."""
    if chosen := names(text, options):
        return chosen
    known = "" if options is None else f" Possible: {', '.join(['all', *options])}"
    raise BadValue(f"no name is given. Give one, or several joined by commas.{known}")


def parts(text: str) -> list[str]:
    """The entries of a comma list as they stand there, be some of them equal; see `names`."""
    lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    return [cell.strip() for line in lines for cell in line if cell.strip()]


def listed(entries: Iterable[object]) -> str:
    """The comma list of which `names` makes these entries again, whatever their texts hold."""
    line = io.StringIO(newline="")
    csv.writer(line).writerow([str(entry) for entry in entries])
    return line.getvalue().removesuffix("\r\n")


def once(entries: Sequence[_Item]) -> list[_Item]:
    """The entries; BadValue for one that is there twice: two rows of one thing are no two observations."""
    texts = [" and ".join(dict.fromkeys(map(str, e))) if isinstance(e, tuple) else str(e) for e in entries]
    for place, entry in enumerate(entries):
        if entry in entries[:place]:
            raise BadValue(f"{texts[place]!r} is named twice. Name each once: {listed(dict.fromkeys(texts))}")
    return list(entries)


def style() -> None:
    """Set the look of figures: opaque and white, sharp on any screen, colours that colour-blind readers tell apart."""
    import seaborn
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    from reptrans.figures import COLOURS

    white = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white")
    layout = {"figure.dpi": 100, "figure.constrained_layout.use": True, "savefig.transparent": False}
    seaborn.set_theme(style="whitegrid", palette=COLOURS, rc=white | layout)
    if get_ipython() is not None:
        set_matplotlib_formats("retina")  # twice the dots, shown in the same size


def show(table: pd.DataFrame | pd.Series, digits: int = 4) -> None:
    """Display a table with `digits` decimals, all rows and columns, the columns by their readers' names.

    A bare count of rows is not shown; p-values below the last decimal are shown as such.
    """
    table = table.to_frame() if isinstance(table, pd.Series) else table
    table = table.rename(columns=label)
    if table.index.nlevels == table.columns.nlevels == 1:  # the name of the rows in the row of the heads
        table = table.rename_axis(index=None, columns=label(table.index.name) if table.index.name else None)
    display(_Shown(table, digits))


def as_text(table: pd.DataFrame, digits: int = 4) -> str:
    """The same as plain text, for a terminal."""
    return repr(_Shown(table, digits))


def spread(rows: pd.DataFrame, by: list[str], values: list[str], digits: int = 3) -> pd.DataFrame:
    """A table for reading: for every combination of `by`, in the order met, each value as "mean ± sd", and the count.

    sd is the sample standard deviation over the rows of the combination. A column has as many decimals as show two
    digits of its smallest sd that is not 0, but no more than `digits`; a single row shows its value alone, and a value
    that no row has shows as nothing.
    """
    groups = rows.groupby(by, sort=False)
    table = groups[values].mean()
    for value in values:
        sds = groups[value].std()
        places = max((_decimals(sd, digits) for sd in sds if sd > 0), default=digits)
        table[value] = [_mean_and_sd(*pair, places) for pair in zip(table[value], sds, strict=True)]
    return table.reset_index().assign(n=groups.size().to_numpy())


def summary(rows: pd.DataFrame, by: list[str], values: list[str]) -> pd.DataFrame:
    """The same as numbers, for files: VALUE_mean and VALUE_sd of each value, NaN for the sd of a single row; and n."""
    groups = rows.groupby(by, sort=False)
    table = groups[values].agg(["mean", "std"])
    table.columns = [f"{value}_{'sd' if what == 'std' else what}" for value, what in table.columns]
    return table.assign(n=groups.size()).reset_index()


def _mean_and_sd(mean: float, sd: float, places: int) -> str:
    if math.isnan(mean):
        return ""
    shown = f"{round(float(mean), places) + 0.0:.{places}f}"
    return shown if math.isnan(sd) else f"{shown}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{sd:.{places}f}"


def _decimals(sd: float, most: int) -> int:
    """So many that two digits of `sd`, which is not 0, show: from 0 to `most`."""
    if math.isinf(sd):
        return most
    # From the printed form, where .0996 counts as .10.
    return min(most, max(0, 1 - int(f"{sd:.1e}".partition("e")[2])))


def _p(value: float, digits: int) -> str:
    """A p-value is never 0; of none, nothing."""
    if pd.isna(value):
        return ""
    least = 10.0**-digits
    return f"<{least:.{digits}f}" if value < least / 2 else f"{round(float(value), digits):.{digits}f}"


class _Shown:
    """A table with one form for the page and one for plain text, without the random ids of pandas' styled tables."""

    def __init__(self, table: pd.DataFrame, digits: int):
        self._table = table
        # Adding zero turns the -0.0 that rounding leaves of a tiny negative number into 0.0.
        self._options = {
            "index": not isinstance(table.index, pd.RangeIndex),
            # A float of NumPy's would round differently.
            "float_format": lambda value: f"{round(float(value), digits) + 0.0:.{digits}f}",
            "formatters": {name: partial(_p, digits=digits) for name in table.columns if name in _P_VALUES},
            "na_rep": "",
        }

    def _repr_html_(self) -> str:
        return self._table.to_html(border=0, justify="left", **self._options)

    def __repr__(self) -> str:
        return self._table.to_string(**self._options)


def _keep_memory() -> None:
    """Let freed blocks of up to 1 GiB stay with this process.

    Otherwise glibc gives those above 32 MiB back, and the system clears every page of the next one: a fifth of a
    stitching run.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def _injected(cells: list[str]) -> list[str]:
    """The names assigned in the latest cell that begins with `# Parameters`."""
    marked = [cell for cell in cells if cell.lstrip().startswith("# Parameters")]
    try:
        symbols = symtable(marked[-1] if marked else "", "cell", "exec").get_symbols()
    except SyntaxError:  # such a cell never ran, so it assigned nothing
        return []
    return [symbol.get_name() for symbol in symbols if symbol.is_assigned()]


def _as_typed(value: Any, field: FieldInfo) -> Any:
    """The text of which papermill made a whole number; not where the usual text is one of digits: its zeros count."""
    digits = isinstance(field.default, str) and field.default.isdigit()
    return str(value) if field.annotation is str and type(value) is int and not digits else value


def _refusal(model: type[Parameters], error: ValidationError, who: str, after: str = "") -> ReptransError:
    """What pydantic refused, as one error of this package: unknown names first, a line for each."""
    entries = sorted(error.errors(include_url=False), key=lambda entry: entry["type"] != "extra_forbidden")
    count = "1 parameter is" if len(entries) == 1 else f"{len(entries)} parameters are"
    kind = UnknownName if entries[0]["type"] == "extra_forbidden" else BadValue
    lines = [_refused(entry, model.model_fields) for entry in entries]
    return kind("\n  ".join([f"{count} not as {who} needs:", *lines]) + after)


def _refused(entry: dict[str, Any], fields: Iterable[str]) -> str:
    """One line for one entry of pydantic's list of errors."""
    name = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        return f"{name} = {_brief(entry['input'])}: there is no such parameter. {suggest(name, fields)}"
    if entry["type"] == "missing":
        return f"{name}: not set. Give it a value"
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "literal_error":
        message = near(entry["input"], re.findall(r"'([^']*)'", entry["ctx"]["expected"])) + message
    if entry["type"] == "string_type":
        message = f"a text is needed. Put it in quotes; to papermill, give it by -r {name} TEXT"
    return f"{name} = {_brief(entry['input'])}: {message}" if name else message


def _brief(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)
