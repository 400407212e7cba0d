"""The runs that the book stores beside its notebooks, each made from its file in book/parameters.

    python book/full.py RUN ...     those named
    python book/full.py             all at full scale that are not stored yet; they need a GPU
    python book/full.py --budget 25m RUN ...    for this long; started again, it goes on from there

A file is called like its notebook, for the run at full scale, or NOTEBOOK_WORD, for one of another size. Its first
block of comments is the run's title and description; a second block is for whoever starts it. `make full` calls this.
"""

import argparse
import ast
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml

from reptrans.errors import BadValue, NotAvailable, OutOfTime, ReptransError, UnknownName, suggest
from reptrans.training import pick_device

ROOT = Path(__file__).resolve().parent.parent
INJECTED = "Parameters of this run"
UNREAD = "*Still to be read: what follows was written about the notebook's own, smaller run.*"


def main(given: list[str]) -> int:
    """Make the runs one after the other; 1 if some failed, which stops no other, 2 for what cannot be begun."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="", help="when to stop: 90s, 25m, 8h; nothing for no limit")
    parser.add_argument("runs", nargs="*")
    asked, failed = parser.parse_args(given), []
    try:
        if asked.budget:
            os.environ["REPTRANS_UNTIL"] = str(time.time() + seconds(asked.budget))
        for run in chosen(asked.runs):
            if not _made(run):
                failed.append(run)
    except OutOfTime as error:
        print(error)
    except ReptransError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if failed:
        print(f"Failed: {', '.join(failed)}. What they had done is kept; start them again to go on.", file=sys.stderr)
    return int(bool(failed))


def seconds(text: str) -> float:
    """Of a time such as 90s, 25m or 1.5h; BadValue for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not found:
        raise BadValue(f"the budget is {text!r}; give a number and a unit, s, m or h, as in 25m.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def chosen(given: list[str]) -> list[str]:
    """The runs to make: those given, or else all at full scale whose stored run is not of the same parameters.

    Raises:
        UnknownName: a run without a file of parameters.
        NotAvailable: a run at full scale where there is no GPU.
    """
    known = sorted(path.stem for path in (ROOT / "book/parameters").glob("*.yaml"))
    small = [run for run in known if notebook(run).stem != run]
    for run in given:
        if run not in known:
            raise UnknownName(f"book/parameters has no {run!r}. {suggest(run, known)}")
    runs = given or [run for run in known if run not in small and stored(run) != parameters(run)]
    if (large := [run for run in runs if run not in small]) and pick_device("auto").type == "cpu":
        raise NotAvailable(
            f"{', '.join(large)}: hours or days on a GPU, weeks without one, and there is none here. What a CPU does "
            f"in minutes: make full RUN={small[0] if small else 'NAME'}, or any of {', '.join(small)}. To see a "
            "notebook work at its smallest: make run NB=stitching."
        )
    return runs


def notebook(run: str) -> Path:
    """The notebook that the run executes: the longest one that its name begins with."""
    fitting = [path for path in (ROOT / "notebooks").glob("*.ipynb") if f"{run}_".startswith(f"{path.stem}_")]
    if not fitting:
        raise UnknownName(f"{run}.yaml is called like no notebook.")
    return max(fitting, key=lambda path: len(path.stem))


def parameters(run: str) -> dict[str, Any]:
    return yaml.safe_load(_text(run))


def description(run: str) -> str:
    """The run's first cell: the first block of comments in its file, whose first line is the title."""
    return "# " + "\n".join(line[2:] for line in _text(run).split("\n\n")[0].splitlines())


def stored(run: str) -> dict[str, Any] | None:
    """The parameters of the run that the book holds; None if it holds none."""
    path = ROOT / "book/runs" / f"{run}.ipynb"
    if not path.is_file():
        return None
    cells = nbformat.read(path, 4).cells
    injected = next((cell.source for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])), "")
    return {line.targets[0].id: ast.literal_eval(line.value) for line in ast.parse(injected).body}


def finished(executed: nbformat.NotebookNode, run: str, former: nbformat.NotebookNode | None) -> nbformat.NotebookNode:
    """The executed notebook without traces of its execution, with the run's own title and the reading, its last text.

    The reading is that of the `former` run, to be checked against the new numbers; without one, the notebook's, marked
    as such.
    """
    for part in (executed, *executed.cells):
        for trace in ("papermill", "execution", "widgets"):
            part.metadata.pop(trace, None)
    executed.metadata.get("language_info", {}).pop("version", None)
    for cell in executed.cells:
        cell.source = moved(cell.source) if cell.cell_type == "markdown" else cell.source
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata |= {"tags": ["injected-parameters", "hide-input"], "mystnb": {"code_prompt_show": INJECTED}}
    executed.cells[0].source = description(run)
    reading = _reading(executed)
    reading.source = _reading(former).source if former else f"{UNREAD}\n\n{reading.source}"
    return executed


def moved(text: str) -> str:
    """A notebook's text with its links and pictures as they are reached from book/runs."""
    text = re.sub(r"\]\((\w+\.ipynb)", r"](../../notebooks/\1", text)
    return text.replace("](../book/runs/", "](").replace("](../book/", "](../")


def _made(run: str) -> bool:
    """Execute the notebook, and put the result in the place of the former one only then."""
    new, place = ROOT / "_build/full" / f"{run}.ipynb", ROOT / "book/runs" / f"{run}.ipynb"
    new.parent.mkdir(parents=True, exist_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    print(f"{run}: {notebook(run).name} with book/parameters/{run}.yaml", flush=True)
    try:
        papermill.execute_notebook(notebook(run), new, parameters(run), cwd=ROOT, request_save_on_cell_execute=True)
    except papermill.PapermillExecutionError as error:
        if error.ename == OutOfTime.__name__:
            raise OutOfTime(f"{run}: {error.evalue}") from None
        print(f"{run}: {error.ename}: {error.evalue}\nUp to the error: {new.relative_to(ROOT)}", file=sys.stderr)
        return False
    former = nbformat.read(place, 4) if place.is_file() else None
    nbformat.write(finished(nbformat.read(new, 4), run, former), new)
    new.replace(place)
    what = "check its last text against the new numbers" if former else "write its last text, and name it in _toc.yml"
    print(f"{run}: book/runs/{run}.ipynb is new; {what}.", flush=True)
    return True


def _reading(found: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return [cell for cell in found.cells if cell.cell_type == "markdown"][-1]


def _text(run: str) -> str:
    return (ROOT / "book/parameters" / f"{run}.yaml").read_text("utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
