"""Methods that compare the values of layers, place by place."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reptrans.distillation.method import Method, Pair, Stage
from reptrans.distillation.methods.answers import kd, logits
from reptrans.errors import BadValue, ShapeMismatch, choose
from reptrans.layers.network import copy_of
from reptrans.layers.trace import trace
from reptrans.matching import (
    CrossEntropy,
    Distance,
    Learned,
    Match,
    Seen,
    above_0,
    conv1x1,
    conv1x1_bn,
    half_l2,
    if_needed,
    mean_squares,
    per_image,
    same_activation,
    same_shape,
    soft_cross_entropy,
)


def fitnets(pair: Pair, *, like: str = "paper", share: float = 0.3, temperature: float = 3.0) -> Method:
    """FitNets: the student's middle layer learns to predict the teacher's, then all of it learns from the logits.

        stage 1: L_HT = 1/2 ||u_h(x) - r(v_g(x); W_r)||^2
                 (hint layer u_h, guided layer v_g, regressor r)
        stage 2: L_KD = CE + lambda H(P_t, P_s), softened by T = 3,
                 lambda falling in a straight line from 4 to 1

    Position: the middle of both networks, after the activation. Connector: a convolution without padding whose kernel
    takes the student's side to the teacher's, with the hint's own activation and no batch norm; sides smaller than the
    hint's are refused. Stage 1 moves the student up to its guided layer and r, together; stage 2 moves all of it,
    without r.
    Source: Romero et al. 2015, authors' code. Deviations: `like="joint"` is one stage, CE + 100 MSE with a 1x1
    convolution, batch norm and ReLU that most codes call FitNets (Tian et al. 2020). H is written as KL, which has the
    same gradient. Common errors: pre-training r alone; CE + lambda L_HT in one stage; a regressor that ends in
    ReLU before a hint with negative values.

    The method; stage 1 adds `share` of the epochs. Raises UnknownName; ShapeMismatch for a student's map that is
    smaller than the hint.
    """
    choose(like, ("paper", "joint"), "there is no variant {} of fitnets")
    teacher, student = pair.groups[(len(pair.groups) - 1) // 2]
    if like == "joint":
        match = Match(teacher, student, mean_squares, student_transform=conv1x1_bn(), weight=100.0, resize=True)
        return Method("fitnets", [Stage([CrossEntropy(), match])])
    hint = Match(teacher, student, half_l2, student_transform=regressor(), name="hint")
    annealed = logits(temperature, lambda progress: (4 - 3 * progress) / temperature**2)
    stages = [Stage([hint], "reached", share), Stage([CrossEntropy(), annealed])]
    return Method("fitnets", stages)


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


def sskd(pair: Pair, *, share: float = 0.5, head_plan: Mapping[str, object] | None = None) -> Method:
    """Stage by stage: every group of the student learns the teacher's map by itself, on top of those that are done.

        stage k = 1..K: L_k = || f_t^k - r_k(f_s^k) ||^2_2 over group k alone
        stage K + 1:    CE over the head alone

    Position: the end of every group. Connector r_k: none where channels agree, else a 1x1 convolution, left behind.
    What earlier stages moved is frozen, batch norm's statistics included. No loss has a weight, for none stands beside
    another.
    Source: Gao et al. 2018. No code is published; the connector is our reading, `head_plan` ours. Deviations: L_k is
    averaged over elements, so that one learning rate suits all groups; sides are averaged to the smaller.
    Common errors: ||f_t^2 - f_s^2||, the square in the wrong place; freezing by gradients alone, while batch norm in
    train mode goes on moving its statistics; no loss for the head.

    The method; the stages before the last have together `share` of the epochs more, in equal parts.

    `head_plan`: what the last stage sets otherwise than the plan, None for a high learning rate, {"lr": 0.5}, as one
    layer is fitted on fixed features. Greedy regression wants students that are not much narrower than the teacher.
    """
    each = share / len(pair.groups)
    stages = [
        Stage([Match(t, s, mean_squares, student_transform=if_needed(conv1x1()), resize=True)], "new", each)
        for t, s in pair.groups
    ]
    return Method("sskd", [*stages, Stage([CrossEntropy()], "new", plan=head_plan or {"lr": 0.5})])


def ab(
    pair: Pair, *, margin: float = 1.0, scale: float = 3e-3, share: float = 0.3, mode: str = "batch", then: str = "kd",
    temperature: float = 3.0,
) -> Method:  # fmt: skip
    """Activation boundaries: first the student's neurons become active where the teacher's are, then comes the task.

        stage 1: L_AB = sum_l 2^(l-L) || rho(t_l) o sigma(mu - r(s_l))
                                         + (1 - rho(t_l)) o sigma(mu + r(s_l)) ||^2_2
        stage 2: T^2 KL(softmax(z_t / T) || softmax(z_s / T)) alone, T = 3

    rho(t) = 1 where t > 0, else 0; sigma is the ReLU, mu = 1 the margin.
    Position: before the ReLU that ends each group. Connector r: none where channels agree, else 1x1 convolution and
    batch norm. Stage 1 moves the student up to its last group and r; the teacher normalises by the batch's statistics.
    Stage 2 moves all of the student. Source: Heo et al. 2019, authors' code, whose factor 3/1000 of stage 1 is `scale`.
    Deviations: the factor T^2, which the authors leave out; `share`; sides are averaged to the smaller.
    Common errors: the sign of the gradient, -dL/ds = 2 (mu - s) where t > 0 and s < mu, -2 (mu + s) where t <= 0 and
    s > -mu, else 0; a dot product for the elementwise o; t = 0 taken as active.

    The method; stage 1 adds `share` of the epochs, `mode` is the teacher's in it, and `then` ("kd" or "task")
    what stage 2 minimises: Tian et al. 2020 take mode="eval", then="task". Raises BadValue, UnknownName.
    """
    matches = [
        Match(t, s, boundary(margin), active, if_needed(conv1x1_bn()), scale / 2**k, resize=True)
        for k, (t, s) in enumerate(reversed(pair.before))
    ]
    seconds = {"kd": logits(temperature), "task": CrossEntropy()}
    second = choose(then, seconds, "there is no second stage {} of ab")
    first = Stage(matches[::-1], "reached", share, teacher=mode)
    return Method("ab", [first, Stage([second])], zero=False)


def boundary(margin: float = 1.0) -> Distance:
    """L_AB of one layer, summed inside an image, mean over images; from 0 on. Of the teacher, only t > 0 matters.

    0 where s >= margin at active and s <= -margin at other places. Raises BadValue for a margin that is not above 0.
    """
    above_0(margin=margin)

    def distance(teacher: Tensor, student: Tensor) -> Tensor:
        short = margin - torch.where(same_shape(teacher, student) > 0, student, -student)
        return per_image(short.relu().square())

    distance.label = f"squared hinge, margin {margin:g}"
    return distance


def active(x: Tensor) -> Tensor:
    """rho: 1 where x > 0, else 0, also at 0."""
    return (x > 0).to(x.dtype)


active.label = "sign"


def ofd(pair: Pair, *, alpha: float = 1e-3, mode: str = "batch") -> Method:
    """Overhaul of feature distillation: values before ReLU, where it matters not how far negative the teacher's are.

        L = CE + alpha sum_l 2^(l-L) d_p(sigma_m(t_l), r_l(s_l)),
        sigma_m(t) = max(t, m_c),  m_c = E[t_c | t_c < 0] < 0
        d_p(T, S) = sum_i 0 if S_i <= T_i <= 0, else (T_i - S_i)^2

    After a batch norm with scale gamma and shift beta, t_c ~ N(beta, gamma^2), and the margin has a closed form.
    Position: before the ReLU that ends each group; in pre-activation networks the next batch norm. Connector r: 1x1
    convolution and batch norm. One stage; the teacher normalises by the batch's statistics, which the authors measured
    to be better. Source: Heo et al. 2019, authors' code. Deviations: where the tap is no batch norm's output, as after
    a sum, the margin is the mean of the negative values over all training images, where the authors take the last batch
    norm's; the teacher's running statistics stay as they are; sides are averaged to the smaller.
    Common errors: T - S without the square; the rule turned round (what is skipped is S <= T <= 0, on the *transformed*
    values); one margin for all channels; a mean over all values, not of the negative ones.

    The method; `alpha` is that for CIFAR-100 (ImageNet: 1e-4), `mode` the teacher's, "batch" or "eval".
    """
    matches = [
        Match(t, s, partial_l2, margin_relu(pair.teacher, t), conv1x1_bn(), alpha / 2**k, resize=True)
        for k, (t, s) in enumerate(reversed(pair.before))
    ]
    return Method("ofd", [Stage([CrossEntropy(), *reversed(matches)], teacher=mode)])


def partial_l2(teacher: Tensor, student: Tensor) -> Tensor:
    """d_p of `ofd`, summed inside an image, mean over images; from 0 on; equal shapes (n, ...). Raises
    ShapeMismatch."""
    target = same_shape(teacher, student)
    skipped = (student <= target) & (target <= 0)
    return per_image((target - student).square().masked_fill(skipped, 0.0))


partial_l2.label = "partial squared L2"


def margin_relu(net: nn.Module, tap: str) -> Learned:
    """sigma_m for the values at `tap` of `net`, with a margin for each channel.

    In closed form, label "margin ReLU", if the tap is the output of a batch norm; else, and in a network that cannot be
    traced, estimated from the training images, "margin ReLU (from data)".
    """
    norm = norm_at(net, tap)
    if norm is None:
        return Learned(_from_data, "margin ReLU (from data)")
    return Learned(lambda seen: MarginReLU(_margin_after(norm, seen.teacher[0])), "margin ReLU")


class MarginReLU(nn.Module):
    """max(x, m_c), with the margins (c,) as a buffer; (n, c, ...) -> (n, c, ...)."""

    def __init__(self, margin: Tensor):
        super().__init__()
        self.register_buffer("margin", margin)

    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, self.margin.view(-1, *[1] * (x.ndim - 2)))


def normal_margin(scale: Tensor, shift: Tensor) -> Tensor:
    """E[t | t < 0] of t ~ N(shift, scale^2): shift - a phi(z) / Phi(-z), a = |scale|, z = shift / a; (c,) each.

    -3 a where values below 0 have a probability of at most 0.001; shift, but not above 0, where a = 0.
    """
    a = scale.abs()
    z = shift / a.clamp_min(torch.finfo(a.dtype).tiny)
    below = torch.special.ndtr(-z)
    rare = below <= 0.001
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return torch.where(rare, -3 * a, shift - a * density / below.where(~rare, 1.0))


def margin_of(values: Iterable[Tensor]) -> Tensor:
    """The mean (c,) of the negative values of each channel over batches (n, c, ...); 0 for a channel without any."""
    sums = counts = 0.0
    for x in values:
        x = x.transpose(0, 1).flatten(1)
        sums, counts = sums + x.clamp(max=0).sum(1), counts + (x < 0).sum(1)
    return sums / counts.clamp(min=1)


def norm_at(net: nn.Module, tap: str) -> nn.Module | None:
    """The batch norm whose output is the value at `tap`; None if it is another's, or `net` cannot be traced."""
    try:
        traced = trace(net)
    except Exception:  # foreign code: any failure means that there is no graph to look at
        return None
    name = tap.removesuffix(":in")
    node = traced.nodes.get(name)
    if node is not None and tap.endswith(":in"):
        node = node.args[0] if node.op == "call_module" and node.target == name else None
    found = net.get_submodule(node.target) if node is not None and node.op == "call_module" else None
    return found if isinstance(found, _BatchNorm) else None


def _margin_after(norm: nn.Module, like: Tensor) -> Tensor:
    one = like.new_ones(norm.num_features)
    scale, shift = (one, 0 * one) if norm.weight is None else (norm.weight.detach(), norm.bias.detach())
    return normal_margin(scale, shift)


def _from_data(seen: Seen) -> MarginReLU:
    return MarginReLU(margin_of(values for (values,) in seen.teacher_values()))


def dk2(
    pair: Pair, *, student_from: str = "teacher", temperature: float = 1.0, share: float = 0.5, with_kd: bool = False
) -> Method:
    """DK2PNet: convolutions with one dominant kernel for each input channel, taught by the teacher's hidden responses.

        K_nc ~ a_nc D_c: a k x k kernel D_c per input channel, then a
                 1x1 convolution a; k^2 c + n c weights, not k^2 n c
        stage 1: L_KP = sum_l -sum_i P_t ln P_s,  P = softmax(z / tau)
                 over all elements of the map that ends group l
        stage 2: CE, or with softened logits beside it

    The student is the teacher with dominant layers (or the given student with them), each the closest to its
    convolution: by the best rank-1 matrix of the kernels (n, k^2) of each input channel. Connector: none where channels
    agree, else a 1x1 convolution. Stage 1 moves the student up to its last group.
    Source: Wang, Deng and Wang 2016, in words; no code is published. The formulas are our reading of "pre-regression
    with cross-entropy instead of L2"; tau, shares and positions are ours.

    The method; `student_from` says of whose copy the convolutions become dominant layers. Raises UnknownName.
    """
    choose(student_from, ("teacher", "student"), "there is no student from {}")
    of_teacher = student_from == "teacher"
    taps = [(t, t) for t in pair.of_teacher.groups] if of_teacher else pair.groups
    distance = soft_cross_entropy(temperature)
    matches = [Match(t, s, distance, student_transform=if_needed(conv1x1()), resize=True) for t, s in taps]
    task = kd(pair).stages[0].losses if with_kd else [CrossEntropy()]
    return Method(
        "dk2", [Stage(matches, "reached", share), Stage(task)], zero=False,
        prepare=lambda student, teacher: with_dominant(teacher if of_teacher else student),
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
    net = copy_of(net).requires_grad_(True)
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
