"""The notebooks that come with the package: found by name, run with other parameters, copied to be worked on."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from reptrans import paths
from reptrans.errors import BadData, BadValue, CannotWrite, choose
from reptrans.files import make_folder


def notebooks() -> dict[str, Path]:
    """The notebooks by their names."""
    return {path.stem: path for path in sorted(paths.notebooks_root().glob("*.ipynb"))}


def found(name: str) -> Path:
    """A notebook of the package by its name, or any notebook by its path. Raises UnknownName, with near names."""
    if name.endswith(".ipynb"):
        if (path := Path(name)).is_file():
            return path
        name = path.stem
    return choose(name, notebooks(), "there is no notebook {}")


def parameter_file(name: str) -> Path:
    """A file of parameters by its path, or that of one of the book's larger runs. Raises UnknownName."""
    if (path := Path(name)).is_file():
        return path
    return choose(name, {p.stem: p for p in sorted(paths.parameters_root().glob("*.yaml"))}, "there is no file {}")


def run(name: str, given: Iterable[tuple[str, str]] = (), file: str | None = None) -> Path | None:
    """Run a notebook with parameters, (name, text) each, and give the executed one, in the folder of runs.

    `file`: more parameters, see `parameter_file`; those given by name go before. None if a cell failed; the executed
    notebook is there then, too, and shows where. Raises, before a kernel starts, UnknownName for a notebook, a file or
    a parameter that there is not; BadValue for a text that is no value of a parameter, or a parameter that is given
    twice; BadData; CannotWrite.
    """
    import papermill
    import yaml

    from reptrans.sweeps.points import declared, typed

    notebook, given = found(name), list(given)
    if len(values := dict(given)) < len(given):
        raise BadValue("-p: each parameter once.")
    known = declared(notebook)
    more = yaml.safe_load(parameter_file(file).read_text("utf-8")) if file else {}
    if not isinstance(more, dict):
        raise BadData(f"{file} is no file of parameters: lines NAME: VALUE are needed.")
    values = more | {key: typed(key, value, known) for key, value in values.items()}
    executed = paths.runs_root() / notebook.name
    make_folder(executed.parent)
    try:
        papermill.execute_notebook(notebook, executed, values, log_output=False)
    except papermill.PapermillExecutionError as error:
        print(f"{error.ename}: {error.evalue}")
        return None
    return executed


def diff(a: str, b: str, data: str = "", given: Iterable[tuple[str, str]] = ()) -> Path | None:
    """`run` the notebook on differences with two networks, see `DiffRun`, on a data set; nothing is planted there.

    Raises, before a kernel starts, what does not fit of networks, files and data, beside what `run` raises.
    """
    from reptrans.experiments.diff import DiffRun
    from reptrans.experiments.sides import sides
    from reptrans.notebook import checked
    from reptrans.sweeps.points import declared, typed

    known, values = declared(found("diff")), {"a": a, "b": b, "planted": "0"} | ({"dataset": data} if data else {})
    if twice := {"a", "b"} & {name for name, _ in given}:
        raise BadValue(f"{' and '.join(sorted(twice))}: the networks are given already, before any -p.")
    values |= dict(given)
    sides(checked(DiffRun, {name: typed(name, value, known) for name, value in values.items()}), train=False)
    return run("diff", values.items())


def copied(name: str, to: str | Path = ".") -> Path:
    """A working copy of a notebook: `to` a folder, or a path of its own. Raises UnknownName; CannotWrite where a file
    is there already."""
    notebook, target = found(name), Path(to)
    if target.suffix != ".ipynb":
        target = target / notebook.name
    if target.exists():
        raise CannotWrite(f"{target} is there already, and perhaps changed. Name another path, or take it away.")
    make_folder(target.parent)
    shutil.copyfile(notebook, target)
    return target
