"""What transfer by learned matching is compared with, parts that need no meta-learning; and what results look at."""

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reptrans.attribution import saliency_maps
from reptrans.errors import BadValue, Table
from reptrans.l2t.matching import Looked, Pair, both
from reptrans.matching import Match, attention, l2, softened_kl
from reptrans.randomness import drawing
from reptrans.training import evaluating
from reptrans.training.batches import answers_of, checked_network


@dataclass(frozen=True)
class Method:
    """One way to use a source: what stands for the pairs, and which parts of the whole are switched on.

    `pairs`: "", "single", "one_to_one" or "all". `matching`: by regressors. `what`, `where`: f and g are learned.
    `attention`: of attention maps. `answers`: the source's answers are kept (LwF). `starts`: the target starts from the
    source's weights.
    """

    pairs: str = ""
    matching: bool = False
    what: bool = False
    where: bool = False
    attention: bool = False
    answers: bool = False
    starts: bool = False

    @property
    def weighted(self) -> bool:
        """Whether a term stands beside the task's, so that there is a strength to choose."""
        return self.matching or self.attention or self.answers

    @property
    def fixed(self) -> bool:
        """Whether pairs are given, not all of them, and their weights too."""
        return self.pairs in ("single", "one_to_one") and not (self.what or self.where)


#: Every way to use a source, by name, as a `Method`: scratch (none), fine_tuning, lwf (answers), at (attention maps),
#: lwf_at, fm_single, fm and fm_all (features, with equal weights), l2t_w_single, l2t_w and l2t_ww (learned weights).
METHODS = Table(
    "method of transfer",
    {
        "scratch": Method(),
        "fine_tuning": Method(starts=True),
        "lwf": Method(answers=True),
        "at": Method("one_to_one", attention=True),
        "lwf_at": Method("one_to_one", attention=True, answers=True),
        "fm_single": Method("single", matching=True),
        "fm": Method("one_to_one", matching=True),
        "fm_all": Method("all", matching=True),
        "l2t_w_single": Method("single", matching=True, what=True),
        "l2t_w": Method("one_to_one", matching=True, what=True),
        "l2t_ww": Method("all", matching=True, what=True, where=True),
    },
)


class AttentionTransfer(nn.Module):
    """Term "attention": weight * sum over pairs of ||Q_S - Q_T||², Q = n(sum_c A_c²) the unit attention map.

    `pairs`: (source layer, target layer), both of maps; the larger ones are averaged down to the smaller side. Mean
    over images; between 0 and 2 for each pair. Raises ShapeMismatch, LayerNotFound.
    Source: Zagoruyko and Komodakis 2017, as used by Jang et al. 2019, who average over pixels as well; the weight says
    how much of that is wanted.
    """

    def __init__(self, target: nn.Module, source: nn.Module, pairs: list[Pair], example: Tensor, weight: float = 1.0):
        super().__init__()
        self.weight, self.map = weight, attention()
        self.matches = [Match(s, t, l2, self.map, self.map, resize=True) for s, t in pairs]
        self.source_layers, self.target_layers = ([pair[side] for pair in pairs] for side in (0, 1))
        sources, targets = both(target, source, pairs, example)
        self._distance(sources, targets)  # refuses what is no map

    def forward(self, looked: Looked) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {"attention": self.weight * self._distance(looked.source, looked.target)}, {}

    def _distance(self, source: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
        return sum(l2(*(self.map(x) for (x,) in match.values(source, target))) for match in self.matches)


class Answers(nn.Module):
    """Term "answers": weight * T² KL(softmax(source logits / T) || softmax(h / T)), h a second linear head's logits.

    The head stands on what the target's own last linear layer gets, and is dropped after training.
    Raises BadValue where that is no layer's output.
    Source: Li and Hoiem 2016 (Learning without Forgetting), T = 2. Deviation: it does not start from the source.
    """

    def __init__(
        self, target: nn.Module, source: nn.Module, example: Tensor, weight: float = 1.0, temperature: float = 2.0,
        seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        layer, head = before_head(target, example)
        with evaluating(source), torch.no_grad():
            classes = answers_of(source, example).shape[1]
        with drawing(seed):
            self.head = nn.Linear(head.in_features, classes).to(head.weight.device, head.weight.dtype)
        self.weight, self.temperature, self.distance = weight, temperature, softened_kl(temperature)
        self.source_layers, self.target_layers = [], [layer]

    def forward(self, looked: Looked) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features = looked.target[self.target_layers[0]].to(self.head.weight.dtype)
        found = self.distance(looked.source_logits.to(features.dtype), self.head(features))
        return {"answers": self.weight * self.temperature**2 * found}, {}


def start_from(target: nn.Module, source: nn.Module, example: Tensor) -> list[str]:
    """Copy the source's weights to the target wherever name and shape agree, but for the heads; the names copied.

    Raises BadValue where no weight fits.
    """
    heads = [before_head(net, example)[1] for net in (target, source)]
    apart = {name for net in (target, source) for name, module in net.named_modules() if module in heads}
    own, theirs = target.state_dict(), source.state_dict()
    shared = [name for name, value in own.items() if name in theirs and theirs[name].shape == value.shape]
    fits = [name for name in shared if name.rpartition(".")[0] not in apart]
    if not any(own[name].ndim > 1 for name in fits):
        raise BadValue("no layer of the target has a name and shape of the source's, so none can start from it.")
    target.load_state_dict({name: theirs[name] for name in fits}, strict=False)
    return fits


def before_head(net: nn.Module, example: Tensor) -> tuple[str, nn.Linear]:
    """(the layer whose output the last linear layer gets, that linear layer)."""
    made, heads = [], []

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            heads[:] = [(name, module) for name, value in made if value is inputs[0]]
        made.append((names[module], output))

    names = {module: name for name, module in checked_network(net).named_modules() if not list(module.children())}
    with ExitStack() as hooks, evaluating(net), torch.no_grad():
        for module in names:
            hooks.callback(module.register_forward_hook(keep).remove)
        answers_of(net, example)
    if not heads:
        raise BadValue(
            f"{type(net).__name__} has no linear layer that gets another layer's output, to take for its head."
        )
    return heads[-1]


def saliency(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """`saliency_maps` (n, h, w) of the labels (n,), each image's adding up to 1; zeros where no pixel matters."""
    found = saliency_maps(net, images, labels)
    return found / found.sum((1, 2), keepdim=True).clamp_min(1e-12)


def on_bright(net: nn.Module, images: Tensor, labels: Tensor, raw: Tensor) -> Tensor:
    """The share (n,) of each image's saliency on pixels whose largest channel in `raw` (n, c, h, w) beats its mean."""
    found = saliency(net, images, labels)
    bright = raw.to(found.device, torch.float64).amax(1)
    return (found * (bright > bright.mean((1, 2), keepdim=True))).sum((1, 2))


def evenness(weights: Tensor) -> Tensor:
    """exp(entropy) / C of each row of shares (n, C): 1 where all channels weigh the same, 1 / C for a single one."""
    return torch.special.entr(weights).sum(1).exp() / weights.shape[1]
