"""The command line and the public names."""

import subprocess
import sys

import pytest

import reptrans
from reptrans.__main__ import main
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
