"""The constants of the published scripts, for replication: what they did, and not what does best."""

import torch

from reptrans.errors import UnknownName, suggest
from reptrans.inputs.prior import blur, linear

# steps, step size from and to, blur from and to, and k of the loss (k sum |y - O(a)|, or |200 - O_i(a)| for a class).
_CONSTANTS = {
    "class": (220, (1.5, 1.0), (2.4, 0.8), 1.0),
    "output": (220, (2.5, 1.5), (2.4, 0.4), 0.05),
    "trained layer4": (220, (2.5, 1.5), (2.4, 0.4), 0.0002),
    "untrained layer1": (220, (2.5, 1.5), (2.4, 0.4), 0.01),
    "untrained layer4": (500, (0.1, 0.1), (2.4, 0.4), 0.15),
}


def like_source(what: str) -> tuple[dict, float]:
    """(settings of `optimise_input`, scale k) of one published case: "class", "output", "trained layer4", ...

        settings, k = like_source("untrained layer1")
        optimise_input(match(part, part(image), scale=k), Pixels(noise(1, image.shape[1:])), **settings)

    Plain gradient descent with a step size, and a 3 x 3 blur after each step with a width, that fall along a line; no
    prior. Starts are N(0.7, 1/20) at 299 x 299 pixels, the default of `noise`; images are not normalised.
    A blur after the step is off the loss's minimum, k and the step were set by hand for each layer, and some do not
    converge (on an untrained ResNet50's layer4 the error grows): for work, take the defaults of `optimise_input`.
    Raises UnknownName.
    Source: Badger's scripts (nnetworks, depth-representation; 2021 to 2022), one octave.
    """
    if what not in _CONSTANTS:
        raise UnknownName(f"the source has no case {what!r}. {suggest(what, _CONSTANTS)}")
    steps, step_size, width, k = _CONSTANTS[what]
    settings = {"steps": steps, "optimiser": torch.optim.SGD, "lr": linear(*step_size), "prior": (),
                "projection": blur(linear(*width), kernel=3)}  # fmt: skip
    return settings, k
