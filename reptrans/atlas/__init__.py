"""The atlas: every layer of pairs of networks by cheap measures and by what costs a training, and how the two agree.

In a notebook, with its run:

    rows = atlas(p, dataset, run.checkpoint)
    table = rank_correlations(rows, given="depth")
"""

from reptrans.atlas.quantities import atlas
from reptrans.atlas.ranks import partial_correlation, profiles, rank_correlations
from reptrans.atlas.settings import AtlasRun

__all__ = ["AtlasRun", "atlas", "partial_correlation", "profiles", "rank_correlations"]
