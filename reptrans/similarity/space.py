"""The geometry of a network's classes in its outputs, and whether another network has the same.

y_n = O(a_n) is the output for class n's image (a generated one in the study this follows); the matrix of all y_n, one
row for each class, is compared between networks.
"""

import pandas as pd
import torch
from torch import Tensor, nn

from reptrans.errors import BadData, BadValue, ShapeMismatch, choose
from reptrans.randomness import generator_of
from reptrans.similarity import rsa
from reptrans.training import evaluating
from reptrans.training.batches import answers_of, checked_network

NEIGHBOURS = ("logit", "distance")


@torch.no_grad()
def class_outputs(net: nn.Module, images: Tensor) -> Tensor:
    """(k, K) in float64, on the CPU: row n is the output for class n's image; images (k, c, h, w), in class order.

    Images (k, m, c, h, w), m for each class, give the mean of their outputs. Raises ShapeMismatch for images that the
    network does not take or that are not as many as its outputs; BadData for NaN or infinity.
    """
    several = images.ndim == 5
    flat = images.flatten(0, 1) if several else images
    with evaluating(checked_network(net)):
        outputs = answers_of(net, flat).double().cpu()
    if several:
        outputs = outputs.unflatten(0, images.shape[:2]).mean(1)
    if outputs.shape != (len(images), len(images)):
        raise ShapeMismatch(
            f"{len(images)} classes have images, but the network's outputs are {tuple(outputs.shape[1:])}. Give one "
            "entry for each class, in the order of the outputs."
        )
    _check(outputs)
    return outputs


def centred_cosine(x: Tensor, y: Tensor) -> float:
    """⟨X, Y⟩ / (‖X‖ ‖Y‖) of two (k, K) matrices with the mean of every row taken off; in [-1, 1], 1 = similar.

    Invariant to what softmax does not see, a number added to all logits of a row, and to a common scale.
    NaN where all logits of a matrix are equal within its rows.
    """
    _check(x, y)
    x, y = (v.double() - v.double().mean(1, keepdim=True) for v in (x, y))
    return float((x * y).sum() / (x.norm() * y.norm()))


def nearest(outputs: Tensor, k: int = 1, by: str = "logit") -> Tensor:
    """(classes, k): for every class the k nearest others, nearest first; directed, n may be far from its neighbour's.

    "logit": the largest logits of row n other than its own. "distance": the rows nearest to row n in L2.
    Ties go to the lower class number.
    """
    _check(outputs)
    choose(by, NEIGHBOURS, "there are no neighbours by {}")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < len(outputs):
        raise BadValue(f"k is {k!r}; of {len(outputs)} classes, each has 1 to {len(outputs) - 1} neighbours.")
    outputs = outputs.double()
    far = -outputs if by == "logit" else torch.cdist(outputs, outputs, compute_mode="donot_use_mm_for_euclid_dist")
    far = far.clone()
    far.fill_diagonal_(torch.inf)
    return far.argsort(dim=1, stable=True)[:, :k]


def neighbour_agreement(x: Tensor, y: Tensor) -> float:
    """Mean over classes of |N_x(n) ∩ N_y(n)| / k for two tables (classes, k) of `nearest`; in [0, 1], 1 = similar."""
    if x.shape != y.shape:
        raise ShapeMismatch(f"tables of neighbours {tuple(x.shape)} and {tuple(y.shape)} cannot be compared.")
    return float((x[:, :, None] == y[:, None, :]).any(2).double().mean())


def permutation_baseline(x: Tensor, y: Tensor, permutations: int = 1000, seed: int = 0) -> Tensor:
    """(permutations,): `neighbour_agreement` after the classes of y were given each other's names at random.

    Its mean over all permutations is k / (classes - 1), whatever the tables.
    """
    generator, found = generator_of(seed), []
    for _ in range(permutations):
        name = torch.randperm(len(y), generator=generator).to(y.device)
        renamed = torch.empty_like(y)
        renamed[name] = name[y]
        found.append(neighbour_agreement(x, renamed))
    return torch.tensor(found, dtype=torch.float64)


def mutual_share(neighbours: Tensor) -> float:
    """The share of edges n -> m of a table of `nearest` that also run m -> n; in [0, 1]."""
    back = neighbours[neighbours] == torch.arange(len(neighbours), device=neighbours.device)[:, None, None]
    return float(back.any(2).double().mean())


def self_classification(outputs: Tensor) -> float:
    """The share of classes whose image gets its own class, the largest logit of row n being n; in [0, 1]."""
    _check(outputs)
    return float((outputs.argmax(1) == torch.arange(len(outputs), device=outputs.device)).double().mean())


def compare_spaces(
    x: Tensor, y: Tensor, ks: tuple[int, ...] = (1, 5), permutations: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Two networks' class-by-class outputs (k, K) side by side; one row for each quantity.

    Rows: centred_cosine; rsa (correlation distances of rows, Pearson); neighbours_<by>_<k>, with `chance`, the mean
    under permutation, `chance_sd`, and `p`, the share of permutations that agree at least as well (the one observed
    counted in); mutual_<by>_x and _y for k = 1; self_x and self_y. Neighbourhoods larger than the classes allow are
    left out.
    """
    rows = [{"quantity": "centred_cosine", "value": centred_cosine(x, y)},
            {"quantity": "rsa", "value": float(rsa(x, y, compare="pearson"))}]  # fmt: skip
    for by in NEIGHBOURS:
        for k in (k for k in ks if k < len(x)):
            tables = nearest(x, k, by), nearest(y, k, by)
            value, chance = neighbour_agreement(*tables), permutation_baseline(*tables, permutations, seed)
            p = (1 + int((chance >= value - 1e-12).sum())) / (1 + permutations)
            rows.append({"quantity": f"neighbours_{by}_{k}", "value": value, "chance": float(chance.mean()),
                         "chance_sd": float(chance.std()), "p": p})  # fmt: skip
        rows += [{"quantity": f"mutual_{by}_{side}", "value": mutual_share(nearest(v, 1, by))}
                 for side, v in (("x", x), ("y", y))]  # fmt: skip
    rows += [{"quantity": f"self_{side}", "value": self_classification(v)} for side, v in (("x", x), ("y", y))]
    return pd.DataFrame(rows)


def _check(*matrices: Tensor) -> None:
    shapes = {tuple(m.shape) for m in matrices}
    if len(shapes) > 1 or any(m.ndim != 2 or m.shape[0] != m.shape[1] for m in matrices):
        raise ShapeMismatch(f"class-by-class outputs are (k, k), of the same classes; given {sorted(shapes)}.")
    if not all(m.isfinite().all() for m in matrices):
        raise BadData("outputs hold NaN or infinity; look at the network and its images.")
