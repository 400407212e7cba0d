"""What input makes a layer say this? One descent on images serves class images, matched outputs and inverted layers.

`optimise_input(objective, image)`: an objective (`class_logit`, `match`, `weighted`), an image (`Pixels`, `Fourier`),
priors. `metamers` are images that a layer cannot tell apart. `autoencode` asks a ladder of layers how much of an image
they keep.
"""

from reptrans.inputs.fronts import FastFront, as_built, calibrated, fast_front, ladder
from reptrans.inputs.image import Fourier, Pixels, load_pictures, noise, picture_grid
from reptrans.inputs.metamers import differentiate, metamers, stir
from reptrans.inputs.objective import (
    Objective,
    blur,
    class_logit,
    jitter,
    like_source,
    linear,
    match,
    range_penalty,
    total_variation,
    weighted,
)
from reptrans.inputs.optimise import Inversion, invert, optimise_input
from reptrans.inputs.recovery import (
    aligned_mse,
    blurred_to,
    correlation,
    input_errors,
    mse,
    outside,
    psnr,
    ssim,
    triviality,
    uniqueness_spread,
)
from reptrans.moved import moved

__all__ = [
    "FastFront",
    "Fourier",
    "Inversion",
    "Objective",
    "Pixels",
    "aligned_mse",
    "as_built",
    "blur",
    "blurred_to",
    "calibrated",
    "class_logit",
    "correlation",
    "differentiate",
    "fast_front",
    "input_errors",
    "invert",
    "jitter",
    "ladder",
    "like_source",
    "linear",
    "load_pictures",
    "match",
    "metamers",
    "mse",
    "noise",
    "optimise_input",
    "outside",
    "picture_grid",
    "psnr",
    "range_penalty",
    "ssim",
    "stir",
    "total_variation",
    "triviality",
    "uniqueness_spread",
    "weighted",
]


def __getattr__(name: str) -> object:
    return moved(__name__, name)
