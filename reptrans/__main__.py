"""The small command line: notebooks run, copied and swept, and what can be named in their parameters.

reptrans run stitching -p layer bn3    a notebook with these parameters; says where the results are
reptrans diff a.pt b.pt --data digits  what differs between two networks, on one page
reptrans notebooks                     the notebooks, and what each asks
reptrans copy stitching                a working copy of a notebook, in this folder
reptrans lab stitching                 the same, opened in JupyterLab
reptrans sweep stitching -p …          the notebook with many parameters, and one table of what came out
reptrans runs                          the runs that are kept, and how they ended; reptrans runs rm removes broken ones
reptrans layers resnet20_w3            the layers of a network, and where it can be cut
reptrans networks, datasets, methods, measures        what can be named
reptrans completion bash               a script by which the shell completes all these; or zsh, fish

`python -m reptrans` is the same.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from reptrans import completion, packaged, paths
from reptrans.data import dataset_names
from reptrans.errors import BadValue, NotAvailable, ReptransError
from reptrans.layers import layer_table
from reptrans.models import build, model_names
from reptrans.notebook import as_text


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0 if it went well, 1 for a sweep with failed runs, 2 with a message on stderr for an error."""
    given = _parser().parse_args(arguments)
    try:
        answer = given.run(given)
    except ReptransError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if isinstance(answer, int):
        return answer
    print(answer)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reptrans", description="Run notebooks, and see what can be named in them.")
    parser.add_argument("--version", action="version", version=f"reptrans {metadata.version('reptrans')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="a notebook with other parameters, executed")
    run.add_argument("notebook", help="its name, or the path of any notebook")
    run.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given")
    run.add_argument("-f", metavar="FILE", dest="file", help="parameters in YAML: a path, or the name of a larger run")
    run.set_defaults(run=_run)
    diff = commands.add_parser("diff", help="what differs between two networks, on one page")
    for letter in "ab":
        diff.add_argument(letter, help="NETWORK, NETWORK@FILE with its weights, or FILE of a network of this package")
    diff.add_argument("--data", default="", help="a name, or folder:PATH (default: digits)")
    diff.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="given")
    diff.set_defaults(run=_diff)
    commands.add_parser("notebooks", help="the notebooks that there are").set_defaults(run=_notebooks)
    for name, does in (("copy", "a working copy of a notebook"), ("lab", "a working copy, opened in JupyterLab")):
        copy = commands.add_parser(name, help=does)
        copy.add_argument("notebook", help="its name")
        copy.add_argument("to", nargs="?", default=".", help="a folder, or a path of its own (default: here)")
        copy.set_defaults(run=_copy if name == "copy" else _lab)
    layers = commands.add_parser("layers", help="the layers of a network, and where it can be cut")
    layers.add_argument("network", help="a name, torchvision/NAME or module:function")
    layers.add_argument("--image-size", type=int, help="side of the images (default: 32; torchvision's networks: 224)")
    layers.add_argument("--channels", type=int, default=3, help="channels of the images (default: 3)")
    layers.add_argument("--classes", type=int, default=10, help="classes told apart (default: 10)")
    layers.set_defaults(run=_layers)
    commands.add_parser("networks", help="the networks that can be named").set_defaults(
        run=lambda given: "\n".join([*model_names(), "torchvision/NAME", "module:function", "path/file.py:function"])
    )
    commands.add_parser("datasets", help="the data sets that can be named").set_defaults(
        run=lambda given: "\n".join([*dataset_names(), "folder:PATH"])
    )
    commands.add_parser("methods", help="the methods of feature distillation").set_defaults(run=_methods)
    commands.add_parser("measures", help="the measures of similarity").set_defaults(run=_measures)
    runs = commands.add_parser("runs", help="the runs that are kept, and how they ended; rm removes broken ones")
    runs.add_argument("action", nargs="?", choices=["rm"], help="remove the runs that are named, or all that broke")
    runs.add_argument("names", nargs="*", metavar="RUN", help="as the table names them")
    runs.set_defaults(run=_runs)
    shells = commands.add_parser("completion", help="a script for the shell, which then completes names")
    shells.add_argument("shell", choices=["bash", "zsh", "fish"])
    shells.set_defaults(run=lambda given: _completion(given.shell, commands.choices))
    _add_sweep(commands.add_parser("sweep", help="a notebook with many parameters, and one table of what came out"))
    return parser


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run a notebook once for each combination of the values given, several runs at a time."
    parser.epilog = "What is done is not done again: start the same sweep again to go on. The book's page: Sweeps."
    parser.add_argument("notebook", help="its name, or the path of any notebook")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUES"), dest="grid",
                        help='values joined by commas; one that holds a comma in double quotes')  # fmt: skip
    parser.add_argument("--csv", help="a table with a column for each parameter and a line for each run")
    parser.add_argument("--folder", help="where the sweep is kept (default: below data/sweeps)")
    parser.add_argument("-w", "--workers", type=int, help="runs at a time (default: one per GPU, or else per core)")
    parser.add_argument("--cluster", metavar="ADDRESS", help="of a Dask scheduler, whose workers do the runs")
    parser.add_argument("--retry", action="store_true", help="do failed runs again")
    for axis in ("x", "y", "hue"):
        parser.add_argument(f"--{axis}", metavar="COLUMN", help="of the rows, for the figure")
    parser.set_defaults(run=_sweep)


def _sweep(given: argparse.Namespace) -> int:
    """Do the sweep; 1 if runs of it failed."""
    # Only here: papermill and the drawing of figures take a second to import, which the other commands can do without.
    from reptrans.sweeps import sweep

    if len(grid := dict(given.grid)) < len(given.grid):
        raise BadValue("-p: each name once, its values joined by commas.")
    axes = {axis: column for axis in ("x", "y", "hue") if (column := getattr(given, axis))}
    try:
        swept = sweep(packaged.found(given.notebook), grid, given.csv, folder=given.folder, workers=given.workers,
                      cluster=given.cluster, retry=given.retry, axes=axes)  # fmt: skip
    except KeyboardInterrupt:
        print("Stopped. What is done is kept; start the same sweep again to go on.", file=sys.stderr)
        return 130
    return int((swept.runs["status"] == "failed").any())


def _run(given: argparse.Namespace) -> int:
    executed = packaged.run(given.notebook, given.given, given.file)
    place = executed or paths.runs_root() / packaged.found(given.notebook).name
    print(f"\nThe executed notebook: {paths.from_here(place)}")
    if executed is None:
        return 1
    newest = max((p for p in place.parent.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime, default=None)
    if newest:
        print(f"Its rows, arrays, figures and report: {paths.from_here(newest)}")
    return 0


def _diff(given: argparse.Namespace) -> int:
    from reptrans.runs import read_record

    if packaged.diff(given.a, given.b, given.data, given.given) is None:
        return 1
    newest = max(paths.runs_root().glob("diff-*/report.html"), key=lambda path: path.stat().st_mtime)
    print(f"{read_record(newest.parent)['reading']}\n\nThe page: {paths.from_here(newest)}")
    return 0


def _notebooks(given: argparse.Namespace) -> str:
    titles = {name: _title(path) for name, path in packaged.notebooks().items()}
    widest = max(map(len, titles))
    return "\n".join(f"{name:{widest}}  {title}" for name, title in titles.items())


def _title(path: Path) -> str:
    text = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
    return text.splitlines()[0].lstrip("# ")


def _copy(given: argparse.Namespace) -> str:
    return f"Copied to {packaged.copied(given.notebook, given.to)}"


def _lab(given: argparse.Namespace) -> int:
    if importlib.util.find_spec("jupyterlab") is None:
        raise NotAvailable("JupyterLab is not installed: pip install 'reptrans[lab]'.")
    target = Path(given.to) / packaged.found(given.notebook).name
    target = target if target.exists() else packaged.copied(given.notebook, given.to)
    return subprocess.run([sys.executable, "-m", "jupyterlab", str(target)]).returncode


def _methods(given: argparse.Namespace) -> str:
    from reptrans.distillation import METHODS

    return "\n".join(METHODS)


def _measures(given: argparse.Namespace) -> str:
    from reptrans.similarity import MEASURES

    ends = {True: "high", False: "low"}
    lines = (
        f"{m.name:26} {ends[m.higher_is_better]} is similar, from {m.range[0]:g} to {m.range[1]:g}"
        for m in MEASURES.values()
    )
    return "\n".join(lines)


def _runs(given: argparse.Namespace) -> str:
    from reptrans.runs import all_runs, remove_runs

    if given.action:
        return "\n".join(remove_runs(given.names)) or "no run is broken"
    return as_text(all_runs())


def _completion(shell: str, commands: dict[str, argparse.ArgumentParser]) -> str:
    words = {name: sorted(command._option_string_actions) for name, command in commands.items()}
    for names, own in ((packaged.notebooks(), ("run", "copy", "lab", "sweep")), (model_names(), ("layers",))):
        words |= {name: [*names, *words[name]] for name in own}
    return completion.script(shell, words | {"runs": ["rm"], "completion": ["bash", "zsh", "fish"]})


def _layers(given: argparse.Namespace) -> str:
    side = given.image_size or (224 if given.network.startswith("torchvision/") else 32)
    net = build(given.network, num_classes=given.classes, in_channels=given.channels, image_size=side)
    # Two images, since some networks refuse a batch of one.
    table = layer_table(net, torch.zeros(2, given.channels, side, side))
    table["cut"] = table["cut"].map({True: "yes", False: ""})
    count = sum(p.numel() for p in net.parameters())
    return f"{as_text(table, digits=3)}\n\n{given.network}: {count:,} parameters; a cut is possible where cut says yes"


if __name__ == "__main__":
    sys.exit(main())
