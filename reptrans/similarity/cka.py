"""Centred kernel alignment of two representations, biased and debiased, linear and Gaussian."""

import torch
from torch import Tensor

from reptrans.similarity.pair import Pair, both_exchanged, of_moments, of_rows, products, u_centred


@of_moments(dtype=None, several=True)
def linear_cka(pair: Pair) -> Tensor:
    """Linear CKA of x (n, p) and y (n, q): rows are the same n examples.

        CKA = ‖Xᵀ Y‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F),   X, Y with column means removed

    Range [0, 1], 1 = similar. Invariant to rotation and to a common scale of the features; symmetric; differentiable.
    This is the biased estimate: with many features and few examples it is high even for unrelated noise, n examples of
    d independent features each giving d / (n + d) on average. Computed in the precision given, for use as a loss.
    Raises ShapeMismatch, BadData; NaN for constant features.
    Source: Kornblith et al. 2019, equation 8 with the linear kernel.
    """
    return _ratio(*pair.alignment(debiased=False))


@of_moments(dtype=None, several=True)
def debiased_cka(pair: Pair) -> Tensor:
    """Linear CKA with U-centred Grams, whose products estimate HSIC without bias.

    Range [-1, 1], 1 = similar; near 0 for unrelated noise, below 0 as often as above. Minimising it as a loss drives it
    below 0: use its square. Precision and errors as for `linear_cka`.
    Source: Nguyen et al. 2021, equation 3, with all examples as one batch; U-centring of Székely and Rizzo 2014.
    """
    return _ratio(*pair.alignment(debiased=True))


def _kernel(x: Tensor, bandwidth: float, debiased: bool) -> Tensor:
    """(n, n), centred or U-centred."""
    squared = squared_distances(x)
    middle = [squared.flatten().kthvalue((len(x) ** 2 + more) // 2).values for more in (1, 2)]
    k = torch.exp(-squared / (bandwidth**2 * sum(middle)))
    return u_centred(k) if debiased else k - k.mean(0) - k.mean(1, keepdim=True) + k.mean()


@of_rows(prepare=_kernel, matrices=5, exchanged=both_exchanged)
def rbf_cka(x: Tensor, y: Tensor, bandwidth: float = 1.0, debiased: bool = False) -> Tensor:
    """CKA with Gaussian kernels exp(-d² / (2 t² median d²)), t = `bandwidth`, the median over all n² squared distances.

    Range [0, 1], debiased [-1, 1]; 1 = similar. A wide kernel (t = 100) gives linear CKA. Memory n².
    Source: Kornblith et al. 2019, section 3, and their code for the median.
    """
    return _ratio(*products(x, y))


def squared_distances(x: Tensor) -> Tensor:
    """(n, n) squared Euclidean distances between the rows of x; exactly 0 with themselves."""
    x = x - x.mean(0)
    norms = x.square().sum(1)
    squared = (norms[:, None] + norms - 2 * (x @ x.T)).clamp_min(0)
    return squared - torch.diag(squared.diagonal())


def _ratio(kl: Tensor, kk: Tensor, ll: Tensor) -> Tensor:
    return kl / (kk.sqrt() * ll.sqrt())
