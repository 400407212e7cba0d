"""What the columns of the rows are called for readers, on axes and in tables."""

LABELS = {
    "accuracy": "accuracy (fraction)",
    "test_accuracy": "test accuracy (fraction)",
    "train_accuracy": "training accuracy (fraction)",
    "validation_accuracy": "validation accuracy (fraction)",
    "front_accuracy": "accuracy of the front network",
    "end_accuracy": "accuracy of the end network",
    "ensemble_accuracy": "accuracy of the ensemble",
    "relative_accuracy": "share of the end network's accuracy",
    "cross_entropy": "cross-entropy (nats)",
    "test_cross_entropy": "test cross-entropy (nats)",
    "front_layer": "layer of the front",
    "end_layer": "layer of the end",
    "agreement": "same answer as the end network (fraction)",
    "r2": "R²",
    "cka": "CKA",
    "cka_channels": "CKA over channels",
    "linear_cka": "linear CKA",
    "disagreement": "different answers (fraction)",
    "error_consistency": "error consistency",
    "jensen_shannon": "Jensen–Shannon divergence (bits)",
    "p_searched": "p, whole map",
    "rank_correlation": "rank correlation",
    "ap50": "AP50",
    "pose_r2": "pose R²",
    "rank1": "rank-1 accuracy",
    "ssim": "SSIM",
    "relative_error": "relative error",
    "loss_barrier": "loss barrier (nats)",
    "accuracy_barrier": "accuracy barrier",
    "accuracy_ends": "accuracy at the ends",
    "accuracy_halfway": "accuracy half-way",
    "init_seed": "seed of the weights",
    "lin_cka": "linear CKA",
    "exp_var": "explained variance",
    "adaptive_diversity": "adaptive diversity",
}


def label(name: object) -> str:
    """The reader's name of a column, with its unit; where none is given, its own name without underscores."""
    return LABELS.get(str(name), str(name).replace("_", " "))
