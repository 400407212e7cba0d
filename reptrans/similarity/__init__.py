"""How similar two representations of the same examples are, streamed or at once, and two networks' answers.

`MEASURES` lists what there is; each is called with x (n, p) and y (n, q): tensors, NumPy arrays or lists. `Moments` and
`Grams` stream, `compare` runs two networks over the same images and gives all pairs of their layers.

Every measure raises ShapeMismatch for unequal numbers of examples, and BadData for NaN, infinity and fewer than 4
examples; it is NaN where a side does not vary.
"""

from reptrans.similarity.agreement import (
    agreement,
    churn,
    cohen_kappa,
    disagreement,
    ensemble_accuracy,
    error_consistency,
    error_consistency_interval,
    error_consistency_range,
    error_ratio,
    jensen_shannon,
)
from reptrans.similarity.cca import cca_mean, cca_r2, gulp, linear_r2, pwcca, svcca
from reptrans.similarity.cka import debiased_cka, linear_cka, rbf_cka
from reptrans.similarity.compare import calibrate, compare, most_similar
from reptrans.similarity.distances import dissimilarities, distance_correlation, rsa, rsm_frobenius, rsm_spectral
from reptrans.similarity.fold import fold
from reptrans.similarity.grams import Grams, minibatch_cka
from reptrans.similarity.measures import MEASURES, Measure
from reptrans.similarity.moments import Moments, channel_axis, channel_blocks
from reptrans.similarity.neighbours import cknna, knn_jaccard, mutual_knn, rank_similarity, second_order_cosine
from reptrans.similarity.null import Calibrated
from reptrans.similarity.shapes import (
    aligned_cosine,
    eigenspace_overlap,
    hard_correlation_match,
    permutation_angular,
    permutation_euclid,
    procrustes_angular,
    procrustes_size_shape,
    soft_correlation_match,
)
from reptrans.similarity.stored import Features

__all__ = [
    "MEASURES", "Calibrated", "Features", "Grams", "Measure", "Moments", "agreement", "aligned_cosine", "calibrate",
    "cca_mean", "cca_r2", "channel_axis", "channel_blocks", "churn", "cknna", "cohen_kappa", "compare", "debiased_cka",
    "disagreement", "dissimilarities", "distance_correlation", "eigenspace_overlap", "ensemble_accuracy",
    "error_consistency",
    "error_consistency_interval", "error_consistency_range", "error_ratio", "fold", "gulp", "hard_correlation_match",
    "jensen_shannon", "knn_jaccard", "linear_cka", "linear_r2", "minibatch_cka", "most_similar", "mutual_knn",
    "permutation_angular", "permutation_euclid", "procrustes_angular", "procrustes_size_shape", "pwcca",
    "rank_similarity", "rbf_cka", "rsa", "rsm_frobenius", "rsm_spectral", "second_order_cosine",
    "soft_correlation_match", "svcca",
]  # fmt: skip
