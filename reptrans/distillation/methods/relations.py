"""Methods that compare how the images of a batch lie to each other, whatever the features' dimensions are."""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.errors import BadValue, check_whole, choose
from reptrans.matching import CrossEntropy, Match, Transform, above_0, mean_squares, root, same_shape, unit
from reptrans.matching.transforms import without
from reptrans.similarity.cka import squared_distances


def sp(pair: Pair, *, weight: float = 3000.0, everywhere: bool = False) -> Method:
    """Similarity preserving: two images that activate the teacher similarly activate the student similarly.

        L = CE + gamma / b^2 || G_T - G_S ||^2_F,
        G = rows of Q Q^T, each divided by its L2 norm,   Q (b, c h w)

    over the b images of a batch.
    Position: the end of the last group. No connector: G is (b, b) whatever the features' shape. One stage.
    Source: Tung and Mori 2019; gamma = 3000. Deviations: none.
    Common errors: one norm for the whole matrix; unit features in place of unit rows; taking the mean and dividing by
    b^2.

    The method, `weight` being gamma; `everywhere`: at the end of every group.
    """
    groups = pair.groups if everywhere else pair.groups[-1:]
    matches = [Match(t, s, mean_squares, similarities, similarities, weight) for t, s in groups]
    return Method("sp", [Stage([CrossEntropy(), *matches])], scale_free=True)


def similarities(x: Tensor) -> Tensor:
    """G, (b, b) with rows of norm 1, of features (b, ...); 0 for an image whose features are all 0."""
    flat = x.flatten(1)
    return unit(flat @ flat.T)


similarities.label = "unit rows of the batch's Gram"


def rkd(pair: Pair, *, distance: float = 25.0, angle: float = 50.0) -> Method:
    """Relational knowledge distillation: distances and angles between images are the same in both networks.

        L = CE + w_D mean_ij h(psi_T(i, j), psi_S(i, j))
               + w_A mean_ijk h(cos_T(i, j, k), cos_S(i, j, k))
        psi(i, j) = ||f_i - f_j||_2 / mu, mu the batch's mean distance
        cos(i, j, k) of the angle at j between i and k
        h = Huber's loss: x^2 / 2 for a difference |x| <= 1, |x| - 1/2 beyond

    Position: what the classifiers get. No connector: dimensions may differ. One stage.
    Source: Park et al. 2019, authors' code; w_D = 25 and w_A = 50 as in Tian et al. 2020. Deviations: as in the code,
    means are over all b^2 and b^3 tuples, of which those with an image twice have terms of 0; the paper sums over the
    others.
    Common errors: mu of the teacher for both networks; squared distances; a root at 0, whose gradient is not finite.

    The method with weights w_D and w_A; a weight of 0 leaves its term out.
    """
    terms = ((distances, distance, "rkd distances"), (angles, angle, "rkd angles"))
    matches = [Match(*pair.embedding, huber, f, f, weight, name=name) for f, weight, name in terms if weight]
    return Method("rkd", [Stage([CrossEntropy(), *matches])], scale_free=True)


def distances(x: Tensor) -> Tensor:
    """psi, (b, b), of features (b, ...): their mean over distances above 0 is 1; all 0 if all features are the same."""
    lengths = root(_differences(x).square().sum(2))
    apart = lengths > 0
    mean = lengths.sum() / apart.sum().clamp_min(1)
    return lengths / mean.where(apart.any(), 1.0)


def angles(x: Tensor) -> Tensor:
    """cos, (b, b, b) in [-1, 1], of features (b, ...), the vertex first; 0 where two of the three are the same."""
    differences = _differences(x)
    lengths = root(differences.square().sum(2, keepdim=True))
    directions = differences / lengths.where(lengths > 0, 1.0)
    return directions @ directions.mT


def huber(teacher: Tensor, student: Tensor) -> Tensor:
    """h of `rkd`, Huber's loss, of equal shapes; mean over all entries."""
    return F.smooth_l1_loss(student, same_shape(teacher, student))


def _differences(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return flat[None] - flat[:, None]


huber.label, distances.label, angles.label = "Huber", "relative distances", "angles"


def cc(pair: Pair, *, gamma: float = 0.4, order: int = 2, weight: float = 100.0) -> Method:
    """Correlation congruence: the kernel of any two images of a batch is the same in both networks.

        L = CE + beta / b^2 || C_T - C_S ||^2_F,
        C_ij = sum_{p=0..P} exp(-2 gamma) (2 gamma)^p / p! (f_i . f_j)^p

    with unit features f: the Taylor polynomial of exp(-gamma ||f_i - f_j||^2).
    Position: what the classifiers get. No connector: dimensions may differ. One stage.
    Source: Peng et al. 2019; gamma = 0.4, P = 2. Deviations: batches are drawn evenly, where they take the same number
    of images from each of a few classes; their logit term is left out; `weight` is ours.
    Common errors: under the paper's name the code that the authors gave to Tian et al. 2020, which has no kernel at all
    but the mean over neighbouring images of |d_i| . |d_{i+1}|, d_i = s_i - t_i, 0 if every other image agrees; features
    that are not unit vectors; exp(-2 gamma) left out.

    The method, `weight` being beta. Raises BadValue.
    """
    kernel = correlations(gamma, order)
    match = Match(*pair.embedding, mean_squares, kernel, kernel, weight)
    return Method("cc", [Stage([CrossEntropy(), match])], scale_free=True)


def correlations(gamma: float = 0.4, order: int = 2) -> Transform:
    """Features (b, ...) -> C (b, b) with gamma > 0 and P = `order` from 1. Raises BadValue."""
    if not gamma > 0 or type(order) is not int or order < 1:
        raise BadValue(f"gamma is {gamma!r} and order {order!r}; gamma is above 0, order a whole number from 1.")

    def transform(x: Tensor) -> Tensor:
        cosines = unit(x) @ unit(x).T
        return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1))

    transform.label = f"Gaussian kernel, order {order}"
    return transform


WEIGHTS = {"paper": 1.0, "authors": 30000.0}
_LEAST = 1e-7


def pkt(
    pair: Pair, *, kernel: str = "cosine", sigma: float | None = None, like: str = "paper",
    weight: float | None = None, task: str = "after", share: float = 0.5,
) -> Method:  # fmt: skip
    """Probabilistic knowledge transfer: who is near whom in the batch is the same for the student as for the teacher.

        p_i|j = K(t_i, t_j) / sum_{k != j} K(t_k, t_j),
        q likewise of the student's features s
        L = sum_j sum_{i != j} p_i|j ln(p_i|j / q_i|j)
            (a sum over the batch, 0 for two images)
        K(a, b) = (cos(a, b) + 1) / 2 ("cosine"),
                  exp(-||a - b||^2 / sigma) ("gaussian")

    Position: what the classifiers get. No connector: dimensions may differ.
    Stages: the transfer alone, over all that comes before the classifier, then the task; or no task, or both
    at once.
    Source: Passalis and Tefas 2018. `like="authors"` is their code, which others took over: each image is also its own
    neighbour, the sum is divided by n^2, and 1e-7 is added inside the logarithm; the weight is Tian et al.'s (2020),
    30000.
    Deviations: K is at least 1e-7, for that of opposite features is 0; sigma, if not given, is the mean squared
    distance in the batch, of each network by itself; the authors' supervised kernel (weight 0.001) is left out.
    Common errors: self-pairs, of which two images show it (their code gives more than 0); a denominator over the wrong
    argument; cos / 2 + 1.

    The method; `task` "after" trains all on the labels, after `share` of the epochs more for the match; "joint" adds
    cross-entropy to the only stage; with "none", the paper's, the classifier stays as it was.

    Raises UnknownName for `kernel`, `like`, `task`; BadValue for sigma.
    """
    usual = choose(like, WEIGHTS, "there is no variant {} of pkt")
    transform = neighbours(kernel, sigma, itself=like == "authors")
    distance = divergence if like == "paper" else mean_divergence
    match = Match(*pair.embedding, distance, transform, transform, usual if weight is None else weight)
    stages = {
        "none": [Stage([match], "reached")],
        "after": [Stage([match], "reached", share), Stage([CrossEntropy()])],
        "joint": [Stage([CrossEntropy(), match])],
    }
    stages = choose(task, stages, "pkt has no task {}")
    return Method("pkt", stages, scale_free=kernel == "cosine" or sigma is None)


def neighbours(kernel: str = "cosine", sigma: float | None = None, *, itself: bool = False) -> Transform:
    """Features (n, ...) -> ln p (n, n - 1): row j holds all i != j; with `itself` (n, n), i = j among them.

    `sigma` > 0 of the Gaussian kernel, in squared units of the features. Raises UnknownName, BadValue.
    """
    kernels = {"cosine": _cosine, "gaussian": partial(_gaussian, sigma=sigma)}
    log_kernel = choose(kernel, kernels, "there is no kernel {}")
    if sigma is not None:
        above_0(", or None for the batch's own width", sigma=sigma)

    def transform(x: Tensor) -> Tensor:
        logs = log_kernel(x)
        return F.log_softmax(logs if itself else without(logs, torch.arange(len(x), device=x.device)), 1)

    transform.label = f"{kernel} neighbours"
    return transform


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """sum_ij p ln(p / q) of ln p and ln q, summed over the batch too; at least 0."""
    logs = same_shape(teacher, student)
    return (logs.exp() * (logs - student)).sum()


def mean_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """The mean over pairs of p ln((p + 1e-7) / (q + 1e-7)), of ln p and ln q."""
    p, q = same_shape(teacher, student).exp(), student.exp()
    return (p * ((p + _LEAST) / (q + _LEAST)).log()).mean()


def _cosine(x: Tensor) -> Tensor:
    directions = unit(x)
    return ((directions @ directions.T + 1) / 2).clamp_min(_LEAST).log()


def _gaussian(x: Tensor, sigma: float | None) -> Tensor:
    squares = squared_distances(x.flatten(1))
    if sigma is None:
        sigma = squares.sum() / max(1, len(x) * (len(x) - 1))
        # Where all features are the same there is no width to speak of.
        sigma = torch.where(sigma > 0, sigma, 1.0)
    return -squares / sigma


divergence.label, mean_divergence.label = "KL", "mean KL with self-pairs"


def lp(pair: Pair, *, neighbours: int = 5, sigma: float | None = None, weight: float = 0.3) -> Method:
    """Locality preserving: images that are near each other for the teacher are drawn together in the student.

        L = CE + gamma L_LP,   L_LP = 1/m sum_ij a_ij ||s_i - s_j||^2_2,
        a_ij = exp(-||t_i - t_j||^2 / sigma^2)
               if j is one of the k nearest of i in the teacher's space, else 0

    over the m images of a batch; a is not symmetric. The same is 2/m tr(S^T D S), D the graph Laplacian of (a + a^T) /
    2.
    Position: what the classifiers get. No connector: dimensions may differ. One stage.
    Source: Chen et al. 2021, as publicly described. Deviations: the scale is 1/m (others write 1/2, or 1/(k m)); k = 5
    and gamma = 1.5 / k are those of a re-implementation, whose sigma = sqrt(2) fits features of one scale only: by
    default sigma^2 is here the mean squared distance of the batch's neighbours in the teacher. A student that maps
    everything to one point has L_LP = 0, so it is never used without the task.
    Common errors: exp(+d^2), with which the farthest weighs most; neighbours in the student's space; numbers taken out
    of the graph (`.item()`), so that no gradient flows.

    The method, `weight` being gamma. Raises BadValue; batches need more images than there are neighbours.
    """
    match = Match(*pair.embedding, weighted_mean, neighbour_weights(neighbours, sigma), pair_distances, weight)
    return Method("lp", [Stage([CrossEntropy(), match])], zero=False)


def neighbour_weights(neighbours: int = 5, sigma: float | None = None) -> Transform:
    """Features (m, ...) -> a (m, m), row i with as many entries above 0 as `neighbours`, each at most 1.

    `sigma` > 0 in the features' units, None for the batch's own. Raises BadValue.
    """
    check_whole("neighbours", neighbours, 1)
    if sigma is not None:
        above_0(", or None for the batch's own width", sigma=sigma)

    def transform(x: Tensor) -> Tensor:
        if len(x) <= neighbours:
            raise BadValue(
                f"{neighbours} neighbours need batches of at least {neighbours + 1} images, but there are {len(x)}. "
                "Take larger batches or fewer neighbours."
            )
        itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
        squares = squared_distances(x.flatten(1)).masked_fill(itself, torch.inf)
        nearest, where = squares.topk(neighbours, dim=1, largest=False)
        width = nearest.mean() if sigma is None else torch.as_tensor(sigma**2).to(nearest)
        weights = torch.exp(-nearest / torch.where(width > 0, width, 1.0))
        return torch.zeros_like(squares).scatter(1, where, weights)

    transform.label = f"weights of {neighbours} neighbours"
    return transform


def pair_distances(x: Tensor) -> Tensor:
    """||x_i - x_j||^2_2 of all pairs of a batch, (m, ...) -> (m, m)."""
    return squared_distances(x.flatten(1))


def weighted_mean(teacher: Tensor, student: Tensor) -> Tensor:
    """1/m sum_ij of the teacher's weights (m, m) times the student's squared distances (m, m)."""
    return (same_shape(teacher, student) * student).sum() / len(student)


pair_distances.label, weighted_mean.label = "pair distances", "inner product / m"
