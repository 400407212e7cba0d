"""What every notebook shares: parameters checked before any work, progress where somebody watches, quiet output.

In a notebook:

    class P(Parameters):
        layer: Literal["bn1", "bn2"] = "bn1"
        seed: int = 0

    p = parameters(P)
"""

import ast
import math
import reprlib
from collections.abc import Iterable
from typing import Any, TypeVar

import pandas as pd
from IPython import get_ipython
from IPython.display import display
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reptrans.data import Dataset, load_dataset
from reptrans.errors import BadValue, UnknownName, suggest
from reptrans.progress import interactive, progress

__all__ = [
    "DatasetParameters",
    "Parameters",
    "as_text",
    "interactive",
    "names",
    "parameters",
    "progress",
    "show",
    "spread",
    "style",
]

HELP = "papermill --help-notebook explains every parameter"

_Model = TypeVar("_Model", bound=BaseModel)


class Parameters(BaseModel):
    """The parameters of a notebook: unknown names are refused and nothing is converted, except an int to a float.

    So the text "1,2" stays a text, 1e3 is no integer, True is no number, and NaN and infinity are refused.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class DatasetParameters(Parameters):
    """The parameters that name a data set; 0 and "" stand for "as it is". Meanings as in `load_dataset`."""

    dataset: str = "digits"
    image_size: int = Field(32, ge=0)
    limit: int = Field(0, ge=0)
    normalise: str = ""

    def load(self) -> Dataset:
        """The data set that the parameters name; raises what `load_dataset` does."""
        return load_dataset(
            self.dataset, image_size=self.image_size or None, limit=self.limit or None, normalise=self.normalise or None
        )


def parameters(model: type[_Model]) -> _Model:
    """Check the variables of the running notebook against `model` and return them as one value.

    Looked at are the variables named like the model's fields, and every name assigned in the cell that papermill
    puts in (its first line is `# Parameters`), so that a mistyped `-p` name is refused.

    Raises:
        UnknownName: a name that is no field of the model.
        BadValue: a value the model refuses; or no notebook is running. Either lists all that is wrong at once.
    """
    shell = get_ipython()
    if shell is None:
        raise BadValue(
            f"no notebook is running here, so there are no variables to read. Write {model.__name__}(name=value, ...) "
            "instead."
        )
    unknown = [name for name in _injected(shell.user_ns.get("In", [])) if name not in model.model_fields]
    problems = [_unknown(name, shell.user_ns, model) for name in unknown]
    given = {name: shell.user_ns[name] for name in model.model_fields if name in shell.user_ns}
    try:
        checked = model.model_validate(given)
        if not unknown:
            return checked
    except ValidationError as error:
        problems += [_refused(entry) for entry in error.errors(include_url=False)]
    raise _short(UnknownName if unknown else BadValue, problems) from None


def names(text: str, options: Iterable[str] | None = None) -> list[str]:
    """The names in a comma list: "bn1, bn3" gives ["bn1", "bn3"]; with `options`, "all" gives every one of them.

    Raises:
        UnknownName: a name that is not among `options`.
    """
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    if options is None:
        return chosen
    options = list(options)
    if chosen == ["all"]:
        return options
    for name in chosen:
        if name not in options:
            raise UnknownName(f"there is no {name!r}. {suggest(name, ['all', *options])}")
    return chosen


def style() -> None:
    """Set the look of figures: opaque and white, 100 dots per inch, colours that colour-blind readers tell apart."""
    import seaborn

    white = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white")
    layout = {"figure.dpi": 100, "figure.constrained_layout.use": True, "savefig.transparent": False}
    seaborn.set_theme(style="whitegrid", palette="colorblind", rc=white | layout)


def show(table: pd.DataFrame | pd.Series, digits: int = 4) -> None:
    """Display a table with `digits` decimals, all rows and columns; a bare count of rows is not shown."""
    display(_Shown(table.to_frame() if isinstance(table, pd.Series) else table, digits))


def as_text(table: pd.DataFrame, digits: int = 4) -> str:
    """The same as plain text, for a terminal."""
    return repr(_Shown(table, digits))


def spread(rows: pd.DataFrame, by: list[str], values: list[str], digits: int = 4) -> pd.DataFrame:
    """A table for reading: for every combination of `by`, in the order met, each value as "mean ± sd", and the count.

    sd is the sample standard deviation over the rows of the combination. It shows two digits and the mean as many
    decimals, but no more than `digits`; a single row shows its value alone, with three decimals, and a value that no
    row has shows as nothing.
    """
    groups = rows.groupby(by, sort=False)

    def cell(column: pd.Series) -> str:
        column = column.dropna()
        if column.empty:
            return ""
        sd = column.std() if len(column) > 1 else math.nan
        places = _decimals(sd, digits)
        mean = f"{round(column.mean(), places) + 0.0:.{places}f}"
        return mean if math.isnan(sd) else f"{mean}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{sd:.{places}f}"

    table = groups[values].agg(cell).reset_index()
    return table.assign(n=groups.size().to_numpy())


def _decimals(sd: float, most: int) -> int:
    """So many that two digits of `sd` show, from 0 to `most`; of no number, three or fewer."""
    if math.isnan(sd):
        return min(3, most)
    if not 0 < sd < math.inf:
        return most
    # From the printed form, where .0996 counts as .10.
    return min(most, max(0, 1 - int(f"{sd:.1e}".partition("e")[2])))


class _Shown:
    """A table with one form for the page and one for plain text, without the random ids of pandas' styled tables."""

    def __init__(self, table: pd.DataFrame, digits: int):
        self._table = table
        # Adding zero turns the -0.0 that rounding leaves of a tiny negative number into 0.0.
        self._options = {
            "index": not isinstance(table.index, pd.RangeIndex),
            "float_format": lambda value: f"{round(value, digits) + 0.0:.{digits}f}",
            "na_rep": "",
        }

    def _repr_html_(self) -> str:
        return self._table.to_html(border=0, justify="left", **self._options)

    def __repr__(self) -> str:
        return self._table.to_string(**self._options)


def _injected(cells: list[str]) -> list[str]:
    """The names assigned in the latest cell that begins with `# Parameters`."""
    marked = [cell for cell in cells if cell.lstrip().startswith("# Parameters")]
    if not marked:
        return []
    try:
        lines = ast.parse(marked[-1]).body
    except SyntaxError:  # such a cell never ran, so it assigned nothing
        return []
    targets = []
    for line in lines:
        targets += line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _unknown(name: str, variables: dict[str, Any], model: type[BaseModel]) -> str:
    value = f" = {_brief(variables[name])}" if name in variables else ""
    return f"{name}{value}: there is no such parameter. {suggest(name, model.model_fields)}"


def _refused(entry: dict[str, Any]) -> str:
    """One line for one entry of pydantic's list of errors."""
    name = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "missing":
        return f"{name}: not set. Give it a value in the notebook's cell of parameters"
    message = entry["msg"].removeprefix("Value error, ")
    return f"{name} = {_brief(entry['input'])}: {message}" if name else message


def _brief(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    return short.repr(value)


def _short(kind: type[Exception], problems: list[str]) -> Exception:
    """An error that a notebook shows as its message alone: the frames below it tell its reader nothing."""
    count = "1 parameter is" if len(problems) == 1 else f"{len(problems)} parameters are"
    error = kind("\n".join([f"{count} not as the notebook needs:", *(f"  {line}" for line in problems), HELP]))
    error._render_traceback_ = lambda: f"{kind.__name__}: {error}".splitlines()  # the hook IPython looks for
    return error
