"""Progress bars only where somebody watches: in a stored notebook or a log they would be noise; and a time limit."""

import os
import sys
import time
from collections.abc import Iterable
from typing import TypeVar

from reptrans.errors import OutOfTime

_Item = TypeVar("_Item")


def interactive() -> bool:
    """Whether a person sees what is printed now: stderr is a terminal, or a Jupyter front end started this kernel.

    papermill, nbval and jupyter-book start kernels without a session, so they count as nobody.
    """
    return "JPY_SESSION_NAME" in os.environ or (sys.stderr is not None and sys.stderr.isatty())


def progress(iterable: Iterable[_Item], label: str = "", total: int | None = None) -> Iterable[_Item]:
    """`iterable` behind a bar called `label` if somebody watches; `iterable` itself, untouched, otherwise."""
    if not interactive():
        return iterable
    # Only here: tqdm.auto warns on import where ipywidgets is missing, and the warning would enter stored outputs.
    from tqdm.auto import tqdm

    return tqdm(iterable, desc=label, total=total, leave=False)


def stop_if_late() -> None:
    """Called where everything done so far is kept: OutOfTime once the environment's REPTRANS_UNTIL is past.

    REPTRANS_UNTIL: a time in seconds, as `time.time()` counts them. Without it nothing is ever late.
    """
    if time.time() >= float(os.environ.get("REPTRANS_UNTIL") or "inf"):
        raise OutOfTime("the time given is over. What is done is kept; start the same run again to go on.")
