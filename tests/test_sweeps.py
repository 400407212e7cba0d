"""Sweeps: which runs there are, what becomes of each, and what is gathered.

Most runs here are papermill's in name only, since a kernel takes seconds to start.
"""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock

from reptrans import runs
from reptrans.__main__ import main
from reptrans.errors import BadData, BadValue, CannotWrite, NotAvailable, UnknownName
from reptrans.sweeps import attached, attempt, points, sweep
from reptrans.sweeps.sweep import draw

PARAMETERS = """
layer: str = "bn1"  # where
seed: int = 0  # of everything
lr: float = 0.1  # learning rate
fast: bool = False  # or slow
options = None  # anything
"""

# The first run fails; the second kills papermill once, and is done at the next try.
BODY = """
import os, pathlib, signal
rate = 1 / seed
once = pathlib.Path(os.environ["REPTRANS_DATA"], "once")
if not once.exists():
    once.touch()
    os.kill(os.getppid(), signal.SIGKILL)
import pandas as pd
from reptrans.runs import Run
with Run("tiny", {"layer": layer, "seed": seed}) as run:
    run.rows(pd.DataFrame({"layer": [layer], "accuracy": [rate], "threads": [os.environ["OMP_NUM_THREADS"]]}))
"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return write_notebook(tmp_path / "tiny.ipynb", BODY)


def write_notebook(path, body):
    cells = [nbformat.v4.new_code_cell(PARAMETERS.strip(), metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(body.strip())]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def papermill(monkeypatch):
    """In place of papermill: `plan` maps a layer to what a run of it does, `done` lists the runs and `gpus` theirs."""

    class Papermill:
        def __init__(self):
            self.plan, self.done, self.gpus = {}, [], []

        def __call__(self, job, executed, gpu):
            self.done.append(job.label)
            self.gpus.append(gpu)
            if act := self.plan.get(job.parameters.get("layer")):
                return act(job)
            leave_rows(job)
            return 0, ""

    papermill = Papermill()
    monkeypatch.setattr(attempt, "_papermill", papermill)
    # A picture and a report take most of a second, and are tested below and elsewhere.
    monkeypatch.setattr(runs, "write_report", lambda path, *_: path.write_bytes(b""))
    monkeypatch.setattr(runs.Run, "figure", lambda *_: None)
    return papermill


def leave_rows(job, status="finished"):
    folder = job.folder / "tiny-1"
    folder.mkdir(exist_ok=True)
    p = job.parameters
    rows = pd.DataFrame({"matching": ["a", "b"], "seed": p.get("seed", 0), "accuracy": [0.5, len(p.get("layer", ""))]})
    rows.to_parquet(folder / "rows.parquet")
    (folder / "run.json").write_text(json.dumps({"status": status}))


# Which runs there are


def test_a_grid_is_all_combinations_the_last_name_fastest(notebook):
    assert points(notebook, {"layer": "bn1,bn3", "seed": "1, 2"}) == [
        {"layer": "bn1", "seed": 1}, {"layer": "bn1", "seed": 2},
        {"layer": "bn3", "seed": 1}, {"layer": "bn3", "seed": 2}]  # fmt: skip
    assert points(notebook, {"layer": ["bn1,bn3"], "seed": range(2)}) == [
        {"layer": "bn1,bn3", "seed": 0}, {"layer": "bn1,bn3", "seed": 1}]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("layer", '"bn1,bn3",bn5', ["bn1,bn3", "bn5"]),
        ("layer", "007,1e3,", ["007", "1e3", ""]),
        ("layer", '""', [""]),
        ("layer", "bn1,bn1", ["bn1"]),
        ("seed", "1,-2,1_000", [1, -2, 1000]),
        ("lr", "1e-05,2", [1e-05, 2.0]),
        ("fast", "True,false", [True, False]),
        ("options", '"[1, 2]",None,x', [[1, 2], None, "x"]),
    ],
)
def test_texts_become_what_the_parameter_is(notebook, name, text, values):
    found = [point[name] for point in points(notebook, {name: text})]
    assert found == values and list(map(type, found)) == list(map(type, values))


def test_a_table_is_a_run_for_each_line(notebook, tmp_path):
    table = tmp_path / "runs.csv"
    table.write_text('layer,seed\nbn1,1\n"bn1,bn3",\n')
    assert points(notebook, table=table) == [{"layer": "bn1", "seed": 1}, {"layer": "bn1,bn3"}]
    assert points(notebook, {"lr": "1,2"}, table) == [
        {"layer": "bn1", "seed": 1, "lr": 1.0}, {"layer": "bn1", "seed": 1, "lr": 2.0},
        {"layer": "bn1,bn3", "lr": 1.0}, {"layer": "bn1,bn3", "lr": 2.0}]  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "lines", "kind", "message"),
    [
        ({"layr": "bn1"}, None, UnknownName,
         "the notebook has no parameter 'layr'. Did you mean 'layer' or 'lr'? "
         "Possible: layer, seed, lr, fast, options"),
        (None, "layer,seeds\nbn1,1\n", UnknownName,
         "the notebook has no parameter 'seeds'. Did you mean 'seed'? Possible: layer, seed, lr, fast, options"),
        ({"seed": "1,two"}, None, BadValue, "seed = 'two': a whole number is needed"),
        ({"seed": "1,"}, None, BadValue, "seed = '': a whole number is needed"),
        ({"lr": "low"}, None, BadValue, "lr = 'low': a number is needed"),
        ({"fast": "1"}, None, BadValue, "fast = '1': True or False is needed"),
        ({"layer": ""}, None, BadValue, "layer: no value is given. An empty text is written as '\"\"'."),
        ({"seed": []}, None, BadValue, "seed: no value is given. An empty text is written as '\"\"'."),
        ({}, None, BadValue,
         "nothing to sweep over. Name parameters and their values: layer, seed, lr, fast, options"),
        ({"seed": "1"}, "seed\n2\n", BadValue, "seed: given both in {table} and by name. Leave one of them out."),
        (None, "layer,seed\n", BadData, "{table} has no lines below its first, which names the parameters."),
        (None, "layer,seed\nbn1,1\nbn2\n", BadData, "{table}, line 3: 2 cells are needed, one for each name."),
        (None, "layer,seed\nbn1,1,2\n", BadData, "{table}, line 2: 2 cells are needed, one for each name."),
    ],
)  # fmt: skip
def test_what_cannot_be_swept_is_refused_before_any_run(
    notebook, papermill, tmp_path, grid, lines, kind, message
):  # fmt: skip
    table = tmp_path / "runs.csv" if lines else None
    if lines:
        table.write_text(lines)
    with pytest.raises(kind) as caught:
        sweep(notebook, grid, table)
    assert str(caught.value) == message.format(table=table)
    assert papermill.done == [] and not (tmp_path / "data" / "sweeps").exists()


def test_files_that_cannot_be_read_are_named(notebook, tmp_path):
    with pytest.raises(BadData, match="none.csv cannot be read as CSV: .*No such file"):
        points(notebook, table=tmp_path / "none.csv")
    with pytest.raises(BadData, match="none.ipynb cannot be read as a notebook: .*No such file"):
        points(tmp_path / "none.ipynb", {"seed": "1"})
    (tmp_path / "text.ipynb").write_text("text")
    with pytest.raises(BadData, match="text.ipynb cannot be read as a notebook: "):
        points(tmp_path / "text.ipynb", {"seed": "1"})
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "empty.ipynb")
    with pytest.raises(BadData, match="empty.ipynb has no parameters: "):
        points(tmp_path / "empty.ipynb", {"seed": "1"})


# With papermill


def test_failed_and_killed_runs_do_not_stop_the_others(notebook, capsys):
    grid = {"layer": "bn1", "seed": "0,2"}
    swept = sweep(notebook, grid, workers=2)
    assert swept.runs["status"].tolist() == ["failed", "finished"]
    assert swept.runs["error"].tolist()[0] == "ZeroDivisionError: division by zero"
    assert swept.rows.drop(columns="run").to_dict("records") == [
        {"seed": 2, "layer": "bn1", "accuracy": 0.5, "threads": "1"}]  # fmt: skip
    said = capsys.readouterr().err
    assert "seed=2: killed by signal 9; it will be done again" in said
    assert "1 runs finished, 1 failed. Table, figure and runs: data/sweeps/tiny-" in said

    failed = swept.folder / "runs" / swept.runs["run"][0]
    cells = nbformat.read(failed / "notebook.ipynb", as_version=4).cells
    assert [output.ename for cell in cells for output in cell.get("outputs", [])][-1] == "ZeroDivisionError"
    assert "division by zero" in (failed / "log.txt").read_text()
    pd.testing.assert_frame_equal(pd.read_parquet(swept.folder / "rows.parquet"), swept.rows)
    assert {"runs.csv", "sweep.png", "report.pdf"} < {path.name for path in swept.folder.iterdir()}

    before = {path: path.read_bytes() for path in (swept.folder / "runs").rglob("*") if path.is_file()}
    pd.testing.assert_frame_equal(sweep(notebook, grid, workers=2).rows, swept.rows)
    assert {path: path.read_bytes() for path in (swept.folder / "runs").rglob("*") if path.is_file()} == before
    assert "2 runs, 2 of them done before" in capsys.readouterr().err


def test_papermill_ends_with_its_starter():
    """Whatever ends the starter closes its end of the pipe."""
    command = [sys.executable, "-P", attached.__file__, "--version"]
    reading, writing = os.pipe()
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE) as process:
        os.close(reading)
        process.communicate()
    os.close(writing)
    assert process.returncode == 0
    assert subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == -9


def test_parameters_reach_the_notebook_as_they_are(monkeypatch, tmp_path):
    given = {"layer": "007", "seed": 3, "lr": 1e-05, "fast": True, "options": [1, "a: b"], "text": "1e3, {x}\n"}
    seen = []
    monkeypatch.setattr(attempt.subprocess, "Popen", lambda command, **_: seen.append(command) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attempt._papermill(attempt.Job(given, tmp_path, tmp_path, tmp_path), tmp_path / "out.ipynb", None)
    assert yaml.safe_load(seen[0][seen[0].index("-y") + 1]) == given


# Without


def test_rows_are_led_by_their_parameters_and_a_second_start_does_what_is_missing(notebook, papermill, tmp_path):
    swept = sweep(notebook, {"layer": "a,bb", "lr": [0.1, 0.2]}, workers=2)
    assert len(papermill.done) == 4
    assert list(swept.rows) == ["run", "layer", "lr", "matching", "seed", "accuracy"]
    assert swept.rows["lr"].tolist() == [0.1, 0.1, 0.2, 0.2] * 2
    assert swept.folder.parent == tmp_path / "data" / "sweeps"
    names = swept.runs["run"].tolist()
    assert [name[:-9] for name in names[:2]] == ["layer=a,lr=0.1", "layer=a,lr=0.2"]
    shutil.rmtree(swept.folder / "runs" / names[1])
    (swept.folder / "runs" / names[2] / "tiny-1" / "rows.parquet").unlink()
    (swept.folder / "runs" / names[3] / "outcome.json").unlink()
    papermill.done.clear()
    pd.testing.assert_frame_equal(sweep(notebook, {"layer": "a,bb", "lr": [0.1, 0.2]}).rows, swept.rows)
    assert sorted(papermill.done) == ["layer=a, lr=0.2", "layer=bb, lr=0.1", "layer=bb, lr=0.2"]


def test_failures_are_done_again_only_when_asked(notebook, papermill):
    papermill.plan["bad"] = lambda job: (1, "Traceback\nValueError: bad layer\n\n")
    for retry in (False, False, True):
        swept = sweep(notebook, {"layer": "bad,good"}, retry=retry)
        assert swept.runs["error"].dropna().tolist() == ["ValueError: bad layer"]
        assert swept.rows["layer"].unique().tolist() == ["good"]
    assert papermill.done.count("layer=bad") == 2 and papermill.done.count("layer=good") == 1
    del papermill.plan["bad"]
    assert sweep(notebook, {"layer": "bad,good"}, retry=True).runs["status"].tolist() == ["finished"] * 2


@pytest.mark.parametrize("status", [None, "running"])
def test_success_is_rows_of_a_finished_run(notebook, papermill, status):
    papermill.plan["odd"] = lambda job: (leave_rows(job, status) if status else None) or (0, "")
    swept = sweep(notebook, {"layer": "odd"})
    assert swept.runs["error"].tolist() == ["it left no rows: a notebook in a sweep ends with run.rows, run.finish"]
    assert swept.rows.empty and not (swept.folder / "sweep.png").exists()


def test_an_error_of_several_lines_is_told_in_one(notebook, papermill, monkeypatch, capsys):
    monkeypatch.setattr(attempt, "_error", lambda *_: "BadValue: not as the notebook needs:\n  lr = -1: too small")
    papermill.plan["bad"] = lambda job: (1, "")
    sweep(notebook, {"layer": "bad"})
    assert "s): BadValue: not as the notebook needs: lr = -1: too small\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "what"), [(-9, "killed by signal 9"), (138, "its kernel died (is there enough memory?)")]
)
def test_a_run_that_is_always_killed_fails_in_the_end(notebook, papermill, code, what):
    papermill.plan["deadly"] = lambda job: (code, "")
    swept = sweep(notebook, {"layer": "deadly,good"})
    assert swept.runs["error"].dropna().tolist() == [f"{what}, 3 times"]
    assert papermill.done.count("layer=deadly") == 3


def full(job):
    return 1, f"OSError: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: 'rows.parquet'\n"


def test_a_full_disk_stops_the_sweep_and_keeps_what_is_done(notebook, papermill):
    papermill.plan["full"] = full
    papermill.plan["never"] = lambda job: (-9, "")  # killed, if it began before the sweep was stopped
    with pytest.raises(CannotWrite) as caught:
        sweep(notebook, {"layer": "one,two,full,never"}, workers=1)
    assert str(caught.value) == (
        "layer=full: OSError: [Errno 28] No space left on device: 'rows.parquet' The sweep stopped; 2 of its 4 runs "
        "are done and kept, and will not be done again. Free some space, and start it again."
    )
    del papermill.plan["full"], papermill.plan["never"]
    assert sweep(notebook, {"layer": "one,two,full,never"}).runs["status"].tolist() == ["finished"] * 4
    assert [papermill.done.count(f"layer={name}") for name in ("one", "two", "full")] == [1, 1, 2]


def test_a_full_disk_under_the_outcome(notebook, papermill, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    papermill.plan["full"] = lambda job: monkeypatch.setattr(os, "fsync", refuse) or leave_rows(job) or (0, "")
    with pytest.raises(CannotWrite, match=r"could not write outcome.json .* 1 of its 2 runs are done and kept"):
        sweep(notebook, {"layer": "good,full"}, workers=1)


def test_a_folder_is_for_one_sweep(notebook, papermill, tmp_path):
    folder = tmp_path / "mine"
    sweep(notebook, {"layer": "a"}, folder=folder)
    for other, grid in ((notebook, {"layer": "b"}), (write_notebook(tmp_path / "tiny2.ipynb", "2"), {"layer": "a"})):
        with pytest.raises(BadValue) as caught:
            sweep(other, grid, folder=folder)
        assert str(caught.value) == (
            f"{folder} holds another sweep (tiny, 1 runs): its notebook or its parameters differ. Choose another "
            "folder, or none for one of its own."
        )
    with FileLock(folder / ".lock"), pytest.raises(BadValue) as caught:
        sweep(notebook, {"layer": "a"}, folder=folder)
    assert str(caught.value) == f"a sweep is at work in {folder}. Wait for it, or choose another folder."
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("")
    with pytest.raises(BadValue, match="/other holds other things than a sweep. Choose another folder"):
        sweep(notebook, {"layer": "a"}, folder=tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="could not make the folder .*/file/x: Not a directory .* free\\). Free"):
        sweep(notebook, {"layer": "a"}, folder=tmp_path / "file" / "x")
    assert papermill.done == ["layer=a"]


def test_only_one_attempt_at_a_run_is_at_work(notebook, papermill, tmp_path):
    """A second attempt waits for the first, and then finds its outcome."""
    swept = sweep(notebook, {"layer": "a"})
    job = attempt.Job({"layer": "a"}, swept.folder, tmp_path, tmp_path)
    assert attempt.attempt(job) == job.outcome() and papermill.done == ["layer=a"]
    with FileLock(job.folder / ".lock"), pytest.raises(TimeoutError):
        FileLock(job.folder / ".lock").acquire(timeout=0)


# Workers


def test_each_worker_has_a_gpu_for_itself(notebook, papermill, monkeypatch):
    monkeypatch.setattr(attempt.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    assert attempt.gpus() == ["4", "7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert attempt.gpus() == ["0", "1"]
    at_work = set()

    def alone(job):
        gpu = papermill.gpus[-1]
        assert gpu in ("0", "1") and (gpu not in at_work)
        at_work.add(gpu)
        leave_rows(job)
        at_work.remove(gpu)
        return 0, ""

    papermill.plan = dict.fromkeys("abcdef", alone)
    assert sweep(notebook, {"layer": list("abcdef")}, workers=1).runs["status"].tolist() == ["finished"] * 6
    assert set(papermill.gpus) == {"0"}
    monkeypatch.setattr(attempt.torch.cuda, "device_count", lambda: 1)
    sweep(notebook, {"layer": "g"})
    assert papermill.gpus[-1] is None


def test_workers_are_at_least_one(notebook, papermill):
    with pytest.raises(BadValue, match="^workers = 0: at least 1 is needed$"):
        sweep(notebook, {"layer": "a"}, workers=0)


def test_a_cluster_gives_the_same_table(notebook, papermill, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'reptrans[cluster]'")
    papermill.plan["bad"] = lambda job: (1, "ValueError: bad layer")
    grid = {"layer": "a,bb,bad", "lr": "0.1,0.2"}
    here = sweep(notebook, grid, folder=tmp_path / "here", workers=2)
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as dask:
        there = sweep(notebook, grid, folder=tmp_path / "there", cluster=dask.scheduler_address)
    pd.testing.assert_frame_equal(there.rows, here.rows)
    pd.testing.assert_frame_equal(there.runs.drop(columns="seconds"), here.runs.drop(columns="seconds"))


# The kernel's parent is papermill, and papermill's the worker.
KILLS_THE_WORKER = """
import os, pathlib, psutil, time
once = pathlib.Path(os.environ["REPTRANS_DATA"], "once")
if not once.exists():
    once.touch()
    psutil.Process().parent().parent().kill()
    time.sleep(600)
import pandas as pd
from reptrans.runs import Run
with Run("tiny", {"layer": layer}) as run:
    run.rows(pd.DataFrame({"accuracy": [1.0]}))
"""


def test_a_run_survives_its_cluster_worker(notebook):
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install 'reptrans[cluster]'")
    write_notebook(notebook, KILLS_THE_WORKER)
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=50,
    ) as dask:
        swept = sweep(notebook, {"layer": "a"}, cluster=dask.scheduler_address)
    assert swept.runs["status"].tolist() == ["finished"] and swept.rows["accuracy"].tolist() == [1.0]


def test_a_run_that_kills_every_worker_fails_in_the_end(tmp_path):
    """Dask gives up by itself; whatever else a future raises is no outcome."""
    scheduler = pytest.importorskip("distributed.scheduler", reason="needs Dask: pip install 'reptrans[cluster]'")
    job, future = attempt.Job({"layer": "a"}, tmp_path, tmp_path, tmp_path), Future()
    worker = SimpleNamespace(address="tcp://node:1")
    future.set_exception(scheduler.KilledWorker("attempt", worker, 3))
    outcome = attempt.result(future, job)
    assert outcome["status"] == "failed" and outcome["error"].startswith("every worker that took it died: ")
    assert job.outcome() == outcome
    future = Future()
    future.set_exception(NotAvailable("no folder"))
    with pytest.raises(NotAvailable, match="no folder"):
        attempt.result(future, job)


def test_a_cluster_that_does_not_answer(notebook, papermill, monkeypatch):
    pytest.importorskip("distributed", reason="needs Dask: pip install 'reptrans[cluster]'")
    monkeypatch.setattr(attempt, "_PATIENCE", 1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(NotAvailable, match=f"^no Dask scheduler answers at '{address}' within 1 seconds"):
            sweep(notebook, {"layer": "a"}, cluster=address)
    with pytest.raises(NotAvailable, match="^no Dask scheduler answers at 'nowhere://x'"):
        sweep(notebook, {"layer": "a"}, cluster="nowhere://x")
    assert papermill.done == []


def test_dask_is_asked_for_where_it_is_missing(notebook, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(NotAvailable, match=r"not installed: pip install 'reptrans\[cluster\]'$"):
        sweep(notebook, {"layer": "a"}, cluster="tcp://127.0.0.1:1")


def test_a_worker_must_see_the_folder(tmp_path):
    with pytest.raises(NotAvailable, match="does not see .*/elsewhere. All workers need the folder"):
        attempt.attempt(attempt.Job({}, tmp_path / "elsewhere", tmp_path, tmp_path))


# The figure and the command line

ROWS = pd.DataFrame({"run": ["r1", "r1", "r2", "r2"], "layer": ["a", "a", "b", "b"], "lr": 0.1,
                     "matching": ["x", "y"] * 2, "n": 5, "loss": [1.0, 2.0, 3.0, 4.0]})  # fmt: skip


def test_the_figure_shows_what_was_swept():
    ax = draw(ROWS, ["lr", "layer"])
    assert ax.get_xlabel() == "layer" and ax.get_ylabel().startswith("loss")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["x", "y"]
    seeds = draw(ROWS[["run", "layer", "loss"]].assign(seed=[0, 1, 0, 1]), ["seed", "layer"])
    assert seeds.get_xlabel() == "layer" and seeds.get_legend() is None
    assert draw(ROWS.assign(accuracy=0.5), ["layer"]).get_ylabel().startswith("accuracy")
    assert draw(ROWS, ["layer"], y="n", x="matching", hue="layer").get_ylabel().startswith("n")
    with pytest.raises(UnknownName):
        draw(ROWS, ["layer"], y="los")
    with pytest.raises(BadData, match="no number to draw"):
        draw(ROWS[["run", "layer"]], ["layer"])
    plt.close("all")


def many(matchings: int, layers: tuple[str, ...] = ("a",)) -> pd.DataFrame:
    """Two runs over lr, in each every matching at every layer; accuracies count up."""
    rows = [{"run": f"r{lr}", "lr": lr, "seed": 0, "cut": layer, "matching": f"m{k}"}
            for lr in (1, 2) for layer in layers for k in range(matchings)]  # fmt: skip
    return pd.DataFrame(rows).assign(accuracy=np.arange(len(rows)) % (matchings * len(layers)) / 100)


def drawn(ax) -> tuple[list[str], str]:
    found = [text.get_text() for text in ax.get_legend().get_texts()], ax.get_title()
    plt.close("all")
    return found


def test_more_lines_than_fit_are_said_and_never_averaged():
    lines, title = drawn(draw(many(9), ["lr"]))
    assert lines == [f"m{k}" for k in range(1, 9)]
    assert title == "of 9 lines the 8 with the largest accuracy"


def test_what_varies_inside_a_run_is_a_line_of_its_own():
    ax = draw(many(2, ("a", "b")), ["lr"])
    heights = sorted({round(float(y), 6) for container in ax.containers for y in container.lines[0].get_ydata()})
    assert heights == [0.0, 0.01, 0.02, 0.03], "each value of the rows, and no mean of two"
    assert drawn(ax)[0] == ["m0 / a", "m1 / a", "m0 / b", "m1 / b"]


def test_what_is_averaged_over_is_named():
    assert drawn(draw(many(2, ("a", "b")), ["lr"], hue="matching"))[1] == "mean over cut"
    both = pd.concat([many(2).assign(tau=tau, run=lambda t, tau=tau: t["run"] + tau) for tau in "pq"])
    assert drawn(draw(both, ["lr", "tau"]))[1] == "mean over tau"


def test_the_command_line(notebook, papermill, capsys, tmp_path):
    papermill.plan["bad"] = lambda job: (1, "ValueError: bad layer")
    command = ["sweep", str(notebook), "-p", "layer", "a,bb", "-w", "1", "--folder", str(tmp_path / "s")]
    assert main([*command, "-p", "seed", "1,2", "--y", "accuracy"]) == 0
    assert "[4/4] finished layer=bb, seed=2 (" in capsys.readouterr().err
    assert main(["sweep", str(notebook), "-p", "layer", "bad,good"]) == 1
    assert ": ValueError: bad layer" in capsys.readouterr().err
    assert main(["sweep", str(notebook), "-p", "layr", "a"]) == 2
    assert capsys.readouterr().err.startswith("UnknownName: the notebook has no parameter 'layr'.")
    assert main(["sweep", str(notebook), "-p", "layer", "a", "-p", "layer", "b"]) == 2
    assert main(["sweep", str(notebook), "--csv", str(tmp_path / "none.csv")]) == 2


# Damage


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def blank(path):
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize("damage", [cut, blank, lambda path: path.write_text(""), lambda path: path.write_text("[]")])
@pytest.mark.parametrize("name", ["outcome.json", "tiny-1/run.json", "tiny-1/rows.parquet"])
def test_a_run_with_a_damaged_file_is_done_again(notebook, papermill, capsys, name, damage):
    swept = sweep(notebook, {"layer": "a,bb"})
    damage(swept.folder / "runs" / swept.runs["run"][1] / name)
    papermill.done.clear()
    capsys.readouterr()
    pd.testing.assert_frame_equal(sweep(notebook, {"layer": "a,bb"}).rows, swept.rows)
    assert papermill.done == ["layer=bb"]
    told = "layer=bb: its record or its rows are gone or not whole; it will be done again\n"
    assert capsys.readouterr().err.count(told) == 1


def test_a_run_whose_rows_are_damaged_inside_is_done_again(notebook, papermill, capsys):
    swept = sweep(notebook, {"layer": "a"})
    path = swept.folder / "runs" / swept.runs["run"][0] / "tiny-1" / "rows.parquet"
    with runs.Run("tiny", {}, path.parent) as run:
        run.rows(pd.DataFrame({"accuracy": [0.125] * 400 + [0.25] * 400}))
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes([whole[40] ^ 255]) + whole[41:])
    pd.testing.assert_frame_equal(sweep(notebook, {"layer": "a"}).rows, swept.rows)
    assert papermill.done == ["layer=a"] * 2
    assert "layer=a: its record or its rows are gone or not whole; it will be done again" in capsys.readouterr().err


def test_a_damaged_record_of_the_sweep(notebook, papermill, tmp_path, capsys):
    usual, own = sweep(notebook, {"layer": "a"}), sweep(notebook, {"layer": "a"}, folder=tmp_path / "own")
    for swept in (usual, own):
        cut(swept.folder / "run.json")
    papermill.done.clear()
    pd.testing.assert_frame_equal(sweep(notebook, {"layer": "a"}).rows, usual.rows)
    assert papermill.done == [] and "run.json is not whole, and will be written anew" in capsys.readouterr().err
    with pytest.raises(BadData) as caught:
        sweep(notebook, {"layer": "a"}, folder=own.folder)
    assert str(caught.value) == (
        f"{own.folder} holds a sweep whose run.json is not whole, so that nobody knows which. Choose another folder, "
        "or none for one of its own."
    )


@pytest.mark.parametrize("grid", [{"seed": range(10**12)}, {"seed": range(1001), "lr": [k / 7 for k in range(1000)]}])
def test_more_runs_than_anybody_wants_are_refused_at_once(notebook, papermill, grid):
    with pytest.raises(
        BadValue, match=r"^these are 1,00[01],00[01] runs or more; a sweep has 1,000,000 at most. Give few"
    ):
        sweep(notebook, grid)
    assert papermill.done == []
