"""A sweep from start to end: its folder, its runs kept going, and one table and one figure of what they left."""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
from filelock import Timeout
from matplotlib.axes import Axes

from reptrans.errors import BadData, BadValue, CannotWrite, NotAvailable
from reptrans.figures import layer_curves
from reptrans.files import atomic, locked
from reptrans.paths import data_root, shown
from reptrans.runs import Run, read_record
from reptrans.sweeps import attempt
from reptrans.sweeps.attempt import Job, Outcome
from reptrans.sweeps.points import Grid, Point, points

_TRIES = 3  # of a run whose process is killed


@dataclass
class Swept:
    """What a sweep gave: `rows`, the rows of all finished runs, each led by its run's parameters; `runs`, one row for
    each run, with status, error and seconds; `folder`, which holds both, the figure and every run."""

    rows: pd.DataFrame
    runs: pd.DataFrame
    folder: Path


def sweep(
    notebook: str | Path,
    grid: Grid | None = None,
    table: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    retry: bool = False,
    axes: dict[str, str] | None = None,
) -> Swept:
    """Run the notebook once for each of the `points` of grid and table, and gather the rows.

    Each run is a process of its own. One that fails is kept, with its notebook and error, and stops no other; one that
    is killed is done again, three times at most. Runs that are done, or have failed, are not done again when the sweep
    is started again, unless `retry` asks for the failed ones.

    `folder`: by default `<data>/sweeps/<notebook>-<hash>`, where the hash is of the notebook's code and all parameters.
    `workers`: how many runs at a time on this machine; None: one per GPU, else per core. `cluster`: instead, the
    address of a Dask scheduler. `axes`: columns to draw, of `x`, `y`, `hue`; by default the first parameter, the
    accuracy (else the first number), and what tells the rows of a run apart (else the second parameter).

    Raises, before the first run starts: what `points` and the engines do; BadValue for a folder that holds another
    sweep or anything else, or at which one is at work. Later: CannotWrite for a full disk, NotAvailable for a scheduler
    that has gone; both end all runs, and finished ones stay.
    """
    notebook = Path(notebook)
    record = _record(notebook, points(notebook, grid, table))
    usual = data_root() / "sweeps" / f"{notebook.stem}-{record['key']}"
    folder = Path(folder).resolve() if folder else usual
    engine = attempt.cluster(cluster) if cluster else attempt.local(workers)
    with _alone(folder, record), engine as submit, Run("sweep", record, folder) as run:
        with atomic(folder / "notebook.ipynb") as path:
            path.write_bytes(notebook.read_bytes())
        varied = _varied(record["runs"])
        jobs = [Job(point, folder, data_root(), Path.cwd(), varied) for point in record["runs"]]
        for job in jobs if retry else []:
            if (job.outcome() or {}).get("status") == "failed":
                (job.folder / "outcome.json").unlink()
        _do(jobs, submit)
        return _gather(run, jobs, axes or {})


def _varied(runs: list[Point]) -> tuple[str, ...]:
    """The parameters that are not the same in all runs."""
    names = dict.fromkeys(name for point in runs for name in point)
    return tuple(name for name in names if any(point.get(name) != runs[0].get(name) for point in runs))


def _record(notebook: Path, runs: list[Point]) -> dict[str, Any]:
    """What makes two sweeps the same: the notebook's code and the parameters of all runs."""
    cells = nbformat.read(notebook, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    key = hashlib.sha256(json.dumps([notebook.stem, code, runs], default=str).encode()).hexdigest()[:8]
    return {"notebook": notebook.stem, "key": key, "runs": runs}


@contextmanager
def _alone(folder: Path, record: dict[str, Any]) -> Iterator[None]:
    """The folder for this sweep only, and for this start of it."""
    try:
        with locked(folder / ".lock", timeout=0):
            if (folder / "run.json").is_file():
                _refuse_another_sweep(folder, record)
            elif any(not path.name.startswith(".") for path in folder.iterdir()):
                raise BadValue(f"{folder} holds other things than a sweep. Choose another folder, or none.")
            yield
    except Timeout:
        raise BadValue(f"a sweep is at work in {folder}. Wait for it, or choose another folder.") from None


def _refuse_another_sweep(folder: Path, record: dict[str, Any]) -> None:
    """Where the record that lies there is not whole, the usual name of the folder will do."""
    try:
        held = read_record(folder).get("parameters", {})
    except BadData as error:
        if folder.name.endswith(record["key"]):
            return _say(f"{folder / 'run.json'} is not whole, and will be written anew")
        raise BadData(
            f"{folder} holds a sweep whose run.json is not whole, so that nobody knows which. Choose another folder, "
            "or none for one of its own."
        ) from error
    if held.get("key") != record["key"]:
        raise BadValue(
            f"{folder} holds another sweep ({held.get('notebook')}, {len(held.get('runs', []))} runs): its notebook or "
            "its parameters differ. Choose another folder, or none for one of its own."
        )


def _do(jobs: list[Job], submit: attempt.Submit) -> None:
    """Do what is missing, and say how it goes."""
    missing = [job for job in jobs if job.outcome() is None]
    _say(f"{len(jobs)} runs, {len(jobs) - len(missing)} of them done before")
    for job in missing:
        if (job.folder / "outcome.json").exists():
            _say(f"{job.label}: its record or its rows are gone or not whole; it will be done again")
    started = time.monotonic()
    try:
        for number, (job, outcome) in enumerate(_outcomes(missing, submit), start=1):
            left = (time.monotonic() - started) / number * (len(missing) - number)
            error = f": {shorten(outcome['error'], 300)}" if outcome["error"] else ""
            rest = f"; about {left / 60:.0f} min left" if left > 90 else ""
            _say(f"[{number}/{len(missing)}] {outcome['status']} {job.label} ({outcome['seconds']} s{rest}){error}")
    except CannotWrite as error:
        raise CannotWrite(f"{error} {_stopped(jobs)} Free some space, and start it again.") from error
    except CancelledError as error:
        raise NotAvailable(f"the cluster's scheduler is gone. {_stopped(jobs)} Start it again.") from error


def _outcomes(jobs: Iterable[Job], submit: attempt.Submit) -> Iterator[tuple[Job, Outcome]]:
    """Jobs as they end, in whatever order. A killed one goes back to the workers, and fails when that is in vain."""
    tries: Counter[str] = Counter()
    waiting = {submit(job): job for job in jobs}
    while waiting:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            job = waiting.pop(future)
            outcome = attempt.result(future, job)
            tries[job.name] += 1
            if outcome["status"] != "killed":
                yield job, outcome
            elif tries[job.name] == _TRIES:
                yield job, job.keep(outcome | {"status": "failed", "error": f"{outcome['error']}, {_TRIES} times"})
            else:
                _say(f"{job.label}: {outcome['error']}; it will be done again")
                waiting[submit(job)] = job


def _stopped(jobs: list[Job]) -> str:
    done = sum(job.outcome() is not None for job in jobs)
    return f"The sweep stopped; {done} of its {len(jobs)} runs are done and kept, and will not be done again."


def _gather(run: Run, jobs: list[Job], axes: dict[str, str]) -> Swept:
    """The tables and the figure, in the sweep's folder."""
    lines = [{"run": job.name} | job.parameters | job.outcome() for job in jobs]
    runs, rows = _table(lines).drop(columns="parameters"), _rows(jobs)
    run.rows(runs, "runs")
    if len(rows):
        run.rows(rows)
        try:
            ax = draw(rows, list(jobs[0].varied), **axes)
            run.figure(ax, "sweep")
            plt.close(ax.get_figure(root=True))
        except BadData as error:
            _say(f"no figure: {error}")
    counts = runs["status"].value_counts()
    reading = f"{counts.get('finished', 0)} runs finished, {counts.get('failed', 0)} failed."
    run.finish(f"Sweep of {run.parameters['notebook']}", reading)
    _say(f"{reading} Table, figure and runs: {shown(run.folder)}")
    return Swept(rows, runs, run.folder)


def _rows(jobs: list[Job]) -> pd.DataFrame:
    """All rows, in the order of the runs. A column of the rows goes before a parameter of the same name: it says more
    (the layer of the row, and not the list of layers given)."""
    lines = []
    for job in jobs:
        given = {"run": job.name} | job.parameters
        for path in job.rows() if job.outcome()["status"] == "finished" else []:
            lines += [given | row for row in pd.read_parquet(path).to_dict("records")]
    return _table(lines)


def _table(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """Records as columns of one type each: text where values are of several."""
    table = pd.DataFrame(lines)
    for name in table:
        if pd.api.types.is_object_dtype(table[name]) and table[name].dropna().map(type).nunique() > 1:
            table[name] = table[name].map(str, na_action="ignore")
    return table


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
