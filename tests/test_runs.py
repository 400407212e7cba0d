"""A run's folder holds what was given, whole, and says what happened to it."""

import errno
import json
import os
import re
import socket
import subprocess
from io import BytesIO
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import rc_context
from matplotlib.figure import Figure
from pydantic import BaseModel
from safetensors.torch import load_file
from traitlets.config import Config

from reptrans import report
from reptrans.errors import BadData, BadValue, CannotWrite
from reptrans.files import atomic
from reptrans.notebook import Parameters
from reptrans.runs import Run, all_runs, environment, git_state, read_record

ROWS = pd.DataFrame({"layer": ["bn1", "bn2"], "seed": [0, 1], "accuracy": [0.1 + 0.2, float("nan")]})


def figure():
    drawn = Figure()
    drawn.subplots().plot([1, 2, 3])
    return drawn


def image(figure):
    return plt.imread(BytesIO(report._png(figure, 50)))


def pages(path):
    return len(re.findall(rb"/Type /Page\b", path.read_bytes()))


def record(run):
    return json.loads((run.folder / "run.json").read_text())


def test_everything_can_be_read_again(tmp_path):
    with Run("try", {"seed": 3, "lr": 0.1}, tmp_path / "run") as run:
        assert record(run)["status"] == "running"
        run.rows(ROWS)
        run.arrays({"weight": torch.arange(6.0).reshape(2, 3).T, "mean": np.ones(2), "shared": torch.ones(3)[1:]})
        run.figure(figure(), "curve")
        run.finish("A try", "It worked.")
    pd.testing.assert_frame_equal(pd.read_parquet(run.folder / "rows.parquet"), ROWS)
    assert (run.folder / "rows.csv").read_text() == f"layer,seed,accuracy\nbn1,0,{0.1 + 0.2!r}\nbn2,1,\n"
    assert json.loads((run.folder / "rows.json").read_text()) == [
        {"layer": "bn1", "seed": 0, "accuracy": 0.1 + 0.2}, {"layer": "bn2", "seed": 1, "accuracy": None}]  # fmt: skip
    arrays = load_file(run.folder / "arrays.safetensors")
    assert arrays["weight"].tolist() == [[0, 3], [1, 4], [2, 5]] and arrays["mean"].dtype == torch.float64
    assert (run.folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert pages(run.folder / "curve.pdf") == 1
    assert pages(run.folder / "report.pdf") == 3
    found = record(run)
    assert (found["status"], found["title"], found["seeds"]) == ("finished", "A try", {"seed": 3})
    assert found["started"] <= found["finished"]
    assert found["environment"] == environment()
    assert found["files"] == ["rows.parquet", "rows.csv", "rows.json", "arrays.safetensors", "curve.png", "curve.pdf",
                              "report.pdf", "report.html"]  # fmt: skip
    assert sorted(path.name for path in run.folder.iterdir()) == sorted([*found["files"], "run.json"])


def test_a_group_can_read_all_files_or_none(tmp_path):
    with Run("try", {}, tmp_path / "run") as run:
        run.rows(ROWS)
        run.arrays({"a": torch.ones(2)})
        run.figure(figure(), "curve")
    assert len({path.stat().st_mode for path in run.folder.iterdir()}) == 1


class Chosen(Parameters):
    seed: int = 0
    layer: str = "bn1"


def test_the_report_begins_with_what_was_found_and_what_was_chosen(tmp_path, monkeypatch):
    told = {}
    for name in ("report", "page"):
        monkeypatch.setattr(f"reptrans.runs.write_{name}", lambda path, *given: told.update(given=given))
    with Run("try", Chosen(layer="bn2"), tmp_path / "run") as run:
        run.finish("A try", "It worked.")
    title, reading, facts = told["given"][:3]
    assert (title, reading) == ("A try", "It worked.")
    assert list(facts) == ["parameters that differ from the defaults", "parameters", "environment", "git"]
    assert facts["parameters that differ from the defaults"] == {"layer": "bn2"}
    with Run("try", Chosen(), tmp_path / "other"):
        pass
    assert list(told["given"][2]) == ["parameters", "environment", "git"]


def test_figures_stand_on_the_first_pages_of_one_size(tmp_path):
    tall = Figure(figsize=(4, 8))
    tall.subplots().plot([1, 2])
    figures = {"curve": figure(), "tall": tall}
    pages = list(report._first_pages("A try", ["It worked."], {n: image(f) for n, f in figures.items()}))
    assert [[axes.get_window_extent().width > 0 for axes in page.axes] for page in pages] == [[True], [True]]
    assert "curve" in {text.get_text() for text in pages[0].texts} and "tall" in {t.get_text() for t in pages[1].texts}
    long = list(report._first_pages("A try", ["line"] * 150, {"curve": image(figure())}))
    assert [len(page.axes) for page in long] == [0, 0, 1]


def test_a_report_is_laid_out_whatever_the_figures_are(tmp_path):
    """A warning of the layout would be an error here, and junk in a notebook's outputs."""
    with rc_context({"figure.constrained_layout.use": True}), Run("try", {}, tmp_path) as run:
        run.figure(figure(), "curve")
        run.rows(pd.DataFrame({"a": [1.0]}))
    assert pages(tmp_path / "report.pdf") > 1


def test_the_same_parameters_come_back_to_the_same_folder(tmp_path, monkeypatch):
    class P(BaseModel):
        seed: int = 0
        layer: str = "bn1"

    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    first = Run("try", P())
    first.checkpoint("fit.safetensors").write_bytes(b"half way")
    again = Run("try", {"layer": "bn1", "seed": 0})
    other = Run("try", P(seed=1), folder=first.folder)
    assert first.folder == again.folder == tmp_path / "runs" / f"try-{first.key}"
    assert again.checkpoint("fit.safetensors").read_bytes() == b"half way"
    assert not other.checkpoint("fit.safetensors").exists()
    assert other.checkpoint("fit.safetensors").is_relative_to(first.folder)
    assert re.fullmatch("[0-9a-f]{8}", first.key)


def test_equal_runs_write_equal_bytes(tmp_path):
    for name in ("one", "two"):
        with Run("try", {"seed": 0}, tmp_path / name) as run:
            run.rows(ROWS)
            run.figure(figure(), "curve")
            run.arrays({"b": torch.ones(2), "a": torch.zeros(2)})
    names = [path.name for path in (tmp_path / "one").iterdir() if path.name != "run.json"]
    assert {"rows.csv", "curve.png", "curve.pdf", "report.pdf", "report.html", "rows.parquet"} < set(names)
    assert [n for n in names if (tmp_path / "one" / n).read_bytes() != (tmp_path / "two" / n).read_bytes()] == []


def test_a_failed_run_says_so_and_keeps_what_is_there(tmp_path):
    with pytest.raises(ZeroDivisionError), Run("try", {}, tmp_path) as run:
        run.rows(ROWS)
        _ = 1 / 0
    assert (record(run)["status"], record(run)["error"]) == ("failed", "ZeroDivisionError: division by zero")
    assert record(run)["finished"] is not None
    assert (tmp_path / "rows.csv").exists()


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk(tmp_path, monkeypatch):
    run = Run("try", {}, tmp_path)
    run.rows(ROWS)
    before = (tmp_path / "rows.csv").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite) as caught:
        run.arrays({"a": torch.ones(2)})
    assert re.fullmatch(
        re.escape(f"could not write arrays.safetensors in {tmp_path}: No space left on device (")
        + r"[0-9.]+ GB free\)\. "
        + re.escape(
            "Already safe there: rows.parquet, rows.csv, rows.json. Free some space, or write elsewhere: "
            "Run('try', ..., folder=...) for this run, the environment variable REPTRANS_DATA for all."
        ),
        str(caught.value),
    )
    with pytest.raises(CannotWrite):
        run.rows(ROWS.assign(accuracy=0.0))
    assert (tmp_path / "rows.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "rows.json", "rows.parquet", "run.json"]
    with pytest.raises(ZeroDivisionError) as both, run:
        _ = 1 / 0
    assert "could not write run.json" in both.value.__notes__[0]


def test_a_folder_that_cannot_be_made_is_noticed_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite) as caught:
        Run("try", {}, tmp_path / "file" / "run")
    assert re.sub(r" \([0-9.]+ GB free\)", "", str(caught.value)) == (
        f"could not make the folder {tmp_path}/file/run: Not a directory. Nothing was lost. Free some space, or write "
        "elsewhere: Run('try', ..., folder=...) for this run, the environment variable REPTRANS_DATA for all."
    )


def test_atomic_leaves_the_old_file_on_any_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic(path) as temporary:
        temporary.write_text("new")
        raise KeyError
    assert path.read_text() == "old"
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_bad_rows_and_names(tmp_path):
    run = Run("try", {}, tmp_path)
    with pytest.raises(BadValue, match="^rows 'rows' need unique column names and one type per column: "):
        run.rows(pd.DataFrame({"a": [1, "x"]}))
    with pytest.raises(BadValue) as caught:
        run.rows(ROWS, "../rows")
    assert str(caught.value) == (
        "'../rows' cannot name a file. Possible: letters, digits and _ . , = + - without a leading dot"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_page_holds_all_that_it_shows(tmp_path):
    with Run("try", {"dataset": "<digits>"}, tmp_path) as run:
        run.rows(ROWS)
        run.figure(figure(), "a_curve")
        run.finish("A & B", "First line.\nSecond < third.")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<h1>A &amp; B</h1>" in page and "<p>First line.</p>\n<p>Second &lt; third.</p>" in page
    assert '<img alt="a curve" src="data:image/png;base64,' in page and page.count("<img") == 1
    assert "<td>bn1</td>" in page and "<td>&lt;digits&gt;</td>" in page and "rows: 2 rows" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_report_pages_long_and_wide_tables(tmp_path):
    long = pd.DataFrame({"a": np.arange(150.0)})
    wide = pd.DataFrame({f"column_number_{i}": [0.5] for i in range(20)})
    with Run("try", {"$a$_b": "c" * 300}, tmp_path) as run:
        run.rows(long, "long")
        run.rows(wide, "wide")
    # The title; 150 rows at 64 on a page; 20 columns of 18 characters, 5 of which fit beside the row's number.
    assert pages(tmp_path / "report.pdf") == 1 + 3 + 4
    lines = [line for page in report._table_pages("wide", wide.assign(path="a" * 50)) for line in page]
    assert "a" * 36 + "..." in " ".join(lines).split()
    assert max(map(len, lines)) <= 100
    assert [f"column_number_{i}" in " ".join(lines).split() for i in range(20)] == [True] * 20


def test_json_holds_what_json_does_not_know(tmp_path):
    given = {"lr": float("inf"), "path": Path("a/b"), "layers": ("bn1",), "n": np.int64(3), "none": None}
    run = Run("try", given, tmp_path)
    strict = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert strict["parameters"] == {"lr": "Infinity", "path": "a/b", "layers": ["bn1"], "n": 3, "none": None}
    run.rows(pd.DataFrame({"a": [np.inf, 1.5]}))
    assert json.loads((tmp_path / "rows.json").read_text(), parse_constant=pytest.fail) == [{"a": None}, {"a": 1.5}]


def git(folder, *command):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    answer = subprocess.run(["git", "-C", folder, *identity, *command], check=True, capture_output=True, text=True)
    return answer.stdout.strip()


def test_git_state(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    assert git_state(tmp_path / "missing") is None
    git(tmp_path, "init", "-b", "main")
    assert git_state(tmp_path) == {"commit": None, "branch": "main", "dirty": False}
    (tmp_path / "a").write_text("a")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "branch": "main", "dirty": False}
    git(tmp_path, "checkout", "--detach")
    (tmp_path / "a").write_text("b")
    assert git_state(tmp_path) == {"commit": commit, "branch": None, "dirty": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None


def test_environment():
    found = environment()
    assert list(found) == ["python", "torch", "torchvision", "numpy", "reptrans", "system", "cpu", "gpu"]
    assert (found["torch"], found["numpy"]) == (torch.__version__, np.__version__)


def test_checkpoints_last_until_the_run_is_finished(tmp_path, monkeypatch):
    first = Run("try", {"a": 1}, folder=tmp_path)
    path = first.checkpoint("net.safetensors")
    path.write_bytes(b"x")
    again = Run("try", {"a": 1}, folder=tmp_path)
    assert again.checkpoint("net.safetensors") == path and path.is_file()
    monkeypatch.setattr("reptrans.runs.own_code", lambda: "changed1")
    assert not again.checkpoint("net.safetensors").exists()
    monkeypatch.undo()
    again.finish("Done")
    assert not path.parent.exists()


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A fresh IPython that counts as the running one for the length of a test, with runs below `tmp_path`."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    InteractiveShell.clear_instance()
    started = InteractiveShell.instance(config=Config({"HistoryManager": {"hist_file": ":memory:"}}))
    started.user_ns |= {"Run": Run, "ROWS": ROWS}
    yield started
    started.restore_sys_module_state()
    InteractiveShell.clear_instance()


def cells(shell, *texts):
    for text in texts:
        shell.run_cell(text, store_history=True)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: "),
        ("is no python", "SyntaxError: invalid syntax"),
        ("raise ValueError('one\\ntwo')", "ValueError: one"),
    ],
)
def test_a_cell_that_ends_with_an_error_leaves_the_run_failed_with_its_rows(shell, text, error):
    cells(shell, "run = Run('try', {})", "2", "run.rows(ROWS)", text)
    run = shell.user_ns["run"]
    assert record(run)["status"] == "failed" and record(run)["error"].startswith(error)
    pd.testing.assert_frame_equal(pd.read_parquet(run.folder / "rows.parquet"), ROWS)
    assert record(run)["files"] == ["rows.parquet", "rows.csv", "rows.json"]


def test_a_run_that_goes_on_after_an_error_can_finish_and_then_is_let_alone(shell):
    cells(shell, "run = Run('try', {})", "1 / 0", "run.finish('Try')", "1 / 0")
    assert (record(shell.user_ns["run"])["status"], record(shell.user_ns["run"])["error"]) == ("finished", None)


def test_only_the_latest_run_of_a_name_is_watched(shell):
    cells(shell, "first = Run('try', {'a': 1})", "run = Run('try', {'a': 2})", "other = Run('else', {})", "1 / 0")
    found = {name: record(shell.user_ns[name])["status"] for name in ("first", "run", "other")}
    assert found == {"first": "running", "run": "failed", "other": "failed"}


def test_outside_notebooks_nothing_is_watched(tmp_path):
    InteractiveShell.clear_instance()
    assert record(Run("try", {}, tmp_path))["status"] == "running"


def test_a_run_whose_process_is_gone_is_seen_as_broken_off(tmp_path):
    run = Run("try", {}, tmp_path)
    assert read_record(tmp_path)["status"] == "running"
    with subprocess.Popen(["true"]) as gone:
        pass
    written = record(run)
    for process, status in (
        ({"pid": gone.pid, "host": socket.gethostname()}, "broken off"),
        ({"pid": gone.pid, "host": "another"}, "running"),
        ({"pid": 1, "host": socket.gethostname()}, "running"),
        ({"pid": None, "host": socket.gethostname()}, "broken off"),
        (None, "running"),
    ):
        (tmp_path / "run.json").write_text(json.dumps(written | {"process": process}))
        assert read_record(tmp_path)["status"] == status


@pytest.mark.parametrize(
    "text", ["", '{"status": "fin', "{}", "[]", "null", "\x00" * 40, '{"status": "running", "process": 3}']
)
def test_a_record_that_is_not_whole_is_named(tmp_path, monkeypatch, text):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    Run("good", {})
    broken = tmp_path / "runs" / "broken"
    broken.mkdir()
    (broken / "run.json").write_text(text)
    with pytest.raises(BadData, match=r"broken/run.json is no whole record of a run \(.*Remove .*, and run it again\."):
        read_record(broken)
    table = all_runs().set_index("run")["status"]
    assert table["broken"] == "damaged" and table.drop("broken").tolist() == ["running"]


def test_the_report_says_once_what_all_rows_share_and_drops_nothing():
    table = pd.DataFrame({"data": ["digits"] * 2, "seed": [0, 1], "accuracy": [0.5, np.nan], "nothing": [np.nan] * 2})
    text = "\n".join(line for page in report._table_pages("rows", table) for line in page)
    assert re.search(r"^data +digits$", text, re.MULTILINE) and text.count("digits") == 1
    assert re.search(r"^ *1 +0 +0\.5000", text, re.MULTILINE) and "nothing" in text
