"""What trackers are told of a run: with stand-ins for their libraries, and TensorBoard itself where it is installed."""

import importlib.util
import sys
from types import ModuleType

import pandas as pd
import pytest
from matplotlib.figure import Figure

from reptrans.errors import NotAvailable, UnknownName
from reptrans.runs import Run

ROWS = pd.DataFrame({"layer": ["bn1", "bn2"], "accuracy": [0.5, float("nan")], "seed": [0, 1]})
NUMBERS = [{"rows/accuracy": 0.5, "rows/seed": 0.0}, {"rows/seed": 1.0}]


def figure() -> Figure:
    drawn = Figure(figsize=(2, 1), dpi=50)
    drawn.subplots().plot([1, 2, 3])
    return drawn


def run_through(folder, **given) -> Run:
    with Run("try", {"lr": 0.1}, folder, **given) as run:
        run.rows(ROWS)
        run.figure(figure(), "curve")
        run.finish("A try", "It worked.")
    return run


class Standin(ModuleType):
    """A library that notes what it is asked to do."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def noted(*given, **named):
            self.calls.append((name, given, named))
            return (name, given, named)

        return noted


@pytest.fixture
def standin(request, monkeypatch):
    found = Standin(request.param)
    monkeypatch.setitem(sys.modules, request.param, found)
    return found


@pytest.mark.parametrize("standin", ["wandb", "trackio"], indirect=True)
def test_wandb_and_trackio_get_tables_numbers_and_figures(standin, tmp_path):
    run_through(tmp_path / "run", export=standin.__name__)
    names = [name for name, _, _ in standin.calls]
    assert names == ["init", "Table", "log", "log", "log", "Image", "log", "finish"]
    assert standin.calls[0][2] == {"project": "reptrans", "name": "run", "config": {"lr": 0.1}}
    assert standin.calls[1][2]["dataframe"].equals(ROWS)
    assert [given[0] for _, given, _ in standin.calls[3:5]] == NUMBERS
    image = standin.calls[5][1][0]
    assert image.shape == (50, 100, 3) and 0 < (image < 255).mean() < 1


@pytest.mark.parametrize("standin", ["mlflow"], indirect=True)
def test_mlflow_gets_them_in_one_run(standin, tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_EXPORT", "mlflow")
    run_through(tmp_path / "run")
    assert [name for name, _, _ in standin.calls] == [
        "set_experiment", "start_run", "log_params", "log_table", "log_metrics", "log_metrics", "log_figure", "end_run",
    ]  # fmt: skip
    assert standin.calls[2][1] == ({"lr": 0.1},)
    assert [(given[0], named["step"]) for _, given, named in standin.calls[4:6]] == list(
        zip(NUMBERS, (0, 1), strict=True)
    )
    assert standin.calls[6][1][1] == "curve.png"


class Board(Standin):
    SummaryWriter = property(lambda self: lambda folder: self.calls.append(("open", (folder,), {})) or self)


def test_tensorboard_gets_scalars_by_row(tmp_path, monkeypatch):
    board = Board("torch.utils.tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard", Standin("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    run_through(tmp_path / "run", export="tensorboard")
    names = [name for name, _, _ in board.calls]
    assert names == ["open", "add_text", "add_text", *["add_scalar"] * 3, "add_figure", "close"]
    assert board.calls[0][1] == (str(tmp_path / "run" / "tensorboard"),)
    scalars = [given for name, given, _ in board.calls if name == "add_scalar"]
    assert scalars == [("rows/accuracy", 0.5, 0), ("rows/seed", 0.0, 0), ("rows/seed", 1.0, 1)]
    assert board.calls[-2][2] == {"close": False}


if importlib.util.find_spec("tensorboard"):

    def test_tensorboard_reads_what_was_written(tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        run = run_through(tmp_path / "run", export="tensorboard")
        read = EventAccumulator(str(run.folder / "tensorboard"))
        read.Reload()
        assert [(event.step, event.value) for event in read.Scalars("rows/seed")] == [(0, 0.0), (1, 1.0)]
        assert read.Tags()["images"] == ["curve"]


def test_a_callback_of_ones_own_hears_of_everything(tmp_path):
    heard = []
    run_through(tmp_path / "run", export=lambda *told: heard.append(told))
    assert [told[:2] for told in heard] == [("rows", "rows"), ("figure", "curve"), ("finish", "try")]
    assert heard[0][2].equals(ROWS) and heard[2][2] == "It worked."


def test_a_run_that_fails_ends_in_the_tracker_too(tmp_path):
    heard = []
    with pytest.raises(KeyError), Run("try", {}, tmp_path / "run", export=lambda *told: heard.append(told)):
        raise KeyError("layer")
    assert heard == [("finish", "try", "KeyError: 'layer'")]


def test_an_unknown_tracker_and_one_that_is_not_installed(tmp_path, monkeypatch):
    with pytest.raises(UnknownName, match="there is no tracker 'wandbb'. Did you mean 'wandb'"):
        Run("try", {}, tmp_path / "a", export="wandbb")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(NotAvailable, match="mlflow is not installed: pip install mlflow."):
        Run("try", {}, tmp_path / "b", export="mlflow")


def test_no_tracker_is_imported_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr("reptrans.export.import_module", lambda name: pytest.fail(f"{name} was imported"))
    run_through(tmp_path / "run")
