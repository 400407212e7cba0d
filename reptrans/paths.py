"""Where things lie on disk: the same place whatever the working directory is.

Papermill runs a notebook in the caller's directory, JupyterLab and nbval in the notebook's own; so no path may
depend on the working directory.
"""

import os
from pathlib import Path

from reptrans.errors import BadValue

_CHECKOUT = Path(__file__).resolve().parent.parent


def data_root() -> Path:
    """The folder for data sets, trained networks and runs.

    `REPTRANS_DATA` if it is set; else `data/` of the checkout this package is imported from; else (an installed
    package without a checkout) `reptrans-data/` in the working directory.
    """
    if given := os.environ.get("REPTRANS_DATA"):
        return real(given, "REPTRANS_DATA")
    if (_CHECKOUT / "pyproject.toml").is_file():
        return _CHECKOUT / "data"
    return Path.cwd() / "reptrans-data"


def notebooks_root() -> Path:
    """The folder of the notebooks: of the checkout, or else those that are installed with the package."""
    return _home("notebooks", "notebooks")


def parameters_root() -> Path:
    """The folder of the parameters of the book's larger runs, likewise."""
    return _home("book/parameters", "parameters")


def _home(checkout: str, installed: str) -> Path:
    here = (_CHECKOUT / "pyproject.toml").is_file()
    return _CHECKOUT / checkout if here else Path(__file__).resolve().parent / installed


def networks_root() -> Path:
    """The folder where `trained` keeps networks."""
    return data_root() / "networks"


def shipped_networks() -> Path:
    """The folder of the networks that come with the package."""
    return Path(__file__).resolve().parent / "shipped"


def runs_root() -> Path:
    """The folder where every run leaves its own folder: `REPTRANS_RUNS` (a sweep sets it), else in `data_root()`."""
    given = os.environ.get("REPTRANS_RUNS")
    return real(given, "REPTRANS_RUNS") if given else data_root() / "runs"


def real(given: str | Path, who: str) -> Path:
    """`given`, of which nothing need be there, without `~` and links. Raises BadValue as `expanded`."""
    return expanded(given, who).resolve()


def expanded(given: str | Path, who: str) -> Path:
    """`given` without `~`. Raises BadValue where the system takes no such path, naming `who` asked for it."""
    try:
        path = Path(given).expanduser()
        path.resolve().exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).split(" from ")[0]
        raise BadValue(
            f"{who} is {str(given)!r}, which cannot be used: {reason.rstrip('.')}. "
            "Give a path that is there or can be made."
        ) from error
    return path


def shown(path: Path) -> str:
    """`path` as it may be printed in a stored output: relative to the data folder's parent where it lies below it."""
    path, base = Path(path).resolve(), data_root().resolve().parent
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def from_here(path: Path) -> str:
    """`path` as the user of a terminal may open it: relative to the working directory where it lies below it."""
    path, here = Path(path).resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
