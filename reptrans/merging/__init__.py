"""Make one network of two: train one to do what the other does, or align their weights and average them.

`match_models` works between any networks with the same images; `aligned`, `interpolated`, `reestimated` and task
vectors between networks of one architecture; `compare_spaces` between any with the same classes.
"""

from reptrans.attribution import map_correlation, saliency_maps
from reptrans.merging.align import ALIGNMENTS, aligned
from reptrans.merging.experiment import MergingRun, barriers, match_pairs, merge_pairs, train_networks
from reptrans.merging.interpolate import barrier, interpolated, path_rows
from reptrans.merging.match import FAIR, SOURCE, Matching, match_models
from reptrans.merging.repair import reestimated, rescaled
from reptrans.merging.space import class_outputs, compare_spaces, nearest
from reptrans.merging.task_vectors import task_vector, with_task_vectors
from reptrans.merging.units import Units, permuted, unit_groups

__all__ = [
    "ALIGNMENTS",
    "FAIR",
    "SOURCE",
    "Matching",
    "MergingRun",
    "Units",
    "aligned",
    "barrier",
    "barriers",
    "class_outputs",
    "compare_spaces",
    "interpolated",
    "map_correlation",
    "match_models",
    "match_pairs",
    "merge_pairs",
    "nearest",
    "path_rows",
    "permuted",
    "reestimated",
    "rescaled",
    "saliency_maps",
    "task_vector",
    "train_networks",
    "unit_groups",
    "with_task_vectors",
]
