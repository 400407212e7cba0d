"""DK2PNet: convolutions with one dominant kernel for each input channel, taught by the teacher's hidden responses.

    K_nc ~ a_nc D_c: a k x k kernel D_c per input channel, then a 1x1 convolution a; k^2 c + n c weights, not k^2 n c
    stage 1: L_KP = sum_l -sum_i P_t ln P_s,  P = softmax(z / tau) over all elements of the map at the end of group l
    stage 2: CE, or with softened logits beside it

The student is the teacher with dominant layers (or the given student with them), each the closest to its convolution:
by the best rank-1 matrix of the kernels (n, k^2) of each input channel. Connector: none where channels agree, else a
1x1 convolution. Stage 1 moves the student up to its last group.
Source: Wang, Deng and Wang 2016, in words; no code is published. The formulas are our reading of "pre-regression with
cross-entropy instead of L2"; tau, shares and positions are ours.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods.kd import kd
from reptrans.errors import BadValue, choose
from reptrans.matching import CrossEntropy, Match, conv1x1, if_needed, soft_cross_entropy


def dk2(
    pair: Pair, *, student_from: str = "teacher", temperature: float = 1.0, share: float = 0.5, with_kd: bool = False
) -> Method:
    """The method; `student_from` says of whose copy the convolutions become dominant layers. Raises UnknownName."""
    choose(student_from, ("teacher", "student"), "there is no student from {}")
    of_teacher = student_from == "teacher"
    taps = [(t, t) for t in pair.of_teacher.groups] if of_teacher else pair.groups
    distance = soft_cross_entropy(temperature)
    matches = [Match(t, s, distance, student_transform=if_needed(conv1x1()), resize=True) for t, s in taps]
    task = kd(pair).stages[0].losses if with_kd else [CrossEntropy()]
    return Method(
        "dk2", [Stage(matches, "reached", share), Stage(task)], entry=16, zero=False,
        prepare=lambda student, teacher: with_dominant(teacher if of_teacher else student),
        paper="wang2016", loses="a constant added to all values",
    )  # fmt: skip


def dominant(conv: nn.Conv2d) -> nn.Sequential:
    """A depthwise convolution D and a 1x1 convolution a, as near to `conv` as they can be; its bias is a's.

    The squared error of all kernels is the sum of the squared singular values left out, from the second on, of the
    matrices (n, k^2) of each input channel. Raises BadValue for a grouped convolution.
    """
    if conv.groups != 1:
        raise BadValue(f"a dominant layer stands for a convolution with one group, but this one has {conv.groups}.")
    c, n = conv.in_channels, conv.out_channels
    place = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    depthwise = nn.utils.skip_init(
        nn.Conv2d, c, c, conv.kernel_size, conv.stride, conv.padding, conv.dilation, groups=c, bias=False,
        padding_mode=conv.padding_mode, **place,
    )  # fmt: skip
    pointwise = nn.utils.skip_init(nn.Conv2d, c, n, 1, bias=conv.bias is not None, **place)
    kernels, mixing = rank_one(conv.weight.detach())
    with torch.no_grad():
        depthwise.weight.copy_(kernels[:, None])
        pointwise.weight.copy_(mixing[:, :, None, None])
        if conv.bias is not None:
            pointwise.bias.copy_(conv.bias)
    return nn.Sequential(depthwise, pointwise)


def rank_one(weight: Tensor) -> tuple[Tensor, Tensor]:
    """D (c, k, k) and a (n, c) with the least sum of (K_nc - a_nc D_c)^2 for kernels K (n, c, k, k).

    Both have the root of the largest singular value, so that neither moves faster than the other.
    """
    n, c, *size = weight.shape
    u, s, v = torch.linalg.svd(weight.transpose(0, 1).flatten(2), full_matrices=False)
    root = s[:, :1].sqrt()
    return (root * v[:, 0]).reshape(c, *size), (root * u[:, :, 0]).mT


def with_dominant(net: nn.Module) -> nn.Module:
    """A copy of `net` that can be trained, its convolutions with kernels above 1x1 and one group as dominant layers.

    Names stay. Layers of a class derived from nn.Conv2d stay as they are. Raises BadValue if nothing is to be done.
    """
    net = deepcopy(net).requires_grad_(True)
    wanted = [m for m in net.modules() if type(m) is nn.Conv2d and m.groups == 1 and max(m.kernel_size) > 1]
    if not wanted:
        raise BadValue(f"{type(net).__name__} has no convolution above 1x1 with one group to be made a dominant layer.")
    made = {conv: dominant(conv) for conv in wanted}
    if net in made:
        return made[net]
    for name, module in list(net.named_modules(remove_duplicate=False)):
        if module in made:
            parent, _, own = name.rpartition(".")
            setattr(net.get_submodule(parent), own, made[module])
    return net
