"""A run's rows and figures, sent on to TensorBoard, Weights & Biases, MLflow or trackio as they are written.

    Run("stitching", p, export="tensorboard")

or, for notebooks, the environment variable REPTRANS_EXPORT=tensorboard. A tracker is a function of (name of the run,
its parameters, its folder); it gives a callback (what, name, value) for "rows" (a table), "figure" and "finish". Its
library is imported only then.
"""

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reptrans.errors import NotAvailable, choose

Callback = Callable[[str, str, Any], None]


def exporter(to: str, name: str, parameters: dict[str, Any], folder: Path) -> Callback:
    """The callback of the tracker `to`. Raises UnknownName; NotAvailable where its library is not installed."""
    return choose(to, TRACKERS, "there is no tracker {}")(name, parameters, folder)


def tensorboard(name: str, parameters: dict[str, Any], folder: Path) -> Callback:
    """Below `folder`/tensorboard: `tensorboard --logdir data/runs` shows all runs."""
    _library("tensorboard")
    writer = _library("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))
    writer.add_text("parameters", f"```\n{json.dumps(parameters, indent=1)}\n```")

    def send(what: str, name: str, value: Any) -> None:
        if what == "rows":
            writer.add_text(name, f"```\n{value.to_string()}\n```")
            for step, numbers in _numbers(name, value):
                for key, number in numbers.items():
                    writer.add_scalar(key, number, step)
        elif what == "figure":
            writer.add_figure(name, value, close=False)
        else:
            writer.close()

    return send


def mlflow(name: str, parameters: dict[str, Any], folder: Path) -> Callback:
    """A run of the experiment "reptrans", where MLFLOW_TRACKING_URI says."""
    library = _library("mlflow")
    library.set_experiment("reptrans")
    library.start_run(run_name=name)
    library.log_params(parameters)

    def send(what: str, name: str, value: Any) -> None:
        if what == "rows":
            library.log_table(value, f"{name}.json")
            for step, numbers in _numbers(name, value):
                library.log_metrics(numbers, step=step)
        elif what == "figure":
            library.log_figure(value, f"{name}.png")
        else:
            library.end_run()

    return send


def _like_wandb(module: str) -> Callable[[str, dict[str, Any], Path], Callback]:
    def start(name: str, parameters: dict[str, Any], folder: Path) -> Callback:
        library = _library(module)
        library.init(project="reptrans", name=name, config=parameters)

        def send(what: str, name: str, value: Any) -> None:
            if what == "rows":
                library.log({f"{name} (table)": library.Table(dataframe=value)})
                for _, numbers in _numbers(name, value):
                    library.log(numbers)
            elif what == "figure":
                library.log({name: library.Image(_pixels(value))})
            else:
                library.finish()

        return send

    return start


TRACKERS = {
    "tensorboard": tensorboard,
    "wandb": _like_wandb("wandb"),
    "mlflow": mlflow,
    "trackio": _like_wandb("trackio"),
}


def _numbers(name: str, table: pd.DataFrame) -> Iterator[tuple[int, dict[str, float]]]:
    """(row, its numbers by name/column) of each row; what is no finite number is left out."""
    for step, row in enumerate(table.select_dtypes("number").to_dict("records")):
        yield step, {f"{name}/{key}": float(v) for key, v in row.items() if abs(v) < float("inf")}


def _pixels(figure: Figure) -> np.ndarray:
    """(height, width, 3) bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _library(module: str) -> ModuleType:
    try:
        return import_module(module)
    except ImportError as error:
        raise NotAvailable(f"{module} is not installed: pip install {module.partition('.')[0]}.") from error
