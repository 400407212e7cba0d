"""Make one network of two: train one to do what the other does, or align their weights and average them.

`match_models` works between any networks with the same images; `aligned`, `interpolated`, `reestimated` and task
vectors between networks of one architecture; `compare_spaces` between any with the same classes.
"""

from reptrans.attribution import map_correlation, saliency_maps
from reptrans.merging.align import ALIGNMENTS, aligned
from reptrans.merging.fitting import FAIR, SOURCE, Matching, match_models
from reptrans.merging.interpolate import barrier, interpolated, path_rows, task_vector, with_task_vectors
from reptrans.merging.repair import reestimated, rescaled
from reptrans.merging.units import Units, permuted, unit_groups
from reptrans.moved import moved

__all__ = [
    "ALIGNMENTS",
    "FAIR",
    "SOURCE",
    "Matching",
    "Units",
    "aligned",
    "barrier",
    "interpolated",
    "map_correlation",
    "match_models",
    "path_rows",
    "permuted",
    "reestimated",
    "rescaled",
    "saliency_maps",
    "task_vector",
    "unit_groups",
    "with_task_vectors",
]


def __getattr__(name: str) -> object:
    return moved(__name__, name)
