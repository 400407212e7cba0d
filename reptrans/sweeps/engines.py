"""Where attempts are made: in threads of this process, each with papermill as a child, or on a Dask cluster.

An engine is a context that hands out a `submit`: a job in, a future of its outcome out.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from reptrans.errors import BadValue, NotAvailable
from reptrans.sweeps.attempt import Job, Outcome, attempt, running

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
