"""FitNets: the student's middle layer learns to predict the teacher's, then the whole student learns from its logits.

    stage 1: L_HT = 1/2 ||u_h(x) - r(v_g(x); W_r)||^2     (hint layer u_h, guided layer v_g, regressor r)
    stage 2: L_KD = CE + lambda H(P_t, P_s), softened by T = 3, lambda falling in a straight line from 4 to 1

Position: the middle of both networks, after the activation. Connector: a convolution without padding whose kernel takes
the student's side to the teacher's, with the hint's own activation and no batch norm; sides smaller than the hint's are
refused. Stage 1 moves the student up to its guided layer and r, together; stage 2 moves all of it, without r.
Source: Romero et al. 2015, authors' code. Deviations: `like="joint"` is one stage, CE + 100 MSE with a 1x1
convolution, batch norm and ReLU that most codes call FitNets (Tian et al. 2020). H is written as KL, which has the
same gradient. Common errors: pre-training r alone; CE + lambda L_HT in one stage; a regressor that ends in
ReLU before a hint with negative values.
"""

from torch import nn

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods.kd import logits
from reptrans.errors import ShapeMismatch, choose
from reptrans.matching import CrossEntropy, Learned, Match, Seen, conv1x1_bn, half_l2, mean_squares, same_activation


def fitnets(pair: Pair, *, like: str = "paper", share: float = 0.3, temperature: float = 3.0) -> Method:
    """The method; stage 1 adds `share` of the epochs. Raises UnknownName; ShapeMismatch for a student's map that is
    smaller than the hint."""
    choose(like, ("paper", "joint"), "there is no variant {} of fitnets")
    teacher, student = pair.groups[(len(pair.groups) - 1) // 2]
    if like == "joint":
        match = Match(teacher, student, mean_squares, student_transform=conv1x1_bn(), weight=100.0, resize=True)
        return Method("fitnets", [Stage([CrossEntropy(), match])], entry=7, paper="romero2015", loses="nothing")
    hint = Match(teacher, student, half_l2, student_transform=regressor(), name="hint")
    annealed = logits(temperature, lambda progress: (4 - 3 * progress) / temperature**2)
    stages = [Stage([hint], "reached", share), Stage([CrossEntropy(), annealed])]
    return Method("fitnets", stages, entry=7, paper="romero2015", loses="nothing")


def regressor() -> Learned:
    """A convolution without padding, kernel (student's side - teacher's + 1), or a linear layer for vectors, and the
    hint's activation."""

    def make(seen: Seen) -> nn.Module:
        guided, hint = seen.student[0], seen.target
        if guided.ndim == 2:
            return nn.Sequential(nn.Linear(guided.shape[1], hint.shape[1]), same_activation(hint))
        kernel = tuple(a - b + 1 for a, b in zip(guided.shape[2:], hint.shape[2:], strict=True))
        if min(kernel) < 1:
            raise ShapeMismatch(
                f"the student's guided layer gives {tuple(guided.shape[1:])}, smaller than the hint "
                f"{tuple(hint.shape[1:])}, and a regressor without padding cannot enlarge it. Take an earlier student "
                "layer, or like='joint', which resizes."
            )
        return nn.Sequential(nn.Conv2d(guided.shape[1], hint.shape[1], kernel), same_activation(hint))

    return Learned(make, "conv regressor")
