"""Where things lie on disk: the same place whatever the working directory is.

Papermill runs a notebook in the caller's directory, JupyterLab and nbval in the notebook's own; so no path may
depend on the working directory.
"""

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent


def data_root() -> Path:
    """The folder for data sets, trained networks and runs.

    `REPTRANS_DATA` if it is set; else `data/` of the checkout this package is imported from; else (an installed
    package without a checkout) `reptrans-data/` in the working directory.
    """
    if given := os.environ.get("REPTRANS_DATA"):
        return Path(given).expanduser().resolve()
    if (_CHECKOUT / "pyproject.toml").is_file():
        return _CHECKOUT / "data"
    return Path.cwd() / "reptrans-data"


def networks_root() -> Path:
    """The folder where `trained` keeps networks."""
    return data_root() / "networks"


def shipped_networks() -> Path:
    """The folder of the networks that come with the package."""
    return Path(__file__).resolve().parent / "shipped"


def runs_root() -> Path:
    """The folder where every run leaves its own folder: `REPTRANS_RUNS` (a sweep sets it), else in `data_root()`."""
    given = os.environ.get("REPTRANS_RUNS")
    return Path(given).expanduser().resolve() if given else data_root() / "runs"


def shown(path: Path) -> str:
    """`path` as it may be printed in a stored output: relative to the data folder's parent where it lies below it."""
    path, base = Path(path).resolve(), data_root().resolve().parent
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
