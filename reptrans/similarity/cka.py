"""Linear centred kernel alignment of two representations held in memory."""

from torch import Tensor

from reptrans.errors import ShapeMismatch


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA of x (n, p) and y (n, q): rows are the same n examples.

        CKA = ‖Xᵀ Y‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F),   X, Y with column means removed

    Range [0, 1], 1 = alike. Invariant to rotation and to a common scale of the features; symmetric; differentiable.
    This is the biased estimate: with many features and few examples it is high even for unrelated noise.
    Computed by features or by examples, whichever is smaller, in the precision given.
    Raises ShapeMismatch for unequal numbers of examples.
    Source: Kornblith et al. 2019, equation 8 with the linear kernel.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeMismatch(
            f"linear_cka needs (n, p) and (n, q) with the same n examples; given {tuple(x.shape)} and "
            f"{tuple(y.shape)}. Fold maps first, with flatten(1) say."
        )
    x, y = x - x.mean(0), y - y.mean(0)
    if len(x) <= max(x.shape[1], y.shape[1]):
        k, l = x @ x.T, y @ y.T  # noqa: E741  K and L are the field's names
        return (k * l).sum() / (k.norm() * l.norm())
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
