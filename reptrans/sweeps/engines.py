"""Where attempts are made: in threads of this process, each with papermill as a child, or on a Dask cluster.

An engine is a context that hands out a `submit`: a job in, a future of its outcome out.
"""

import os
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from reptrans.errors import BadValue, NotAvailable
from reptrans.sweeps.attempt import Job, Outcome, attempt, stop_all

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
    names = gpus()
    count = workers or len(names) or _cores()
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for number in range(count):
        free.put(names[number % len(names)] if len(names) > 1 else None)

    def on_its_gpu(job: Job) -> Outcome:
        gpu = free.get()
        try:
            return attempt(job, gpu)
        finally:
            free.put(gpu)

    pool = ThreadPoolExecutor(count)
    try:
        yield lambda job: pool.submit(on_its_gpu, job)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        stop_all()
        pool.shutdown()


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
    """The outcome in `future`; killed where a cluster's workers died with the run, which the cluster counts itself."""
    try:
        return future.result()
    except Exception as error:
        if type(error).__name__ != "KilledWorker":
            raise
        return job.keep(
            {"status": "failed", "error": f"every worker that took it died: {error}", "parameters": job.parameters,
             "seconds": None, "gpu": None, "host": None}
        )  # fmt: skip


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [name.strip() for name in given.split(",")][: torch.cuda.device_count()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
