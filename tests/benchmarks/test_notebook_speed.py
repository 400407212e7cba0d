"""A notebook's start: papermill's own imports, with and without what sweeps leave out.

Times, of the processor and with one thread, are only printed. Ratios are slow / fast.
"""

import subprocess
import sys
from functools import partial

from benchmarks.measure import in_turns, ratios, spread


def test_start_of_papermill():
    """Without the grammar of web addresses, as sweeps start it."""

    def start(first: str) -> float:
        code = f"import sys, time; {first}; import papermill.cli; print(time.process_time())"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    ways = {"whole": "pass", "without": "sys.modules['rfc3987_syntax'] = None"}
    times = in_turns(**{name: partial(start, first) for name, first in ways.items()})
    print(f"\nstart of papermill: {spread(times['whole'])} s, in a sweep {spread(times['without'])} s, "
          f"ratio {spread(ratios(times['whole'], times['without']))}")  # fmt: skip
