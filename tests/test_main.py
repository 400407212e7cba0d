"""The command line and the public names."""

import inspect
import json
import subprocess
import sys

import jedi
import pytest

import reptrans
from reptrans import packaged
from reptrans.__main__ import main
from reptrans.paths import from_here
from reptrans.runs import Run


def test_layers_prints_the_cheat_sheet(capsys):
    assert main(["layers", "resnet20_w3"]) == 0
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert lines["layer2.0"].endswith("yes") and "(96, 16, 16)" in lines["layer2.0"]
    assert not lines["layer2.0.conv1"].endswith("yes")
    assert "2,436,346 parameters" in text


def test_wrong_names_are_said_on_stderr(capsys):
    assert main(["layers", "resnet20_w"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "UnknownName" in printed.err and "resnet20_w1" in printed.err


def test_names_of_networks_and_data_sets(capsys):
    assert main(["networks"]) == main(["datasets"]) == 0
    printed = capsys.readouterr().out.split()
    assert {"tiny10", "torchvision/NAME", "digits", "cifar10", "folder:PATH"} <= set(printed)


def test_every_public_name_can_be_had():
    for name in reptrans.__all__:
        assert getattr(getattr(reptrans, name), "__name__", name) == name
    assert set(reptrans.__all__) <= set(dir(reptrans))


def test_importing_the_package_loads_no_torch():
    code = "import reptrans, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_runs_that_are_kept_are_listed_with_how_they_ended(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    with pytest.raises(KeyError), Run("first", {}):
        raise KeyError("layer")
    Run("second", {})
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "status", "started", "error"]
    assert any("first-" in line and "failed" in line and "KeyError: 'layer'" in line for line in lines)
    assert any("second-" in line and "running" in line for line in lines)


def test_broken_runs_are_removed_and_no_others(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path))
    with pytest.raises(KeyError), Run("broken", {}) as broken:
        raise KeyError("layer")
    with Run("good", {}) as good:
        pass
    working = Run("working", {})
    assert main(["runs", "rm"]) == 0
    assert capsys.readouterr().out.split() == [broken.folder.name]
    assert not broken.folder.exists() and good.folder.exists() and working.folder.exists()
    assert main(["runs", "rm"]) == 0 and "no run is broken" in capsys.readouterr().out
    assert main(["runs", "rm", working.folder.name]) == 2 and "is at work" in capsys.readouterr().err
    assert main(["runs", "rm", "../" + tmp_path.name]) == 2 and "there is no run" in capsys.readouterr().err
    assert main(["runs", "rm", good.folder.name]) == 0 and not good.folder.exists()


def test_the_shell_completes_commands_and_names(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    lines = ("sw", "sweep"), ("run stitch", "stitching"), ("layers tiny", "tiny10"), ("completion f", "fish"), (
        "sweep stitching --re", "--retry")  # fmt: skip
    for line, wanted in lines:
        place = len(line.split())
        ask = f'COMP_WORDS=(reptrans {line}); COMP_CWORD={place}; _reptrans; echo "${{COMPREPLY[@]}}"'
        found = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        assert found.stdout.split() == [wanted], line
    assert main(["completion", "zsh"]) == 0 and script in capsys.readouterr().out
    assert main(["completion", "fish"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("complete -c reptrans -n ") for line in lines)
    assert any("__fish_seen_subcommand_from run'" in line and "stitching" in line for line in lines)


NOTEBOOK = {"cells": [
    {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# A small question"]},
    {"cell_type": "code", "id": "b", "metadata": {"tags": ["parameters"]}, "outputs": [], "execution_count": None,
     "source": ["layer: str = 'bn1'\n", "seeds: int = 1"]},
    {"cell_type": "code", "id": "c", "metadata": {}, "outputs": [], "execution_count": None,
     "source": ["print(layer * seeds)\n", "assert layer != 'bn9', 'no such layer'"]},
], "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "nbformat": 4, "nbformat_minor": 5}  # fmt: skip


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("REPTRANS_DATA", str(tmp_path / "data"))
    path = tmp_path / "small.ipynb"
    path.write_text(json.dumps(NOTEBOOK))
    return path


def test_a_notebook_is_run_and_its_place_is_said(small, capsys, tmp_path, monkeypatch):
    (tmp_path / "more.yaml").write_text("layer: bn2\nseeds: 3\n")
    assert main(["run", str(small), "-f", str(tmp_path / "more.yaml"), "-p", "seeds", "2"]) == 0
    place = tmp_path / "data/runs/small.ipynb"
    assert f"The executed notebook: {place}\n" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert from_here(place) == "data/runs/small.ipynb"
    done = json.loads((tmp_path / "data" / "runs" / "small.ipynb").read_text())
    assert any("bn2bn2" in "".join(o.get("text", "")) for c in done["cells"] for o in c.get("outputs", []))


def test_a_cell_that_fails_is_said_and_the_notebook_is_kept(small, capsys, tmp_path):
    assert main(["run", str(small), "-p", "layer", "bn9"]) == 1
    assert "AssertionError: no such layer" in capsys.readouterr().out
    assert (tmp_path / "data" / "runs" / "small.ipynb").is_file()


@pytest.mark.parametrize(("more", "said"), [
    (["stiching"], "there is no notebook 'stiching'. Did you mean 'stitching'"),
    (["stitching", "-p", "layr", "bn3"], "the notebook has no parameter 'layr'. Did you mean "),
    (["stitching", "-p", "seeds", "many"], "seeds = 'many': a whole number is needed"),
    (["stitching", "-p", "layer", "bn1", "-p", "layer", "bn2"], "each parameter once"),
    (["stitching", "-f", "stitching_cifar"], "there is no file 'stitching_cifar'. Did you mean "),
])  # fmt: skip
def test_what_is_wrong_is_said_before_a_kernel_starts(more, said, capsys, monkeypatch):
    monkeypatch.setattr("papermill.execute_notebook", lambda *_, **__: pytest.fail("a kernel was started"))
    assert main(["run", *more]) == 2
    assert said in capsys.readouterr().err


def test_a_working_copy_is_never_written_over(capsys, tmp_path):
    assert main(["copy", "stitching", str(tmp_path)]) == 0
    assert (tmp_path / "stitching.ipynb").read_bytes() == packaged.notebooks()["stitching"].read_bytes()
    assert main(["copy", "stitching", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_can_be_named_is_listed(capsys):
    assert main(["notebooks"]) == main(["methods"]) == main(["measures"]) == 0
    out = capsys.readouterr().out
    assert "Can the end of one network read the front of another?" in out
    assert "fitnets" in out and "debiased_cka" in out and "high is similar, from -1 to 1" in out
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"reptrans {reptrans.__version__}\n"


@pytest.mark.parametrize("name", reptrans.__all__)
def test_editors_see_every_public_name(name):
    found = jedi.Script(f"import reptrans\nreptrans.{name}").infer(2, len(f"reptrans.{name}"))
    assert found and found[0].name not in ("module", "__getattr__"), name
    own = getattr(reptrans, name)
    if inspect.isfunction(own) and not hasattr(own, "__wrapped__"):  # what a decorator made is more than it shows
        shown = jedi.Script(f"import reptrans\nreptrans.{name}(").get_signatures()[0]
        named = [p.name for p in inspect.signature(own).parameters.values() if p.kind != p.VAR_KEYWORD]
        assert [p.name for p in shown.params][: len(named)] == named
