"""One run of a sweep: papermill in a process of its own, in a folder of its own, and what became of it.

A run's folder holds the executed notebook, the folder that its `Run` makes, and `outcome.json`, written when the run
is over. So a run without an outcome is missing, whatever happened to it; so is one with a file that is not whole.

Where attempts are made: in threads of this process, each with papermill as a child, or on a Dask cluster. An engine is
a context that hands out a `submit`: a job in, a future of its outcome out.
"""

import errno
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pyarrow
import torch
import yaml
from pyarrow import parquet

from reptrans.errors import BadData, BadValue, CannotWrite, NotAvailable
from reptrans.files import atomic, locked, make_folder, refusals
from reptrans.runs import read_record
from reptrans.sweeps import attached

Outcome = dict[str, Any]

_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
_DEAD_KERNEL = 138  # papermill's exit status for it

running: set[subprocess.Popen] = set()


@dataclass(frozen=True)
class Job:
    """One run to do: the parameters given, the folder of the sweep (it holds the notebook), the root of the data, the
    directory that relative paths start from, and the parameters that tell the run from others (none: all do)."""

    parameters: dict[str, Any]
    sweep: Path
    data: Path
    directory: Path
    varied: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the run's folder is called: the label made plain and short, and a hash of all parameters."""
        key = hashlib.sha256(json.dumps(self.parameters, sort_keys=True, default=str).encode()).hexdigest()[:8]
        return re.sub(r"[^A-Za-z0-9_.,=+-]+", "_", self.label.replace(", ", ","))[:80] + f"-{key}"

    @property
    def label(self) -> str:
        """What is said of the run to people, for instance `layer=bn1, seed=2`."""
        told = [name for name in self.parameters if name in (self.varied or self.parameters)]
        return ", ".join(f"{name}={self.parameters[name]}" for name in told) or "defaults"

    @property
    def folder(self) -> Path:
        return self.sweep / "runs" / self.name

    def outcome(self) -> Outcome | None:
        """How the run ended; None if it has not, or if its rows have gone since."""
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found = json.loads((self.folder / "outcome.json").read_text())
            if found["status"] == "failed" or (found["status"] == "finished" and self.rows()):
                return found
        return None

    def rows(self) -> list[Path]:
        """The tables of rows that the notebook's finished runs have left."""
        return [path for path in sorted(self.folder.glob("*/rows.parquet")) if _is_whole(path)]

    def keep(self, outcome: Outcome) -> Outcome:
        """Write the outcome down, whole or not at all."""
        make_folder(self.folder)
        with atomic(self.folder / "outcome.json") as path:
            path.write_text(json.dumps(outcome, indent=2) + "\n")
        return outcome


def attempt(job: Job, gpu: str | None = None) -> Outcome:
    """Do the run, on the GPU named if one is, unless it is done; its status is finished, failed or killed.

    Killed (by a signal, or its kernel was) is no outcome of the run, and not written down. Only one attempt at a run
    is at work at any time, also where a cluster has taken a worker for dead that is not.

    Raises:
        CannotWrite: the disk is full, which is not the run's fault either.
        NotAvailable: the sweep's folder cannot be seen from here.
    """
    if not (job.sweep / "run.json").is_file():
        raise NotAvailable(
            f"{socket.gethostname()} does not see {job.sweep}. All workers need the folder of the sweep and that of "
            "the data under the same path: put both on a disk that they share (REPTRANS_DATA names the second)."
        )
    with refusals(f"could not write in {job.folder}", job.sweep), locked(job.folder / ".lock"):
        return job.outcome() or _execute(job, gpu)


def _is_whole(rows: Path) -> bool:
    """Whether this table is as it was written, and its run has finished."""
    try:
        parquet.read_table(rows, page_checksum_verification=True)
        return read_record(rows.parent)["status"] == "finished"
    except (pyarrow.ArrowException, OSError, BadData):
        return False


def _execute(job: Job, gpu: str | None) -> Outcome:
    notebook, started = job.folder / "notebook.ipynb", time.monotonic()
    notebook.unlink(missing_ok=True)
    code, log = _papermill(job, notebook, gpu)
    outcome = {
        "parameters": job.parameters,
        "seconds": round(time.monotonic() - started, 1),
        "gpu": gpu or os.environ.get("CUDA_VISIBLE_DEVICES"),
        "host": socket.gethostname(),
    }
    if code == 0 and job.rows():
        return job.keep({"status": "finished", "error": None} | outcome)
    if code < 0 or code == _DEAD_KERNEL:
        what = f"killed by signal {-code}" if code < 0 else "its kernel died (is there enough memory?)"
        return {"status": "killed", "error": what} | outcome
    error = _error(notebook, log) if code else "it left no rows: a notebook in a sweep ends with run.rows, run.finish"
    if any(text in error or text in log for text in _FULL):
        raise CannotWrite(f"{job.label}: {error}")
    (job.folder / "log.txt").write_text(log)
    return job.keep({"status": "failed", "error": error} | outcome)


def _papermill(job: Job, notebook: Path, gpu: str | None) -> tuple[int, str]:
    """Run papermill to its end: its exit status, negative for a signal, and what it printed."""
    given = yaml.safe_dump(job.parameters, default_flow_style=True, width=10**6)
    command = [sys.executable, "-P", attached.__file__, str(job.sweep / "notebook.ipynb"), str(notebook),
               "-y", given, "--no-progress-bar"]  # fmt: skip
    ours = {"REPTRANS_DATA": str(job.data), "REPTRANS_RUNS": str(job.folder)}
    ours |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}
    # More threads than free cores make small networks slower by a large factor.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | ours
    # A session of its own, so that Ctrl-C reaches the sweep alone, which then ends its runs.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=environment, cwd=job.directory if job.directory.is_dir() else None, start_new_session=True,
    ) as process:  # fmt: skip
        running.add(process)
        log = process.stdout.read()
    running.discard(process)
    return process.returncode, log


def _error(notebook: Path, log: str) -> str:
    """The error that ended the notebook; the last line of the log where there is no such thing in it."""
    with suppress(OSError, ValueError):
        cells = nbformat.read(notebook, as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", []) if output.output_type == "error"]
        if outputs:
            return f"{outputs[-1].ename}: {outputs[-1].evalue}"
    return next((line for line in reversed(log.splitlines()) if line.strip()), "papermill ended without a word")


Submit = Callable[[Job], "Future[Outcome]"]

_PATIENCE = 10  # seconds for a cluster to answer


@contextmanager
def local(workers: int | None = None) -> Iterator[Submit]:
    """`workers` attempts at a time here; None for one per GPU, or one per core where there is no GPU.

    Where there are several GPUs, each worker has one of them for itself; more workers than GPUs share them in turn.
    Attempts still at work when the context is left are ended.
    """
    if workers is not None and workers < 1:
        raise BadValue(f"workers = {workers}: at least 1 is needed")
    names, own = gpus(), threading.local()
    count = workers or len(names) or _cores()
    free = [names[number % len(names)] if len(names) > 1 else None for number in range(count)]

    def take_gpu() -> None:
        own.gpu = free.pop(0)

    with ThreadPoolExecutor(count, initializer=take_gpu) as pool:
        try:
            yield lambda job: pool.submit(lambda: attempt(job, own.gpu))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.kill()


@contextmanager
def cluster(address: str) -> Iterator[Submit]:
    """The workers of the Dask scheduler at `address`, for instance "tcp://login:8786"; one attempt for each thread.

    Raises:
        NotAvailable: no scheduler answers there within seconds, or Dask is not installed.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise NotAvailable("a cluster needs Dask, which is not installed: pip install 'reptrans[cluster]'") from error
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise NotAvailable(
            f"no Dask scheduler answers at {address!r} within {_PATIENCE} seconds ({error or type(error).__name__}). "
            "Start one with `dask scheduler`, and give the address that it prints, as in tcp://login:8786."
        ) from error
    with client, client.get_executor(pure=False) as executor:
        try:
            yield lambda job: executor.submit(attempt, job)
        finally:
            executor.shutdown(wait=False)  # the cluster is told to drop what has not begun


def result(future: "Future[Outcome]", job: Job) -> Outcome:
    """The outcome in `future`; failed where a cluster's workers died with the run, which the cluster counts itself."""
    error = future.exception()
    if type(error).__name__ != "KilledWorker":
        return future.result()
    seen = {"parameters": job.parameters, "seconds": None, "gpu": None, "host": None}
    return job.keep({"status": "failed", "error": f"every worker that took it died: {error}"} | seen)


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name.strip() for name in given.split(",")][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
