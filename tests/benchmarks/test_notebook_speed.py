"""A notebook's start: papermill's own imports, with and without what sweeps leave out; a whole run that does nothing.

Times, of the processor and with one thread, are only printed. Ratios are slow / fast.
"""

import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import nbformat
from benchmarks.measure import in_turns, ratios, spread

from reptrans.sweeps import attached

STITCHING = Path(__file__).resolve().parents[2] / "notebooks" / "stitching.ipynb"


def test_start_of_papermill():
    """Without the grammar of web addresses, as sweeps start it."""

    def start(first: str) -> float:
        code = f"import sys, time; {first}; import papermill.cli; print(time.process_time())"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    ways = {"whole": "pass", "without": "sys.modules['rfc3987_syntax'] = None"}
    times = in_turns(**{name: partial(start, first) for name, first in ways.items()})
    print(f"\nstart of papermill: {spread(times['whole'])} s, in a sweep {spread(times['without'])} s, "
          f"ratio {spread(ratios(times['whole'], times['without']))}")  # fmt: skip


def test_a_run_that_does_nothing(tmp_path):
    """As a sweep starts it, papermill and kernel together: with an empty cell, and with the imports of `stitching`."""
    cells = nbformat.read(STITCHING, 4).cells
    imports = next(cell.source.partition("p = ")[0] for cell in cells if cell.source.startswith("import"))

    def run(source: str) -> float:
        given = nbformat.v4.new_notebook(
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        )
        given.cells = [
            nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(source),
        ]
        nbformat.write(given, tmp_path / "given.ipynb")
        files = [str(tmp_path / "given.ipynb"), str(tmp_path / "made.ipynb")]
        command = [sys.executable, "-P", attached.__file__, *files, "-y", "seed: 1", "--no-progress-bar"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        # Its standard input must stay open: a closed one ends it.
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.wait() == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    times = in_turns(nothing=partial(run, "pass"), imports=partial(run, imports))
    print(f"\na run of an empty cell: {spread(times['nothing'])} s, of imports: {spread(times['imports'])} s")
