"""A stitching notebook's processor time: scores in single or double precision, memory kept or given back, the start.

Scores are compared; times, of the processor and with one thread, are only printed. Ratios are slow / fast.
"""

import ctypes
import subprocess
import sys
from functools import partial

import pytest
import torch
from benchmarks.measure import in_turns, ratios, seconds, spread

from reptrans import notebook
from reptrans.data import load_dataset
from reptrans.experiments.stitched import Stitching, StitchingSettings
from reptrans.models import build

LAYER = "bn3"


def stitched(dataset, **settings) -> list[float]:
    """Cross-entropies of all closed forms between two untrained Tiny10 at one layer, scored on the test images."""
    nets = [build("tiny10", **dataset.form, seed=seed) for seed in (0, 1)]
    stitching = Stitching(*nets, [(LAYER, LAYER)], dataset, StitchingSettings(epochs=0, batch_size=50, **settings))
    return stitching.stitch(LAYER, LAYER).rows["cross_entropy"].tolist()


def test_scores_in_single_precision():
    torch.set_num_threads(1)
    dataset = load_dataset("digits", image_size=32, limit=20)
    ways = {"double": partial(stitched, dataset, dtype="float64"), "single": partial(stitched, dataset, dtype="auto")}
    found = {name: way() for name, way in ways.items()}
    assert found["single"] == pytest.approx(found["double"], rel=1e-5)
    times = in_turns(**{name: partial(seconds, way) for name, way in ways.items()})
    print(f"\nten closed forms at {LAYER}, fitted on 200 digits and scored on {len(dataset.test)}: "
          f"double {spread(times['double'])} s, single {spread(times['single'])} s, "
          f"ratio {spread(ratios(times['double'], times['single']))}")  # fmt: skip


def test_convolutions_in_kept_memory():
    torch.set_num_threads(1)
    conv, images = torch.nn.Conv2d(16, 16, 3).double(), torch.randn(100, 16, 32, 32, dtype=torch.float64)

    def convolve(prepare) -> float:
        prepare()
        with torch.no_grad():
            return seconds(lambda: [conv(images) for _ in range(5)])

    usual = {-1: 2**17, -3: 2**25}  # M_TRIM_THRESHOLD, and the most that M_MMAP_THRESHOLD grows to by itself
    ways = {"given back": lambda: [ctypes.CDLL(None).mallopt(*option) for option in usual.items()],
            "kept": notebook._keep_memory}  # fmt: skip
    times = in_turns(**{name: partial(convolve, prepare) for name, prepare in ways.items()})
    print(f"\ndouble convolutions of 100 maps 16x32x32: ratio {spread(ratios(times['given back'], times['kept']))}")


def test_start_of_papermill():
    """Without the grammar of web addresses, as sweeps start it."""

    def start(first: str) -> float:
        code = f"import sys, time; {first}; import papermill.cli; print(time.process_time())"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    ways = {"whole": "pass", "without": "sys.modules['rfc3987_syntax'] = None"}
    times = in_turns(**{name: partial(start, first) for name, first in ways.items()})
    print(f"\nstart of papermill: {spread(times['whole'])} s, in a sweep {spread(times['without'])} s, "
          f"ratio {spread(ratios(times['whole'], times['without']))}")  # fmt: skip
