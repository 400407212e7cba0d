"""Sweeps: one notebook with many parameters, on one machine or a cluster.

    sweep("notebooks/stitching.ipynb", {"layer": ["bn1", "bn3"], "seeds": [1, 2]}).rows

`points` says which runs there are; `sweep` does each as a process of its own, here or on a cluster, and gathers what
they leave.
"""

from reptrans.sweeps.points import points
from reptrans.sweeps.sweep import Swept, sweep

__all__ = ["Swept", "points", "sweep"]
