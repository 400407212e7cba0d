"""FD-GAN: features of a person that say who it is and not how she stands (Ge et al., NeurIPS 2018).

For a pair of images (x1, x2), the same person or not, a target pose map p_k and a real image y_k of x_k's person in it:

    y'_k = G(p_k, E(x_k), z)          the fake; z is the same for both,
                                      p and y too for the same person
    L_v  = CE(linear(BN((E(x1) - E(x2))^2)), same)          verification
    L_id = GAN(D_id(x_k, y'_k)),  L_pd = GAN(D_pd(p_k, y'_k))
                                      fool the two discriminators
    L_r  = mean |y'_k - y_k|
    L_sp = mean |y'_1 - y'_2|         over pairs of the same person
    L    = w_v L_v + w_id L_id + w_pd L_pd + w_r L_r + w_sp L_sp    for E and G
    L_D  = (BCE(D(real), 1) + BCE(D(fake), 0)) / 2     for each discriminator

Position: E's code, which G sees with the pose and the noise; E itself sees the image alone.
Source: the paper; authors' code yxgeee/FD-GAN (labels, presets). Terms are means over all elements, as there.
Deviations: none in the formulas; BCE is taken of logits, which does not saturate.
Common errors: L_sp of a batch without a pair of the same person is a mean over nothing, NaN (here 0); the pose given to
the encoder; smoothed labels for the generator too (they are for discriminators); one lr for all parts (see `reid`).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from reptrans.errors import ShapeMismatch

# Its line in the table of all methods, for it is none of a pair of classifiers.
ROW = {
    "entry": "5",
    "method": "fd_gan",
    "teacher transform": "real image, pose",
    "student transform": "generator of the code",
    "position (student)": "images, embedding",
    "distance": "two discriminators, L1, verification",
    "stages": "verification (encoder) → GAN (generator, discriminators) → all (all)",
    "paper": "ge2018",
    "loses": "the pose, on purpose",
}

SWAP = 1 / 10001  # the probability that real and fake change labels, in the authors' code


class Weights(NamedTuple):
    """w_v, w_id, w_pd, w_r, w_sp of the formula; stage II, whose encoder is fixed, has no use for the first."""

    verification: float
    identity: float
    pose: float
    reconstruction: float
    same_pose: float


WEIGHTS = {"paper": Weights(1.0, 0.1, 0.1, 10.0, 1.0), "authors": Weights(10.0, 1.0, 1.0, 100.0, 10.0)}


def verification_loss(logits: Tensor, same: Tensor) -> Tensor:
    """L_v, nats: cross-entropy of logits (n, 2) with `same` (n,), 1 or True for pairs of one person."""
    _fits("logits", logits, "(n, 2) for as many pairs as `same`", (len(same), 2))
    return F.cross_entropy(logits, same.long())


def gan_loss(logits: Tensor, label: float) -> Tensor:
    """Mean binary cross-entropy of logits of any shape with one label for all, in nats; ln 2 at logit 0."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def discriminator_loss(real: Tensor, fake: Tensor, labels: tuple[float, float] = (1.0, 0.0)) -> Tensor:
    """L_D of the logits for real and for fake images: (BCE(real, labels[0]) + BCE(fake, labels[1])) / 2."""
    return (gan_loss(real, labels[0]) + gan_loss(fake, labels[1])) / 2


def discriminator_labels(generator: torch.Generator, smooth: bool = True, swap: float = SWAP) -> tuple[float, float]:
    """Labels (for real, for fake): from U(0.7, 1) and U(0, 0.3), or 1 and 0; changed over with probability `swap`, by
    default the 1 / 10001 of the authors' code."""
    first, second, change = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    labels = (0.7 + 0.3 * first, 0.3 * second) if smooth else (1.0, 0.0)
    return labels[::-1] if change < swap else labels


def reconstruction_loss(fake: Tensor, real: Tensor) -> Tensor:
    """L_r: mean |fake - real| over images (n, c, h, w)."""
    _fits("fake images", fake, "like the real ones", tuple(real.shape))
    return (fake - real).abs().mean()


def same_pose_loss(first: Tensor, second: Tensor, same: Tensor) -> Tensor:
    """L_sp: mean |first - second| over the pairs of images (n, c, h, w) whose `same` (n,) is 1; 0 if there are none."""
    _fits("first images", first, "like the second ones", tuple(second.shape))
    _fits("same", same, "one for each pair", (len(first),))
    apart = (first - second).abs().flatten(1).mean(1)
    # The division by at least 1 gives a pairless batch the value 0 and the gradient 0.
    return (apart * same).sum() / same.sum().clamp(min=1)


def terms(
    weights: Weights, verification: Tensor, identity: Tensor, pose: Tensor, fake: Tensor, real: Tensor, same: Tensor
) -> dict[str, Tensor]:
    """The five weighted terms of L by name, those of weight 0 left out.

    `verification` (n, 2), `identity` and `pose`: logits of E's head and of the discriminators on the fakes; `fake`,
    `real` (2n, c, h, w): the images of first and second branch, one after the other; `same` (n,). Raises ShapeMismatch.
    """
    first, second = fake.chunk(2)
    values = {
        "verification": lambda: verification_loss(verification, same),
        "identity": lambda: gan_loss(identity, 1.0),
        "pose": lambda: gan_loss(pose, 1.0),
        "reconstruction": lambda: reconstruction_loss(fake, real),
        "same_pose": lambda: same_pose_loss(first, second, same),
    }
    return {name: w * values[name]() for name, w in weights._asdict().items() if w}


def _fits(what: str, given: Tensor, wanted: str, shape: tuple[int, ...]) -> None:
    if tuple(given.shape) != shape:
        raise ShapeMismatch(f"{what} are {tuple(given.shape)}; they must be {wanted}: {shape}.")
