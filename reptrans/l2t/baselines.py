"""What transfer by learned matching is compared with: parts that need no meta-learning, and the table of methods."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reptrans.errors import BadValue
from reptrans.l2t.matching import Looked, both
from reptrans.l2t.pairs import Pair, resized
from reptrans.matching import Table, attention, l2, softened_kl
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

    `pairs`: (source layer, target layer), both of maps; the source's maps are resized to the target's side. Mean over
    images; between 0 and 2 for each pair. Raises ShapeMismatch, LayerNotFound.
    Source: Zagoruyko and Komodakis 2017, as used by Jang et al. 2019, who average over pixels as well; the weight says
    how much of that is wanted.
    """

    def __init__(
        self, target: nn.Module, source: nn.Module, pairs: list[Pair], example: Tensor, weight: float = 1.0,
        resize: str = "area",
    ):  # fmt: skip
        super().__init__()
        self.pairs, self.weight, self.resize, self.map = list(pairs), weight, resize, attention()
        self.source_layers, self.target_layers = ([pair[side] for pair in self.pairs] for side in (0, 1))
        sources, targets = both(target, source, self.pairs, example)
        for x in (*sources.values(), *targets.values()):
            self.map(x)  # refuses what is no map

    def trained(self) -> list[nn.Parameter]:
        return []

    def forward(self, looked: Looked) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        found = 0.0
        for s, t in self.pairs:
            target = looked.target[t].to(looked.source[s].dtype)
            source = resized(looked.source[s], target.shape[2:], self.resize)
            found = found + l2(self.map(source), self.map(target))
        return {"attention": self.weight * found}, {}


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

    def trained(self) -> list[nn.Parameter]:
        return list(self.parameters())

    def forward(self, looked: Looked) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features = looked.target[self.target_layers[0]].to(self.head.weight.dtype)
        found = self.distance(looked.source_logits.to(features.dtype), self.head(features))
        return {"answers": self.weight * self.temperature**2 * found}, {}


def start_from(target: nn.Module, source: nn.Module, example: Tensor) -> list[str]:
    """Copy the source's weights to the target wherever name and shape agree, but for the heads; the names copied.

    Raises BadValue where no weight fits.
    """
    heads = [_named(net, before_head(net, example)[1]) for net in (target, source)]
    own, theirs = target.state_dict(), source.state_dict()
    fits = [
        name for name, value in own.items()
        if name in theirs and theirs[name].shape == value.shape and name.rpartition(".")[0] not in heads
    ]  # fmt: skip
    if not any(own[name].ndim > 1 for name in fits):
        raise BadValue("no layer of the target has a name and shape of the source's, so none can start from it.")
    target.load_state_dict({name: theirs[name] for name in fits}, strict=False)
    return fits


def before_head(net: nn.Module, example: Tensor) -> tuple[str, nn.Linear]:
    """(the layer whose output the last linear layer gets, that linear layer)."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    checked_network(net)

    def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls.append((module, inputs[0], output))

    hooks = [m.register_forward_hook(keep) for m in net.modules() if not list(m.children())]
    try:
        with evaluating(net), torch.no_grad():
            answers_of(net, example)
    finally:
        for hook in hooks:
            hook.remove()
    last = next(((m, x) for m, x, _ in reversed(calls) if isinstance(m, nn.Linear)), None)
    found = last and next((m for m, _, y in reversed(calls) if y is last[1]), None)
    if not found:
        raise BadValue(
            f"{type(net).__name__} has no linear layer that gets another layer's output, to take for its head."
        )
    return _named(net, found), last[0]


def _named(net: nn.Module, module: nn.Module) -> str:
    return next(name for name, m in net.named_modules() if m is module)
