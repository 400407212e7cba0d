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
import math
import os
import platform
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import BaseModel
from safetensors.torch import save_file
from torch import Tensor

from reptrans.errors import BadData, BadValue, CannotWrite
from reptrans.files import atomic, reason
from reptrans.paths import runs_root
from reptrans.report import write_report


class Run:
    """One run of an experiment and the folder that keeps it.

    Attributes: `name`; `parameters`, a dict of plain values; `key`, the first 8 hex digits of their hash; `folder`,
    by default `<runs>/<name>-<key>`; `files`, the names of what has been written so far.

    Raises:
        CannotWrite: already here, before any compute, when the folder cannot be made or written to.
    """

    def __init__(self, name: str, parameters: Mapping[str, Any] | BaseModel, folder: str | Path | None = None):
        self.name = _file_name(name)
        self.parameters = _plain(parameters)
        self.key = hashlib.sha256(json.dumps(self.parameters, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = Path(folder).resolve() if folder else runs_root() / f"{name}-{self.key}"
        self.files: list[str] = []
        self._rows: dict[str, pd.DataFrame] = {}
        self._figures: dict[str, Figure] = {}
        self._environment = environment()
        self._record = self._first_record()
        self._make(self.folder)
        self._update()
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
            self._update(status="failed", error=f"{type(error).__name__}: {error}".splitlines()[0], finished=_now())
        except CannotWrite as second:  # the first error goes on and carries the second along
            error.add_note(str(second))

    def _watch(self) -> None:
        """In a notebook: note the error that a cell ends with, instead of the run that had this name before there."""
        if shell := get_ipython():
            if before := _watched.get(self.name):
                before._unwatch()
            _watched[self.name] = self
            shell.events.register("post_run_cell", self._after_cell)

    def _unwatch(self) -> None:
        shell = get_ipython()
        if _watched.get(self.name) is self:
            del _watched[self.name]
            if shell and self._after_cell in shell.events.callbacks["post_run_cell"]:
                shell.events.unregister("post_run_cell", self._after_cell)

    def _after_cell(self, cell: Any) -> None:
        if error := cell.error_before_exec or cell.error_in_exec:
            self._fail(error)

    def checkpoint(self, name: str) -> Path:
        """The path of checkpoint `name`, to go on from if this run is interrupted; `finish` removes them all.

        It depends on the parameters and on this package's own code, so that nothing made by other ones is taken over.
        """
        folder = self._checkpoints
        self._make(folder)
        return folder / _file_name(name)

    @property
    def _checkpoints(self) -> Path:
        return self.folder / f"checkpoints-{self.key}-{own_code()}"

    def rows(self, rows: pd.DataFrame, name: str = "rows") -> None:
        """Write rows as Parquet, CSV and JSON (a list of records; NaN and infinity, unknown to JSON, become null)."""
        import pyarrow
        from pyarrow import parquet

        table = rows if isinstance(rows.index, pd.RangeIndex) else rows.reset_index()
        try:
            columns = pyarrow.Table.from_pandas(table, preserve_index=False)
        except (pyarrow.ArrowException, ValueError) as error:
            raise BadValue(f"rows {name!r} need unique column names and one type per column: {error}") from error
        whole = {"write_page_checksum": True}  # so that later damage is noticed
        self._write(f"{_file_name(name)}.parquet", lambda path: parquet.write_table(columns, path, **whole))
        self._write(f"{name}.csv", lambda path: table.to_csv(path, index=False, lineterminator="\n"))
        self._write(f"{name}.json", lambda path: path.write_text(_records(table)))
        self._rows[name] = table

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

    def finish(self, title: str, reading: str = "") -> None:
        """Write `report.pdf` (parameters, environment, rows, figures), set the status to finished, remove checkpoints.

        `reading` says in words what the rows show; it stands below the title. The same run started again begins anew.
        """
        facts = {"parameters": self.parameters, "environment": self._environment, "git": self._record["git"]}
        self._write("report.pdf", lambda path: write_report(path, title, reading, facts, self._rows, self._figures))
        self._update(status="finished", error=None, title=title, reading=reading, finished=_now())
        self._unwatch()
        if self._checkpoints.is_dir():
            shutil.rmtree(self._checkpoints)

    def _first_record(self) -> dict[str, Any]:
        times = {"started": _now(), "finished": None}
        code = {"environment": self._environment, "git": _own_git_state()}
        process = {"pid": os.getpid(), "host": socket.gethostname()}
        return {"name": self.name, "status": "running", "error": None, **times, "process": process,
                "parameters": self.parameters,
                "seeds": _seeds(self.parameters), **code, "files": self.files}  # fmt: skip

    def _update(self, **changes: Any) -> None:
        record = self._record | changes
        self._write("run.json", lambda path: path.write_text(json.dumps(record, indent=2) + "\n"))
        self._record = record

    def _write(self, name: str, writer: Callable[[Path], Any]) -> None:
        with self._refusals(name), atomic(self.folder / name) as path:
            writer(path)
        if name not in self.files and name != "run.json":
            self.files.append(name)

    def _make(self, folder: Path) -> None:
        with self._refusals("the folder"):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        """Say of a refused write also what is safe, and what to do."""
        try:
            yield
        except OSError as error:
            fact = str(error).split(" Free some space")[0] if isinstance(error, CannotWrite) else (
                f"could not make {what} {self.folder}: {reason(error)}.")  # fmt: skip
            safe = f"Already safe there: {', '.join(self.files)}." if self.files else "Nothing was lost."
            raise CannotWrite(
                f"{fact} {safe} Free some space, or write elsewhere: Run({self.name!r}, ..., folder=...) for this run, "
                "the environment variable REPTRANS_DATA for all."
            ) from error


_watched: dict[str, Run] = {}  # by name, the runs of this notebook that have not ended


def read_record(folder: str | Path) -> dict[str, Any]:
    """What `run.json` in a run's folder says; a run that was at work on this machine and is no more is "broken off".

    Raises:
        BadData: there is none, or it is not whole.
    """
    path = Path(folder) / "run.json"
    try:
        record = json.loads(path.read_text())
        status, process = record["status"], dict(record.get("process") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadData(
            f"{path} is no whole record of a run ({type(error).__name__}). Remove {path.parent}, and run it again."
        ) from error
    broken = status == "running" and process.get("host") == socket.gethostname() and not _alive(process.get("pid"))
    return record | {"status": "broken off" if broken else status}


def _alive(pid: Any) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, TypeError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


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


@functools.cache
def environment() -> dict[str, str | None]:
    """The versions and the devices that numbers may depend on; None for what is not there."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for package in ("torchvision", "numpy", "reptrans"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
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


def _plain(value: Any) -> Any:
    """`value` as JSON can hold it: NaN, infinity, paths and other objects become text."""
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    unknown_to_json = isinstance(value, float) and not math.isfinite(value)
    return value if isinstance(value, bool | int | float | None) and not unknown_to_json else str(value)


def _seeds(parameters: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if "seed" in key.lower()}


def _records(table: pd.DataFrame) -> str:
    records = table.astype(object).to_dict("records")
    plain = [{key: _cell(value) for key, value in record.items()} for record in records]
    return json.dumps(plain, indent=1) + "\n"


def _cell(value: Any) -> Any:
    if pd.api.types.is_scalar(value) and (pd.isna(value) or value in (math.inf, -math.inf)):
        return None
    return _plain(value)
