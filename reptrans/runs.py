"""A run's folder: its parameters, rows, arrays, figures, checkpoints and report, each file whole or absent.

    with Run("stitching", p) as run:
        run.rows(rows)
        run.figure(layer_curves(rows), "accuracy")
        run.finish("Stitching", "The stitched network keeps its accuracy up to layer3.")

The folder's name holds a hash of the parameters, so the same parameters come back to the same folder and resume
from its checkpoints. What differs between equal runs, the times, stands in `run.json` alone. In a notebook no `with` is
needed: a cell that ends with an error leaves the run failed.
"""

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyarrow import ArrowException
from pydantic import BaseModel
from pydantic_core import to_jsonable_python
from safetensors.torch import save_file
from torch import Tensor

from reptrans.errors import BadData, BadValue, CannotWrite, choose
from reptrans.export import Callback, exporter
from reptrans.files import atomic, make_folder
from reptrans.paths import runs_root
from reptrans.report import write_page, write_report


class Run:
    """One run of an experiment and the folder that keeps it.

    Attributes: `name`; `parameters`, a dict of plain values; `key`, the first 8 hex digits of their hash; `folder`,
    by default `<runs>/<name>-<key>`; `files`, the names of what has been written so far. `export`: a tracker that gets
    rows and figures too, or a callback, see `export`; by default what REPTRANS_EXPORT names.

    Raises:
        CannotWrite: already here, before any compute, when the folder cannot be made or written to.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, Any] | BaseModel,
        folder: str | Path | None = None,
        *,
        export: str | Callback = "",
    ):
        self.name = _file_name(name)
        self.parameters = _plain(parameters)
        usual = _plain({name: f.default for name, f in getattr(type(parameters), "model_fields", {}).items()})
        self._changed = {name: self.parameters[name] for name in usual if self.parameters[name] != usual[name]}
        self.key = hashlib.sha256(json.dumps(self.parameters, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = Path(folder).resolve() if folder else runs_root() / f"{name}-{self.key}"
        self.files: list[str] = []
        self._rows: dict[str, pd.DataFrame] = {}
        self._figures: dict[str, Figure] = {}
        self._record = self._first_record()
        self._make(self.folder)
        self._update()
        to = export or os.environ.get("REPTRANS_EXPORT", "")
        self._send = exporter(to, self.folder.name, self.parameters, self.folder) if isinstance(to, str) and to else to
        self._watch()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            if self._record["status"] != "finished":
                self.finish(self.name)
            return
        self._unwatch()
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        try:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            self._update(status="failed", error=said, finished=_now())
            self._export("finish", self.name, said)
        except CannotWrite as second:  # the first error goes on and carries the second along
            error.add_note(str(second))

    def _watch(self) -> None:
        """In a notebook: note the error that a cell ends with, instead of the run that had this name before there."""
        if shell := get_ipython():
            _watched[self.name] = self
            shell.events.register("post_run_cell", _note_error)

    def _unwatch(self) -> None:
        if _watched.get(self.name) is self:
            del _watched[self.name]

    def checkpoint(self, name: str) -> Path:
        """The path of checkpoint `name`, to go on from if this run is interrupted; `finish` removes them all.

        It depends on the parameters and on this package's own code, so that nothing made by other ones is taken over.
        """
        self._make(self._checkpoints)
        return self._checkpoints / _file_name(name)

    @property
    def _checkpoints(self) -> Path:
        return self.folder / f"checkpoints-{self.key}-{own_code()}"

    def rows(self, rows: pd.DataFrame, name: str = "rows") -> None:
        """Write rows as Parquet, CSV and JSON (a list of records; NaN and infinity, unknown to JSON, become null)."""
        table = rows if isinstance(rows.index, pd.RangeIndex) else rows.reset_index()
        columns = {"index": False, "write_page_checksum": True}  # so that later damage is noticed
        file = _file_name(name)
        try:
            self._write(f"{file}.parquet", lambda path: table.to_parquet(path, **columns))
        except (ArrowException, ValueError) as error:
            raise BadValue(f"rows {name!r} need unique column names and one type per column: {error}") from error
        self._write(f"{file}.csv", lambda path: table.to_csv(path, index=False, lineterminator="\n"))
        records = _plain(table.astype(object).where(table.notna(), None).to_dict("records"), lambda _: None)
        self._write(f"{file}.json", lambda path: path.write_text(json.dumps(records, indent=1) + "\n"))
        self._rows[name] = table
        self._export("rows", name, table)

    def arrays(self, arrays: Mapping[str, Tensor | np.ndarray], name: str = "arrays") -> None:
        """Write tensors or arrays of any shape, by name, as one safetensors file."""
        tensors = {key: torch.as_tensor(value).detach().cpu().clone().contiguous() for key, value in arrays.items()}
        self._write(f"{_file_name(name)}.safetensors", lambda path: save_file(tensors, path))

    def figure(self, figure: Figure | Axes, name: str) -> None:
        """Write a figure as PNG (150 dots per inch) and PDF; the report will show it."""
        figure = figure.get_figure(root=True)
        tight = {"bbox_inches": "tight", "facecolor": "white"}
        self._write(f"{_file_name(name)}.png", lambda path: figure.savefig(path, dpi=150, **tight))
        self._write(f"{name}.pdf", lambda path: figure.savefig(path, metadata={"CreationDate": None}, **tight))
        self._figures[name] = figure
        self._export("figure", name, figure)

    def finish(self, title: str, reading: str = "") -> None:
        """Write `report.pdf` and `report.html` (figures, parameters, environment, rows), set the status to finished,
        remove checkpoints.

        `reading` says in words what the rows show; it stands below the title. The same run started again begins anew.
        """
        facts = {name: self._record[name] for name in ("parameters", "environment", "git")}
        if self._changed:
            facts = {"parameters that differ from the defaults": self._changed} | facts
        for name, write in (("report.pdf", write_report), ("report.html", write_page)):
            self._write(name, lambda path, write=write: write(path, title, reading, facts, self._rows, self._figures))
        self._update(status="finished", error=None, title=title, reading=reading, finished=_now())
        self._unwatch()
        self._export("finish", self.name, reading)
        if self._checkpoints.is_dir():
            shutil.rmtree(self._checkpoints)

    def _export(self, what: str, name: str, value: Any) -> None:
        if self._send:
            self._send(what, name, value)

    def _first_record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": "running",
            "error": None,
            "started": _now(),
            "finished": None,
            "process": {"pid": os.getpid(), "host": socket.gethostname()},
            "parameters": self.parameters,
            "seeds": {name: value for name, value in self.parameters.items() if "seed" in name.lower()},
            "environment": environment(),
            "git": _own_git_state(),
            "files": self.files,
        }

    def _update(self, **changes: Any) -> None:
        record = self._record | changes
        self._write("run.json", lambda path: path.write_text(json.dumps(record, indent=2) + "\n"))
        self._record = record

    def _write(self, name: str, writer: Callable[[Path], Any]) -> None:
        with self._refusals(), atomic(self.folder / name) as path:
            writer(path)
        if name not in self.files and name != "run.json":
            self.files.append(name)

    def _make(self, folder: Path) -> None:
        with self._refusals():
            make_folder(folder)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Say of a refused write also what is safe, and what to do."""
        try:
            yield
        except CannotWrite as error:
            safe = f"Already safe there: {', '.join(self.files)}." if self.files else "Nothing was lost."
            raise CannotWrite(
                f"{str(error).partition(' Free some space')[0]} {safe} Free some space, or write elsewhere: "
                f"Run({self.name!r}, ..., folder=...) for this run, the environment variable REPTRANS_DATA for all."
            ) from error


_watched: dict[str, Run] = {}  # by name, the runs of this notebook that have not ended


def _note_error(cell: Any) -> None:
    if error := cell.error_before_exec or cell.error_in_exec:
        for run in _watched.values():
            run._fail(error)


def read_record(folder: str | Path) -> dict[str, Any]:
    """What `run.json` in a run's folder says; a run that was at work on this machine and is no more is "broken off".

    Raises:
        BadData: there is none, or it is not whole.
    """
    path = Path(folder) / "run.json"
    try:
        record = json.loads(path.read_text())
        status, process = record["status"], dict(record.get("process") or {})
        here = status == "running" and process.get("host") == socket.gethostname()
        broken = here and not psutil.pid_exists(process.get("pid") or -1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise BadData(
            f"{path} is no whole record of a run ({type(error).__name__}). Remove {path.parent}, and run it again."
        ) from error
    return record | {"status": "broken off" if broken else status}


def all_runs() -> pd.DataFrame:
    """A row for each run below the folder of runs, the latest first: run, status, started, error."""
    rows = []
    for path in runs_root().glob("*/run.json"):
        try:
            record = read_record(path.parent)
        except BadData as error:
            record = {"status": "damaged", "error": str(error)}
        rows.append({"run": path.parent.name} | {name: record.get(name) for name in ("status", "started", "error")})
    table = pd.DataFrame(rows, columns=["run", "status", "started", "error"])
    return table.sort_values("started", ascending=False, ignore_index=True)


def remove_runs(names: Sequence[str] = ()) -> list[str]:
    """Remove the folders of these runs, by default of all that failed, broke off or are damaged; what was removed.

    Raises UnknownName; BadValue for a run that is at work.
    """
    known = all_runs().set_index("run")["status"].to_dict()
    names = list(names) or [name for name, status in known.items() if status not in ("finished", "running")]
    for name in names:
        if choose(name, known, "there is no run {}") == "running":
            raise BadValue(f"{name} is at work. Stop it first.")
    for name in names:
        shutil.rmtree(runs_root() / name)
    return names


@functools.cache
def environment() -> dict[str, str | None]:
    """The versions and the devices that numbers may depend on; None for what is not there."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("torchvision", "numpy", "reptrans"):
        versions[package] = None
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return versions | {"system": platform.system(), "cpu": _cpu(), "gpu": gpu}


@functools.cache
def own_code() -> str:
    """8 hex digits that change whenever a file of this package does."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def git_state(folder: str | Path) -> dict[str, Any] | None:
    """The checkout's commit (None before the first), branch (None if detached) and whether it is dirty.

    None outside a checkout, or where there is no git.
    """
    command = ["git", "--no-optional-locks", "-C", str(folder), "status", "--porcelain=v2", "--branch"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if answer.returncode:
        return None
    lines = answer.stdout.splitlines()
    head = dict(line.removeprefix("# branch.").split(" ", 1) for line in lines if line.startswith("# branch."))
    commit, branch = head.get("oid", "(initial)"), head.get("head", "(detached)")
    return {"commit": None if commit == "(initial)" else commit,
            "branch": None if branch == "(detached)" else branch,
            "dirty": any(not line.startswith("#") for line in lines)}  # fmt: skip


def _own_git_state() -> dict[str, Any] | None:
    """The state of this package's checkout; an installed copy has none, even below somebody else's checkout."""
    root = Path(__file__).resolve().parent.parent
    return git_state(root) if (root / "pyproject.toml").is_file() else None


def _cpu() -> str:
    facts = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", facts.read_text(), re.MULTILINE) if facts.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.,=+-]*", name):
        raise BadValue(f"{name!r} cannot name a file. Possible: letters, digits and _ . , = + - without a leading dot")
    return name


def _plain(value: Any, no_number: Callable[[str], Any] = str) -> Any:
    """`value` as JSON can hold it: paths and other objects become text, NaN and infinity what `no_number` makes."""
    return json.loads(json.dumps(to_jsonable_python(value, fallback=_number_or_text)), parse_constant=no_number)


def _number_or_text(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
